"""The report: one self-contained page, one table in Markdown, a few figures."""

import base64
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from pofx.base.files import atomic
from pofx.report import charts, interactive, notices, plots, tables
from pofx.report.metrics import LINES, Metrics, distance_keys, rows, seeds, table
from pofx.report.text import short, text

FEWEST_OVERLAP = 0.3  # of neighbouring noise levels: below it Langevin dynamics may lose its way between them
LISTED = 10  # KLs in a caption
USES = {"inpainting": "inpainting", "denoising": "restoring"}  # picture -> numbers beside it
CODE_PICTURES = ("reconstructions", "traversals", "interpolations")  # in the order of the page
DENOISING = ("strip", "ladder", "interpolation")


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
    sweeps: dict[str, dict[str, Any]]
    energies: dict[str, dict[str, Any]]
    plots: Path

    @cached_property
    def owners(self) -> dict[str, str]:
        """Row -> family."""
        return rows(self.models, self.metrics)

    @cached_property
    def board(self) -> pd.DataFrame:
        return tables.leaderboard(self.models, self.metrics)

    @cached_property
    def order(self) -> list[str]:
        """The rows, by their Frechet distance."""
        return [row for row in self.board.index if row in self.owners]

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
        keys = distance_keys(self.metrics)
        values = table(self.models, self.metrics)
        out = {
            "cost": charts.cost(values, keys, self.owners, self.tints),
            "curves": charts.curves(self.curves, self.metrics["train_seconds"], self.tints),
        }
        if self.sweeps:
            out["nfe"] = charts.nfe(self.sweeps, self.metrics[keys[1]]["floor"])
            out["levels"] = charts.levels(self.sweeps, self.tints)
        if self.energies:
            out["chain"] = charts.chain(self.energies, self.tints)
        return out

    def pictures(self, folder: str, names: Iterable[str]) -> dict[str, str]:
        """Those of plots/<folder>/<name>.png that are there, as data URIs."""
        paths = {name: self.plots / folder / f"{name}.png" for name in names}
        return {name: _uri(path) for name, path in paths.items() if path.is_file()}


def build(got: Material, out: Path, comparison: Path) -> pd.DataFrame:
    """Draw the figures into `comparison`, write index.html and report.md into `out`; returns the leaderboard."""
    figures = draw(got, comparison)
    context = _words(got) | _tables(got) | _pictures(got) | parts()
    context |= {
        "figures": {name: _uri(path) for name, path in figures.items() if name != "overview"},
        "charts": got.charts,
        "chart_data": {name: interactive.data(chart) for name, chart in got.charts.items()},
        "identity": {row: identity(got.metrics, row, got.owners[row]) for row in got.order},
        "plotly": Markup(get_plotlyjs()),
    }
    for name, content in (("index.html", template("page.html.j2").render(context)), ("report.md", _markdown(got))):
        with atomic(out / name) as file:
            file.write(content.encode())
    return got.board


def template(name: str, *folders: Path) -> jinja2.Template:
    """A template of this folder, or of one of `folders`; a name that nothing was given for is an error."""
    loader = jinja2.FileSystemLoader([Path(__file__).parent, *folders])
    return jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined).get_template(name)


def parts() -> dict[str, Markup]:
    """What every page holds: how it looks, and what its tables, charts and pictures do."""
    folder = Path(__file__).parent
    return {name: Markup((folder / file).read_text()) for name, file in (("style", "page.css"), ("script", "page.js"))}


def draw(got: Material, folder: Path) -> dict[str, Path]:
    """The PNGs of the comparison."""
    grids = {"data": got.plots / "samples/data.png"}
    grids |= {row: got.plots / f"samples/{f}/{row}.png" for row, f in got.owners.items()}
    figures = {
        "distance": plots.bars(table(got.models, got.metrics), distance_keys(got.metrics), got.tints),
        "cost": plots.draw(got.charts["cost"].still, "names"),
        "overview": plots.overview(grids),
    }
    figures |= {f"curve_{f}": plots.draw(charts.terms(frame, got.tints[f]), "none") for f, frame in got.curves.items()}
    figures |= {
        n: plots.draw(got.charts[n].still, shared=n == "nfe") for n in ("nfe", "levels", "chain") if n in got.charts
    }
    if counts := {f: v for f, v in got.metrics.get("code_counts", {}).items() if f in got.models}:
        figures["codebook"] = plots.codebook(counts, got.metrics["perplexity"], got.tints)
    paths = {name: folder / f"{name}.png" for name in figures}
    for name, figure in figures.items():
        plots.save(figure, paths[name])
    return paths


