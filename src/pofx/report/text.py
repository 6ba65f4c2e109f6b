"""Numbers as words, for tables."""

import math

BLANK = "\N{EN DASH}"


def short(value: float) -> str:
    """Three significant digits, or whole numbers from 100 on; never an exponent for the sizes met here."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def text(value: float) -> str:
    """A number for a table: short, and an en dash where there is none."""
    if math.isnan(value):
        return BLANK
    return short(value) if abs(value) >= 0.001 or value == 0 else f"{value:.4f}"


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
            return short(value / size) + unit
    return f"{value:.0f}"


def clock(seconds: float) -> str:
    """A duration: 45 s, 3 min 20 s, 2 h 05 min."""
    if math.isnan(seconds):
        return BLANK
    if (s := round(seconds)) < 60:
        return f"{seconds:.3g} s"
    return f"{s // 60} min {s % 60:02d} s" if s < 3600 else f"{s // 3600} h {s % 3600 // 60:02d} min"


def share(value: float, digits: int = 1) -> str:
    """A share of 1 in per cent."""
    return BLANK if math.isnan(value) else f"{value:.{digits}%}"


def mean(value: float, spread: float, seeds: int) -> str:
    """A mean over sampling seeds and its spread, 686 ± 3 (3 seeds); of one seed the value alone."""
    if math.isnan(spread):
        return text(value)
    digits = min(6, max(0, -math.floor(math.log10(spread)))) if spread > 0 else 0
    return f"{value:,.{digits}f} ± {spread:,.{digits}f} ({seeds} seeds)"
