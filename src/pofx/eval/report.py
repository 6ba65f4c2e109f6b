"""The comparison of all families: one table, one self-contained page, a few figures.

A row is a way to draw from a trained family (pofx.core.family.draws): `edm`, and `edm-ddim` if that was asked for. What
drawing decides is told of rows, what training decides of families.
"""

import base64
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from pofx.core.errors import UserError
from pofx.core.files import atomic, read_json
from pofx.eval import plots
from pofx.eval.distances import named

Metrics = dict[str, dict[str, Any]]  # metric -> row (or "floor", or one of LINES) -> value
BLANK = "\N{EN DASH}"
SUMMARY = ("bpd", "mig", "recon_psnr", "train_seconds")  # besides the distances
TRAINING = ("parameters", "images_seen", "train_seconds", "train_images_per_second", "device")  # every row's cost
LINES = {  # below the floor
    "halves": "training images (floor)",
    "gaussian": "full-covariance Gaussian",
    "pixel_gaussian": "per-pixel Gaussian",
    "pca_gaussian": "PCA-Gaussian",
}
FLOOR = "test images (floor)"
SWEPT, CHAINED = "point of a model", "length of the chain"  # where noise is the same
FEWEST_OVERLAP = 0.3  # of neighbouring noise levels: below it Langevin dynamics may lose its way between them
PAPERS = pd.DataFrame(
    [
        ("NCSN", "25.32", "", "Song and Ermon 2019, arXiv:1907.05600"),
        ("NCSNv2", "10.87", "", "Song and Ermon 2020, arXiv:2006.09011"),
        ("IGEBM", "40.6", "", "Du and Mordatch 2019, arXiv:1903.08689"),
        ("DDPM", "3.17", "at most 3.75", "Ho et al. 2020, arXiv:2006.11239"),
        ("EDM", "1.97", "", "Karras et al. 2022, arXiv:2206.00364"),
        ("VQ-VAE", "", "4.67", "van den Oord et al. 2017, arXiv:1711.00937"),
        ("NVAE", "", "2.91", "Vahdat and Kautz 2020, arXiv:2007.03898"),
        ("full-covariance Gaussian", "", "4.64", "no paper: fitted to all training images, measured on all of test"),
    ],
    columns=["model", "Inception-FID", "bits/dim", "source"],
)


def text(value: float) -> str:
    """A number for a table: short, and an en dash where there is none."""
    if math.isnan(value):
        return BLANK
    return plots.short(value) if abs(value) >= 0.001 or value == 0 else f"{value:.4f}"


def between(value: float, error: float) -> str:
    """value ± error, to two digits of the error."""
    if math.isnan(value):
        return BLANK
    digits = min(6, max(0, 1 - math.floor(math.log10(error)))) if error > 0 else 4
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def count(value: float) -> str:
    """A whole number with a unit: 950, 68.2k, 1.25M."""
    if math.isnan(value):
        return BLANK
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * size:  # what rounds to 1,000k is 1M
            return plots.short(value / size) + unit
    return f"{value:.0f}"


def clock(seconds: float) -> str:
    """A duration: 45 s, 3 min 20 s, 2 h 05 min."""
    if math.isnan(seconds):
        return BLANK
    if (s := round(seconds)) < 60:
        return f"{seconds:.3g} s"
    return f"{s // 60} min {s % 60:02d} s" if s < 3600 else f"{s // 3600} h {s % 3600 // 60:02d} min"


COLUMNS = (  # of the leaderboard, after distances and bits/dim: heading, metric, format
    ("test loss", "test_loss", text),
    ("parameters", "parameters", count),
    ("images seen", "images_seen", count),
    ("training", "train_seconds", clock),
    ("training img/s", "train_images_per_second", text),
    ("s per 1,000 samples", "sample_seconds_per_1000", text),
    ("NFE", "nfe", count),
)
MANIFOLD = ("precision", "recall", "density", "coverage")
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


def read(models: tuple[str, ...], folder: Path) -> Metrics:
    """All that a run measured, from its folder of metrics.

    Raises:
        UserError: a file is missing.
    """
    parts = ("train/{}", "time/train_{}", "time/sample_{}", "fid/{}")
    names = ["reference", *(part.format(f) for f in models for part in parts)]
    try:
        return merge(read_json(folder / f"{name}.json") for name in names)
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing: run `dvc repro` first") from None


