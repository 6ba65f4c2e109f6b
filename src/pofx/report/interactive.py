"""The charts of the page, as plotly.js takes them: plain dictionaries."""

import math
from collections.abc import Iterable
from typing import Any

from pofx.report.charts import INK, Chart, Line, Panel


def data(chart: Chart) -> dict[str, dict[str, Any]]:
    """title -> choice -> figure."""
    return {
        title: {key: figure(panel, chart.height) for key, panel in choices.items()}
        for title, choices in chart.panels.items()
    }


def figure(panel: Panel, height: int) -> dict[str, Any]:
    """Without a ground of its own; the page sets the colour of text, by its theme."""
    traces = [_trace(line, panel) for line in panel.lines]
    x = [value for line in panel.lines for value in line.x]
    if panel.level and x:  # a line: a shape would not stretch the axes
        name, value = panel.level
        across = Line(f"{name} ({value:.3g})", INK, [min(x), max(x)], [value, value], mode="lines", dashed=True)
        traces.append(_trace(across, panel) | {"hoverinfo": "skip", "hovertemplate": None})
    axis = {"gridcolor": "rgba(128,136,144,.2)", "zeroline": False, "automargin": True, "tickformat": ",~g"}
    y = {"type": "log" if panel.scale == "log" else "linear"}
    y["rangemode"] = "tozero" if panel.scale == "from zero" else "normal"
    layout = {
        "height": height, "margin": {"l": 8, "r": 8, "t": 8, "b": 8}, "hovermode": "closest",
        "showlegend": len(traces) > 1, "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)",
        "legend": {"orientation": "h", "xref": "container", "x": 0, "yref": "container", "y": 0, "yanchor": "bottom"},
        "font": {"family": "system-ui, sans-serif", "size": 12},
        "xaxis": axis | {"title": {"text": panel.x}, "type": "log" if panel.log_x else "linear"},
        "yaxis": axis | {"title": {"text": panel.y}} | y,
    }  # fmt: skip
    return {"data": traces, "layout": layout}


def _trace(line: Line, panel: Panel) -> dict[str, Any]:
    tint = _rgba(line.tint)
    trace = {
        "type": "scatter", "name": line.name, "x": _numbers(line.x), "y": _numbers(line.y), "mode": line.mode,
        "line": {"color": tint, "width": 1.8, "dash": "dash" if line.dashed else "solid", "shape": line.shape},
        "marker": {"color": tint, "size": 7 if line.mode == "lines+markers" else 11, "symbol": line.symbol,
                   "line": {"width": 1.5, "color": tint}},
        "hovertemplate": f"<b>{line.name}</b><br>{panel.y} %{{y:.4~g}}<br>{panel.x} %{{x:,.4~g}}"
        + ("<br>%{text}" if any(line.text) else "") + "<extra></extra>",
    }  # fmt: skip
    if any(line.text):
        trace["text"] = list(line.text)
    if line.error:
        trace["error_y"] = {"array": list(line.error), "thickness": 1, "width": 3}
    return trace


def _numbers(values: Iterable[float | int]) -> list[float | None]:
    """JSON has no NaN."""
    return [None if math.isnan(value) else float(value) for value in values]


def _rgba(tint: str) -> str:
    """Of "#rrggbb" or "#rrggbbaa"."""
    red, green, blue, *alpha = bytes.fromhex(tint[1:])
    return f"rgba({red},{green},{blue},{alpha[0] / 255 if alpha else 1:.2f})"
