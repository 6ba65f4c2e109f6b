"""The report's figures, as PNG files. Transparent, in mid-grey and colours that read on white and on black alike."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter
from PIL import Image

from pofx.base.images import Images, grid
from pofx.report.charts import INK, Line, Panel
from pofx.report.text import short

GRID = f"{INK}33"
MARKERS = {  # of Plotly's symbols; with "-open" behind they are hollow
    "circle": "o", "square": "s", "diamond": "D", "triangle-up": "^", "triangle-down": "v", "star": "*", "cross": "P",
    "pentagon": "p", "hexagon": "h", "x": "X",
}  # fmt: skip
COLUMNS, PAD, SCALE = 16, 2, 2  # of the grids of samples: images a line, pixels of white, enlargement
STRIP, SEEN = 822, 96  # pixels: width of a strip, as a README is on GitHub, and of an image in it if it is small
LABEL = {"color": INK, "fontsize": 8}


def draw(panels: dict[str, Panel], *, named: bool = True, shared: bool = False) -> Figure:
    """Panels side by side, each under its title.

    Args:
        named: a legend says the names of lines.
        shared: all panels have the same y axis.
    """
    columns = 2 if len(panels) in (2, 4) else min(3, len(panels))
    rows = -(-len(panels) // columns)
    width, height = (3.4, 2.6) if columns == 3 else (4.6, 3.1)
    figure = Figure(figsize=(max(5.5, width * columns), height * rows), layout="constrained", dpi=130)
    axes = figure.subplots(rows, columns, sharey=shared, squeeze=False).ravel()
    lines = [line for panel in panels.values() for line in panel.lines]
    for ax, (title, panel) in zip(axes, panels.items(), strict=False):
        dashed = f"dashed: {panel.level[0]} {short(panel.level[1])}" if panel.level else ""
        _dress(ax, "; ".join(filter(None, [title, dashed])))
        _fill(ax, panel, lines if shared else panel.lines)
    for ax in axes[len(panels) :]:
        ax.remove()
    handles = {name: h for ax in figure.axes for h, name in zip(*ax.get_legend_handles_labels(), strict=True)}
    if named and len(handles) > 1:
        legend(figure, handles)
    return figure


def legend(figure: Figure, handles: dict[str, Any]) -> None:
    """Below all panels."""
    style = {"frameon": False, "fontsize": 8, "labelcolor": INK, "ncols": 5}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", **style)


def _fill(ax: Axes, panel: Panel, measure: Sequence[Line]) -> None:
    """One panel of `draw`, whose scale suits the lines `measure`."""
    for line in panel.lines:
        _line(ax, line)
    finite = [y for line in measure for y in line.y if math.isfinite(y)] or [0.0]
    scale = panel.scale
    if scale == "auto":
        scale = "log" if 0 < min(finite) < max(finite) / 20 else "linear"
    if panel.level and (scale != "log" or panel.level[1] > min(finite) / 3):  # else it would flatten the rest
        ax.axhline(panel.level[1], color=INK, linestyle="--", linewidth=1)
    if scale == "log":
        ax.set_yscale("log")
        _plain(ax.yaxis, finite)
    elif scale == "symlog":
        ax.set_yscale("symlog", linthresh=1)
        ax.yaxis.set_major_formatter("{x:,g}")
        ax.margins(y=0.1)
    elif scale == "from zero":
        ax.set_ylim(0, 1.1 * max(finite) or 1)
    elif panel.limits:
        ax.set_ylim(*panel.limits)
    if panel.log_x:
        ax.set_xscale("log")
        _plain(ax.xaxis, [x for line in panel.lines for x in line.x])
    else:
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.set_xlabel(panel.x, **LABEL)
    if panel.y not in ax.get_title(loc="left"):
        ax.set_ylabel(panel.y, **LABEL)


def _line(ax: Axes, line: Line) -> None:
    symbol, hollow, _ = line.symbol.partition("-open")
    style = {"color": line.tint, "linestyle": "--" if line.dashed else "-", "linewidth": 1 if line.dashed else 1.5}
    style |= {"marker": MARKERS[symbol], "markersize": 4, "markerfacecolor": "none" if hollow else line.tint}
    if line.mode == "lines":
        style["marker"] = ""
    if line.mode == "markers":
        style |= {"linestyle": "", "markersize": 12 if symbol == "star" else 8, "zorder": 3}
    if line.shape == "hv":
        style["drawstyle"] = "steps-post"
    ax.errorbar(line.x, line.y, yerr=line.error or None, label=line.name, elinewidth=0.9, capsize=2, **style)


def _plain(axis: Axis, values: Sequence[float | int]) -> None:
    """Plain numbers along a log axis, at 1, 2 and 5 if there is room for them."""
    few = not values or max(values) < 300 * min(values)
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
    axis.set_major_formatter("{x:,g}")
    axis.set_minor_formatter(NullFormatter())


def bars(table: pd.DataFrame, keys: Sequence[str], tints: dict[str, str]) -> Figure:
    """Frechet distance and KID of every row, best first, with their spreads; a dashed line is the floor.

    Args:
        table: of pofx.report.metrics.
    """
    rows = table.drop(index="floor").sort_values(keys[0], ascending=False)
    figure = Figure(figsize=(9, 0.9 + 0.42 * len(rows)), layout="constrained", dpi=130)
    panels = ((keys[0], f"{keys[0]}_spread", "Frechet distance"), (keys[1], keys[2], "KID"))
    for ax, (key, spread, title) in zip(figure.subplots(1, 2, sharey=True), panels, strict=True):
        floor, values = table.at["floor", key], rows[key]
        _dress(ax, f"{title}, smaller is better; dashed: floor {short(floor)}")
        errors = rows[spread].fillna(0)
        xerr = errors if errors.any() else None
        ax.barh(rows.index, values, height=0.6, color=[tints[f] for f in rows.index], xerr=xerr, ecolor=INK, capsize=3)
        for y, (value, end) in enumerate(zip(values, values + errors, strict=True)):
            ax.annotate(short(value), (end, y), (4, 0), textcoords="offset points", va="center", **LABEL)
        ax.axvline(floor, color=INK, linestyle="--", linewidth=1)
        ax.set_xlim(min(0, 1.5 * floor), 1.18 * max((values + errors).max(), floor))
        ax.tick_params(axis="y", length=0, labelsize=9)
        ax.grid(axis="y", visible=False)
    return figure


def first_line(path: Path) -> Images:
    """The images of the first line of a grid of samples, as pofx.base.images.save_grid wrote it."""
    pixels = np.asarray(Image.open(path).convert("RGB"))[::SCALE, ::SCALE]
    cell = (pixels.shape[1] - PAD) // COLUMNS
    line = pixels[PAD:cell, PAD:].reshape(cell - PAD, COLUMNS, cell, 3)
    return line[:, :, : cell - PAD].transpose(1, 3, 0, 2)


def strips(rows: dict[str, Images]) -> Figure:
    """The first images of each row side by side, one strip below the other under its name; as many as fit in STRIP,
    enlarged by a whole number."""
    side = max(images.shape[-1] for images in rows.values())
    scale = max(2, SEEN // side)
    columns = (STRIP // scale - PAD) // (side + PAD)
    return sheet({name: grid(images[:columns], columns, PAD, scale) for name, images in rows.items()})


def sheet(pictures: dict[str, Image.Image]) -> Figure:
    """Pictures one below the other, each under its name; a pixel of theirs is one of the sheet."""
    title, dpi = 26, 100
    width, height = max(p.width for p in pictures.values()), sum(p.height + title for p in pictures.values())
    figure, top = Figure(figsize=(width / dpi, height / dpi), dpi=dpi), height
    for name, picture in pictures.items():
        figure.text(4 / width, (top - 0.6 * title) / height, name, color=INK, fontsize=9, va="center")
        top -= title + picture.height
        figure.figimage(np.asarray(picture.convert("RGB")), 0, top)
    return figure


def save(figure: Figure, path: Path) -> None:
    """As a PNG whose bytes depend on the picture only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"metadata": {"Software": None}, "pil_kwargs": {"optimize": True}}
    figure.savefig(path, dpi="figure", transparent=True, **options)


def svg(figure: Figure) -> str:
    """For a page, text in the page's colour; without dates and random names."""
    out, nothing = io.StringIO(), dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "pofx"}):
        figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    text = out.getvalue()
    return text[text.index("<svg") :].replace(INK, "currentColor")


def _dress(ax: Axes, title: str) -> None:
    ax.set_title(title, color=INK, fontsize=9, loc="left")
    ax.tick_params(length=3, labelsize=8, colors=INK, which="both")
    ax.grid(color=GRID, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.set_facecolor("none")
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(INK)