def merge(trees: Iterable[Metrics]) -> Metrics:
    """Metric files as one; every value stands in one file.

    Raises:
        ValueError: two files give the same metric of the same family.
    """
    out: Metrics = {}
    for tree in trees:
        for key, row in tree.items():
            if both := out.setdefault(key, {}).keys() & row.keys():
                raise ValueError(f"metric {key} of {', '.join(both)} stands in two files")
            out[key] |= row
    return out


def distance_keys(metrics: Metrics) -> tuple[str, str, str]:
    """Names of Frechet distance, KID and KID's spread: they tell the extractor (`fid` is Inception alone)."""
    return tuple(metrics["protocol"]["floor"]["keys"])


def rows(models: tuple[str, ...], metrics: Metrics) -> dict[str, str]:
    """Every row that was scored -> its family, in the order of `models`."""
    families = {row: row.partition("-")[0] for row in metrics["protocol"]}
    return {row: f for f in models for row, owner in families.items() if owner == f}


def table(models: tuple[str, ...], metrics: Metrics, lines: Iterable[str] = ()) -> pd.DataFrame:
    """One line for the floor, each of `lines` and each row, one column for each metric; NaN where there is none (honest
    blanks). What the training of a family cost stands in each of its rows.

    Raises:
        UserError: there is no family to compare.
    """
    if not models:
        raise UserError("models is empty: name at least one family")
    plain = {key: row for key, row in metrics.items() if not any(isinstance(v, dict) for v in row.values())}
    owners = rows(models, metrics)
    for key in plain.keys() & set(TRAINING):
        plain[key] = {row: plain[key][f] for row, f in owners.items() if f in plain[key]}
    return pd.DataFrame(plain, index=["floor", *lines, *owners])


def leaderboard(models: tuple[str, ...], metrics: Metrics) -> pd.DataFrame:
    """The table as text: floor and Gaussians first, then the rows by their Frechet distance."""
    fd, kid, spread = distance_keys(metrics)
    lines = _lines(metrics)
    found, fixed = table(models, metrics, lines), ["floor", *lines]
    found = pd.concat([found.loc[fixed], found.drop(index=fixed).sort_values(fd)])
    found = found.reindex(columns=[*found.columns, *({"bpd", "bpd_stderr"} - set(found.columns))])
    return pd.DataFrame(
        {
            "model": found.index.map(lambda name: ({"floor": FLOOR} | LINES).get(name, name)),
            fd: found[fd].map(text),
            kid: [between(*pair) for pair in zip(found[kid], found[spread], strict=True)],
            "bits/dim": [between(*pair) for pair in zip(found["bpd"], found["bpd_stderr"], strict=True)],
            **{heading: found[key].map(form) for heading, key, form in COLUMNS},
            "trained on": found["device"].fillna(""),
        },
        index=found.index,
    )


def _lines(metrics: Metrics) -> list[str]:
    """Those of LINES of which the run knows something, if only why they are blank."""
    return [name for name in LINES if any(name in metrics.get(key, {}) for key in ("protocol", "bpd", "refused"))]


def brief(models: tuple[str, ...], metrics: Metrics) -> str:
    """The columns of the leaderboard that fit a terminal."""
    fd, kid, _ = distance_keys(metrics)
    columns = ["model", fd, kid, "bits/dim", "training", "training img/s", "s per 1,000 samples"]
    board = leaderboard(models, metrics)[columns].rename(columns={"s per 1,000 samples": "s per 1,000"})
    return board.to_markdown(index=False, tablefmt="simple")


def summary(models: tuple[str, ...], metrics: Metrics) -> Metrics:
    """The few numbers that `dvc metrics` shows."""
    fd, kid, _ = distance_keys(metrics)
    names = ["floor", *rows(models, metrics)]
    picked = {key: {n: metrics[key][n] for n in names if n in metrics.get(key, {})} for key in (fd, kid, *SUMMARY)}
    return {key: row for key, row in picked.items() if row}


