"""Kept runs (results/<name>/), and the two documents that list them.

docs/results.html embeds no library, unlike the report: it is small, and in git.
"""

import math
import re
from functools import cached_property
from itertools import cycle, groupby
from pathlib import Path

from markupsafe import Markup
from matplotlib.lines import Line2D
from ruamel.yaml import YAML

from pofx.base import files
from pofx.report import charts, metrics, page, plots, tables
from pofx.report.text import clock

TEXTS = ("data", "scale", "row", "reference", "machine")
COMPARABLE = ("data", "N", "reference")  # distances of rows that agree in these may be compared
COLUMNS = (*metrics.FACES, "bits/dim", "training", "s per 1,000 samples", "NFE")  # of Markdown, after the distances
PICTURES = {  # of a run, as far as it has them: file -> what it shows
    "strips": "test images and samples, best distance first",
    "samples": "test images and samples",
    "pictures": "reconstructions and inpainting",
    "cost": "distance against cost",
    "nfe": "KID against network evaluations",
    "chain": "distance against Langevin steps",
}
SCALES = r"(?:scale=|\s)(laptop|gpu|paper|hour|night)\b"


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
        self.metrics = metrics.read(self.models, self.files)
        self.energies = self.files.get("energy", {})

    @cached_property
    def board(self) -> list[tables.Cells]:
        return tables.board(self.models, self.metrics)

    @property
    def scale(self) -> str:
        named = re.search(SCALES, self.card["made"])
        return named[1] if named else "unknown"

    def markdown(self) -> str:
        columns = ("model", *metrics.distance_keys(self.metrics)[:2], *COLUMNS)
        return tables.markdown([{column: row[column] for column in columns if column in row} for row in self.board])

    def further(self) -> dict[str, list[tables.Cells]]:
        """Tables beside the leaderboard: heading -> cells, none where nothing was measured."""
        owners = metrics.rows(self.models, self.metrics)
        order = [row["model"][1] for row in self.board if row["model"][1] in owners]
        return {
            "Beyond the distance": tables.beyond(order, self.metrics),
            "Codes and reconstructions": tables.codes(order, self.metrics),
            "Energy": tables.scores(self.energies),
        }


def models(parameters: str) -> tuple[str, ...]:
    """The families that a run compared, from its params.yaml."""
    return tuple(YAML(typ="safe").load(parameters)["models"])


def rows(run: Run) -> list[tables.Cells]:
    """The floor and each row of one kept run."""
    owners, (fd, kid, _) = metrics.rows(run.models, run.metrics), metrics.distance_keys(run.metrics)
    columns = {"Frechet distance": fd, "KID": kid, "bits/dim": "bits/dim", "training": "training"}
    columns |= {"images/s": "training img/s", "machine": "trained on"}
    out = []
    for row in run.board:
        name = row["model"][1]
        if name == "floor" or name in owners:
            protocol = run.metrics["protocol"][name]
            reference = f"{protocol['reference']} ({fd})"
            kept = run.name if name in owners else "any"
            words = {"run": kept, "data": run.files["data"]["name"], "scale": run.scale}
            cells = {key: (word, word) for key, word in words.items()} | {"row": row["model"]}
            cells |= {"N": (f"{protocol['n']:,}", protocol["n"]), "reference": (reference, reference)}
            out.append(cells | {heading: row[column] for heading, column in columns.items()})
    return out


def markdown(kept: list[Run]) -> str:
    """docs/results.md for these runs."""
    dropped = {key: reason for run in kept for key, reason in run.card["dropped"].items()}
    template = page.template("results.md.j2", Path(__file__).parent)
    faces = any(metrics.FACES[0] in run.metrics for run in kept)
    return template.render(runs=kept, dropped=dropped, faces=faces, pictures=PICTURES, clock=clock)


def html(kept: list[Run]) -> str:
    """docs/results.html for these runs."""
    listed = [row for run in kept for row in rows(run)]
    listed.sort(key=lambda row: [row[key][1] for key in (*COMPARABLE, "Frechet distance")])
    once: dict[tuple[str, ...], tables.Cells] = {}  # runs share floors, but for the last digits
    for row in listed:
        once.setdefault(tuple(row[key][0] for key in ("run", "row", *COMPARABLE, "Frechet distance")), row)
    listed = list(once.values())
    # A family has the colour that it has in the report: by place in `models`, of the run with the most of them.
    compared = sorted((run.models for run in kept), key=len, reverse=True)
    tints = {f: charts.colour(i) for i, f in enumerate(dict.fromkeys(f for names in compared for f in names))}
    content = {"rows": listed, "texts": TEXTS, "runs": kept, "chart": Markup(chart(listed, tints)) if listed else ""}
    return page.template("results.html.j2", Path(__file__).parent).render(content | page.STATIC)


def chart(listed: list[tables.Cells], tints: dict[str, str]) -> str:
    """Frechet distance against seconds of training, as SVG: a panel for what may be compared, a colour a family, a sign
    a run, hollow for further rows of a family; dashed: the floor."""
    runs = dict.fromkeys(row["run"][1] for row in listed if row["row"][1] != "floor")
    signs = dict(zip(runs, cycle(plots.MARKERS), strict=False))
    panels = {}
    for (data, n, reference), group in groupby(listed, lambda row: [row[key][0] for key in COMPARABLE]):
        lines, floor = [], math.inf
        for row in group:
            name, distance, seconds = (row[key][1] for key in ("row", "Frechet distance", "training"))
            family, _, further = name.partition("-")
            if name == "floor":
                floor = min(floor, distance)
            elif math.isfinite(seconds):
                symbol = signs[row["run"][1]] + ("-open" if further else "")
                lines.append(charts.Line(name, tints[family], [seconds], [distance], mode="markers", symbol=symbol))
        axes = {"log_x": True, "scale": "from zero", "level": ("floor", floor)}
        panels[f"{data}, N = {n}\n{reference}"] = charts.Panel(charts.SECONDS, "Frechet distance", lines, **axes)
    figure = plots.draw(panels, named=False)
    handles = {f: Line2D([], [], color=tint, marker="o", linestyle="") for f, tint in tints.items()}
    plain = {"color": charts.INK, "linestyle": ""}
    handles |= {run: Line2D([], [], marker=plots.MARKERS[sign], **plain) for run, sign in signs.items()}
    plots.legend(figure, handles)
    return plots.svg(figure)
