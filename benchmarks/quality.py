"""`make quality`: KID against minutes of training, ours and others', with the same images and the same cores.

    python -m benchmarks.quality [--minutes 2,5,10,30] [--only 'quality ours'] [PRESET ...] [key=value ...]
    python -m benchmarks.quality --page         writes the part of docs/performance.md anew, measures nothing

Each side trains once. At every mark its clock stops, samples are drawn and scored, and training goes on. A rate that
falls reaches zero at the last mark: the images until then are planned by a trial of some seconds. So a curve is named
after its last mark, and `--only 'quality ours' --minutes 5` adds what five minutes give that were planned as such.

Every point is kept as soon as it is there, in benchmarks/results/quality/<machine>-<data>.json.
"""

import argparse
import fnmatch
import os
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import page
from benchmarks.race import short, stamp, synchronise
from benchmarks.sides import Diffusers, How, Lucidrains, Ours, Side
from benchmarks.task import RESULTS, Task, slug
from pofx.base import files, machine, provenance
from pofx.base.errors import UserError
from stages import ROOT, run

BEGIN = "<!-- written by `python -m benchmarks.quality` -->"
KEPT = RESULTS / "quality"
TRIAL = 10.0  # seconds that a plan rests on
MARKS, N = (2.0, 5.0, 10.0, 30.0), 1000
Build = Callable[[int], Side]  # from the images of a plan
Kept = dict[str, Any]


def sides(task: Task, how: How) -> dict[str, Build]:
    """Everyone by name."""
    suffix = ", bf16" if how.half else ""
    return {
        "quality ours": partial(Ours, task),
        f"quality diffusers{suffix}": partial(Diffusers, task, how),
        f"quality denoising-diffusion-pytorch{suffix}": partial(Lucidrains, task, how),
    }


def train_for(side: Side, seconds: float) -> float:
    """Seconds that it took: to the end of the step in which they were over, or of the plan."""
    synchronise()
    began = time.monotonic()
    side.go(lambda: time.monotonic() - began >= seconds)
    synchronise()
    return time.monotonic() - began


def planned(build: Build, seconds: float) -> int:
    """Images that a side gets through in `seconds`, by a trial. Its first part, which is slower, does not count."""
    side, trial = build(10**9), min(TRIAL, seconds / 10)
    train_for(side, trial / 4)
    before = side.seen
    took = train_for(side, trial)
    return int((side.seen - before) * seconds / took)


def curve(build: Build, marks: list[float], n: int, task: Task, keep: Callable[[Kept], None]) -> None:
    """Train one side and `keep` its record after every mark (minutes)."""
    load = os.getloadavg()[0]
    side, spent, points = build(planned(build, 60 * marks[-1])), 0.0, []
    for mark in marks:
        spent += train_for(side, 60 * mark - spent)
        scores = task.score(task.features(side.draw(n)))
        point = {"mark": mark, "minutes": short(spent / 60), "images": side.seen}
        points.append(point | {key: short(value) for key, value in scores.items()})
        note = {
            "what": side.note,
            "words": task.words,
            "parameters": side.parameters,
            "dtype": side.dtype,
            "planned": side.plan,
        }
        keep(note | {"points": points} | stamp(load))
        if side.done:  # sooner than the trial let expect
            break


def measure(task: Task, chosen: dict[str, Build], marks: list[float], n: int, path: Path) -> None:
    """Keep the curves of all sides in `path`, beside those that it has."""

    def keep(name: str, record: Kept) -> None:
        kept = page.read(path) | {"machine": machine.name(task.device), "torch": torch.__version__, "data": task.data}
        kept |= {"n": n, "reference": f"{len(task.reference.train):,} training images"}
        kept |= {"extractor": task.reference.net.name, "key": task.reference.net.keys[1]}
        kept["rows"] = kept["rows"] | {name: record | {"revision": provenance.revision(ROOT)[0][:9]}}
        files.write_json(path, kept)
        point = record["points"][-1]
        print(f"{name}: {point['minutes']:g} min, {point['images']:,} images: KID {point['kid']:g}", flush=True)

    for name, build in chosen.items():
        print(f"\n--- {name}", file=sys.stderr, flush=True)
        try:
            curve(build, marks, n, task, partial(keep, f"{name}, {marks[-1]:g} min"))
        except UserError as error:
            print(f"{name}: not measured: {error}", flush=True)


def known_marks(kept: Kept) -> list[float]:
    """Minutes at which there is a point of some side, rising."""
    return sorted({point["mark"] for row in kept["rows"].values() for point in row["points"]})


