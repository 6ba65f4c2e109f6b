"""Kept runs (results/<name>/), and docs/results.html: all of them in one table and one chart.

Called by `python -m tools.results`. No library is embedded, unlike in the report: the page is small, and in git.
"""

import math
import re
from functools import cached_property
from itertools import cycle
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup
from matplotlib.lines import Line2D
from ruamel.yaml import YAML

from pofx.base import files
from pofx.report import charts, metrics, page, plots, tables
from pofx.report.metrics import FLOOR
from pofx.report.text import BLANK, text

TEXTS = ("data", "scale", "row", "reference", "machine")
NUMBERS = ("bpd", "train_seconds", "train_images_per_second")
SCALES = r"(?:^|scale=|\s)(laptop|gpu|paper|hour|night)\b"


class Run:
    """One kept run.

    Attributes:
        card: when, where and from which code it comes, the command that wrote its parameters, and the keys that were
            dropped since, with the reason.
        files: its metrics files, as pofx.report.metrics.load reads them.
        models: the families compared. The other parameters are not checked: an old run may name what is gone.
    """

    def __init__(self, folder: Path):
        self.name, tree = folder.name, files.read_json(folder / "run.json")
        self.card, self.files, self.curves = tree["card"], tree["metrics"], tree["curves"]
        self.models = models((folder / "params.yaml").read_text())
        self.pictures = {path.stem for path in folder.glob("*.png")}

    @cached_property
    def metrics(self) -> metrics.Metrics:
        return metrics.read(self.models, self.files)

    @cached_property
    def board(self) -> pd.DataFrame:
        return tables.leaderboard(self.models, self.metrics)

    @property
    def data(self) -> dict[str, Any]:
        return self.files["data"]

    @property
    def energies(self) -> dict[str, Any]:
        return self.files.get("energy", {})

    @property
    def scale(self) -> str:
        named = re.search(SCALES, self.card["made"])
        return named[1] if named else "unknown"

    def further(self) -> dict[str, list[tables.Cells]]:
        """Tables beside the leaderboard: heading -> cells, none where nothing was measured."""
        order = [row for row in self.board.index if row in metrics.rows(self.models, self.metrics)]
        return {
            "Beyond the distance": tables.beyond(order, self.metrics),
            "Codes and reconstructions": tables.codes(order, self.metrics),
            "Energy": tables.scores(self.energies),
        }


def models(parameters: str) -> tuple[str, ...]:
    """The families that a run compared, from the text of its params.yaml."""
    return tuple(YAML(typ="safe").load(parameters)["models"])


def rows(run: Run) -> list[dict[str, Any]]:
    """What one kept run measured: a dictionary for its floor and each row, numbers as numbers and, under `shown`, as
    they are to be read."""
    got, values = run.metrics, metrics.table(run.models, run.metrics)
    owners, (fd, kid, _) = metrics.rows(run.models, got), metrics.distance_keys(got)
    out = []
    for row in run.board.index.intersection(["floor", *owners]):
        protocol, family = got["protocol"][row], owners.get(row, "")
        numbers = {"distance": fd, "kid": kid} | {key: key for key in NUMBERS}
        out.append(
            {
                **{"run": run.name, "data": run.data["name"], "scale": run.scale, "n": protocol["n"]},
                **{"row": FLOOR if row == "floor" else row, "family": family},
                "reference": f"{protocol['reference']} ({fd})",
                **{name: values.loc[row].get(key, math.nan) for name, key in numbers.items()},
                "device": got["device"].get(family, BLANK),
                "shown": run.board.loc[row].rename({fd: "distance", kid: "kid"}).to_dict(),
            }
        )
    return out


def cells(row: dict[str, Any]) -> tables.Cells:
    """A row of the table."""
    shown = row["shown"]
    plain = {key: (row[key], row[key]) for key in ("run", "data", "scale", "row")}
    return plain | {
        "N": (f"{row['n']:,}", row["n"]),
        "reference": (row["reference"], row["reference"]),
        "Frechet distance": (shown["distance"], row["distance"]),
        "KID": (shown["kid"], row["kid"]),
        "bits/dim": (shown["bits/dim"], row["bpd"]),
        "training": (shown["training"], row["train_seconds"]),
        "images/s": (shown["training img/s"], row["train_images_per_second"]),
        "machine": (row["device"], row["device"]),
    }


def html(kept: list[Run]) -> str:
    """The page for these runs."""
    listed = sorted((row for run in kept for row in rows(run)), key=lambda row: (*_comparable(row), row["distance"]))
    listed = _floors_once(listed)
    frame = pd.DataFrame([{k: v for k, v in row.items() if k != "shown"} for row in listed])
    # A family has the colour that it has in the report: by place in `models`, of the run with the most of them.
    compared = sorted((run.models for run in kept), key=len, reverse=True)
    tints = {f: charts.colour(i) for i, f in enumerate(dict.fromkeys(f for names in compared for f in names))}
    drawn = Markup(chart(frame, tints)) if listed else ""
    content = {"chart": drawn, "rows": [cells(row) for row in listed], "texts": TEXTS, "runs": kept}
    return page.template("results.html.j2", Path(__file__).parent).render(content | page.parts())


def chart(frame: pd.DataFrame, tints: dict[str, str]) -> str:
    """Frechet distance against seconds of training, as SVG: a panel for what may be compared, a colour a family, a sign
    a run, hollow for further rows of a family; dashed: the least floor."""
    signs = dict(zip(dict.fromkeys(frame.loc[frame["row"] != FLOOR, "run"]), cycle(plots.MARKERS), strict=False))
    panels = {}
    for (data, n, reference), group in frame.groupby(["data", "n", "reference"]):
        points = group[group["row"] != FLOOR].dropna(subset="train_seconds")
        lines = [
            charts.Line(
                p.row, tints[p.family], [p.train_seconds], [p.distance], mode="markers",
                symbol=signs[p.run] + ("" if p.row == p.family else "-open"),
            )
            for p in points.itertuples()
        ]  # fmt: skip
        floor = group.loc[group["row"] == FLOOR, "distance"].min()
        panels[f"{data}, N = {n:,}\n{reference}"] = charts.Panel(
            charts.SECONDS, "Frechet distance", lines, ("floor", floor), log_x=True, scale="from zero"
        )
    figure = plots.draw(panels, "none")
    dots = {f: Line2D([], [], color=tint, marker="o", linestyle="") for f, tint in tints.items()}
    plain = {"color": charts.INK, "linestyle": ""}
    plots.legend(
        figure, dots | {run: Line2D([], [], marker=plots.MARKERS[sign], **plain) for run, sign in signs.items()}
    )
    return plots.svg(figure)


def _comparable(row: dict[str, Any]) -> tuple[str, int, str]:
    """Distances of rows that agree in these may be compared."""
    return row["data"], row["n"], row["reference"]


def _floors_once(listed: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same without the floors that several runs share but once, as that of any run."""
    seen, out = set(), []
    for row in listed:
        key = (*_comparable(row), text(row["distance"]))  # machines differ in the last digits
        if row["row"] != FLOOR:
            out.append(row)
        elif key not in seen:
            out.append(row | {"run": "any"})
            seen.add(key)
    return out