def _words(got: Material) -> dict[str, Any]:
    """What the page says in its text."""
    metrics, protocol = got.metrics, got.metrics["protocol"]
    return {
        "models": list(got.curves),
        "further": [row for row in got.order if got.owners[row] != row],
        "data": got.data,
        "keys": distance_keys(metrics),
        "notice": notices.notice(metrics),
        "floor": protocol["floor"],
        "lines": {LINES[f]: protocol[f] for f in LINES if f in protocol},
        "refused": {LINES[f]: reason for f, reason in metrics.get("refused", {}).items()},
        "beyond_notice": notices.beyond_notice(metrics),
        "sweep_notice": notices.points_notice(got.sweeps, notices.SWEPT),
        "scores_notice": notices.scores_notice(got.energies),
        "chains_notice": notices.points_notice(got.energies, notices.CHAINED),
        "guards": {f: [_event(event) for event in events] for f, events in metrics.get("guards", {}).items()},
        "papers": notices.PAPERS,
        "probes_notice": notices.PROBES,
        "protocol": {row: protocol[row] for row in got.order},
        "devices": {row: metrics["device"][got.owners[row]] for row in got.order},
        "swept": {key: _of_each(got.sweeps, key) for key in ("test_images", "device")},
    }


def _tables(got: Material) -> dict[str, list[tables.Cells]]:
    return {
        "board": tables.leading(got.models, got.metrics),
        "costs": tables.costs(got.models, got.metrics),
        "sampled": tables.sampled(got.models, got.metrics),
        "beyond": tables.beyond(got.order, got.metrics),
        "probes": tables.probes(got.order, got.metrics),
        "codes": tables.codes(got.order, got.metrics),
        "points": tables.points(got.sweeps),
        "scores": tables.scores(got.energies),
        "chains": tables.chains(got.energies),
    }


def _pictures(got: Material) -> dict[str, Any]:
    """Pictures as data URIs, and what is said below them."""
    key, samples = distance_keys(got.metrics)[0], {row: _draws(got, row) for row in got.order}
    neighbours = {f: got.pictures(f"fid/{f}", ["neighbours"]) for f in got.order}
    return {
        "truth": _uri(got.plots / "samples/data.png"),
        "samples": samples,
        "distances": {row: _distances(got.metrics, key, row) for row in got.order},
        "sampling_seeds": sorted({seed for draws in samples.values() for seed in draws}),
        "exploration": {p.stem.replace("_", " "): _uri(p) for p in sorted((got.plots / "data").glob("*.png"))},
        "denoising": {f: _denoising(got, f) for f in got.sweeps},
        "uses": {f: _uses(got, f) for f in got.energies},
        "progress": got.pictures("progress", got.models),
        "code_pictures": {f: shown for f in got.order if (shown := _code_pictures(got, f))},
        "neighbours": {f: found["neighbours"] for f, found in neighbours.items() if found},
    }


def _draws(got: Material, row: str) -> dict[int, str]:
    """Sampling seed -> grid of a row; those of the seeds after the first are <row>.seed<k>.png."""
    folder = got.plots / f"samples/{got.owners[row]}"
    further = {int(path.stem.rpartition("seed")[2]): path for path in folder.glob(f"{row}.seed*.png")}
    return {seed: _uri(path) for seed, path in sorted(({0: folder / f"{row}.png"} | further).items())}


def _distances(metrics: Metrics, key: str, row: str) -> dict[int, str]:
    """The distance of a row with each of its sampling seeds."""
    return dict(enumerate(map(text, seeds(metrics, key).get(row, [metrics[key][row]]))))


def identity(metrics: Metrics, row: str, family: str) -> dict[str, str]:
    """Which model a row was drawn from: what stages/train.py recorded of its training, and its parameters."""
    trained = metrics.get("trained", {}).get(family, {})
    changed = {True: ", with changes", False: ", without changes", None: ""}[trained.get("changed")]
    facts = {
        "date of training": trained.get("date", "unknown"),
        "machine": metrics["device"][family],
        "revision": trained.get("revision", "unknown") + changed,
        "system": trained.get("system", "unknown"),
        "torch": trained.get("torch", "unknown"),
        "seed": str(trained.get("seed", "unknown")),
        "training code, SHA-256": trained.get("code", "unknown"),
        "training data, SHA-256": trained.get("data", "unknown"),
    }
    return facts | {"parameters": json.dumps(metrics["config"][row], indent=2)}


