"""What the images look like. `FIGURES` names every figure, a function of the two splits.

Drawn without pyplot: no display, no global state, and a figure shows itself in a notebook.
"""

from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import numpy as np
from jaxtyping import Float32, Shaped, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter, ScalarFormatter
from sklearn.decomposition import PCA

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
    "axes.spines.top": False, "axes.spines.right": False, "xtick.major.size": 0, "ytick.major.size": 0,
    "axes.grid": True, "grid.color": "#e6e8eb", "grid.linewidth": 0.8,
    "xtick.color": SOFT, "ytick.color": SOFT, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "figure.constrained_layout.w_pad": 0.09, "figure.constrained_layout.h_pad": 0.06,
    "legend.frameon": False, "lines.linewidth": 1.6,
}  # fmt: skip
styled = mpl.rc_context(STYLE)  # a decorator: every figure looks like this, and nothing else does


@styled
def save(figure: Figure, path: Path) -> None:
    """The figure as a PNG whose bytes depend on the picture only."""
    with atomic(path) as file:
        figure.savefig(file, format="png", metadata={"Software": None})


@styled
def class_balance(images: Splits, labels: Splits, classes: list[str]) -> Figure:
    """Number of images of each class; the dashed line is an even share."""
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
    axes[0].invert_yaxis()
    return figure


