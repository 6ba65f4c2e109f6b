"""The report's figures, as PNG files. Transparent, in mid-grey and colours that read on white and on black alike."""

import io
from collections.abc import Iterable, Sequence
from itertools import cycle, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import Bbox
from PIL import Image

INK, GRID = "#808890", "#80889033"
COLOURS = (
    "#4c8dd6",
    "#e0843a",
    "#3aa676",
    "#b36bd1",
    "#d65a6f",
    "#8c8f2e",
    "#2ea6b8",
    "#a0714f",
)  # by place in `models`
STYLE = {"length": 3, "labelsize": 8, "colors": INK}
LINES, EDGE = 5, 4  # of the grids of samples: lines, and pixels of white around (pofx.base.images.grid)
NOT_TERMS = ("images", "loss", "grad_norm", "lr")


def colour(i: int) -> str:
    return COLOURS[i % len(COLOURS)]


def lighter(tint: str) -> str:
    """Of the same family, drawn in another way."""
    return f"{tint}90"


def short(value: float) -> str:
    """Three significant digits, or whole numbers from 100 on; never an exponent for the sizes met here."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def curve(frame: pd.DataFrame, path: Path, tint: str) -> None:
    """Loss, the family's other terms and the gradient's norm against the training images seen, a panel each.

    Args:
        frame: columns images, loss, terms..., grad_norm, lr.
    """
    names = ["loss", *(c for c in frame.columns if c not in NOT_TERMS), *(c for c in ("grad_norm",) if c in frame)]
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(3.4 * columns, 2.2 * rows), layout="constrained")
    for i, name in enumerate(names):
        ax = _dress(figure.add_subplot(rows, columns, i + 1), name.replace("_", " "))
        values = frame[name].to_numpy(float)
        ax.plot(
            frame["images"], values, color=tint if name == "loss" else INK, linewidth=1.8 if name == "loss" else 1.3
        )
        ax.yaxis.get_major_formatter().set_useOffset(False)
        _zoom(ax, values)
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
        ax.xaxis.set_major_locator(MaxNLocator(5))
        if i >= len(names) - columns:
            ax.set_xlabel("training images seen", color=INK, fontsize=8)
    _save(figure, path)


def bars(table: pd.DataFrame, keys: Sequence[str], tints: dict[str, str], path: Path) -> None:
    """Frechet distance (with its spread over sampling seeds, if there were several) and KID (with its spread over
    subsets) of every row, best first; a dashed line is the floor.

    Args:
        table: the floor and the rows of the report, columns `keys` (distance, KID, KID's standard deviation)
            and maybe `<distance>_spread`.
    """
    spreads = [table.get(key, pd.Series(0.0, table.index)).fillna(0) for key in (f"{keys[0]}_spread", keys[2])]
    order = table.drop(index="floor").sort_values(keys[0], ascending=False).index
    figure = Figure(figsize=(9, 0.9 + 0.42 * len(order)), layout="constrained")
    for i, (key, title) in enumerate(((keys[0], "Frechet distance"), (keys[1], "KID, mean and spread"))):
        floor = table.at["floor", key]
        ax = _dress(figure.add_subplot(1, 2, i + 1), f"{title}, smaller is better; dashed: floor {short(floor)}")
        error = spreads[i][order]
        ax.barh(
            order,
            table.loc[order, key],
            height=0.6,
            color=[tints[f] for f in order],
            xerr=error if error.any() else None,
            ecolor=INK,
            capsize=3,
        )
        reach = (table.loc[order, key] + error).max()
        for y, value in enumerate(table.loc[order, key]):
            at = value + error.iloc[y]
            ax.annotate(short(value), (at, y), (4, 0), textcoords="offset points", va="center", color=INK, fontsize=8)
        ax.axvline(floor, color=INK, linestyle="--", linewidth=1)
        ax.set_xlim(min(0, 1.5 * floor), 1.18 * max(reach, floor))
        ax.tick_params(axis="y", length=0, labelsize=9, labelleft=not i)
        ax.grid(axis="y", visible=False)
    _save(figure, path)


def cost(table: pd.DataFrame, key: str, tints: dict[str, str], path: Path) -> None:
    """Frechet distance against its cost: seconds of training, and seconds to draw 1,000 images (both on log axes)."""
    figure = Figure(figsize=(9, 3.1), layout="constrained")
    families, drawn = table.drop(index="floor"), []
    panels = (("train_seconds", "seconds of training"), ("sample_seconds_per_1000", "seconds per 1,000 images drawn"))
    for i, (column, label) in enumerate(panels):
        ax = _dress(figure.add_subplot(1, 2, i + 1), "" if i else "Frechet distance, smaller is better; dashed: floor")
        ax.set_xscale("log")
        seconds = families[column].clip(lower=0.01)  # a very short run may have been rounded to nothing
        places = {f: (x, families.at[f, key]) for f, x in seconds.items()}
        ax.scatter(*zip(*places.values(), strict=True), s=55, c=[tints[f] for f in places], zorder=3)
        drawn.append((ax, places))
        ax.axhline(table.at["floor", key], color=INK, linestyle="--", linewidth=1)
        ax.set_ylim(0, 1.15 * families[key].max())
        ax.set_xlim(seconds.min() / 2, seconds.max() * 4)  # room for the names
        ax.set_xlabel(label, color=INK, fontsize=8)
        _plain(ax, seconds)
    figure.draw_without_rendering()  # only then is known where things stand
    for ax, places in drawn:
        _name(ax, places, tints)
    _save(figure, path)


def _name(ax: Axes, places: dict[str, tuple[float, float]], tints: dict[str, str]) -> None:
    """A name beside every point: in the panel and over no other name or point, if there is such a place."""
    at = {f: ax.transData.transform(place) for f, place in places.items()}
    taken = {f: Bbox.from_extents(*(where - 5), *(where + 5)) for f, where in at.items()}
    for f in sorted(places, key=lambda f: -places[f][1]):
        style = {"color": to_rgb(tints[f]), "fontsize": 9, "textcoords": "offset points", "in_layout": False}
        for (right, up), side in product(((8, -3), (7, 6), (7, -12), (7, 16), (7, -22)), ("left", "right")):
            said = ax.annotate(f, places[f], (right if side == "left" else -right, up), ha=side, **style)
            box = said.get_window_extent()
            inside = ax.bbox.x0 <= box.x0 and box.x1 <= ax.bbox.x1
            if inside and not any(box.overlaps(other) for name, other in taken.items() if name != f):
                break
            said.remove()
        else:
            said = ax.annotate(f, places[f], (7, 6), **style)
        taken[f"name of {f}"] = said.get_window_extent()


def nfe(sweeps: dict[str, dict[str, Any]], floor: float, path: Path) -> None:
    """KID with its spread against the evaluations of the network: a panel a family, a line a sampler, and the family's
    own sampler as a star, hollow without the last denoising step.

    Args:
        sweeps: metrics/sweep/*.json of every family.
        floor: KID of test images; unbiased, so that it may stand beside KIDs of another number of images.
    """
    drawn = {f: [row for row in sweep["rows"] if "refused" not in row] for f, sweep in sweeps.items()}
    names = dict.fromkeys(row["sampler"] for rows in drawn.values() for row in rows if not row["own"])
    tints = {name: colour(i) for i, name in enumerate(names)}
    values = [tuple(row[key] for key in sweeps[f]["keys"][1:]) for f, rows in drawn.items() for row in rows]
    (least, noise), (most, _) = (pick(values, default=(0.0, 0.0)) for pick in (min, max))
    log = least > noise and most > 10 * least  # not where the least is noise, and may be below zero
    near = not log or floor > least / 3  # else the floor is far below the picture
    columns = min(3, len(sweeps))
    rows = -(-len(sweeps) // columns)
    figure = Figure(figsize=(max(5.5, 3.3 * columns), 3.2 * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for ax, (f, points) in zip(axes, drawn.items(), strict=False):
        _samplers(_dress(ax, f), points, sweeps[f]["keys"], tints)
        ax.set_yscale("log" if log else "linear")
        ax.yaxis.set_major_formatter(lambda y, _: f"{y:,g}")
        if near:
            ax.axhline(floor, color=INK, linestyle="--", linewidth=1)
    for ax in axes[len(drawn) :]:
        ax.remove()
    axes[0].set_ylabel(f"KID, smaller is better; {'dashed: ' * near}floor {short(floor)}", color=INK, fontsize=8)
    signs = [Line2D([], [], color=tint, marker="o", markersize=4, label=name) for name, tint in tints.items()]
    star = {"color": INK, "marker": "*", "markersize": 11, "linestyle": ""}
    signs += [Line2D([], [], **star, label="own sampler")]
    signs += [Line2D([], [], **star, label="own, without last denoising", markerfacecolor="none")]
    where = {"loc": "outside lower center", "ncols": columns + 2}
    figure.legend(handles=signs, **where, frameon=False, fontsize=8, labelcolor=INK)
    _save(figure, path)


def _samplers(ax: Axes, points: list[dict[str, Any]], keys: Sequence[str], tints: dict[str, str]) -> None:
    """One panel of `nfe`."""
    _, kid, spread = keys
    thin = {"elinewidth": 0.9, "capsize": 2}
    for name, tint in tints.items():
        line = sorted((p["nfe"], p[kid], p[spread]) for p in points if p["sampler"] == name and not p["own"])
        if line:
            ax.errorbar(*zip(*line, strict=True), color=tint, marker="o", markersize=4, linewidth=1.4, **thin)
    for p in (p for p in points if p["own"]):
        tint = tints.get(p["sampler"], INK)
        ax.errorbar(p["nfe"], p[kid], p[spread], color=tint, **thin)
        face = tint if p["denoise"] else "none"
        ax.plot(p["nfe"], p[kid], "*", markersize=13, color=tint, markerfacecolor=face, zorder=4)
    ax.set_xscale("log")
    ax.set_xlabel("network evaluations (NFE)", color=INK, fontsize=8)
    _plain(ax, [p["nfe"] for p in points])


def levels(sweeps: dict[str, dict[str, Any]], tints: dict[str, str], path: Path) -> None:
    """Denoising error against the noise level, a line a family; dashed: the best linear denoiser, of the family with
    the widest range."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    frames = {f: pd.DataFrame(sweep["levels"]) for f, sweep in sweeps.items()}
    widest = max(frames.values(), key=lambda frame: frame["sigma"].max() / frame["sigma"].min())
    panels = (
        ("mse", r"error of the image, $|D - x_0|^2$"),
        ("eps_mse", r"the same over $\sigma^2$: error of the noise"),
    )
    for i, (key, title) in enumerate(panels):
        ax = _dress(figure.add_subplot(1, 2, i + 1), f"{title}, a dimension")
        for f, frame in frames.items():
            ax.plot(frame["sigma"], frame[key], color=tints[f], marker="o", markersize=3.5, linewidth=1.5, label=f)
        ax.plot(
            widest["sigma"], widest[f"linear_{key}"], color=INK, linestyle="--", linewidth=1, label="linear denoiser"
        )
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xlabel(r"noise level $\sigma$, images on [-1, 1]", color=INK, fontsize=8)
        ax.xaxis.set_major_formatter(lambda x, _: f"{x:,g}")
    figure.axes[0].legend(frameon=False, fontsize=8, labelcolor=INK)
    _save(figure, path)


def chain(energies: dict[str, dict[str, Any]], tints: dict[str, str], path: Path) -> None:
    """Against the Langevin steps of a chain, a line a row: KID with its spread, Frechet distance, saturated share, and
    mean energy; dashed: as many test images, of the first model.

    Args:
        energies: metrics/energy/*.json of every energy-based model.
    """
    figure = Figure(figsize=(9, 5.2), layout="constrained")
    fd, kid, spread = next(iter(energies.values()))["keys"]
    panels = (
        (kid, "KID and spread, smaller is better; dashed: test images"),
        (fd, "Frechet distance, smaller is better"),
        ("saturated", "share of values at 0 or 255"),
        ("energy", "mean energy; test images: mean 0, spread 1"),
    )
    for i, (key, title) in enumerate(panels):
        ax = _dress(figure.add_subplot(2, 2, i + 1), title)
        for k, found in enumerate(energies.values()):
            shift, unit = (found["test_energy"], found["test_std"] or 1) if key == "energy" else (0, 1)
            real, *points = (row for row in found["rows"] if "refused" not in row)
            for name in dict.fromkeys(row["row"] for row in points):
                line = [row for row in points if row["row"] == name]
                error = {"yerr": [row[spread] for row in line], "elinewidth": 0.9, "capsize": 2} if key == kid else {}
                steps, values = [row["chain"] for row in line], [(row[key] - shift) / unit for row in line]
                ax.errorbar(
                    steps, values, **error, color=tints[name], marker="o", markersize=4, linewidth=1.4, label=name
                )
            if k == 0:
                ax.axhline((real[key] - shift) / unit, color=INK, linestyle="--", linewidth=1)
        if key == "energy":  # of noise far above, of data near 0
            ax.set_yscale("symlog", linthresh=1)
            ax.margins(y=0.1)
            ax.yaxis.set_major_formatter(lambda y, _: f"{y:,g}")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        if i > 1:
            ax.set_xlabel("Langevin steps (on a noise ladder: a level)", color=INK, fontsize=8)
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False, fontsize=8, labelcolor=INK)
    _save(figure, path)


def codebook(counts: dict[str, list[int]], perplexity: dict[str, float], tints: dict[str, str], path: Path) -> None:
    """How often each code occurs, the most frequent first; dashed: if all occurred equally often.

    Args:
        counts: of every family, falling.
        perplexity: of these frequencies.
    """
    figure = Figure(figsize=(9, 2.7 * len(counts)), layout="constrained")
    for i, (f, times) in enumerate(counts.items()):
        title = f"{f}: perplexity {short(perplexity[f])} of {len(times)} codes; dashed: even share"
        ax = _dress(figure.add_subplot(len(counts), 1, i + 1), title)
        ax.bar(range(1, len(times) + 1), times, width=1.0, color=tints[f])
        ax.axhline(np.mean(times), color=INK, linestyle="--", linewidth=1)
        ax.set_xlim(0.5, len(times) + 0.5)
        ax.set_xlabel("codes, the most frequent first", color=INK, fontsize=8)
        ax.set_ylabel("times in test images", color=INK, fontsize=8)
    _save(figure, path)


def tradeoff(betas: pd.Series, psnr: pd.Series, mig: pd.Series, path: Path) -> None:
    """Reconstruction against disentanglement of one VAE, a point labelled by each beta, joined in their order."""
    figure = Figure(figsize=(5.5, 3.6), layout="constrained")
    ax = _dress(figure.add_subplot(), r"the VAE, a point for each $\beta$; better is up and to the right")
    ax.plot(psnr, mig, color=colour(0), marker="o", markersize=5, linewidth=1.2)
    for beta, *at in zip(betas, psnr, mig, strict=True):
        ax.annotate(f"{beta:g}", at, (5, 5), textcoords="offset points", color=INK, fontsize=9)
    ax.set_xlabel("reconstruction, PSNR in dB", color=INK, fontsize=8)
    ax.set_ylabel("disentanglement, mutual information gap", color=INK, fontsize=8)
    ax.margins(0.12)
    _save(figure, path)


def runs(frame: pd.DataFrame, tints: dict[str, str], floor: str) -> str:
    """Frechet distance against seconds of training over many runs, as SVG for a page, its text in the page's colour: a
    panel for what may be compared (data, N, reference), a colour a family, a sign a run; dashed: the least floor.

    Args:
        frame: columns run, data, n, reference, row, family, distance, train_seconds; `floor` is the name of its rows.
    """
    groups = list(frame.groupby(["data", "n", "reference"]))
    signs = dict(zip(dict.fromkeys(frame.loc[frame["row"] != floor, "run"]), cycle("osD^vP*X<>"), strict=False))
    columns = min(2, len(groups))
    lines = -(-len(groups) // columns)
    figure = Figure(figsize=(5.5 * columns, 3.4 * lines + 0.25 * len(signs)), layout="constrained")
    for i, ((data, n, reference), group) in enumerate(groups):
        ax = _dress(figure.add_subplot(lines, columns, i + 1), f"{data}, N = {n:,}\n{reference}")
        points = group[group["row"] != floor].dropna(subset="train_seconds")
        for _, p in points.iterrows():
            first = p["row"] == p["family"]
            face = tints[p["family"]] if first else "none"
            ax.plot(p["train_seconds"], p["distance"], signs[p["run"]], color=tints[p["family"]], markerfacecolor=face)
        ax.axhline(group.loc[group["row"] == floor, "distance"].min(), color=INK, linestyle="--", linewidth=1)
        ax.set_xscale("log")
        ax.set_ylim(bottom=0)
        ax.set_xlabel("seconds of training", color=INK, fontsize=8)
        _plain(ax, points["train_seconds"])
    handles = [Line2D([], [], color=tint, marker="o", linestyle="", label=f) for f, tint in tints.items()]
    handles += [Line2D([], [], color=INK, marker=sign, linestyle="", label=run) for run, sign in signs.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=8, labelcolor=INK)
    out, nothing = io.StringIO(), dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "pofx"}):
        figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    svg = out.getvalue()
    return svg[svg.index("<svg") :].replace(INK, "currentColor")


def overview(grids: dict[str, Path], path: Path) -> None:
    """The first line of every grid, one below the other under its name."""
    pictures = {name: Image.open(grid) for name, grid in grids.items()}
    first = {name: p.crop((0, 0, p.width, (p.height - EDGE) // LINES + EDGE)) for name, p in pictures.items()}
    sheet(first, path)


def sheet(pictures: dict[str, Image.Image], path: Path) -> None:
    """Pictures one below the other, each under its name; a pixel of theirs is one of the sheet."""
    dpi, title = 100, 26
    width, top = max(p.width for p in pictures.values()), sum(p.height + title for p in pictures.values())
    height = top
    figure = Figure(figsize=(width / dpi, height / dpi), dpi=dpi)
    for name, picture in pictures.items():
        figure.text(4 / width, (top - 0.6 * title) / height, name, color=INK, fontsize=9, va="center")
        top -= title + picture.height
        figure.figimage(np.asarray(picture.convert("RGB")), 0, top)
    _save(figure, path, dpi)


def _dress(ax: Axes, title: str) -> Axes:
    ax.set_title(title, color=INK, fontsize=9, loc="left")
    ax.tick_params(**STYLE, which="both")
    ax.grid(color=GRID, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.set_facecolor("none")
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(INK)
    return ax


def _plain(ax: Axes, values: Iterable[float]) -> None:
    """Plain numbers along a log axis, at 1, 2 and 5 if there is room for them."""
    values = [*values] or [1.0]
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(values) < 300 * min(values) else (1,)))
    ax.xaxis.set_major_formatter(lambda x, _: f"{x:,g}")
    ax.xaxis.set_minor_formatter(NullFormatter())


def _zoom(ax: Axes, values: np.ndarray) -> None:
    """The first rows of a curve are often orders of magnitude off: a log axis if possible, else leave them out."""
    values = values[np.isfinite(values)]
    if len(values) < 10:
        return
    low, high = np.quantile(values, [0, 0.95])
    if values.min() > 0 and values.max() > 20 * values.min():
        ax.set_yscale("log")
    elif values.max() > high + 2 * (high - low) > low:
        ax.set_ylim(low - 0.05 * (high - low), high + 0.15 * (high - low))


def _save(figure: Figure, path: Path, dpi: int = 130) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"optimize": True}
    figure.savefig(path, dpi=dpi, transparent=True, metadata={"Software": None}, pil_kwargs=options)
