"""The charts of the page, for plotly.js: what the PNGs of pofx.report.plots show, to be asked. Same names and colours.

A chart is one or more panels side by side. What the reader may choose (which cost, which distance) is a list of
options, and every panel has a figure for every choice.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from matplotlib.colors import to_rgba

from pofx.report import plots

COSTS = {  # metric -> axis
    "train_seconds": "seconds of training",
    "sample_seconds_per_1000": "seconds per 1,000 samples",
    "nfe": "network evaluations a sample (NFE)",
    "parameters": "parameters",
    "images_seen": "training images seen",
    "forward_gflop": "GFLOP a call of the network",
    "sample_gflop": "GFLOP a sample",
    "train_peak_mib": "peak memory of training, MiB",
    "sample_peak_mib": "peak memory of sampling, MiB",
}
HEIGHT = 380  # pixels
SIGMA = "\N{GREEK SMALL LETTER SIGMA}"
SYMBOLS = ("circle", "diamond-open", "square-open", "triangle-up-open", "x")  # first row of a family, and its others


@dataclass(frozen=True)
class Chart:
    """Panels that share their controls.

    Attributes:
        choices: label of a list of options -> value -> what the reader sees; the first of each is shown first.
        panels: title -> values chosen, joined by "/" -> figure.
        log: whether the reader may switch the y axis between linear and logarithmic.
    """

    choices: dict[str, dict[str, str]]
    panels: dict[str, dict[str, go.Figure]]
    log: bool = False

    def data(self) -> dict[str, dict[str, Any]]:
        """The figures as plain values, for JSON."""
        return {name: {key: json.loads(f.to_json()) for key, f in panel.items()} for name, panel in self.panels.items()}


def cost(found: pd.DataFrame, keys: Sequence[str], owners: dict[str, str], tints: dict[str, str]) -> Chart:
    """Distance against any cost that was measured: a point a row, the Pareto front, the floor.

    Args:
        found: pofx.report.metrics.table, the floor and the rows.
        owners: row -> family.
    """
    families = found.drop(index="floor")
    known = {key: label for key, label in COSTS.items() if key in found and families[key].notna().any()}
    figures = {}
    for x, (key, spread, title) in product(known, _distances(keys)):
        figure = _figure(known[x], title, log_x=True)
        points = families[families[x].notna() & (families[x] > 0) & families[key].notna()].astype({x: float})
        errors = points[spread] if spread in points else pd.Series(index=points.index, dtype=float)
        front = _front(points[x], points[key])
        figure.add_scatter(
            x=points.loc[front, x].tolist(), y=points.loc[front, key].tolist(), name="Pareto front", mode="lines",
            line={"color": plots.INK, "dash": "dot", "shape": "hv"}, hoverinfo="skip",
        )  # fmt: skip
        for row in points.index:
            place = [r for r in points.index if owners[r] == owners[row]].index(row)
            tint, style = tints[owners[row]], SYMBOLS[min(place, len(SYMBOLS) - 1)]
            more = {"error_y": {"array": [errors[row]], "thickness": 1}} if errors[row] == errors[row] else {}
            figure.add_scatter(
                x=[points.at[row, x]], y=[points.at[row, key]], name=row, mode="markers", **more,
                marker={"color": tint, "size": 11, "symbol": style, "line": {"width": 1.5, "color": tint}},
                hovertemplate=f"<b>{row}</b><br>{key} %{{y:.4~g}}<br>%{{x:,.4~g}} {known[x]}<extra></extra>",
            )  # fmt: skip
        _floor(figure, found.at["floor", key])
        figure.update_yaxes(rangemode="tozero")
        figures[f"{x}/{key}"] = figure
    return Chart({"Cost": known, "Distance": {key: title for key, _, title in _distances(keys)}}, {"": figures})


def curves(frames: dict[str, pd.DataFrame], seconds: dict[str, float], tints: dict[str, str]) -> Chart:
    """Loss of every family in a panel of its own (units differ), against images or seconds.

    Args:
        frames: of every family, columns images, loss and maybe val_loss.
        seconds: of its whole training; a row of the curve gets the share that its images are.
    """
    panels = {}
    for f, frame in frames.items():
        share = frame["images"] / frame["images"].iloc[-1]
        panels[f] = {}
        for view, x in {"images": frame["images"], "seconds": share * seconds[f]}.items():
            figure = _figure({"images": "training images seen", "seconds": "seconds of training"}[view], "loss")
            figure.update_layout(height=300, showlegend="val_loss" in frame)
            for key, name, dash in (("loss", "loss", "solid"), ("val_loss", "loss of held-out images", "dash")):
                if key in frame:
                    y = frame[key].astype(float).tolist()
                    line = {"color": tints[f], "dash": dash, "width": 1.8}
                    hover = f"<b>{f}</b>, {name} %{{y:.4~g}}<br>%{{x:,.0f}} {view}<extra></extra>"
                    figure.add_scatter(x=x.tolist(), y=y, name=name, mode="lines", line=line, hovertemplate=hover)
            panels[f][view] = figure
    return Chart({"Against": {"images": "training images seen", "seconds": "seconds of training"}}, panels, log=True)


def nfe(sweeps: dict[str, dict[str, Any]], floor: float) -> Chart:
    """Distance against the evaluations of the network: a panel a family, a line a sampler, the family's own a star.

    Args:
        sweeps: metrics/sweep/*.json of every family.
        floor: KID of test images.
    """
    keys = next(iter(sweeps.values()))["keys"]
    drawn = {f: [row for row in sweep["rows"] if "refused" not in row] for f, sweep in sweeps.items()}
    names = dict.fromkeys(row["sampler"] for rows in drawn.values() for row in rows if not row["own"])
    tints = {name: plots.colour(i) for i, name in enumerate(names)}
    panels: dict[str, dict[str, go.Figure]] = {f: {} for f in sweeps}
    for f, (key, spread, title) in product(sweeps, reversed(_distances(keys))):
        figure = _figure("network evaluations (NFE)", title, log_x=True)
        for name in tints:
            points = [p for p in drawn[f] if p["sampler"] == name and not p["own"]]
            _line(figure, name, sorted(points, key=lambda p: p["nfe"]), "nfe", key, spread, tints[name], _sampled)
        for last in (True, False):
            points = [p for p in drawn[f] if p["own"] and p["denoise"] == last]
            name = "own sampler" if last else "own, without last denoising"
            tint = tints.get(points[0]["sampler"], plots.INK) if points else plots.INK
            _line(figure, name, points, "nfe", key, spread, tint, _sampled)
            figure.update_traces(
                {"mode": "markers", "marker": {"symbol": "star" if last else "star-open", "size": 13}},
                {"name": name},
            )
        if key == keys[1]:
            _floor(figure, floor)
        panels[f][key] = figure
    return Chart({"Distance": {key: title for key, _, title in reversed(_distances(keys))}}, panels, log=True)


def levels(sweeps: dict[str, dict[str, Any]], tints: dict[str, str]) -> Chart:
    """Denoising error against the noise level, a line a family, beside the best linear denoiser (of the family with the
    widest range)."""
    frames = {f: pd.DataFrame(sweep["levels"]) for f, sweep in sweeps.items()}
    widest = max(frames.values(), key=lambda frame: frame["sigma"].max() / frame["sigma"].min())
    titles = {
        "mse": "error of the image, |D - x|², a dimension",
        "eps_mse": f"error of the noise: the same over {SIGMA}²",
    }
    figures = {}
    for key, title in titles.items():
        name = title.partition(":")[0].partition(",")[0]  # the list of options has all of it
        figure = _figure(f"noise level {SIGMA}, images on [-1, 1]", name, log_x=True, log_y=True)
        lines = [(f, frame, key, tints[f], "solid") for f, frame in frames.items()]
        lines += [("linear denoiser", widest, f"linear_{key}", plots.INK, "dash")]
        for name, frame, column, tint, dash in lines:
            figure.add_scatter(
                x=frame["sigma"].tolist(), y=frame[column].tolist(), name=name, mode="lines+markers",
                line={"color": tint, "dash": dash}, marker={"size": 5},
                hovertemplate=f"<b>{name}</b><br>{SIGMA} = %{{x:.3~g}}<br>error %{{y:.3~g}}<extra></extra>",
            )  # fmt: skip
        figures[key] = figure
    return Chart({"Error": titles}, {"": figures})


def chain(energies: dict[str, dict[str, Any]], tints: dict[str, str]) -> Chart:
    """What becomes of chains, against their Langevin steps, a line a row; dashed: as many test images, of the first
    model.

    Args:
        energies: metrics/energy/*.json of every energy-based model.
    """
    first = next(iter(energies.values()))
    shown = {key: (spread, title) for key, spread, title in reversed(_distances(first["keys"]))}
    shown |= {"saturated": ("", "share of values at 0 or 255"), "energy": ("", "mean energy; test images: 0 ± 1")}
    figures = {}
    for key, (spread, title) in shown.items():
        figure = _figure("Langevin steps (on a noise ladder: a level)", title)
        for k, found in enumerate(energies.values()):
            shift, unit = (found["test_energy"], found["test_std"] or 1) if key == "energy" else (0, 1)
            drawn = [row | {key: (row[key] - shift) / unit} for row in found["rows"] if "refused" not in row]
            real, *points = drawn
            for name in dict.fromkeys(row["row"] for row in points):
                line = [row for row in points if row["row"] == name]
                _line(figure, name, line, "chain", key, spread, tints[name], lambda p: f"{p['chain']:,} steps")
            if k == 0:
                _floor(figure, real[key], "test images")
        figures[key] = figure
    return Chart({"Shown": {key: title for key, (_, title) in shown.items()}}, {"": figures})


def _distances(keys: Sequence[str]) -> list[tuple[str, str, str]]:
    """Of both distances: key, key of the spread, title."""
    fd, kid, spread = keys
    return [(fd, f"{fd}_spread", f"Frechet distance ({fd})"), (kid, spread, f"KID ({kid})")]


def _front(cost: pd.Series, distance: pd.Series) -> list[Any]:
    """Rows that no other row beats in both, by rising cost."""
    order = pd.DataFrame({"cost": cost, "distance": distance}).sort_values(["cost", "distance"])
    best = order["distance"].cummin().shift()
    return order.index[best.isna() | (order["distance"] < best)].tolist()


def _sampled(point: dict[str, Any]) -> str:
    levels = "all" if point["steps"] is None else f"{point['steps']:,}"
    return f"{point['sampler']}, {levels} levels<br>{plots.short(point['seconds_per_1000'])} s per 1,000 samples"


def _line(
    figure: go.Figure,
    name: str,
    points: list[dict[str, Any]],
    x: str,
    key: str,
    spread: str,
    tint: str,
    told: Callable[[dict[str, Any]], str],
) -> None:
    """Points joined by a line, with their spread where it is known; nothing where there are none."""
    if not points:
        return
    errors = [p[spread] for p in points] if all(spread in p for p in points) else None
    figure.add_scatter(
        x=[p[x] for p in points], y=[p[key] for p in points], name=name, mode="lines+markers",
        line={"color": _tint(tint)}, marker={"color": _tint(tint), "size": 7}, text=[told(p) for p in points],
        error_y={"array": errors, "thickness": 1, "width": 3} if errors else None,
        hovertemplate=f"<b>{name}</b><br>{key} %{{y:.4~g}}<br>{x} %{{x}}<br>%{{text}}<extra></extra>",
    )  # fmt: skip


def _floor(figure: go.Figure, value: float, name: str = "floor") -> None:
    """A dashed line; a shape would not stretch the axes to show it."""
    x = [v for trace in figure.data for v in trace.x]
    if x:
        figure.add_scatter(
            x=[min(x), max(x)], y=[value, value], name=f"{name} ({value:.3g})", mode="lines", hoverinfo="skip",
            line={"color": plots.INK, "dash": "dash", "width": 1.2},
        )  # fmt: skip


def _figure(x: str, y: str, log_x: bool = False, log_y: bool = False) -> go.Figure:
    """An empty figure without a ground of its own; the page sets the colour of text, by its theme."""
    axis = {"gridcolor": "rgba(128,136,144,.2)", "zeroline": False, "automargin": True}
    figure = go.Figure()
    figure.layout.template = None
    figure.update_layout(
        height=HEIGHT, margin={"l": 8, "r": 8, "t": 8, "b": 8}, hovermode="closest", showlegend=True,
        paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)",
        legend={"orientation": "h", "xref": "container", "x": 0, "xanchor": "left"}
        | {"yref": "container", "y": 0, "yanchor": "bottom"},
        font={"family": "system-ui, sans-serif", "size": 12},
        xaxis=axis | {"title": {"text": x}, "type": "log" if log_x else "linear", "tickformat": ",~g"},
        yaxis=axis | {"title": {"text": y}, "type": "log" if log_y else "linear", "tickformat": ",~g"},
    )  # fmt: skip
    return figure


def _tint(colour: str) -> str:
    red, green, blue, alpha = to_rgba(colour)
    return f"rgba({255 * red:.0f},{255 * green:.0f},{255 * blue:.0f},{alpha:.2f})"