def image_grid(images: Splits, labels: Splits, classes: list[str]) -> Figure:
    """The first training images of each class, a class a column; some 50 in all, as the PNG is committed."""
    x = images["train"].transpose(0, 2, 3, 1)
    deep = max(1, 48 // len(classes))
    sheet = np.full((deep, len(classes), *x.shape[1:]), 255, np.uint8)
    for c in range(len(classes)):
        rows = np.flatnonzero(labels["train"] == c)[:deep]
        sheet[: len(rows), c] = x[rows]
    return _panel(sheet, [""] * deep, "first training images of each class", classes)


def mean_images(images: Splits, labels: Splits, classes: list[str]) -> Figure:
    """Mean and standard deviation of each pixel, over all training images and over each class."""
    x, y = images["train"].transpose(0, 2, 3, 1), labels["train"]
    groups = {"all": x, **{name: x[y == c] for c, name in enumerate(classes) if (y == c).any()}}
    means = np.stack([group.mean(axis=0) for group in groups.values()])
    squares = np.stack([np.square(group, dtype=np.uint16).mean(axis=0) for group in groups.values()])  # 255² fits
    stds = np.sqrt(np.maximum(squares - means**2, 0))
    names = ["mean", f"deviation\n(white: {stds.max() / 255:.2f})"]
    rows = means / 255, stds / stds.max()
    return _panel(np.stack(rows), names, "mean and standard deviation of each pixel", list(groups))


@styled
def pixel_histogram(images: Splits, labels: Splits, classes: list[str]) -> Figure:
    """Share of each byte value in each channel; the test split is a thin dark line over the training split."""
    figure = Figure(figsize=(7.6, 2.7), layout="constrained")
    axes = figure.subplots(1, len(CHANNELS), sharey=True)
    shares = {split: (c := histogram(x)) / c.sum(axis=1, keepdims=True) for split, x in images.items()}
    # One full bin (saturated black or white) must not flatten the rest: the axis ends above all but the ends.
    top = 1.4 * max(s[:, 2:-2].max() for s in shares.values())
    for ax, name, colour, train, test in zip(axes, CHANNELS, CHANNEL_COLOURS, *shares.values(), strict=True):
        ax.stairs(train, np.arange(257), fill=True, color=colour, alpha=0.45, label="train")
        ax.stairs(test, np.arange(257), color=INK, linewidth=0.8, label="test")
        ax.set(title=name, xlabel="value (byte)", xlim=(0, 256), ylim=(0, top), xticks=[0, 64, 128, 192])
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
        for side, at, value in (("left", 0.03, 0), ("right", 0.97, 255)):
            if (full := train[value]) > top:
                ax.text(at, 0.97, f"{value}: {full:.1%}", transform=ax.transAxes, ha=side, va="top", fontsize=8)
    axes[0].set_ylabel("share of pixels")
    axes[0].legend(loc="upper left", fontsize=8.5)
    return figure


@styled
def channel_statistics(images: Splits, labels: Splits, classes: list[str]) -> Figure:
    """Mean and standard deviation of each channel on [0, 1], and how the channels of one pixel correlate."""
    figure = Figure(figsize=(7.6, 2.9), layout="constrained")
    *axes, last = figure.subplots(1, 3, width_ratios=(1, 1, 0.9))
    stats, places = {split: moments(histogram(x)) for split, x in images.items()}, np.arange(len(CHANNELS))
    for k, (ax, title) in enumerate(zip(axes, ("mean", "standard deviation"), strict=True)):
        for i, (split, stat) in enumerate(stats.items()):
            bars = ax.barh(places + 0.4 * (i - 0.5), stat[k], 0.37, color=SPLIT_COLOURS[split], label=split)
            ax.bar_label(bars, fmt="{:.4f}", label_type="center", color="white", fontsize=8)
        ax.set(title=title, xlabel="on [0, 1]", yticks=places, yticklabels=CHANNELS)
        ax.invert_yaxis()
        ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.grid(visible=False, axis="y")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower left", ncols=2, fontsize=8.5)
    pixels = np.moveaxis(_spread(images["train"], 2000), 1, 0).reshape(len(CHANNELS), -1)
    matrix = np.corrcoef(pixels.astype(np.float32))
    last.imshow(matrix, vmin=-1, vmax=1, cmap="RdBu")
    for (i, j), value in np.ndenumerate(matrix):
        last.text(j, i, f"{value:.2f}", ha="center", va="center", color="white" if abs(value) > 0.6 else INK)
    last.set(title="correlation (train)", xticks=places, yticks=places, xticklabels=CHANNELS, yticklabels=CHANNELS)
    _bare(last)
    return figure


@styled
def pca_spectrum(images: Splits, labels: Splits, classes: list[str]) -> Figure:
    """Variance of the principal components of the training images, and the leading components as pictures."""
    share, components = principal_components(_spread(images["train"], 10_000))
    leading, total, rank = components[:12], np.cumsum(share), np.arange(1, len(share) + 1)
    figure = Figure(figsize=(7.6, 4.2), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(3, 1))
    left, right = upper.subplots(1, 2)
    exact = share > 1e-8  # below: rounding of float32
    left.loglog(rank[exact], share[exact], color=SPLIT_COLOURS["train"])
    left.set(title="variance of each component", xlabel="component", ylabel="share of the variance")
    right.semilogx(rank, total, color=SPLIT_COLOURS["train"])
    right.set(title="cumulative variance", xlabel="components kept", ylim=(0, 1.03))
    right.yaxis.set_major_formatter(PercentFormatter(1))
    for ax in (left, right):
        ax.xaxis.set_major_formatter(ScalarFormatter())
    for level in (0.5, 0.9, 0.99):
        k = int(np.searchsorted(total, level)) + 1
        at = (k, total[k - 1])
        right.plot(*at, "o", color=INK, markersize=4)
        right.annotate(f"{level:.0%}: {k:,}", at, (5, -12), textcoords="offset points", fontsize=8.5)
    lower.suptitle("leading components (grey: 0)", x=0.01, ha="left", fontsize=10.5, fontweight="bold")
    for k, (ax, picture) in enumerate(zip(lower.subplots(1, len(leading), squeeze=False)[0], leading, strict=True)):
        ax.imshow(0.5 + 0.5 * picture.transpose(1, 2, 0) / np.abs(picture).max(), interpolation="nearest")
        ax.set_title(f"{k + 1}", loc="center", fontsize=8.5, fontweight="normal", pad=3)
        ax.set_axis_off()
    return figure


def principal_components(
    x: UInt8[np.ndarray, "n c h w"],
) -> tuple[Float32[np.ndarray, " r"], Float32[np.ndarray, "r c h w"]]:
    """Shares of the variance in falling order, and the unit components. The largest entry of a component is positive:
    its sign is arbitrary."""
    flat = x.reshape(len(x), -1).astype(np.float32) / 255
    pca = PCA(svd_solver="covariance_eigh" if len(flat) > flat.shape[1] else "full").fit(flat)
    return pca.explained_variance_ratio_, pca.components_.reshape(-1, *x.shape[1:])


@styled
def _panel(
    pictures: Shaped[np.ndarray, "rows columns h w 3"], names: list[str], title: str, heads: list[str]
) -> Figure:
    """Named rows of pictures under column heads, two screen pixels a pixel."""
    pad, (lines, columns, high, wide, _) = 2, pictures.shape
    white = 255 if pictures.dtype == np.uint8 else 1.0
    around = ((0, 0), (0, 0), (0, pad), (0, pad), (0, 0))
    padded = np.pad(pictures, around, constant_values=white).swapaxes(1, 2)
    sheet = padded.reshape(lines * (high + pad), columns * (wide + pad), 3)[:-pad, :-pad]
    left, top, dpi = 112 if any(names) else 10, 58, STYLE["figure.dpi"]
    height, width = 2 * sheet.shape[0] + top + 10, 2 * sheet.shape[1] + left + 10
    figure = Figure(figsize=(width / dpi, height / dpi))
    ax = figure.add_axes((left / width, 10 / height, 2 * sheet.shape[1] / width, 2 * sheet.shape[0] / height))
    ax.imshow(sheet, interpolation="nearest", aspect="auto")
    ax.set_yticks(np.arange(lines) * (high + pad) + high / 2, names)
    ax.set_xticks(np.arange(columns) * (wide + pad) + wide / 2, heads, fontsize=8)
    ax.xaxis.tick_top()
    ax.set_title(title)
    _bare(ax)
    return figure


def _bare(ax: Axes) -> None:
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)


def _spread(x: UInt8[np.ndarray, "n c h w"], n: int) -> UInt8[np.ndarray, "m c h w"]:
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