def build(got: Material, out: Path, comparison: Path) -> pd.DataFrame:
    """Draw the figures into `comparison`, write index.html and report.md into `out`; returns the leaderboard."""
    found, keys = table(got.models, got.metrics), distance_keys(got.metrics)
    owners = rows(got.models, got.metrics)
    tints = {f: plots.colour(i) for i, f in enumerate(dict.fromkeys([*got.models, *got.sweeps, *got.energies]))}
    further = owners | {row["row"]: f for f, found in got.energies.items() for row in found["rows"][1:]}
    tints |= {row: plots.lighter(tints[f]) for row, f in further.items() if row != f}
    figures = {"distance": comparison / "distance.png", "cost": comparison / "cost.png"}
    plots.bars(found, keys, tints, figures["distance"])
    plots.cost(found, keys[0], tints, figures["cost"])
    plots.overview(got.samples, comparison / "overview.png")
    curves = {f: comparison / f"curve_{f}.png" for f in got.models}
    for f, path in curves.items():
        plots.curve(pd.read_csv(got.curves[f]), path, tints[f])
    if got.sweeps:
        figures |= {"nfe": comparison / "nfe.png", "levels": comparison / "levels.png"}
        plots.nfe(got.sweeps, got.metrics[keys[1]]["floor"], figures["nfe"])
        plots.levels(got.sweeps, tints, figures["levels"])

    if got.energies:
        figures["chain"] = comparison / "chain.png"
        plots.chain(got.energies, tints, figures["chain"])
    if counts := {f: v for f, v in got.metrics.get("code_counts", {}).items() if f in got.models}:
        figures["codebook"] = comparison / "codebook.png"
        plots.codebook(counts, got.metrics["perplexity"], tints, figures["codebook"])

    board = leaderboard(got.models, got.metrics)
    order = [row for row in board.index if row in owners]
    families = [row for row in order if row in got.models]
    context = {
        "models": families,
        "further": [row for row in order if owners[row] != row],
        "data": got.data,
        "keys": keys,
        "board": board,
        "fixed": len(board) - len(order),
        "sort_values": _sort_values(found.loc[order], keys),
        "floor": got.metrics["protocol"]["floor"],
        "lines": {LINES[f]: got.metrics["protocol"][f] for f in LINES if f in got.metrics["protocol"]},
        "refused": {LINES[f]: reason for f, reason in got.metrics.get("refused", {}).items()},
        "beyond": beyond(order, got.metrics),
        "beyond_notice": beyond_notice(got.metrics),
        "notice": notice(got.metrics),
        "samples": {f: _uri(got.samples[f]) for f in ("data", *order)},
        "curves": {f: _uri(curves[f]) for f in families},
        "guards": {f: [_told(event) for event in events] for f, events in got.metrics.get("guards", {}).items()},
        "figures": {name: _uri(path) for name, path in figures.items()},
        "exploration": {path.stem.replace("_", " "): _uri(path) for path in got.exploration},
        "papers": PAPERS,
        "protocol": {row: got.metrics["protocol"][row] for row in order},
        "config": {row: json.dumps(got.metrics["config"][row], indent=2) for row in order},
        "swept": {key: _of_each(got.sweeps, key) for key in ("test_images", "device")},
        "points": points(got.sweeps),
        "sweep_notice": points_notice(got.sweeps, SWEPT),
        "denoising": {f: _denoising(got, f) for f in got.sweeps},
        "scores": scores(got.energies),
        "scores_notice": scores_notice(got.energies),
        "chains": chains(got.energies),
        "chains_notice": points_notice(got.energies, CHAINED),
        "uses": {f: _uses(got, f) for f in got.energies},
        "progress": {f: _uri(path) for f, path in got.progress.items()},
        "codes": codes(order, got.metrics),
        "code_pictures": {f: shown for f in order if (shown := _code_pictures(got, f))},
        "neighbours": {
            f: _uri(got.pictures[f]["neighbours"]) for f in order if "neighbours" in got.pictures.get(f, {})
        },
    }
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    page = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    for name, content in (
        ("index.html", page.get_template("report.html.j2").render(context)),
        ("report.md", _markdown(got, board)),
    ):
        with atomic(out / name) as file:
            file.write(content.encode())
    return board


def notice(metrics: Metrics) -> str:
    """What the numbers may be compared with, in one or two sentences."""
    fd, n = distance_keys(metrics)[0], metrics["protocol"]["floor"]["n"]
    same = (
        f"A Frechet distance falls as more images are taken: compare rows of equal N, and with the floor (N = {n:,})."
    )
    if fd == "fid":
        return f"{same} Published FIDs are of 50,000 samples against the whole training set."
    return f"{same} {fd} lives in another network's features: it is not comparable with published Inception FIDs."


