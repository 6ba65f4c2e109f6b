"""What the images look like: class balance, samples, histograms, channel statistics, means, principal components.

Every figure is a function of the two splits and is drawn without pyplot, so that it works without a display, keeps no
global state and shows itself in a notebook. `FIGURES` lists them all with the names of their files.
"""

from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import numpy as np
from jaxtyping import Float64, UInt8
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter, ScalarFormatter
from scipy.linalg import eigvalsh
from scipy.sparse.linalg import eigsh

from pofx.base.files import atomic
from pofx.data.binary import CHANNELS, histogram, moments

Splits = dict[str, np.ndarray]  # "train", "test"

INK, SOFT = "#2b2f36", "#8a919c"
SPLIT_COLOURS = {"train": "#3b6fb6", "test": "#e39b3b"}
CHANNEL_COLOURS = ("#d1495b", "#3f9b57", "#3b6fb6")
STYLE = {
    "figure.dpi": 110, "figure.facecolor": "white", "savefig.dpi": 110,
    "font.size": 9.5, "font.family": "DejaVu Sans", "text.color": INK,
    "axes.titlesize": 10.5, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.titlepad": 9,
    "axes.labelcolor": INK, "axes.edgecolor": SOFT, "axes.linewidth": 0.8, "axes.axisbelow": True,
    "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": "#e6e8eb", "grid.linewidth": 0.8,
    "xtick.color": SOFT, "ytick.color": SOFT, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "figure.constrained_layout.w_pad": 0.09, "figure.constrained_layout.h_pad": 0.06,
    "legend.frameon": False, "lines.linewidth": 1.6,
}  # fmt: skip


def save(figure: Figure, path: Path) -> None:
    """The figure as a PNG whose bytes depend on the picture only."""
    with atomic(path) as file, mpl.rc_context(STYLE):
        figure.savefig(file, format="png", metadata={"Software": None})


def class_balance(images: Splits, labels: Splits, classes: list[str]) -> Figure:
    """Number of images of each class; the dashed line is an even share."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 0.34 * len(classes) + 1.2), layout="constrained")
        axes = figure.subplots(1, len(labels), sharey=True)
        for ax, (split, y) in zip(axes, labels.items(), strict=True):
            counts = np.bincount(y, minlength=len(classes))
            bars = ax.barh(classes, counts, color=SPLIT_COLOURS[split], height=0.66)
            ax.bar_label(bars, fmt="{:,.0f}", label_type="center", color="white", fontsize=8.5)
            ax.axvline(counts.mean(), color=INK, linestyle=(0, (4, 3)), linewidth=0.9)
            ax.set(title=f"{split}: {len(y):,} images", xlabel="images", xlim=(0, 1.05 * counts.max()))
            ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            ax.grid(visible=False, axis="y")
            ax.tick_params(axis="y", length=0)
        axes[0].invert_yaxis()
    return figure


def image_grid(images: Splits, labels: Splits, classes: list[str]) -> Figure:
    """The first training images of each class, a class a column; some 50 in all, as the PNG is committed."""
    x, y = images["train"], labels["train"]
    deep = max(1, 48 // len(classes))
    columns = [np.flatnonzero(y == c)[:deep] for c in range(len(classes))]
    sheet = np.full((deep, len(classes), 32, 32, 3), 255, np.uint8)
    for c, rows in enumerate(columns):
        sheet[: len(rows), c] = x[rows].transpose(0, 2, 3, 1)
    return _panel(list(sheet), [""] * deep, "first training images of each class", classes)


def mean_images(images: Splits, labels: Splits, classes: list[str]) -> Figure:
    """Mean and standard deviation of each pixel, over all training images and over each class."""
    x, y = images["train"], labels["train"]
    groups = {"all": slice(None), **{name: y == c for c, name in enumerate(classes) if (y == c).any()}}
    means, stds = [], []
    for rows in groups.values():
        mean, std = _mean_std(x[rows])
        means.append(mean.transpose(1, 2, 0))
        stds.append(std.transpose(1, 2, 0))
    top = np.max(stds)
    rows = [np.stack(means) / 255, np.stack(stds) / top]
    names = ["mean", f"deviation\n(white: {top / 255:.2f})"]
    return _panel(rows, names, "mean and standard deviation of each pixel", list(groups))


def pixel_histogram(images: Splits, labels: Splits, classes: list[str]) -> Figure:
    """Share of each byte value in each channel; the test split is a thin dark line over the training split."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 2.7), layout="constrained")
        axes = figure.subplots(1, 3, sharey=True)
        shares = {split: (c := histogram(x)) / c.sum(axis=1, keepdims=True) for split, x in images.items()}
        # One full bin (saturated black or white) must not flatten the rest: the axis ends above all but the ends.
        top = 1.4 * max(s[:, 2:-2].max() for s in shares.values())
        for c, (ax, name) in enumerate(zip(axes, CHANNELS, strict=True)):
            ax.stairs(
                shares["train"][c], np.arange(257), fill=True, color=CHANNEL_COLOURS[c], alpha=0.45, label="train"
            )
            ax.stairs(shares["test"][c], np.arange(257), color=INK, linewidth=0.8, label="test")
            ax.set(title=name, xlabel="value (byte)", xlim=(0, 256), ylim=(0, top), xticks=[0, 64, 128, 192])
            ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
            for side, value in (("left", 0), ("right", 255)):
                if shares["train"][c, value] > top:
                    note, at = f"{value}: {shares['train'][c, value]:.1%}", 0.03 if side == "left" else 0.97
                    ax.text(at, 0.97, note, transform=ax.transAxes, ha=side, va="top", fontsize=8)
        axes[0].set_ylabel("share of pixels")
        axes[0].legend(loc="upper left", fontsize=8.5)
    return figure


