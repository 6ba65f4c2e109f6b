"""The report's tables. A cell is what is shown, and what is sorted by."""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from pofx.report.metrics import FLOOR, LINES, Metrics, distance_keys, lines, rows, seeds, table
from pofx.report.text import BLANK, between, clock, count, mean, share, text
from pofx.score.distances import named

Cells = dict[str, tuple[str, Any]]  # column -> what is shown, and what is sorted by
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


def leaderboard(models: tuple[str, ...], metrics: Metrics) -> pd.DataFrame:
    """The table as text: floor and Gaussians first, then the rows by their Frechet distance. Columns that no row has a
    number for are left out."""
    fd, kid, spread = distance_keys(metrics)
    fixed = ["floor", *lines(metrics)]
    found, drawn = table(models, metrics, fixed[1:]), seeds(metrics, fd)
    found = pd.concat([found.loc[fixed], found.drop(index=fixed).sort_values(fd)])
    found = found.reindex(columns=[*found.columns, *({"bpd", "bpd_stderr"} - set(found.columns))])
    means = zip(found.index, found[fd], found[f"{fd}_spread"], strict=True)
    return pd.DataFrame(
        {
            "model": found.index.map(lambda name: ({"floor": FLOOR} | LINES).get(name, name)),
            fd: [mean(value, std, len(drawn.get(row, ()))) for row, value, std in means],
            kid: [between(*pair) for pair in zip(found[kid], found[spread], strict=True)],
            "bits/dim": [between(*pair) for pair in zip(found["bpd"], found["bpd_stderr"], strict=True)],
            **{heading: found[key].map(form) for heading, key, form in COLUMNS if key in found},
            "trained on": found["device"].fillna(""),
        },
        index=found.index,
    )


def leading(models: tuple[str, ...], metrics: Metrics) -> list[Cells]:
    """The columns of the leaderboard that a page has room for."""
    keys = distance_keys(metrics)[:2]
    return _picked(models, metrics, [*keys, "bits/dim", *LEADING])


def costs(models: tuple[str, ...], metrics: Metrics) -> list[Cells]:
    """What training and drawing cost: the rest of the leaderboard, of those rows alone that a model has."""
    picked = _picked(models, metrics, [heading for heading, *_ in COLUMNS if heading != "test loss"] + ["trained on"])
    return picked[1 + len(lines(metrics)) :]


def _picked(models: tuple[str, ...], metrics: Metrics, columns: Sequence[str]) -> list[Cells]:
    board, found = leaderboard(models, metrics), table(models, metrics, lines(metrics))
    keys = {"bits/dim": "bpd"} | {heading: key for heading, key, _ in COLUMNS}

    def cell(name: str, column: str) -> tuple[str, Any]:
        shown, key = board.at[name, column], keys.get(column, column)
        return shown, shown if column == "trained on" else found.at[name, key] if key in found else math.nan

    return [
        _blanks_last({"model": (board.at[name, "model"], name)} | {c: cell(name, c) for c in columns if c in board})
        for name in board.index
    ]


def sampled(models: tuple[str, ...], metrics: Metrics) -> list[Cells]:
    """Both distances with every sampling seed, their means and standard deviations; nothing where one was drawn."""
    found = []
    for key in distance_keys(metrics)[:2]:
        drawn = seeds(metrics, key)
        for row in (row for row in drawn if row in ("floor", *LINES) or row in rows(models, metrics)):
            values = pd.Series(drawn[row])
            name = ({"floor": FLOOR} | LINES).get(row, row)
            cells = {"model": (name, name), "distance": (key, key)}
            cells |= {f"seed {k}": (text(value), value) for k, value in enumerate(values)}
            cells |= {"mean": (text(values.mean()), values.mean())}
            found.append(cells | {"standard deviation": (text(values.std()), values.std())})
    return found


def brief(models: tuple[str, ...], metrics: Metrics) -> str:
    """The columns of the leaderboard that fit a terminal."""
    fd, kid, _ = distance_keys(metrics)
    columns = ["model", fd, kid, "bits/dim", "training", "training img/s", "s per 1,000 samples"]
    board = leaderboard(models, metrics)[columns].rename(columns={"s per 1,000 samples": "s per 1,000"})
    return board.to_markdown(index=False, tablefmt="simple")


def probes(models: Sequence[str], metrics: Metrics) -> list[Cells]:
    """How well a linear classifier tells classes from the features of each family, and from those of the same network
    untrained; nothing where no run was made of it."""

    def cells(f: str) -> Cells:
        found = {"features of": (f, f)}
        for column, key in {"test accuracy": "linear_probe", "untrained": "linear_probe_random"}.items():
            value, error = (float(metrics.get(k, {}).get(f, math.nan)) for k in (key, f"{key}_stderr"))
            found[column] = share(value) + f" ± {share(error)}" * (error == error), value
        told = metrics["protocol"].get(f, {})
        for column, key in {"features": "probe_features", "training images": "probe_train"}.items():
            found[column] = f"{told[key]:,}" if key in told else BLANK, told.get(key, math.nan)
        return _blanks_last(found | {"taken from": (told.get("probe_layer", BLANK),) * 2})

    return [cells(f) for f in ("pixels", *models) if f in metrics.get("linear_probe", {})]


