"""The report: one self-contained page, the same tables in Markdown, a few figures."""

import base64
import json
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from pofx.base.files import atomic
from pofx.base.images import Images
from pofx.report import charts, interactive, plots, tables
from pofx.report.metrics import FACES, LINES, Metrics, Verdict, distance_keys, rows, seeds, table, told, verdicts
from pofx.report.text import short, text
from pofx.score.distances import named

HERE = Path(__file__).parent
STATIC = {  # what every page holds: how it looks, and what its tables, charts and pictures do
    "style": Markup((HERE / "page.css").read_text()),
    "script": Markup((HERE / "page.js").read_text()),
}
Trees = dict[str, dict[str, Any]]  # family -> a metrics file of it


@dataclass(frozen=True)
class Material:
    """What a run came to.

    Attributes:
        data: metrics/data.json.
        sweeps: metrics/sweep/*.json of the denoisers.
        energies: metrics/energy/*.json of the energy-based models.
        plots: the folder with the pictures and curves that the stages made.
    """

    models: tuple[str, ...]
    metrics: Metrics
    data: dict[str, Any]
    sweeps: Trees
    energies: Trees
    plots: Path

    @cached_property
    def owners(self) -> dict[str, str]:
        """Row -> family."""
        return rows(self.models, self.metrics)

    @cached_property
    def keys(self) -> tuple[str, str, str]:
        return distance_keys(self.metrics)

    @cached_property
    def values(self) -> pd.DataFrame:
        return table(self.models, self.metrics)

    @cached_property
    def order(self) -> list[str]:
        """The rows, by their Frechet distance."""
        return self.values.drop(index="floor").sort_values(self.keys[0]).index.to_list()

    @cached_property
    def verdicts(self) -> dict[str, Verdict]:
        return verdicts(self.models, self.metrics)

    @property
    def faces(self) -> bool:
        """Whether faces were measured."""
        return FACES[0] in self.metrics

    @cached_property
    def curves(self) -> dict[str, pd.DataFrame]:
        return {f: pd.read_csv(self.plots / f"curves/{f}.csv") for f in self.order if f in self.models}

    @cached_property
    def tints(self) -> dict[str, str]:
        """Family or row -> colour."""
        families = dict.fromkeys([*self.models, *self.sweeps, *self.energies])
        tints = {f: charts.colour(i) for i, f in enumerate(families)}
        further = self.owners | {row["row"]: f for f, tree in self.energies.items() for row in tree["rows"][1:]}
        return tints | {row: charts.lighter(tints[f]) for row, f in further.items() if row != f}

    @cached_property
    def charts(self) -> dict[str, charts.Chart]:
        out = {"cost": charts.cost(self.values, self.keys, self.owners, self.tints)}
        out["curves"] = charts.curves(self.curves, self.metrics["train_seconds"], self.tints)
        if self.sweeps:
            out["nfe"] = charts.nfe(self.sweeps, self.metrics[self.keys[1]]["floor"])
            out["levels"] = charts.levels(self.sweeps, self.tints)
        if self.energies:
            out["chain"] = charts.chain(self.energies, self.tints)
        return out

    @cached_property
    def tables(self) -> dict[str, list[tables.Cells]]:
        return {
            "board": tables.leading(self.models, self.metrics),
            "costs": tables.costs(self.models, self.metrics),
            "sampled": tables.sampled(self.models, self.metrics),
            "beyond": tables.beyond(self.order, self.metrics),
            "probes": tables.probes(self.order, self.metrics),
            "codes": tables.codes(self.order, self.metrics),
            "points": tables.points(self.sweeps),
            "scores": tables.scores(self.energies),
            "chains": tables.chains(self.energies),
        }

    def pictures(self, folder: str) -> dict[str, str]:
        """Those in a folder of `plots`, as data URIs, by name."""
        return {path.stem: uri(path) for path in sorted((self.plots / folder).glob("*.png"))}

    def draws(self, row: str) -> dict[int, str]:
        """Sampling seed -> grid of a row; those of the seeds after the first are <row>.seed<k>.png."""
        pictures = self.pictures(f"samples/{self.owners[row]}")
        further = {int(name.partition(".seed")[2]): uri for name, uri in pictures.items() if f"{row}.seed" in name}
        return {0: pictures[row]} | dict(sorted(further.items()))

    def distances(self, row: str) -> dict[int, str]:
        """The Frechet distance of a row with each of its sampling seeds."""
        distances = seeds(self.metrics, self.keys[0]).get(row, [self.metrics[self.keys[0]][row]])
        return dict(enumerate(map(text, distances)))


