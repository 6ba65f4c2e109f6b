"""The report: one self-contained page, one table in Markdown, a few figures."""

import base64
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from pofx.base.files import atomic
from pofx.report import charts, notices, plots, tables
from pofx.report.metrics import LINES, Metrics, distance_keys, rows, seeds, table
from pofx.report.text import text

TEMPLATE, MACROS = "page.html.j2", "table.html.j2"  # the second by way of the first: named, to be a dependency
FEWEST_OVERLAP = 0.3  # of neighbouring noise levels: below it Langevin dynamics may lose its way between them
LISTED = 10  # KLs in a caption
USES = {"inpainting": "inpainting", "denoising": "restoring"}  # picture -> numbers beside it
CODE_PICTURES = ("reconstructions", "traversals", "interpolations")  # in the order of the page


@dataclass(frozen=True)
class Material:
    models: tuple[str, ...]
    metrics: Metrics
    data: dict[str, Any]  # metrics/data.json
    curves: dict[str, Path]  # CSV of every family
    samples: dict[str, Path]  # PNG of the data and of every row
    exploration: list[Path]  # PNGs
    sweeps: dict[str, dict[str, Any]]  # metrics/sweep/*.json of the denoisers
    denoising: dict[str, dict[str, Path]]  # PNGs of the denoisers: strip, ladder, interpolation
    energies: dict[str, dict[str, Any]]  # metrics/energy/*.json of the energy-based models
    uses: dict[str, dict[str, Path]]  # PNGs of these: inpainting, denoising, chain_<row>
    progress: dict[str, Path]  # PNG of those families that kept their previews
    pictures: dict[str, dict[str, Path]]  # PNGs of every family, as it has them: see CODE_PICTURES; neighbours
    redrawn: dict[str, dict[int, Path]] = field(default_factory=dict)  # PNGs of rows drawn again: row -> sampling seed


def build(got: Material, out: Path, comparison: Path) -> pd.DataFrame:
    """Draw the figures into `comparison`, write index.html and report.md into `out`; returns the leaderboard."""
    owners = rows(got.models, got.metrics)
    tints = {f: plots.colour(i) for i, f in enumerate(dict.fromkeys([*got.models, *got.sweeps, *got.energies]))}
    further = owners | {row["row"]: f for f, found in got.energies.items() for row in found["rows"][1:]}
    tints |= {row: plots.lighter(tints[f]) for row, f in further.items() if row != f}
    board = tables.leaderboard(got.models, got.metrics)
    order = [row for row in board.index if row in owners]
    curves = {f: pd.read_csv(got.curves[f]) for f in order if f in got.models}
    figures = _figures(got, curves, tints, comparison)
    asked = _charts(got, curves, owners, tints)
    context = (
        _head(got, order, owners)
        | _tables(got, order)
        | _pictures(got, order, figures)
        | parts()
        | {
            "charts": asked,
            "chart_data": {name: chart.data() for name, chart in asked.items()},
            "identity": {row: identity(got.metrics, row, owners[row]) for row in order},
            "plotly": Markup(get_plotlyjs()),
        }
    )
    for name, content in (
        ("index.html", template(TEMPLATE).render(context)),
        ("report.md", _markdown(got, board)),
    ):
        with atomic(out / name) as file:
            file.write(content.encode())
    return board


def template(name: str, *folders: Path) -> jinja2.Template:
    """A template of this folder, or of one of `folders`; a name that nothing was given for is an error."""
    loader = jinja2.FileSystemLoader([Path(__file__).parent, *folders])
    return jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined).get_template(name)


def parts() -> dict[str, Markup]:
    """What every page holds: how it looks, and what its tables, charts and pictures do."""
    folder = Path(__file__).parent
    return {
        "style": Markup((folder / "page.css").read_text()),
        "script": Markup((folder / "page.js").read_text()),
    }


def _figures(got: Material, curves: dict[str, pd.DataFrame], tints: dict[str, str], folder: Path) -> dict[str, Path]:
    """The PNGs of the comparison, drawn into `folder`."""
    found, keys = table(got.models, got.metrics), distance_keys(got.metrics)
    out = {name: folder / f"{name}.png" for name in ("distance", "cost", "overview")}
    plots.bars(found, keys, tints, out["distance"])
    plots.cost(found, keys[0], tints, out["cost"])
    plots.overview(got.samples, out["overview"])
    for f, frame in curves.items():
        out[f"curve_{f}"] = folder / f"curve_{f}.png"
        plots.curve(frame, out[f"curve_{f}"], tints[f])
    if got.sweeps:
        out |= {"nfe": folder / "nfe.png", "levels": folder / "levels.png"}
        plots.nfe(got.sweeps, got.metrics[keys[1]]["floor"], out["nfe"])
        plots.levels(got.sweeps, tints, out["levels"])
    if got.energies:
        out["chain"] = folder / "chain.png"
        plots.chain(got.energies, tints, out["chain"])
    if counts := {f: v for f, v in got.metrics.get("code_counts", {}).items() if f in got.models}:
        out["codebook"] = folder / "codebook.png"
        plots.codebook(counts, got.metrics["perplexity"], tints, out["codebook"])
    return out


