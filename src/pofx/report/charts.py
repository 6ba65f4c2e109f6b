"""What the charts of the report show: described once, for the page (pofx.report.interactive) and PNGs (.plots)."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from statistics import fmean
from typing import Any, Literal

import numpy as np
import pandas as pd

from pofx.report.text import short

INK = "#808890"  # reads on white and on black alike, as do these:
COLOURS = ("#4c8dd6", "#e0843a", "#3aa676", "#b36bd1", "#d65a6f", "#8c8f2e", "#2ea6b8", "#a0714f")
SYMBOLS = ("circle", "diamond-open", "square-open", "triangle-up-open", "x")  # first row of a family, and its others
OWN = {True: ("own sampler", "star"), False: ("own, without last denoising", "star-open")}  # with last denoising?
SIGMA = "\N{GREEK SMALL LETTER SIGMA}"
IMAGES, SECONDS = "training images seen", "seconds of training"
COSTS = {  # metric -> axis
    "train_seconds": SECONDS,
    "sample_seconds_per_1000": "seconds per 1,000 samples",
    "nfe": "network evaluations a sample (NFE)",
    "parameters": "parameters",
    "images_seen": IMAGES,
    "forward_gflop": "GFLOP a call of the network",
    "sample_gflop": "GFLOP a sample",
    "train_peak_mib": "peak memory of training, MiB",
    "sample_peak_mib": "peak memory of sampling, MiB",
}


@dataclass(frozen=True)
class Line:
    """Points of one name and colour; mode, symbol and shape as Plotly calls them.

    Attributes:
        error: of y, up and down; empty: none.
        text: what hovering adds to each point.
    """

    name: str
    tint: str
    x: Sequence[float | int]
    y: Sequence[float | int]
    error: Sequence[float | int] = ()
    text: Sequence[str] = ()
    mode: Literal["lines", "markers", "lines+markers"] = "lines+markers"
    symbol: str = "circle"
    dashed: bool = False
    shape: Literal["linear", "hv"] = "linear"


@dataclass(frozen=True)
class Panel:
    """Lines in one pair of axes.

    Attributes:
        x, y: titles of the axes.
        level: name and height of a dashed line across.
        scale: of y. "auto": logarithmic where that helps; "symlog": logarithmic on both sides of 0.
        limits: of y, where outliers are to be left out of a picture.
    """

    x: str
    y: str
    lines: Sequence[Line]
    level: tuple[str, float] | None = None
    log_x: bool = False
    scale: Literal["linear", "from zero", "log", "symlog", "auto"] = "linear"
    limits: tuple[float, float] | None = None


@dataclass(frozen=True)
class Chart:
    """Panels that share their controls: a panel for every choice of the reader.

    Attributes:
        choices: label of a list of options -> value -> its text; the first of each is shown first.
        panels: title -> values chosen, joined by "/" -> panel.
        still: title -> panel, of the picture shown without JavaScript.
        log: whether the reader may switch the y axis between linear and logarithmic.
        height: of a panel on the page, in pixels.
    """

    choices: dict[str, dict[str, str]]
    panels: dict[str, dict[str, Panel]]
    still: dict[str, Panel] = field(default_factory=dict)
    log: bool = False
    height: int = 380


def colour(i: int) -> str:
    """Of a family, by its place in `models`."""
    return COLOURS[i % len(COLOURS)]


def lighter(tint: str) -> str:
    """Of the same family, drawn in another way."""
    return f"{tint}90"


def cost(values: pd.DataFrame, keys: Sequence[str], owners: dict[str, str], tints: dict[str, str]) -> Chart:
    """Distance against any cost that was measured: a point a row, the Pareto front, the floor.

    Args:
        values: pofx.report.metrics.table, the floor and the rows.
        owners: row -> family.
    """
    drawn, panels = values.drop(index="floor"), {}
    costs = {key: label for key, label in COSTS.items() if key in drawn and drawn[key].notna().any()}
    for x, (key, spread, title) in product(costs, distances(keys)):
        points = drawn[drawn[x] > 0].dropna(subset=key).astype({x: float})
        lines, places = [_front(points[x], points[key])], Counter()
        for row, point in points.iterrows():
            family = owners[row]
            symbol = SYMBOLS[min(places[family], len(SYMBOLS) - 1)]
            places[family] += 1
            error = [point[spread]] if pd.notna(point.get(spread)) else []
            lines.append(Line(row, tints[family], [point[x]], [point[key]], error, mode="markers", symbol=symbol))
        level = ("floor", values.at["floor", key])
        panels[f"{x}/{key}"] = Panel(costs[x], title, lines, level, log_x=True, scale="from zero")
    picked = [f"{x}/{keys[0]}" for x in ("train_seconds", "sample_seconds_per_1000")]
    still = {("" if i else "smaller is better"): panels[key] for i, key in enumerate(picked) if key in panels}
    return Chart({"Cost": costs, "Distance": {key: title for key, _, title in distances(keys)}}, {"": panels}, still)


def curves(frames: dict[str, pd.DataFrame], seconds: dict[str, float], tints: dict[str, str]) -> Chart:
    """Loss of every family in a panel of its own (units differ), against images or seconds.

    Args:
        frames: of every family, columns images, loss and maybe val_loss.
        seconds: of its whole training, shared evenly by the images.
    """
    options, panels = {"images": IMAGES, "seconds": SECONDS}, {}
    for f, frame in frames.items():
        images, loss = frame["images"], frame["loss"].astype(float).tolist()
        axis = {"images": images.tolist(), "seconds": (images / images.iloc[-1] * seconds[f]).tolist()}
        panels[f] = {}
        for view, x in axis.items():
            lines = [Line("loss", tints[f], x, loss, mode="lines")]
            if "val_loss" in frame:
                held_out = frame["val_loss"].astype(float).tolist()
                lines.append(Line("loss of validation images", tints[f], x, held_out, mode="lines", dashed=True))
            panels[f][view] = Panel(options[view], "loss", lines)
    return Chart({"Against": options}, panels, log=True, height=300)


def terms(frame: pd.DataFrame, tint: str) -> dict[str, Panel]:
    """A panel each for the loss, the family's other terms and the gradient's norm.

    Args:
        frame: columns images, loss, terms..., grad_norm, lr.
    """
    last = ["grad_norm"] if "grad_norm" in frame else []
    panels, x = {}, frame["images"].tolist()
    for name in ["loss", *frame.columns.difference(["images", "loss", "grad_norm", "lr"], sort=False), *last]:
        y = frame[name].astype(float)
        lines = [Line(name, tint if name == "loss" else INK, x, y.tolist(), mode="lines")]
        panels[name.replace("_", " ")] = Panel(IMAGES, "", lines, scale="auto", limits=_limits(y.to_numpy()))
    return panels


def nfe(sweeps: dict[str, dict[str, Any]], floor: float) -> Chart:
    """Distance against the evaluations of the network: a panel a family, a line a sampler, the family's own a star.

    Args:
        sweeps: metrics/sweep/*.json of every family.
        floor: KID of test images; unbiased, so that it may stand beside KIDs of another number of images.
    """
    keys = next(iter(sweeps.values()))["keys"]
    drawn = {f: [row for row in sweep["rows"] if "refused" not in row] for f, sweep in sweeps.items()}
    names = dict.fromkeys(row["sampler"] for rows in drawn.values() for row in rows if not row["own"])
    tints = {name: colour(i) for i, name in enumerate(names)}
    options = list(reversed(distances(keys)))  # KID first
    panels: dict[str, dict[str, Panel]] = {f: {} for f in sweeps}
    for f, (key, spread, title) in product(sweeps, options):
        level = ("floor", floor) if key == keys[1] else None
        lines = _samplers(drawn[f], key, spread, tints)
        panels[f][key] = Panel("network evaluations (NFE)", title, lines, level, log_x=True, scale="auto")
    still = {f: panels[f][keys[1]] for f in sweeps}
    return Chart({"Distance": {key: title for key, _, title in options}}, panels, still, log=True)


def _samplers(rows: list[dict[str, Any]], key: str, spread: str, tints: dict[str, str]) -> list[Line]:
    """One panel of `nfe`."""
    lines, columns = [], ("nfe", key, spread)
    for name, tint in tints.items():
        points = [row for row in rows if row["sampler"] == name and not row["own"]]
        lines.append(_line(name, tint, sorted(points, key=lambda row: row["nfe"]), columns))
    for row in rows:
        if row["own"]:
            name, symbol = OWN[row["denoise"]]
            lines.append(_line(name, tints.get(row["sampler"], INK), [row], columns, mode="markers", symbol=symbol))
    return [line for line in lines if line.x]


def levels(sweeps: dict[str, dict[str, Any]], tints: dict[str, str]) -> Chart:
    """Denoising error against the noise level, a line a family, and the best linear denoiser over the widest range."""
    frames = {f: pd.DataFrame(sweep["levels"]) for f, sweep in sweeps.items()}
    widest = max(frames.values(), key=lambda frame: frame["sigma"].max() / frame["sigma"].min())
    options = {"mse": "error of the image, |D - x|², a dimension"}
    options["eps_mse"] = f"error of the noise: the same over {SIGMA}²"
    panels = {}
    for key, title in options.items():
        lines = [Line(f, tints[f], frame["sigma"].tolist(), frame[key].tolist()) for f, frame in frames.items()]
        linear = widest["sigma"].tolist(), widest[f"linear_{key}"].tolist()
        lines.append(Line("linear denoiser", INK, *linear, dashed=True))
        name = title.partition(":")[0].partition(",")[0]  # the list of options has all of it
        panels[key] = Panel(f"noise level {SIGMA}, images on [-1, 1]", name, lines, log_x=True, scale="log")
    return Chart({"Error": options}, {"": panels}, {title: panels[key] for key, title in options.items()})


def chain(energies: dict[str, dict[str, Any]], tints: dict[str, str]) -> Chart:
    """What becomes of MCMC chains, against their Langevin steps, a line a row; dashed: test images, of the first model.

    Args:
        energies: metrics/energy/*.json of every energy-based model.
    """
    first = next(iter(energies.values()))
    options = list(reversed(distances(first["keys"])))
    options += [("saturated", "", "share of values at 0 or 255"), ("energy", "", "mean energy; test images: 0 ± 1")]
    panels = {}
    for key, spread, title in options:
        lines, level = [], None
        for tree in energies.values():
            shift, unit = (tree["test_energy"], tree["test_std"] or 1) if key == "energy" else (0, 1)
            drawn = [row | {key: (row[key] - shift) / unit} for row in tree["rows"] if "refused" not in row]
            real, *points = drawn
            level = level or ("test images", real[key])
            for name in dict.fromkeys(row["row"] for row in points):
                line = [row for row in points if row["row"] == name]
                lines.append(_line(name, tints[name], line, ("chain", key, spread)))
        steps = "Langevin steps (with a noise schedule: a level)"
        panels[key] = Panel(steps, title, lines, level, scale="symlog" if key == "energy" else "linear")
    named = {key: title for key, _, title in options}
    return Chart({"Shown": named}, {"": panels}, {title: panels[key] for key, title in named.items()})


def codebook(counts: dict[str, list[int]], perplexity: dict[str, float], tints: dict[str, str]) -> dict[str, Panel]:
    """How often each code occurs, the most frequent first; dashed: if all occurred equally often.

    Args:
        counts: of every family, falling.
        perplexity: of these frequencies.
    """
    panels = {}
    for f, times in counts.items():
        lines = [Line(f, tints[f], range(1, len(times) + 1), times, mode="lines", shape="hv")]
        title = f"{f}: perplexity {short(perplexity[f])} of {len(times)} codes"
        titles, level = ("codes, the most frequent first", "times in test images"), ("even share", fmean(times))
        panels[title] = Panel(*titles, lines, level, scale="from zero")
    return panels


def distances(keys: Sequence[str]) -> list[tuple[str, str, str]]:
    """Of both distances: key, key of the spread, title."""
    fd, kid, spread = keys
    return [(fd, f"{fd}_spread", f"Frechet distance ({fd})"), (kid, spread, f"KID ({kid})")]


def _line(name: str, tint: str, rows: list[dict[str, Any]], keys: Sequence[str], **style: Any) -> Line:
    """A line through `rows`; keys: of x, y and the spread of y, which not all rows need to have."""
    x, y, spread = keys
    error = [row[spread] for row in rows] if all(spread in row for row in rows) else []
    text = [_hover(row) for row in rows]
    return Line(name, tint, [row[x] for row in rows], [row[y] for row in rows], error, text, **style)


def _hover(row: dict[str, Any]) -> str:
    if "sampler" not in row:
        return ""
    levels = "all" if row["steps"] is None else f"{row['steps']:,}"
    return f"{row['sampler']}, {levels} levels<br>{short(row['seconds_per_1000'])} s per 1,000 samples"


def _front(cost: pd.Series, distance: pd.Series) -> Line:
    """Through the rows that no other row beats in both."""
    points = pd.DataFrame({"cost": cost, "distance": distance}).sort_values(["cost", "distance"])
    best = points["distance"].cummin().shift(fill_value=math.inf)
    front = points[points["distance"] < best]
    x, y = front["cost"].tolist(), front["distance"].tolist()
    return Line("Pareto front", INK, x, y, mode="lines", dashed=True, shape="hv")


def _limits(values: np.ndarray) -> tuple[float, float] | None:
    """Of a curve whose first rows are far above the others: without these."""
    values = values[np.isfinite(values)]
    if len(values) < 10:
        return None
    low, high = np.quantile(values, [0, 0.95])
    margin = 0.15 * (high - low)
    return (low - margin / 3, high + margin) if values.max() > high + 2 * (high - low) > low else None