def table(kept: Kept) -> str:
    """Curves as Markdown: KID at every mark, and when ours is ahead of the last point of each other."""
    marks = known_marks(kept)
    head = f"### {kept['data']}, {kept['machine']}, torch {kept['torch']}"
    lines = [head, "", f"KID (`{kept['key']}`) of {kept['n']:,} samples to {kept['reference']}.", ""]
    lines += [f"| | {' | '.join(f'{mark:g} min' for mark in marks)} | images | parameters | dtype | date, load |"]
    lines += ["|---" * (len(marks) + 5) + "|"]
    for name, row in kept["rows"].items():
        found = {point["mark"]: point["kid"] for point in row["points"]}
        cells = [f"{found[mark]:.3f}" if mark in found else "" for mark in marks]
        cells += [f"{row['points'][-1]['images']:,}", f"{row['parameters']:,}", row["dtype"]]
        lines += [f"| `{name}` | {' | '.join(cells)} | {row['date']}, {row['load'][0]:g} |"]
    lines += ["", *(f"- {line}" for line in overtakings(kept["rows"]))]
    lines += [f"- `{name}`: {row['what']}." for name, row in kept["rows"].items()]
    return "\n".join(textwrap.fill(line, 120, subsequent_indent="  ") if line[:1] == "-" else line for line in lines)


def overtakings(rows: dict[str, Kept]) -> list[str]:
    """For every other's last point the fewest measured minutes in which ours is as good."""
    own = [point for name, row in rows.items() if name.startswith("quality ours") for point in row["points"]]
    lines = []
    for name, row in rows.items():
        last = row["points"][-1]
        if not name.startswith("quality ours"):
            ahead = [point["minutes"] for point in own if point["kid"] <= last["kid"]]
            done = f"ours has it after {min(ahead):g} minutes" if ahead else "ours has not reached it"
            lines.append(f"`{name}` ends at KID {last['kid']:.3f}: {done}.")
    return lines


def chart(kept: Kept, path: Path) -> None:
    """KID against minutes, both on logarithmic axes."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
    for name, row in kept["rows"].items():
        x, y = ([point[key] for point in row["points"]] for key in ("minutes", "kid"))
        axes.plot(x, y, "o-", label=name.removeprefix("quality "))
    axes.set(xlabel="minutes of training", ylabel=f"KID ({kept['key']}), N = {kept['n']:,}", xscale="log")
    axes.set_yscale("log", nonpositive="mask")
    axes.set_xticks(marks := known_marks(kept), [f"{mark:g}" for mark in marks])
    axes.set_xticks([], minor=True)
    for each in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        each("{x:g}")
    axes.set_title(f"{kept['data']}, {kept['machine']}", fontsize="small")
    axes.legend(frameon=False, fontsize="small")
    with files.atomic(path) as file:
        figure.savefig(file, format="png", dpi=110)
    plt.close(figure)


def block(folder: Path) -> str:
    """The part of docs/performance.md: all machines and data sets."""
    found = []
    for path in sorted(folder.glob("*.json")):
        picture = f"![KID against minutes of training](../benchmarks/results/quality/{path.stem}.png)"
        found.append(f"{table(page.read(path))}\n\n{picture}")
    return "\n\n".join(found) or "Not measured yet."


def write() -> None:
    """Charts and page from what is kept."""
    for path in KEPT.glob("*.json"):
        chart(page.read(path), path.with_suffix(".png"))
    page.put(page.PAGE, BEGIN, block(KEPT))


def main(words: list[str], only: list[str], marks: list[float], n: int, how: How) -> None:
    if not marks or marks[0] <= 0 or marks != sorted(set(marks)):
        raise UserError(f"--minutes {marks} should be rising numbers above 0, such as 2,5,10,30")
    with tempfile.TemporaryDirectory() as scratch:
        task = Task(words, Path(scratch))
        known = sides(task, how)
        chosen = {k: v for k, v in known.items() if not only or any(fnmatch.fnmatch(k, word) for word in only)}
        if not chosen:
            raise UserError(f"no row is called {' or '.join(only)}: they are {', '.join(known)}")
        path = KEPT / f"{slug(f'{machine.name(task.device)} {task.data}')}.json"
        measure(task, chosen, marks, n, path)
    write()


def numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="PRESET", help="as for tools.compose: data set, scale, key=value")
    parser.add_argument("--minutes", type=numbers, default=list(MARKS), help="of training, at which samples are scored")
    parser.add_argument(
        "--only", action="append", default=[], metavar="PATTERN", help="a row's name or a pattern; again"
    )
    parser.add_argument("--n", type=int, default=N, help="samples that are scored")
    parser.add_argument("--evaluations", type=int, default=50, help="of others' networks, for a sample")
    parser.add_argument("--bf16", action="store_true", help="train others in bf16, which is not their default")
    parser.add_argument("--page", action="store_true", help="write docs/performance.md anew from what was measured")
    given = parser.parse_args()
    if given.page:
        run(write)
    else:
        run(main, given.words, given.only, given.minutes, given.n, How(given.evaluations, given.bf16))
