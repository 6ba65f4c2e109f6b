"""docs/results.html: all kept runs in one table and one chart, to compare data sets, scales and machines.

Called by `python -m tools.results`. No library is embedded, unlike in the report: the page is small, and in git.
"""

import math
import re
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup
from ruamel.yaml import YAML

from pofx.base import files
from pofx.report import metrics, page, plots, tables
from pofx.report.metrics import FLOOR
from pofx.report.text import BLANK, text

TEXTS = ("data", "scale", "row", "reference", "machine")


def params(folder: Path) -> dict[str, Any]:
    """The parameters of a kept run. Old runs may name sections that are gone: they are not checked."""
    return YAML(typ="safe").load((folder / "params.yaml").read_text())


def models(folder: Path) -> tuple[str, ...]:
    """The families that a run compared."""
    return tuple(params(folder)["models"])


def composed(folder: Path) -> str:
    """The command that wrote the run's parameters."""
    return (folder / "params.yaml").read_text().partition("\n")[0].removeprefix("# composed by: ")


def rows(folder: Path) -> list[dict[str, Any]]:
    """What one kept run measured: a dictionary for its floor and each row, numbers as numbers and, under `shown`, as
    they are to be read."""
    names = models(folder)
    got = metrics.read(names, folder / "metrics")
    found, board = metrics.table(names, got), tables.leaderboard(names, got)
    owners, (fd, kid, _) = metrics.rows(names, got), metrics.distance_keys(got)
    scale = re.search(r"\bscale=(\w+)", composed(folder))
    told = {
        "run": folder.name,
        "data": files.read_json(folder / "metrics/data.json")["name"],
        "scale": scale[1] if scale else "unknown",  # an old run that does not say how it was composed
    }
    out = []
    for row in board.index.intersection(["floor", *owners]):
        p, known = got["protocol"][row], found.loc[row]
        out.append(
            told
            | {"row": FLOOR if row == "floor" else row, "family": owners.get(row, ""), "n": p["n"]}
            | {"reference": f"{p['reference']} ({fd})", "distance": known[fd], "kid": known[kid]}
            | {key: known.get(key, math.nan) for key in ("bpd", "train_seconds", "train_images_per_second")}
            | {"device": got["device"].get(owners.get(row), BLANK)}
            | {"shown": board.loc[row].to_dict() | {"keys": (fd, kid)}}
        )  # fmt: skip
    return out


def cells(row: dict[str, Any]) -> tables.Cells:
    """A row of the table."""
    shown = row["shown"]
    fd, kid = shown["keys"]
    plain = {key: (row[key], row[key]) for key in ("run", "data", "scale", "row")}
    return plain | {
        "N": (f"{row['n']:,}", row["n"]),
        "reference": (row["reference"], row["reference"]),
        "Frechet distance": (shown[fd], row["distance"]),
        "KID": (shown[kid], row["kid"]),
        "bits/dim": (shown["bits/dim"], row["bpd"]),
        "training": (shown["training"], row["train_seconds"]),
        "images/s": (shown["training img/s"], row["train_images_per_second"]),
        "machine": (row["device"], row["device"]),
    }


def html(folders: list[Path]) -> str:
    """The page for the runs in these folders."""
    found = [row for folder in folders for row in rows(folder)]
    found.sort(key=lambda row: (row["data"], row["n"], row["reference"], row["distance"]))
    found = _floors_once(found)
    frame = pd.DataFrame([{k: v for k, v in row.items() if k != "shown"} for row in found])
    # A family has the colour that it has in the report: by place in `models`, of the run with the most of them.
    compared = sorted((models(folder) for folder in folders), key=len, reverse=True)
    tints = {f: plots.colour(i) for i, f in enumerate(dict.fromkeys(f for names in compared for f in names))}
    chart = Markup(plots.runs(frame, tints, FLOOR)) if found else ""
    content = {"chart": chart, "rows": [cells(row) for row in found], "texts": TEXTS}
    return page.template("results.html.j2", Path(__file__).parent).render(content | page.parts())


def _floors_once(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same without the floors that several runs share but once, as that of any run."""
    seen, out = set(), []
    for row in found:
        key = (row["data"], row["n"], row["reference"], text(row["distance"]))  # machines differ in the last digits
        if row["row"] != FLOOR:
            out.append(row)
        elif key not in seen:
            out.append(row | {"run": "any"})
            seen.add(key)
    return out