def _charts(
    got: Material, curves: dict[str, pd.DataFrame], owners: dict[str, str], tints: dict[str, str]
) -> dict[str, charts.Chart]:
    found, keys = table(got.models, got.metrics), distance_keys(got.metrics)
    out = {
        "cost": charts.cost(found, keys, owners, tints),
        "curves": charts.curves(curves, got.metrics["train_seconds"], tints),
    }
    if got.sweeps:
        out |= {"nfe": charts.nfe(got.sweeps, got.metrics[keys[1]]["floor"])}
        out |= {"levels": charts.levels(got.sweeps, tints)}
    if got.energies:
        out["chain"] = charts.chain(got.energies, tints)
    return out


def _head(got: Material, order: list[str], owners: dict[str, str]) -> dict[str, Any]:
    """What the page says in its text."""
    protocol = got.metrics["protocol"]
    return {
        "models": [row for row in order if row in got.models],
        "further": [row for row in order if owners[row] != row],
        "data": got.data,
        "keys": distance_keys(got.metrics),
        "notice": notices.notice(got.metrics),
        "floor": protocol["floor"],
        "lines": {LINES[f]: protocol[f] for f in LINES if f in protocol},
        "refused": {LINES[f]: reason for f, reason in got.metrics.get("refused", {}).items()},
        "beyond_notice": notices.beyond_notice(got.metrics),
        "sweep_notice": notices.points_notice(got.sweeps, notices.SWEPT),
        "scores_notice": notices.scores_notice(got.energies),
        "chains_notice": notices.points_notice(got.energies, notices.CHAINED),
        "guards": {f: [_told(event) for event in events] for f, events in got.metrics.get("guards", {}).items()},
        "papers": notices.PAPERS,
        "probes_notice": notices.PROBES,
        "protocol": {row: protocol[row] for row in order},
        "devices": {row: got.metrics["device"][owners[row]] for row in order},
        "swept": {key: _of_each(got.sweeps, key) for key in ("test_images", "device")},
    }


def _tables(got: Material, order: list[str]) -> dict[str, list[tables.Cells]]:
    return {
        "board": tables.leading(got.models, got.metrics),
        "costs": tables.costs(got.models, got.metrics),
        "sampled": tables.sampled(got.models, got.metrics),
        "beyond": tables.beyond(order, got.metrics),
        "probes": tables.probes(order, got.metrics),
        "codes": tables.codes(order, got.metrics),
        "points": tables.points(got.sweeps),
        "scores": tables.scores(got.energies),
        "chains": tables.chains(got.energies),
    }


def _pictures(got: Material, order: list[str], figures: dict[str, Path]) -> dict[str, Any]:
    """Pictures as data URIs, and what is said below them."""
    key = distance_keys(got.metrics)[0]
    grids = {row: {0: got.samples[row]} | got.redrawn.get(row, {}) for row in order}
    return {
        "truth": _uri(got.samples["data"]),
        "samples": {row: {seed: _uri(path) for seed, path in sorted(draws.items())} for row, draws in grids.items()},
        "told": {row: _distances(got.metrics, key, row) for row in order},
        "sampling_seeds": sorted({seed for draws in grids.values() for seed in draws}),
        "figures": {name: _uri(path) for name, path in figures.items() if name != "overview"},
        "exploration": {path.stem.replace("_", " "): _uri(path) for path in got.exploration},
        "denoising": {f: _denoising(got, f) for f in got.sweeps},
        "uses": {f: _uses(got, f) for f in got.energies},
        "progress": {f: _uri(path) for f, path in got.progress.items()},
        "code_pictures": {f: shown for f in order if (shown := _code_pictures(got, f))},
        "neighbours": {
            f: _uri(got.pictures[f]["neighbours"]) for f in order if "neighbours" in got.pictures.get(f, {})
        },
    }


def _distances(metrics: Metrics, key: str, row: str) -> dict[int, str]:
    """The distance of a row with each of its sampling seeds."""
    return dict(enumerate(map(text, seeds(metrics, key).get(row, [metrics[key][row]]))))


def identity(metrics: Metrics, row: str, family: str) -> dict[str, str]:
    """Which model a row was drawn from: what is known of its training (stages/train.py) and its parameters."""
    trained = metrics.get("trained", {}).get(family, {})
    changed = {True: ", with changes", False: ", without changes", None: ""}[trained.get("changed")]
    known = {
        "date of training": trained.get("date", "unknown"),
        "machine": metrics["device"][family],
        "revision": trained.get("revision", "unknown") + changed,
        "system": trained.get("system", "unknown"),
        "torch": trained.get("torch", "unknown"),
        "seed": str(trained.get("seed", "unknown")),
        "training code, SHA-256": trained.get("code", "unknown"),
        "training data, SHA-256": trained.get("data", "unknown"),
    }
    return known | {"parameters": json.dumps(metrics["config"][row], indent=2)}