def beyond(models: Sequence[str], metrics: Metrics) -> list[Cells]:
    """What one distance to the reference does not tell: column -> what is shown, and what is sorted by. Floors and
    baselines first, then a row for each of `models`; nothing where a run has measured none of it."""
    fd, kid, spread = distance_keys(metrics)
    names = {"floor": FLOOR, **{name: LINES[name] for name in lines(metrics)}, **{f: f for f in models}}

    def cells(f: str) -> Cells:
        def known(key: str) -> float:
            return float(metrics.get(key, {}).get(f, math.nan))

        def spreading(key: str, error: str) -> tuple[str, float]:
            return between(known(key), known(error)), known(key)

        inf, shifts = named(fd, "inf"), metrics.get("colour_shift", {}).get(f, [])
        limit, kernel = spreading(inf, f"{inf}_stderr"), spreading(named(kid, "test"), named(spread, "test"))
        plain = {key: (text(value := known(key)), value) for key in (named(fd, "test"), *MANIFOLD, "nearest_ratio")}
        shares = {key: known(key) for key in ("copied", "duplicates", "saturated")}
        told = {key: (share(value), value) for key, value in shares.items()}
        colour = ", ".join(f"{z:+.1f}" for z in shifts) or BLANK, max(map(abs, shifts), default=math.nan)
        found = {inf: limit, named(kid, "test"): kernel, **plain, **told, "colour_shift": colour}
        order = (inf, named(fd, "test"), named(kid, "test"), *MANIFOLD, "nearest_ratio", "copied", "duplicates")
        return {key: found[key] for key in (*order, "colour_shift", "saturated")}

    found = {f: cells(f) for f in names}
    if all(value != value for row in found.values() for _, value in row.values()):
        return []
    return [_blanks_last({"model": (names[f], f), **row}) for f, row in found.items()]


def points(sweeps: dict[str, dict[str, Any]]) -> list[Cells]:
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


def scores(energies: dict[str, dict[str, Any]]) -> list[Cells]:
    """How well energies tell test images from others: a row a model, column -> what is shown, and what is sorted by."""
    sets = dict.fromkeys(row["set"] for found in energies.values() for row in found["auroc"])
    rows = []
    for f, found in energies.items():
        known = {row["set"]: row["auroc"] for row in found["auroc"]}
        cells = {name: known.get(name, math.nan) for name in sets}
        shown = {name: (f"{value:.3f}" if value == value else BLANK, value) for name, value in cells.items()}
        rows.append(_blanks_last({"model": (f, f), **shown}))
    return rows


def chains(energies: dict[str, dict[str, Any]]) -> list[Cells]:
    """Every row at every number of Langevin steps: column -> what is shown, and what is sorted by."""
    found, none = [], math.nan
    for f, tree in energies.items():
        fd, kid, spread = tree["keys"]
        for row in tree["rows"]:
            name = row["row"] if row["chain"] is not None else f"test images ({f})"
            chain = none if row["chain"] is None else row["chain"]
            distance, kernel, part, seconds = (row.get(k, none) for k in (fd, kid, "saturated", "seconds_per_1000"))
            energy = (row.get("energy", none) - tree["test_energy"]) / (tree["test_std"] or 1)
            cells = {
                "row": (name, name),
                "Langevin steps": (BLANK if chain != chain else f"{chain:,}", chain),
                kid: (between(kernel, row.get(spread, none)), kernel),
                f"{fd}, N = {tree['n']:,}": (text(distance), distance),
                "saturated": (share(part, 2), part),
                "energy": (BLANK if energy != energy else f"{energy:+.2f}", energy),
                "s per 1,000": (text(seconds), seconds),
                "refused": (row.get("refused", ""),) * 2,
            }
            found.append(_blanks_last(cells))
    return found


def codes(models: Sequence[str], metrics: Metrics) -> list[Cells]:
    """What is known of codes and of the images that come back from them: column -> what is shown, and what is sorted
    by. A row for each of `models` that has a code, below what test images themselves score."""
    fd = distance_keys(metrics)[0]
    again = f"recon_{fd}"

    def cells(f: str) -> Cells:
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
            "codes used": (share(used), used),
            "MIG": plain("mig"),
            "DCI disentanglement": plain("dci_disentanglement"),
        }

    coded = {f: cells(f) for f in models}
    coded = {f: row for f, row in coded.items() if any(value == value for _, value in row.values())}
    if any(row[again][1] == row[again][1] for row in coded.values()):
        floor = metrics[fd]["floor"]
        coded = {FLOOR: cells("floor") | {again: (text(floor), floor)}} | coded
    return [_blanks_last({"model": (f, f), **row}) for f, row in coded.items()]


def shown(rows: list[Cells]) -> pd.DataFrame:
    """The cells of `beyond`, `points`, `codes`, `scores` or `chains`."""
    return pd.DataFrame([{column: cell for column, (cell, _) in row.items()} for row in rows])


def markdown(rows: list[Cells]) -> str:
    """The same in Markdown."""
    return shown(rows).to_markdown(index=False, disable_numparse=True)


def _blanks_last(row: Cells) -> Cells:
    return {column: (cell, math.inf if value != value else value) for column, (cell, value) in row.items()}


def _setting(metrics: Metrics, f: str, key: str) -> int | None:
    """A number of the family's own configuration, or of the one that it is built on."""
    parts = metrics.get("config", {}).get(f, {}).values()
    return next((part[key] for part in parts if isinstance(part, dict) and key in part), None)
