"""The report's tables. A cell is what is shown, and what is sorted by: blanks last."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

import pandas as pd

from pofx.report.metrics import FACES, FLOOR, LINES, Metrics, distance_keys, lines, rows, seeds, table, told, verdicts
from pofx.report.text import BLANK, between, clock, count, text
from pofx.score.distances import named

Cell = tuple[str, Any]
Cells = dict[str, Cell]  # by column
COLUMNS = (  # of the leaderboard, after distances and bits/dim: heading, metric, format
    ("test loss", "test_loss", text),
    ("parameters", "parameters", count),
    ("images seen", "images_seen", count),
    ("of these before an inexact start", "start_images", count),
    ("training", "train_seconds", clock),
    ("training img/s", "train_images_per_second", text),
    ("s per 1,000 samples", "sample_seconds_per_1000", text),
    ("NFE", "nfe", count),
    ("GFLOP a call", "forward_gflop", text),
    ("GFLOP a sample", "sample_gflop", text),
    ("training MiB", "train_peak_mib", count),
    ("sampling MiB", "sample_peak_mib", count),
)
NAMES = {"floor": FLOOR} | LINES
NOTHING: Cell = (BLANK, math.inf)
share = "{:.1%}".format
FACE_FORMS = tuple(zip(FACES, (text, share, text, share), strict=True))


def board(models: tuple[str, ...], metrics: Metrics) -> list[Cells]:
    """All that was measured of rows: floor and Gaussians first, then the rows by their Frechet distance. Behind the
    name of a row stands its verdict, if there is something to say."""
    fd, kid, spread = distance_keys(metrics)
    fixed = ["floor", *lines(metrics)]
    values, drawn, found = table(models, metrics, fixed[1:]), seeds(metrics, fd), verdicts(models, metrics)
    values = pd.concat([values.loc[fixed], values.drop(index=fixed).sort_values(fd)])
    out = []
    for name, row in values.iterrows():
        got = _blank_where_missing(row.to_dict())
        cells = {"model": (NAMES.get(name) or told(name, found), name)}
        cells |= {fd: _number(got[fd]), kid: _spread(got[kid], got[spread])}
        if name in drawn:
            shown = f"{between(got[fd], got[f'{fd}_spread'], 1)} ({len(drawn[name])} seeds)"
            cells[fd] = shown, got[fd]
        cells |= {key: _drawn(got[key], got[f"{key}_spread"], form) for key, form in FACE_FORMS if key in values}
        cells["bits/dim"] = _spread(got["bpd"], got["bpd_stderr"])
        cells |= {heading: _number(got[key], form) for heading, key, form in COLUMNS if key in values}
        out.append(cells | {"trained on": _word("" if pd.isna(got["device"]) else got["device"])})
    return out


def leaderboard(models: tuple[str, ...], metrics: Metrics) -> pd.DataFrame:
    """`board` as text, a line for each row."""
    cells = board(models, metrics)
    return shown(cells).set_index(pd.Index([row["model"][1] for row in cells]))


def leading(models: tuple[str, ...], metrics: Metrics) -> list[Cells]:
    """The columns of the leaderboard that a page has room for."""
    wanted = ("model", *distance_keys(metrics)[:2], *FACES, "bits/dim", "test loss", "training")
    wanted += ("s per 1,000 samples", "NFE")
    return [{c: row[c] for c in wanted if c in row} for row in board(models, metrics)]


def costs(models: tuple[str, ...], metrics: Metrics) -> list[Cells]:
    """What training and drawing cost: the rest of the leaderboard, without floors and baselines."""
    left_out = (*distance_keys(metrics)[:2], *FACES, "bits/dim", "test loss")
    drawn = board(models, metrics)[1 + len(lines(metrics)) :]
    return [{c: cell for c, cell in row.items() if c not in left_out} for row in drawn]


def sampled(models: tuple[str, ...], metrics: Metrics) -> list[Cells]:
    """Distances and FACES with every sampling seed, their means and standard deviations; of rows with several."""
    out, listed = [], NAMES.keys() | rows(models, metrics).keys()
    for key in (*distance_keys(metrics)[:2], *FACES):
        for row, draws in seeds(metrics, key).items():
            if row in listed:
                columns = {f"seed {k}": value for k, value in enumerate(draws)}
                columns |= {"mean": fmean(draws), "standard deviation": stdev(draws)}
                numbers = {name: _number(value) for name, value in columns.items()}
                out.append({"model": _model(row), "measure": _word(key)} | numbers)
    return out


def brief(models: tuple[str, ...], metrics: Metrics) -> str:
    """The columns of the leaderboard that fit a terminal."""
    fd, kid, _ = distance_keys(metrics)
    columns = ["model", fd, kid, "face_error", "bits/dim", "training", "s per 1,000 samples"]
    picked = leaderboard(models, metrics).filter(columns).rename(columns={"s per 1,000 samples": "s / 1,000"})
    return picked.to_markdown(index=False, tablefmt="simple")


def probes(models: Sequence[str], metrics: Metrics) -> list[Cells]:
    """How well a linear classifier separates classes by the features of each family, and of its untrained network."""
    out = []
    for f in ("pixels", *models):
        if f in metrics.get("linear_probe", {}):
            got, protocol = _measured(metrics, f), _blank_where_missing(metrics["protocol"].get(f, {}))
            accuracy, value = _number(got["linear_probe"], share)
            if not math.isnan(got["linear_probe_stderr"]):
                accuracy += f" ± {share(got['linear_probe_stderr'])}"
            cells = {"features of": _word(f), "test accuracy": (accuracy, value)}
            cells["untrained"] = _number(got["linear_probe_random"], share)
            for column, key in {"features": "probe_features", "training images": "probe_train"}.items():
                cells[column] = _number(protocol[key], "{:,.0f}".format)
            out.append(cells | {"taken from": _word(protocol.get("probe_layer", BLANK))})
    return out


def beyond(models: Sequence[str], metrics: Metrics) -> list[Cells]:
    """What one distance to the reference leaves out, of floors, baselines and `models`; empty if nothing of it was
    measured."""
    fd, kid, spread = distance_keys(metrics)
    inf, fd_test, kid_test = named(fd, "inf"), named(fd, "test"), named(kid, "test")
    out = []
    for row in ("floor", *lines(metrics), *models):
        got = _measured(metrics, row)
        cells = {
            "model": _model(row),
            inf: _spread(got[inf], got[f"{inf}_stderr"]),
            fd_test: _number(got[fd_test]),
            kid_test: _spread(got[kid_test], got[named(spread, "test")]),
        }
        cells |= {key: _number(got[key]) for key in ("precision", "recall", "density", "coverage", "nearest_ratio")}
        cells |= {key: _number(got[key], share) for key in ("copied", "duplicates")}
        shifts = got.get("colour_shift", [])
        worst = max(map(abs, shifts), default=math.inf)
        cells["colour_shift"] = ", ".join(f"{z:+.1f}" for z in shifts) or BLANK, worst
        out.append(cells | {"saturated": _number(got["saturated"], share)})
    return out if any(map(_any_number, out)) else []


def points(sweeps: dict[str, dict[str, Any]]) -> list[Cells]:
    """Every point of the sweeps, one after the other."""
    out = []
    for f, sweep in sweeps.items():
        for row in sweep["rows"]:
            got, steps = _blank_where_missing(row), row["steps"]
            cells = {
                "model": _word(f),
                "sampler": _word(f"{row['sampler']} (own)" if row["own"] else row["sampler"]),
                "levels": ("all", math.inf) if steps is None else (f"{steps:,}", steps),
                "last denoising": ("yes", 1) if row["denoise"] else ("no", 0),
                "NFE": _number(got["nfe"]),
                "s per 1,000": _number(got["seconds_per_1000"]),
            }
            out.append(cells | _distances(sweep, got) | {"refused": _word(row.get("refused", ""))})
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
        for row in tree["rows"]:
            got, real = _blank_where_missing(row), row["chain"] is None
            cells = {
                "row": _word(f"test images ({f})" if real else row["row"]),
                "Langevin steps": _number(math.nan if real else row["chain"], "{:,.0f}".format),
            }
            energy = (got["energy"] - tree["test_energy"]) / (tree["test_std"] or 1)
            cells |= _distances(tree, got) | {
                "saturated": _number(got["saturated"], "{:.2%}".format),
                "energy": _number(energy, "{:+.2f}".format),
                "s per 1,000": _number(got["seconds_per_1000"]),
            }
            out.append(cells | {"refused": _word(row.get("refused", ""))})
    return out


def codes(models: Sequence[str], metrics: Metrics) -> list[Cells]:
    """What was measured of codes and reconstructions, of those `models` that have a code. First, if there are
    distances: what test images themselves score."""
    fd = distance_keys(metrics)[0]
    again = f"recon_{fd}"

    def cells(f: str) -> Cells:
        got = _measured(metrics, f)
        return {
            "model": _model(f),
            "weighted bits/dim": _spread(got["bpd_iw"], got["bpd_iw_stderr"]),
            "of pixels": _number(got["bpd_decoder"]),
            "of codes": _number(got["bpd_prior"]),
            again: _number(got[again]),
            "PSNR, dB": _number(got["recon_psnr"]),
            "SSIM": _number(got["recon_ssim"]),
            "sharpness": _number(got["recon_sharpness"]),
            "active units": _number(got["active_units"], _out_of(metrics, f, "latent")),
            "perplexity": _number(got["perplexity"], _out_of(metrics, f, "codes")),
            "codes used": _number(got["codes_used"], share),
            "MIG": _number(got["mig"]),
            "DCI disentanglement": _number(got["dci_disentanglement"]),
        }

    coded = [row for row in map(cells, models) if _any_number(row)]
    if any(row[again] != NOTHING for row in coded):
        coded = [cells("floor") | {again: _number(metrics[fd]["floor"])}, *coded]
    return coded


def shown(cells: list[Cells]) -> pd.DataFrame:
    return pd.DataFrame([{column: cell for column, (cell, _) in row.items()} for row in cells])


def markdown(cells: list[Cells]) -> str:
    return shown(cells).to_markdown(index=False, disable_numparse=True)


def _blank_where_missing(values: Mapping[str, Any]) -> defaultdict[str, Any]:
    """NaN under every other key."""
    return defaultdict(lambda: math.nan, values)


def _measured(metrics: Metrics, row: str) -> defaultdict[str, Any]:
    """Metric -> value of one row."""
    return _blank_where_missing({key: values[row] for key, values in metrics.items() if row in values})


def _number(value: float | int, form: Callable[[float], str] = text) -> Cell:
    return NOTHING if math.isnan(value) else (form(float(value)), float(value))


def _spread(value: float | int, error: float | int) -> Cell:
    return _number(value, lambda value: between(value, error))


def _drawn(value: float, spread: float, form: Callable[[float], str]) -> Cell:
    """A number, with its standard deviation over sampling seeds where there are several."""
    shown, order = _number(value, form)
    return (shown if math.isnan(spread) else f"{shown} ± {form(spread)}"), order


def _word(word: str) -> Cell:
    return word, word


def _model(row: str) -> Cell:
    return NAMES.get(row, row), row


def _distances(tree: dict[str, Any], got: Mapping[str, Any]) -> Cells:
    """Of a point in a sweep, or of a chain."""
    fd, kid, spread = tree["keys"]
    return {kid: _spread(got[kid], got[spread]), f"{fd}, N = {tree['n']:,}": _number(got[fd])}


def _any_number(cells: Cells) -> bool:
    """Whether any column but the first holds one."""
    return any(shown != BLANK for shown, _ in list(cells.values())[1:])


def _out_of(metrics: Metrics, f: str, key: str) -> Callable[[float], str]:
    """The format of a part of a number in the family's configuration, or in that of the family it is built on."""
    parts = metrics.get("config", {}).get(f, {}).values()
    whole = next((part[key] for part in parts if isinstance(part, dict) and key in part), None)
    return text if whole is None else lambda value: f"{text(value)} of {whole}"
