"""Numbers as words, for tables."""

import math

BLANK = "\N{EN DASH}"


def short(value: float) -> str:
    """Three significant digits, or whole numbers from 100 on; never an exponent for the sizes met here."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def text(value: float) -> str:
    """A number for a table: short, or to four decimals where it is small."""
    return short(value) if abs(value) >= 0.001 or value == 0 else f"{value:.4f}"


def between(value: float, error: float, digits: int = 2) -> str:
    """value ± error, to so many digits of the error."""
    places = min(6, max(0, digits - 1 - math.floor(math.log10(error)))) if error > 0 else 4
    return f"{value:,.{places}f} ± {error:,.{places}f}"


def count(value: float) -> str:
    """A whole number with a unit: 950, 68.2k, 1.25M."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * size:  # what rounds to 1,000k is 1M
            return short(value / size) + unit
    return f"{value:.0f}"


def clock(seconds: float) -> str:
    """A duration: 45 s, 3 min 20 s, 2 h 05 min."""
    if (s := round(seconds)) < 60:
        return f"{seconds:.3g} s"
    return f"{s // 60} min {s % 60:02d} s" if s < 3600 else f"{s // 3600} h {s % 3600 // 60:02d} min"