def channel_statistics(images: Splits, labels: Splits, classes: list[str]) -> Figure:
    """Mean and standard deviation of each channel on [0, 1], and how the channels of one pixel correlate."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 2.9), layout="constrained")
        *axes, last = figure.subplots(1, 3, width_ratios=(1, 1, 0.9))
        stats = {split: moments(histogram(x)) for split, x in images.items()}
        for k, (ax, title) in enumerate(zip(axes, ("mean", "standard deviation"), strict=True)):
            for i, (split, stat) in enumerate(stats.items()):
                at = np.arange(3) + 0.4 * (i - 0.5)
                bars = ax.barh(at, stat[k], 0.37, color=SPLIT_COLOURS[split], label=split)
                ax.bar_label(bars, fmt="{:.4f}", label_type="center", color="white", fontsize=8)
            ax.set(title=title, xlabel="on [0, 1]", yticks=range(3), yticklabels=CHANNELS)
            ax.invert_yaxis()
            ax.xaxis.set_major_locator(MaxNLocator(4))
            ax.grid(visible=False, axis="y")
            ax.tick_params(axis="y", length=0)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower left", ncols=2, fontsize=8.5)
        pixels = _spread(images["train"], 2000).transpose(1, 0, 2, 3).reshape(3, -1)
        matrix = np.corrcoef(pixels.astype(np.float32))
        last.imshow(matrix, vmin=-1, vmax=1, cmap="RdBu")
        for i in range(3):
            for j in range(3):
                colour = "white" if abs(matrix[i, j]) > 0.6 else INK
                last.text(j, i, f"{matrix[i, j]:.2f}", ha="center", va="center", color=colour)
        last.set(
            title="correlation (train)", xticks=range(3), yticks=range(3), xticklabels=CHANNELS, yticklabels=CHANNELS
        )
        last.grid(visible=False)
        last.tick_params(length=0)
        last.spines[:].set_visible(False)
    return figure


def pca_spectrum(images: Splits, labels: Splits, classes: list[str]) -> Figure:
    """Variance of the principal components of the training images, and the leading components as pictures."""
    values, leading = principal_components(_spread(images["train"], 10_000), 12)
    share = values / values.sum()
    total, rank = np.cumsum(share), np.arange(1, len(values) + 1)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 4.2), layout="constrained")
        upper, lower = figure.subfigures(2, 1, height_ratios=(3, 1))
        left, right = upper.subplots(1, 2)
        seen = share > 1e-8  # below: rounding of float32
        left.loglog(rank[seen], share[seen], color=SPLIT_COLOURS["train"])
        left.set(title="variance of each component", xlabel="component", ylabel="share of the variance")
        right.semilogx(rank, total, color=SPLIT_COLOURS["train"])
        right.set(title="cumulative variance", xlabel="components kept", ylim=(0, 1.03))
        right.yaxis.set_major_formatter(PercentFormatter(1))
        for ax in (left, right):
            ax.xaxis.set_major_formatter(ScalarFormatter())
        for level in (0.5, 0.9, 0.99):
            k = int(np.searchsorted(total, level)) + 1
            right.plot([k], [total[k - 1]], "o", color=INK, markersize=4)
            note = f"{level:.0%}: {k:,}"
            right.annotate(note, (k, total[k - 1]), (5, -12), textcoords="offset points", fontsize=8.5)
        lower.suptitle("leading components (grey: 0)", x=0.01, ha="left", fontsize=10.5, fontweight="bold")
        for k, ax in enumerate(lower.subplots(1, len(leading), squeeze=False)[0]):
            picture = leading[k].transpose(1, 2, 0)
            ax.imshow(0.5 + 0.5 * picture / np.abs(picture).max(), interpolation="nearest")
            ax.set_title(f"{k + 1}", loc="center", fontsize=8.5, fontweight="normal", pad=3)
            ax.set_axis_off()
    return figure


def principal_components(
    x: UInt8[np.ndarray, "n c h w"], k: int
) -> tuple[Float64[np.ndarray, " r"], Float64[np.ndarray, "k c h w"]]:
    """All variances in falling order, and the `k` leading unit components (fewer if there are no more).

    The sign of a component is arbitrary: here its largest entry is positive.
    """
    flat = x.reshape(len(x), -1).astype(np.float32) / 255
    flat -= flat.mean(axis=0)
    wide = len(flat) < flat.shape[1]  # fewer images than numbers in one: the smaller Gram matrix has the same spectrum
    matrix = (flat @ flat.T if wide else flat.T @ flat) / len(flat)
    values = np.maximum(eigvalsh(matrix)[::-1], 0).astype(np.float64)
    # All vectors would cost four times the values alone; ARPACK finds the few.
    some = min(k, len(matrix) - 1)
    start = np.random.default_rng(0).normal(size=len(matrix)).astype(np.float32)
    vectors = eigsh(matrix, some, v0=start)[1][:, ::-1].T.astype(np.float64)
    if wide:
        vectors = vectors @ flat
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    peaks = vectors[np.arange(some), np.abs(vectors).argmax(axis=1)]
    return values, (vectors * np.sign(peaks)[:, None]).reshape(some, *x.shape[1:])


def _panel(rows: list[np.ndarray], names: list[str], title: str, heads: list[str]) -> Figure:
    """Rows of pictures (h, w, 3) under column heads, two screen pixels a pixel."""
    pad, side = 2, rows[0].shape[1]
    pitch = side + pad
    white = 255 if rows[0].dtype == np.uint8 else 1.0
    sheet = np.full((len(rows) * pitch - pad, len(heads) * pitch - pad, 3), white, rows[0].dtype)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            sheet[i * pitch : i * pitch + side, j * pitch : j * pitch + side] = picture
    with mpl.rc_context(STYLE):
        left, top, dpi = 112 if any(names) else 10, 58, STYLE["figure.dpi"]
        height, width = 2 * sheet.shape[0] + top + 10, 2 * sheet.shape[1] + left + 10
        figure = Figure(figsize=(width / dpi, height / dpi))
        ax = figure.add_axes((left / width, 10 / height, 2 * sheet.shape[1] / width, 2 * sheet.shape[0] / height))
        ax.imshow(sheet, interpolation="nearest", aspect="auto")
        ax.set_yticks([i * pitch + side / 2 for i in range(len(rows))], names)
        ax.set_xticks([j * pitch + side / 2 for j in range(len(heads))], heads, fontsize=8)
        ax.xaxis.tick_top()
        ax.set_title(title)
        ax.tick_params(length=0)
        ax.grid(visible=False)
        ax.spines[:].set_visible(False)
    return figure


def _mean_std(x: UInt8[np.ndarray, "n 3 h w"]) -> tuple[Float64[np.ndarray, "3 h w"], Float64[np.ndarray, "3 h w"]]:
    """Per pixel, in bytes; sums of integers in blocks, so exact and without a float copy of the images."""
    total, squares = np.zeros(x.shape[1:], np.int64), np.zeros(x.shape[1:], np.int64)
    for start in range(0, len(x), 1000):
        block = x[start : start + 1000].astype(np.int32)
        total += block.sum(axis=0, dtype=np.int64)
        squares += (block * block).sum(axis=0, dtype=np.int64)
    mean = total / len(x)
    return mean, np.sqrt(np.maximum(squares / len(x) - mean**2, 0))


def _spread(x: UInt8[np.ndarray, "n 3 h w"], n: int) -> UInt8[np.ndarray, "m 3 h w"]:
    """At most `n` images, evenly spaced."""
    return x[np.linspace(0, len(x) - 1, min(n, len(x))).astype(int)]


FIGURES: dict[str, Callable[[Splits, Splits, list[str]], Figure]] = {
    "class_balance": class_balance,
    "images": image_grid,
    "pixel_histogram": pixel_histogram,
    "channel_statistics": channel_statistics,
    "mean_images": mean_images,
    "pca_spectrum": pca_spectrum,
}