def beyond(models: Sequence[str], metrics: Metrics) -> list[dict[str, tuple[str, Any]]]:
    """What one distance to the reference does not tell: column -> what is shown, and what is sorted by. Floors and
    baselines first, then a row for each of `models`; nothing where a run has measured none of it."""
    fd, kid, spread = distance_keys(metrics)
    names = {"floor": FLOOR, **{name: LINES[name] for name in _lines(metrics)}, **{f: f for f in models}}

    def cells(f: str) -> dict[str, tuple[str, Any]]:
        def known(key: str) -> float:
            return float(metrics.get(key, {}).get(f, math.nan))

        def spreading(key: str, error: str) -> tuple[str, float]:
            return between(known(key), known(error)), known(key)

        inf, shifts = named(fd, "inf"), metrics.get("colour_shift", {}).get(f, [])
        limit, kernel = spreading(inf, f"{inf}_stderr"), spreading(named(kid, "test"), named(spread, "test"))
        plain = {key: (text(value := known(key)), value) for key in (named(fd, "test"), *MANIFOLD, "nearest_ratio")}
        shares = {key: known(key) for key in ("copied", "duplicates", "saturated")}
        told = {key: (BLANK if value != value else f"{value:.1%}", value) for key, value in shares.items()}
        colour = ", ".join(f"{z:+.1f}" for z in shifts) or BLANK, max(map(abs, shifts), default=math.nan)
        found = {inf: limit, named(kid, "test"): kernel, **plain, **told, "colour_shift": colour}
        order = (inf, named(fd, "test"), named(kid, "test"), *MANIFOLD, "nearest_ratio", "copied", "duplicates")
        return {key: found[key] for key in (*order, "colour_shift", "saturated")}

    found = {f: cells(f) for f in names}
    if all(value != value for row in found.values() for _, value in row.values()):
        return []
    return [_blanks_last({"model": (names[f], f), **row}) for f, row in found.items()]


def beyond_notice(metrics: Metrics) -> str:
    """How the columns of `beyond` were measured, and how they are to be read."""
    fd, kid, _ = distance_keys(metrics)
    p = next((p for p in metrics["protocol"].values() if "n_manifold" in p), None)
    if p is None:
        return ""
    halves = metrics["protocol"].get("halves", {"n": 0})["n"]
    return (
        f"{named(fd, 'inf')}: {fd} extrapolated to infinitely many samples, by a line in 1/N through sizes from N/2 to "
        "N (± standard error of the fit); blank where N is less than twice the length of a feature vector: there is no "
        f"such line. {named(fd, 'test')}, {named(kid, 'test')}: against {p['n_test']:,} test images; the floor of both "
        f"is the row of {halves:,} training images, whose own {fd} is to as many other training images. Precision, "
        f"recall (k = 3), density, coverage (k = 5): {p['n_manifold']:,} images a side, in the features of {fd}, not "
        "those of the papers; larger is better. nearest_ratio: median distance to the nearest of "
        f"{p['n_reference']:,} training images, over that of test images. copied: share of samples that lie nearer to "
        "one of these than 99% of test images do; a copy of any other training image goes unseen. duplicates: share "
        "nearer to another sample than 99% of test images to another test image. Both are 1% by chance. What is near "
        "in these features need not look alike: images without structure lie in their middle, near to all others, so "
        "see the rows of the Gaussians, and recall, before believing a high precision, density or copied. "
        "colour_shift: mean red, green and blue less those of training images, in standard errors; within ±2 by "
        "chance, and the larger N, the more the same shift counts. saturated: share of values at 0 or 255."
    )


def points(sweeps: dict[str, dict[str, Any]]) -> list[dict[str, tuple[str, Any]]]:
    """Every point of the sweeps, one after the other: column -> what is shown, and what is sorted by."""
    found, none = [], math.nan
    for f, sweep in sweeps.items():
        fd, kid, spread = sweep["keys"]
        for row in sweep["rows"]:
            seconds, distance, kernel = (row.get(key, none) for key in ("seconds_per_1000", fd, kid))
            sampler, steps = row["sampler"] + " (own)" * row["own"], row["steps"]
            cells = {
                "model": (f, f),
                "sampler": (sampler, sampler),
                "levels": ("all", math.inf) if steps is None else (f"{steps:,}", steps),
                "last denoising": ("yes", 1) if row["denoise"] else ("no", 0),
                "NFE": (text(row.get("nfe", none)), row.get("nfe", none)),
                "s per 1,000": (text(seconds), seconds),
                kid: (between(kernel, row.get(spread, none)), kernel),
                f"{fd}, N = {sweep['n']:,}": (text(distance), distance),
                "refused": (row.get("refused", ""),) * 2,
            }
            found.append(_blanks_last(cells))
    return found