def _code_pictures(got: Material, f: str) -> dict[str, str]:
    """What the page shows of one family's code: pictures, and what the rows and columns of the traversals are."""
    found = {name: _uri(got.pictures[f][name]) for name in CODE_PICTURES if name in got.pictures.get(f, {})}
    if "traversals" in found:
        numbers = {"kl": got.metrics["kl_units"][f][:LISTED], "steps": got.metrics["protocol"][f]["traversal"]}
        found |= {key: ", ".join(map(plots.short, row)) for key, row in numbers.items()}
    return found


def _denoising(got: Material, f: str) -> dict[str, Any]:
    """What the page shows of one denoiser: pictures, their noise levels, and what is known of its ladder."""
    sweep, own = got.sweeps[f], got.sweeps[f]["rows"][0]
    found = {name: _uri(path) for name, path in got.denoising[f].items()}
    found |= {f"{name}_levels": ", ".join(map(plots.short, sweep[name])) for name in ("strip", "ladder")}
    facts = []  # and whether it is a warning
    if (overlap := got.metrics.get("overlap", {}).get(f)) is not None:
        low = overlap < FEWEST_OVERLAP
        warning = f", where {FEWEST_OVERLAP} or more is wanted: Langevin dynamics may lose its way between them"
        facts.append((f"Neighbouring levels overlap by C = {overlap:.2f}{warning * low}.", low))
    if (largest := got.metrics.get("largest_distance", {}).get(f)) is not None:
        level = plots.short(sweep["sigma_range"][1] / 2)
        told = f"The largest distance found between two training images is {plots.short(largest)}, images on [0, 1]"
        facts.append((f"{told}; the largest noise level there, {level}.", False))
    setting = f"{own['sampler']}, {own['steps'] or 'all'} noise levels"
    return found | {"setting": setting, "facts": facts}


def _told(event: dict[str, Any]) -> str:
    """What a guard of the training did, in a line."""
    rows = f" ({event['rows']} rows of the curve)" if "rows" in event else ""
    return f"{event['guard']}, at {event['images']:,} images: {event['did']}{rows}"


def _uses(got: Material, f: str) -> dict[str, Any]:
    """What the page shows of one energy-based model: pictures, and the numbers that go with them."""
    found, tree = {name: _uri(path) for name, path in got.uses[f].items()}, got.energies[f]
    rows = dict.fromkeys(row["row"] for row in tree["rows"][1:])
    return {
        "chain": tree["chain"],
        "strips": {row: found[f"chain_{row}"] for row in rows if f"chain_{row}" in found},
        **{name: {"picture": found[name], "rows": tree[key]} for name, key in USES.items() if name in found},
    }


def _of_each(sweeps: dict[str, dict[str, Any]], key: str) -> str:
    """What the protocols say under `key`: once if they agree, else of every family."""
    said = {f: sweep["protocol"][key] for f, sweep in sweeps.items()}
    same = set(said.values())
    return str(same.pop()) if len(same) == 1 else ", ".join(f"{value} ({f})" for f, value in said.items())


def _markdown(got: Material, board: pd.DataFrame) -> str:
    energies, sweeps, metrics = got.energies, got.sweeps, got.metrics
    order = list(rows(got.models, metrics))
    parts: list[tuple[str, list[tables.Cells], str]] = [  # heading, table, what is said of it
        ("Sampling seeds", tables.sampled(got.models, metrics), ""),
        ("Beyond the distance", tables.beyond(order, metrics), notices.beyond_notice(metrics)),
        ("Representation", tables.probes(order, metrics), notices.PROBES),
        ("Codes and reconstructions", tables.codes(order, metrics), ""),
        ("Distance against NFE", tables.points(sweeps), notices.points_notice(sweeps, notices.SWEPT)),
        ("Energy", tables.scores(energies), notices.scores_notice(energies)),
        ("Chains", tables.chains(energies), notices.points_notice(energies, notices.CHAINED)),
    ]
    out = [
        f"# {', '.join(got.models)} on {got.data['name']}",
        board.to_markdown(index=False),
        notices.notice(metrics),
        notices.protocol(metrics, got.models[0]),
        *(f"{LINES[f]}: blank, {reason}." for f, reason in metrics.get("refused", {}).items()),
    ]
    for heading, found, told in parts:
        out += [f"## {heading}", told, tables.markdown(found)] if found else []
    out += ["## Paper, Inception-FID, 50k (CIFAR-10)", notices.PAPERS.to_markdown(index=False, disable_numparse=True)]
    return "\n\n".join(filter(None, out)) + "\n"


def _uri(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
