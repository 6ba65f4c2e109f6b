"""The report's tables. A cell is what is shown, and what is sorted by: blanks last."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from pofx.report.metrics import FLOOR, LINES, Metrics, distance_keys, lines, rows, seeds, table
from pofx.report.text import BLANK, between, clock, count, mean, share, text
from pofx.score.distances import named

Cell = tuple[str, Any]
Cells = dict[str, Cell]  # by column
COLUMNS = (  # of the leaderboard, after distances and bits/dim: heading, metric, format
    ("test loss", "test_loss", text),
    ("parameters", "parameters", count),
    ("images seen", "images_seen", count),
    ("training", "train_seconds", clock),
    ("training img/s", "train_images_per_second", text),
    ("s per 1,000 samples", "sample_seconds_per_1000", text),
    ("NFE", "nfe", count),
    ("GFLOP a call", "forward_gflop", text),
    ("GFLOP a sample", "sample_gflop", text),
    ("training MiB", "train_peak_mib", count),
    ("sampling MiB", "sample_peak_mib", count),
)
LEADING = ("test loss", "training", "s per 1,000 samples", "NFE")  # of these, on top of the page
MANIFOLD = ("precision", "recall", "density", "coverage")
NAMES = {"floor": FLOOR} | LINES


def board(models: tuple[str, ...], metrics: Metrics) -> list[Cells]:
    """All that was measured of rows: floor and Gaussians first, then the rows by their Frechet distance. Columns that
    no row has a number for are left out."""
    fd, kid, spread = distance_keys(metrics)
    fixed = ["floor", *lines(metrics)]
    values, drawn = table(models, metrics, fixed[1:]), seeds(metrics, fd)
    values = pd.concat([values.loc[fixed], values.drop(index=fixed).sort_values(fd)])
    return [
        {
            "model": (NAMES.get(name, name), name),
            fd: (mean(row[fd], row[f"{fd}_spread"], len(drawn.get(name, ()))), _last(row[fd])),
            kid: _spread(row[kid], row[spread]),
            "bits/dim": _spread(row.get("bpd", math.nan), row.get("bpd_stderr", math.nan)),
            **{heading: _number(row[key], form) for heading, key, form in COLUMNS if key in values},
            "trained on": _word("" if pd.isna(row["device"]) else row["device"]),
        }
        for name, row in values.iterrows()
    ]


def leaderboard(models: tuple[str, ...], metrics: Metrics) -> pd.DataFrame:
    """`board` as text, a line for each row."""
    cells = board(models, metrics)
    return shown(cells).set_index(pd.Index([row["model"][1] for row in cells]))


def leading(models: tuple[str, ...], metrics: Metrics) -> list[Cells]:
    """The columns of the leaderboard that a page has room for."""
    wanted = ("model", *distance_keys(metrics)[:2], "bits/dim", *LEADING)
    return [{c: row[c] for c in wanted if c in row} for row in board(models, metrics)]


def costs(models: tuple[str, ...], metrics: Metrics) -> list[Cells]:
    """What training and drawing cost: the rest of the leaderboard, of those rows alone that a model has."""
    left_out = (*distance_keys(metrics)[:2], "bits/dim", "test loss")
    rows = board(models, metrics)[1 + len(lines(metrics)) :]
    return [{c: cell for c, cell in row.items() if c not in left_out} for row in rows]


def sampled(models: tuple[str, ...], metrics: Metrics) -> list[Cells]:
    """Both distances with every sampling seed, their means and standard deviations; nothing where one was drawn."""
    out, owners = [], rows(models, metrics)
    for key in distance_keys(metrics)[:2]:
        for row, draws in seeds(metrics, key).items():
            if row in NAMES or row in owners:
                values = pd.Series(draws)
                columns = {f"seed {k}": value for k, value in enumerate(draws)}
                columns |= {"mean": values.mean(), "standard deviation": values.std()}
                words = {"model": _word(NAMES.get(row, row)), "distance": _word(key)}
                out.append(words | {name: _number(value) for name, value in columns.items()})
    return out


def brief(models: tuple[str, ...], metrics: Metrics) -> str:
    """The columns of the leaderboard that fit a terminal."""
    fd, kid, _ = distance_keys(metrics)
    columns = ["model", fd, kid, "bits/dim", "training", "training img/s", "s per 1,000 samples"]
    picked = leaderboard(models, metrics)[columns].rename(columns={"s per 1,000 samples": "s per 1,000"})
    return picked.to_markdown(index=False, tablefmt="simple")


def probes(models: Sequence[str], metrics: Metrics) -> list[Cells]:
    """How well a linear classifier separates classes by the features of each family, and by those of the same network
    untrained; nothing where no run was made of it."""
    out = []
    for f in ("pixels", *models):
        if f in metrics.get("linear_probe", {}):
            cells = {"features of": _word(f)}
            for column, key in {"test accuracy": "linear_probe", "untrained": "linear_probe_random"}.items():
                value, error = _of(metrics, key, f), _of(metrics, f"{key}_stderr", f)
                spread = "" if math.isnan(error) else f" ± {share(error)}"
                cells[column] = share(value) + spread, _last(value)
            protocol = metrics["protocol"].get(f, {})
            for column, key in {"features": "probe_features", "training images": "probe_train"}.items():
                cells[column] = _number(protocol.get(key, math.nan), "{:,.0f}".format)
            out.append(cells | {"taken from": _word(protocol.get("probe_layer", BLANK))})
    return out


def beyond(models: Sequence[str], metrics: Metrics) -> list[Cells]:
    """What one distance to the reference leaves out. Floors and baselines first, then a row for each of `models`;
    nothing where a run has measured none of it."""
    fd, kid, spread = distance_keys(metrics)
    inf, fd_test, kid_test, spread_test = named(fd, "inf"), named(fd, "test"), named(kid, "test"), named(spread, "test")

    def cells(f: str) -> Cells:
        shifts = metrics.get("colour_shift", {}).get(f, [])
        worst = max(map(abs, shifts), default=math.inf)
        return {
            "model": (NAMES.get(f, f), f),
            inf: _measured(metrics, inf, f, f"{inf}_stderr"),
            fd_test: _measured(metrics, fd_test, f),
            kid_test: _measured(metrics, kid_test, f, spread_test),
            **{key: _measured(metrics, key, f) for key in (*MANIFOLD, "nearest_ratio")},
            **{key: _number(_of(metrics, key, f), share) for key in ("copied", "duplicates")},
            "colour_shift": (", ".join(f"{z:+.1f}" for z in shifts) or BLANK, worst),
            "saturated": _number(_of(metrics, "saturated", f), share),
        }

    out = [cells(f) for f in ("floor", *lines(metrics), *models)]
    return out if any(map(_any_number, out)) else []


def points(sweeps: dict[str, dict[str, Any]]) -> list[Cells]:
    """Every point of the sweeps, one after the other."""
    out = []
    for f, sweep in sweeps.items():
        fd, kid, spread = sweep["keys"]
        for row in sweep["rows"]:
            steps = row["steps"]
            out.append(
                {
                    "model": _word(f),
                    "sampler": _word(f"{row['sampler']} (own)" if row["own"] else row["sampler"]),
                    "levels": ("all", math.inf) if steps is None else (f"{steps:,}", steps),
                    "last denoising": ("yes", 1) if row["denoise"] else ("no", 0),
                    "NFE": _number(row.get("nfe", math.nan)),
                    "s per 1,000": _number(row.get("seconds_per_1000", math.nan)),
                    kid: _spread(row.get(kid, math.nan), row.get(spread, math.nan)),
                    f"{fd}, N = {sweep['n']:,}": _number(row.get(fd, math.nan)),
                    "refused": _word(row.get("refused", "")),
                }
            )
    return out


def scores(energies: dict[str, dict[str, Any]]) -> list[Cells]:
    """AUROC of the energies, test images against others: a row a model."""
    aurocs = {f: {row["set"]: row["auroc"] for row in tree["auroc"]} for f, tree in energies.items()}
    sets = dict.fromkeys(name for values in aurocs.values() for name in values)
    return [
        {"model": _word(f)} | {name: _number(values.get(name, math.nan), "{:.3f}".format) for name in sets}
        for f, values in aurocs.items()
    ]


def chains(energies: dict[str, dict[str, Any]]) -> list[Cells]:
    """Every row at every number of Langevin steps."""
    out = []
    for f, tree in energies.items():
        fd, kid, spread = tree["keys"]
        for row in tree["rows"]:
            steps = math.nan if row["chain"] is None else row["chain"]
            energy = (row.get("energy", math.nan) - tree["test_energy"]) / (tree["test_std"] or 1)
            out.append(
                {
                    "row": _word(f"test images ({f})" if row["chain"] is None else row["row"]),
                    "Langevin steps": _number(steps, "{:,}".format),
                    kid: _spread(row.get(kid, math.nan), row.get(spread, math.nan)),
                    f"{fd}, N = {tree['n']:,}": _number(row.get(fd, math.nan)),
                    "saturated": _number(row.get("saturated", math.nan), lambda value: share(value, 2)),
                    "energy": _number(energy, "{:+.2f}".format),
                    "s per 1,000": _number(row.get("seconds_per_1000", math.nan)),
                    "refused": _word(row.get("refused", "")),
                }
            )
    return out


def codes(models: Sequence[str], metrics: Metrics) -> list[Cells]:
    """What was measured of codes and of the images that come back from them. A row for each of `models` that has a
    code, below what test images themselves score."""
    fd = distance_keys(metrics)[0]
    again = f"recon_{fd}"

    def cells(f: str) -> Cells:
        return {
            "model": (NAMES.get(f, f), f),
            "weighted bits/dim": _measured(metrics, "bpd_iw", f, "bpd_iw_stderr"),
            "of pixels": _measured(metrics, "bpd_decoder", f),
            "of codes": _measured(metrics, "bpd_prior", f),
            again: _measured(metrics, again, f),
            "PSNR, dB": _measured(metrics, "recon_psnr", f),
            "SSIM": _measured(metrics, "recon_ssim", f),
            "sharpness": _measured(metrics, "recon_sharpness", f),
            "active units": _number(_of(metrics, "active_units", f), _out_of(_setting(metrics, f, "latent"))),
            "perplexity": _number(_of(metrics, "perplexity", f), _out_of(_setting(metrics, f, "codes"))),
            "codes used": _number(_of(metrics, "codes_used", f), share),
            "MIG": _measured(metrics, "mig", f),
            "DCI disentanglement": _measured(metrics, "dci_disentanglement", f),
        }

    coded = [row for row in map(cells, models) if _any_number(row)]
    if any(row[again][1] != math.inf for row in coded):
        coded = [cells("floor") | {again: _number(metrics[fd]["floor"])}, *coded]
    return coded


def shown(cells: list[Cells]) -> pd.DataFrame:
    return pd.DataFrame([{column: cell for column, (cell, _) in row.items()} for row in cells])


def markdown(cells: list[Cells]) -> str:
    return shown(cells).to_markdown(index=False, disable_numparse=True)


def _of(metrics: Metrics, key: str, row: str) -> float:
    return float(metrics.get(key, {}).get(row, math.nan))


def _measured(metrics: Metrics, key: str, row: str, error: str = "") -> Cell:
    """A metric of a row, with its error if there is a key for that."""
    value = _of(metrics, key, row)
    return _spread(value, _of(metrics, error, row)) if error else _number(value)


def _number(value: float | int, form: Callable[..., str] = text) -> Cell:
    return (BLANK, math.inf) if math.isnan(value) else (form(value), value)


def _spread(value: float, error: float) -> Cell:
    return between(value, error), _last(value)


def _word(word: str) -> Cell:
    return word, word


def _last(value: float | int) -> float | int:
    return math.inf if math.isnan(value) else value


def _any_number(cells: Cells) -> bool:
    """Whether any column but the first holds one."""
    return any(shown != BLANK for shown, _ in list(cells.values())[1:])


def _out_of(whole: int | None) -> Callable[[float], str]:
    return text if whole is None else lambda value: f"{text(value)} of {whole}"


def _setting(metrics: Metrics, f: str, key: str) -> int | None:
    """A number of the family's own configuration, or of the one that it is built on."""
    parts = metrics.get("config", {}).get(f, {}).values()
    return next((part[key] for part in parts if isinstance(part, dict) and key in part), None)