def scores(energies: dict[str, dict[str, Any]]) -> list[dict[str, tuple[str, Any]]]:
    """How well energies tell test images from others: a row a model, column -> what is shown, and what is sorted by."""
    sets = dict.fromkeys(row["set"] for found in energies.values() for row in found["auroc"])
    rows = []
    for f, found in energies.items():
        known = {row["set"]: row["auroc"] for row in found["auroc"]}
        cells = {name: known.get(name, math.nan) for name in sets}
        shown = {name: (f"{value:.3f}" if value == value else BLANK, value) for name, value in cells.items()}
        rows.append(_blanks_last({"model": (f, f), **shown}))
    return rows


def scores_notice(energies: dict[str, dict[str, Any]]) -> str:
    """How the AUROCs are to be read."""
    if not energies:
        return ""
    p = next(iter(energies.values()))["protocol"]
    return (
        f"AUROC of the energy, {p['test_images']:,} test images against as many others: the share of pairs in which "
        "the other image has the higher energy. 1: all told apart; 0.5: chance; below 0.5: the model finds the others "
        f"likelier than the data. Training images should score 0.5, within ± {p['chance']:.3f} (one standard "
        "deviation, by chance alone); clearly less would be learning by heart."
    )


def chains(energies: dict[str, dict[str, Any]]) -> list[dict[str, tuple[str, Any]]]:
    """Every row at every number of Langevin steps: column -> what is shown, and what is sorted by."""
    found, none = [], math.nan
    for f, tree in energies.items():
        fd, kid, spread = tree["keys"]
        for row in tree["rows"]:
            name = row["row"] if row["chain"] is not None else f"test images ({f})"
            chain = none if row["chain"] is None else row["chain"]
            distance, kernel, share, seconds = (row.get(k, none) for k in (fd, kid, "saturated", "seconds_per_1000"))
            energy = (row.get("energy", none) - tree["test_energy"]) / (tree["test_std"] or 1)
            cells = {
                "row": (name, name),
                "Langevin steps": (BLANK if chain != chain else f"{chain:,}", chain),
                kid: (between(kernel, row.get(spread, none)), kernel),
                f"{fd}, N = {tree['n']:,}": (text(distance), distance),
                "saturated": (BLANK if share != share else f"{share:.2%}", share),
                "energy": (BLANK if energy != energy else f"{energy:+.2f}", energy),
                "s per 1,000": (text(seconds), seconds),
                "refused": (row.get("refused", ""),) * 2,
            }
            found.append(_blanks_last(cells))
    return found


def codes(models: Sequence[str], metrics: Metrics) -> list[dict[str, tuple[str, Any]]]:
    """What is known of codes and of the images that come back from them: column -> what is shown, and what is sorted
    by. A row for each of `models` that has a code, below what test images themselves score."""
    fd = distance_keys(metrics)[0]
    again = f"recon_{fd}"

    def cells(f: str) -> dict[str, tuple[str, Any]]:
        def known(key: str) -> float:
            return float(metrics.get(key, {}).get(f, math.nan))

        def plain(key: str, whole: int | None = None) -> tuple[str, float]:
            value = known(key)
            return text(value) + f" of {whole}" * (whole is not None and value == value), value

        weighted, used = known("bpd_iw"), known("codes_used")
        return {
            "weighted bits/dim": (between(weighted, known("bpd_iw_stderr")), weighted),
            "of pixels": plain("bpd_decoder"),
            "of codes": plain("bpd_prior"),
            again: plain(again),
            "PSNR, dB": plain("recon_psnr"),
            "SSIM": plain("recon_ssim"),
            "sharpness": plain("recon_sharpness"),
            "active units": plain("active_units", _setting(metrics, f, "latent")),
            "perplexity": plain("perplexity", _setting(metrics, f, "codes")),
            "codes used": (f"{used:.1%}" if used == used else BLANK, used),
            "MIG": plain("mig"),
            "DCI disentanglement": plain("dci_disentanglement"),
        }

    coded = {f: cells(f) for f in models}
    coded = {f: row for f, row in coded.items() if any(value == value for _, value in row.values())}
    if any(row[again][1] == row[again][1] for row in coded.values()):
        floor = metrics[fd]["floor"]
        coded = {FLOOR: cells("floor") | {again: (text(floor), floor)}} | coded
    return [_blanks_last({"model": (f, f), **row}) for f, row in coded.items()]