def build(got: Material, out: Path, comparison: Path) -> pd.DataFrame:
    """Draw the figures into `comparison`, write index.html and report.md into `out`; returns the leaderboard."""
    figures, samples = draw(got, comparison), {row: got.draws(row) for row in got.order}
    pictures = {f: got.pictures(f"fid/{f}") for f in got.curves}
    board = tables.leaderboard(got.models, got.metrics)
    refused = {LINES[name]: reason for name, reason in got.metrics.get("refused", {}).items()}
    words = {"got": got, "keys": got.keys, "metrics": got.metrics, "protocol": got.metrics["protocol"]}
    words |= {"data": got.data, "refused": refused, "models": list(got.curves)}
    shown = {
        "lines": {name: words for name, words in LINES.items() if name in got.metrics["protocol"]},
        "samples": samples,
        "sampling_seeds": sorted({seed for draws in samples.values() for seed in draws}),
        "pictures": pictures,
        "neighbours": [f for f, names in pictures.items() if "neighbours" in names],
        "progress": {f: uri for f, uri in got.pictures("progress").items() if f in got.models},
        "figures": {name: uri(path) for name, path in figures.items()},
        "chart_data": {name: interactive.data(chart) for name, chart in got.charts.items()},
        "plotly": Markup(get_plotlyjs()),
    }
    markdown = {name: Markup(tables.markdown(cells)) if cells else "" for name, cells in got.tables.items()}
    markdown["board"] = Markup(board.to_markdown(index=False))
    contexts = {"index.html": got.tables | STATIC | shown, "report.md": markdown}
    for name, context in contexts.items():
        with atomic(out / name) as file:
            file.write(template(f"{name}.j2").render(words | context).encode())
    return board


def template(name: str, *folders: Path) -> jinja2.Template:
    """A template of this folder, or of one of `folders`; an undefined name is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([HERE, *folders]),
        autoescape=name.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    environment.globals["named"] = named
    environment.filters |= {"short": short, "number": "{:,}".format, "json": partial(json.dumps, indent=2)}
    return environment.get_template(name)


def draw(got: Material, folder: Path) -> dict[str, Path]:
    """The PNGs of the comparison, by name."""
    figures = {"distance": plots.bars(got.values, got.keys, got.tints), "overview": plots.strips(first_images(got))}
    for f, frame in got.curves.items():
        figures[f"curve_{f}"] = plots.draw(charts.terms(frame, got.tints[f]), named=False)
    for name, chart in got.charts.items():
        if chart.still:
            figures[name] = plots.draw(chart.still, shared=name == "nfe")
    if counts := {f: v for f, v in got.metrics.get("code_counts", {}).items() if f in got.models}:
        figures["codebook"] = plots.draw(charts.codebook(counts, got.metrics["perplexity"], got.tints), named=False)
    paths = {name: folder / f"{name}.png" for name in figures}
    for name, figure in figures.items():
        plots.save(figure, paths[name])
    return paths


def first_images(got: Material) -> dict[str, Images]:
    """Of test images and of the best row of each family, best family first; a row's verdict beside its name."""
    best = {got.owners[row]: row for row in reversed(got.order)}
    grids = {"data": got.plots / "samples/data.png"}
    for f, row in reversed(best.items()):
        grids[told(row, got.verdicts)] = got.plots / f"samples/{f}/{row}.png"
    return {name: plots.first_line(path) for name, path in grids.items()}


def uri(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
