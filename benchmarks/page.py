"""The records of benchmarks as tables: on the terminal, and in docs/performance.md between two markers."""

import re
import textwrap
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from pofx.base import files
from pofx.base.errors import UserError
from stages import ROOT

matplotlib.use("Agg")
BEGIN, END = "<!-- written by `python -m benchmarks.run` -->", "<!-- end -->"
PAGE = ROOT / "docs/performance.md"


def read(path: Path) -> dict[str, Any]:
    """The records of a machine; none, if there is no such file."""
    return files.read_json(path) if path.is_file() else {"rows": {}}


def line(name: str, record: dict[str, Any]) -> str:
    """A record in a few words."""
    if "seconds" in record:
        return f"{name}: {record['seconds']:g} s (processor {record['cpu seconds']:g} s), target {record['target']:g} s"
    if "share" in record:
        at = f"{record['gflops']:g} of {record['convolution_gflops']:g} GFLOP/s, {record['rate']:g} images/s"
        return f"{name}: {record['share']:.0%} of the machine's convolutions ({at}), target {record['target']:.0%}"
    if "curves" in record:
        return "\n".join(f"{name}: {axis} {straight(points)}" for axis, points in record["curves"].items())
    lines = [f"{name}: ours {record['ours']['rate']:g} {record['unit']}"]
    for other, row in record["others"].items():
        spread = f" ({row['min']:g}-{row['max']:g})" if "min" in row else ""
        cpu = f", by processor time {row['cpu ratio']:g}" if "cpu ratio" in row else ""
        aim = f", target {row['target']:g}" if row["target"] else ""
        lines.append(f"  against {other} ({row['rate']:g}): {row['ratio']:g}{spread}{cpu}{aim}")
    return "\n".join(lines + [f"  {other}: {why}" for other, why in record["absent"].items()])


def straight(points: dict[str, float]) -> str:
    """How far seconds lie from the line through their first and last point."""
    x, y = np.array(list(map(float, points))), np.array(list(points.values()))
    want = y[0] + (y[-1] - y[0]) * (x - x[0]) / (x[-1] - x[0])
    worst = float(np.abs(y / want - 1).max())
    return f"{x[0]:g} to {x[-1]:g}: {y[0]:.3g} to {y[-1]:.3g} s, at most {worst:.0%} off a straight line"


def plot(record: dict[str, Any], path: Path) -> None:
    """Seconds against each size, with the line through nothing and the last point."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(record["curves"]), figsize=(9, 2.6), layout="constrained")
    for axis, (name, points) in zip(axes, record["curves"].items(), strict=True):
        x, y = np.array(list(map(float, points))), np.array(list(points.values()))
        if name != "batch":
            axis.plot([0, x[-1]], [0, y[-1]], color="0.8", label="in proportion")
            axis.legend(frameon=False)
        axis.plot(x, y, "o-", color="C0")
        axis.set(xlabel=name, ylabel="seconds", xlim=(0, None), ylim=(0, 1.08 * y.max()))
    with files.atomic(path) as file:
        figure.savefig(file, format="png", dpi=90)
    plt.close(figure)


def tables(kept: dict[str, Any], picture: str | None) -> str:
    """What one machine measured, as Markdown."""
    rows, clock, lines, shares = [], [], [], []
    for name, record in kept["rows"].items():
        when = f"{record['date']}, {record['load'][0]:g}"
        if "seconds" in record:
            clock.append(
                f"| {record['what']} | {record['seconds']:g} ({record['fastest']:g}) | {record['cpu seconds']:g} "
                f"| {record['target']:g} | {when} |"
            )
            if (part := record.get("of which import torch")) is not None:
                clock.append(f"| of which `import torch` | {part:g} | | | |")
        elif "share" in record:
            shares.append(
                f"| {record['what']} | {record['rate']:g} | {record['gflop']:g} | {record['gflops']:g} "
                f"| {record['convolution_gflops']:g} | **{record['share']:.0%}** | {record['target']:.0%} | {when} |"
            )
        elif "curves" in record:
            lines.append(textwrap.fill(f"Cost of {record['what']}:", 120))
            lines += [f"- {axis}, {straight(points)}" for axis, points in record["curves"].items()]
        else:
            rows += _race(name, record, when)
    head = [f"### {kept['machine']}, torch {kept['torch']}", ""]
    if rows:
        head += [
            "| benchmark | ours | against | theirs | ratio | by processor time | target | share of the ceiling "
            "| parameters | date, load |",
            "|---|---|---|---|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    if shares:
        head += [
            "| | images/s | GFLOP an image | GFLOP/s | of 3x3 convolutions | share | target | date, load |",
            "|---|---|---|---|---|---|---|---|",
            *shares,
            "",
        ]
    if clock:
        head += ["| | seconds (fastest) | processor's seconds | target | date, load |", "|---|---|---|---|---|", *clock]
        head += [""]
    head += [lines[0], "", *lines[1:], ""] if lines else []
    head += [f"![seconds of drawing against images, evaluations and batch]({picture})", ""] if picture else []
    listed = [
        textwrap.fill(f"- `{name}`: {record['what']}{_notes(record)}", 120, subsequent_indent="  ")
        for name, record in kept["rows"].items()
        if "ours" in record
    ]
    return "\n".join([*head, *listed])


def _race(name: str, record: dict[str, Any], when: str) -> list[str]:
    found, ours = [], record["ours"]
    for other, row in record["others"].items():
        spread = f" ({row['min']:g} to {row['max']:g})" if "min" in row else ""
        share = f"{ours['ceiling']:.0%}, {row['ceiling']:.0%}" if "ceiling" in row else ""
        size = f"{ours['parameters']:,}, {row['parameters']:,}" if "parameters" in row else ""
        aim = f"{row['target']:g}" if row["target"] else ""
        cpu = f"{row['cpu ratio']:.3g}" if "cpu ratio" in row else ""
        found.append(
            f"| `{name}` | {ours['rate']:g} {record['unit']} | {other} | {row['rate']:g} "
            f"| **{row['ratio']:.3g}**{spread} "
            f"| {cpu} | {aim} | {share} | {size} | {when} |"
        )
    return found + [
        f"| `{name}` | | {other} | | not measured: {why} | | | | | |" for other, why in record["absent"].items()
    ]


def _notes(record: dict[str, Any]) -> str:
    notes = [f"{other}: {row['note']}" for other, row in record["others"].items() if row.get("note")]
    rate = f"; ceiling {record['matmul_gflops']:g} GFLOP/s" if "matmul_gflops" in record else ""
    return rate + "".join(f"; {note}" for note in notes)


def block(results: Path) -> str:
    """The tables of all machines."""
    found = []
    for path in sorted(results.glob("*.json")):
        picture = path.with_name(f"{path.stem}-cost.png")
        found.append(tables(read(path), f"../benchmarks/results/{picture.name}" if picture.is_file() else None))
    return "\n\n".join(found)


def write(path: Path, results: Path) -> None:
    """Put the tables of all machines into the page."""
    put(path, BEGIN, block(results))


def put(path: Path, begin: str, text: str) -> None:
    """Put `text` into the page, between the marker `begin` and the end after it.

    Raises:
        UserError: the page has no markers.
    """
    page = path.read_text()
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(END)}", re.DOTALL)
    if not pattern.search(page):
        raise UserError(f"{path.name} has no markers: put {begin} and {END} where the tables belong")
    fresh = f"{begin}\n\n{text}\n\n{END}"
    with files.atomic(path) as file:
        file.write(pattern.sub(lambda _: fresh, page).encode())
    print(f"written: {path.name}")