def shown(rows: list[dict[str, tuple[str, Any]]]) -> pd.DataFrame:
    """The cells of `beyond`, `points`, `codes`, `scores` or `chains`."""
    return pd.DataFrame([{column: cell for column, (cell, _) in row.items()} for row in rows])


def points_notice(found: dict[str, dict[str, Any]], where: str) -> str:
    """What the distances of few images a point, drawn from the same noise `where`, may be compared with."""
    if not found:
        return ""
    tree = next(iter(found.values()))
    (fd, kid, _), p = tree["keys"], tree["protocol"]
    return (
        f"{tree['n']:,} images a point, from the same noise at every {where}. A Frechet distance of so few images is "
        f"far above its value for many: {fd} of these rows must not be set beside the leaderboard, its floor or a "
        f"paper. {kid} is unbiased, and may; ± is its standard deviation over {p['kid_subsets']} subsets of "
        f"{p['kid_subset_size']:,}. Reference: {p['reference']}."
    )


def _blanks_last(row: dict[str, tuple[str, Any]]) -> dict[str, tuple[str, Any]]:
    return {column: (cell, math.inf if value != value else value) for column, (cell, value) in row.items()}


def _setting(metrics: Metrics, f: str, key: str) -> int | None:
    """A number of the family's own configuration, or of the one that it is built on."""
    parts = metrics.get("config", {}).get(f, {}).values()
    return next((part[key] for part in parts if isinstance(part, dict) and key in part), None)


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


def _sort_values(found: pd.DataFrame, keys: tuple[str, str, str]) -> dict[str, dict[str, Any]]:
    """What the page sorts by: column of the leaderboard -> row -> value, blanks last."""
    columns = {k: k for k in keys[:2]} | {"bits/dim": "bpd"} | {heading: key for heading, key, _ in COLUMNS}
    values = {column: found[key].fillna(math.inf).to_dict() for column, key in columns.items() if key in found}
    return values | {"model": {row: row for row in found.index}}


def protocol(metrics: Metrics, model: str) -> str:
    """How the numbers of `model` were measured, in one line."""
    p = metrics["protocol"][model]
    return (
        f"N = {p['n']:,}; reference: {p['reference']}; features: {p['extractor']}; KID: mean ± standard deviation over "
        f"{p['kid_subsets']} subsets of {p['kid_subset_size']:,}."
    )


def _markdown(got: Material, board: pd.DataFrame) -> str:
    tables = (shown(table(got.energies)).to_markdown(index=False, disable_numparse=True) for table in (scores, chains))
    used = ("## Energy", scores_notice(got.energies), next(tables), points_notice(got.energies, CHAINED), next(tables))
    swept = (
        "## Distance against NFE",
        points_notice(got.sweeps, SWEPT),
        shown(points(got.sweeps)).to_markdown(index=False),
    )
    coded, further = (f(list(rows(got.models, got.metrics)), got.metrics) for f in (codes, beyond))
    parts = (
        f"# {', '.join(got.models)} on {got.data['name']}",
        board.to_markdown(index=False),
        notice(got.metrics),
        protocol(got.metrics, got.models[0]),
        *(f"{LINES[f]}: blank, {reason}." for f, reason in got.metrics.get("refused", {}).items()),
        *(("## Beyond the distance", *beyond_markdown(further, got.metrics)) if further else ()),
        *(("## Codes and reconstructions", shown(coded).to_markdown(index=False)) if coded else ()),
        *(swept if got.sweeps else ()),
        *(used if got.energies else ()),
        "## Paper, Inception-FID, 50k (CIFAR-10)",
        PAPERS.to_markdown(index=False, disable_numparse=True),
    )
    return "\n\n".join(parts) + "\n"


def beyond_markdown(rows: list[dict[str, tuple[str, Any]]], metrics: Metrics) -> list[str]:
    """Table and notice of what `beyond` found."""
    return [shown(rows).to_markdown(index=False, disable_numparse=True), beyond_notice(metrics)]


def _uri(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