def _code_pictures(got: Material, f: str) -> dict[str, str]:
    """What the page shows of one family's code: pictures, and what the rows and columns of the traversals are."""
    shown = got.pictures(f"fid/{f}", CODE_PICTURES)
    if "traversals" in shown:
        numbers = {"kl": got.metrics["kl_units"][f][:LISTED], "steps": got.metrics["protocol"][f]["traversal"]}
        shown |= {key: ", ".join(map(short, row)) for key, row in numbers.items()}
    return shown


def _denoising(got: Material, f: str) -> dict[str, Any]:
    """What the page shows of one denoiser: pictures, their noise levels, and facts about its noise schedule."""
    sweep, own = got.sweeps[f], got.sweeps[f]["rows"][0]
    shown: dict[str, Any] = got.pictures(f"denoising/{f}", DENOISING)
    shown |= {f"{name}_levels": ", ".join(map(short, sweep[name])) for name in ("strip", "ladder")}
    facts = []  # and whether it is a warning
    if (overlap := got.metrics.get("overlap", {}).get(f)) is not None:
        low = overlap < FEWEST_OVERLAP
        warning = f", where {FEWEST_OVERLAP} or more is wanted: Langevin dynamics may lose its way between them"
        facts.append((f"Neighbouring levels overlap by C = {overlap:.2f}{warning if low else ''}.", low))
    if (largest := got.metrics.get("largest_distance", {}).get(f)) is not None:
        level = short(sweep["sigma_range"][1] / 2)
        said = f"The largest distance between two training images is {short(largest)}, images on [0, 1]"
        facts.append((f"{said}; the largest noise level there, {level}.", False))
    return shown | {"setting": f"{own['sampler']}, {own['steps'] or 'all'} noise levels", "facts": facts}


def _event(event: dict[str, Any]) -> str:
    """What a guard of the training did, in a line."""
    rows = f" ({event['rows']} rows of the curve)" if "rows" in event else ""
    return f"{event['guard']}, at {event['images']:,} images: {event['did']}{rows}"


def _uses(got: Material, f: str) -> dict[str, Any]:
    """What the page shows of one energy-based model: pictures, and the numbers that go with them."""
    tree = got.energies[f]
    names = dict.fromkeys(row["row"] for row in tree["rows"][1:])
    strips = got.pictures(f"energy/{f}", [f"chain_{row}" for row in names])
    uses = got.pictures(f"energy/{f}", USES)
    return {
        "chain": tree["chain"],
        "strips": {name.removeprefix("chain_"): uri for name, uri in strips.items()},
        **{name: {"picture": uri, "rows": tree[USES[name]]} for name, uri in uses.items()},
    }


def _of_each(sweeps: dict[str, dict[str, Any]], key: str) -> str:
    """What the protocols say under `key`: once if they agree, else of every family."""
    said = {f: sweep["protocol"][key] for f, sweep in sweeps.items()}
    same = set(said.values())
    return str(same.pop()) if len(same) == 1 else ", ".join(f"{value} ({f})" for f, value in said.items())


def _markdown(got: Material) -> str:
    words, cells = _words(got), _tables(got)
    chapters = {  # heading -> table, what is said of it
        "Sampling seeds": ("sampled", ""),
        "Beyond the distance": ("beyond", words["beyond_notice"]),
        "Representation": ("probes", words["probes_notice"]),
        "Codes and reconstructions": ("codes", ""),
        "Distance against NFE": ("points", words["sweep_notice"]),
        "Energy": ("scores", words["scores_notice"]),
        "Chains": ("chains", words["chains_notice"]),
    }
    out = [
        f"# {', '.join(got.models)} on {got.data['name']}",
        got.board.to_markdown(index=False),
        words["notice"],
        notices.protocol(got.metrics, got.models[0]),
        *(f"{name}: blank, {reason}." for name, reason in words["refused"].items()),
    ]
    for heading, (name, said) in chapters.items():
        out += [f"## {heading}", said, tables.markdown(cells[name])] if cells[name] else []
    out += ["## Paper, Inception-FID, 50k (CIFAR-10)", notices.PAPERS.to_markdown(index=False, disable_numparse=True)]
    return "\n\n".join(filter(None, out)) + "\n"


def _uri(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
