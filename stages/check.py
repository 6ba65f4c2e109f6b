"""Check all of params.yaml in an instant, before anything is computed; every training depends on what this writes."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge

from stages import run
from pofx.base import config, files
from pofx.base.errors import UserError
from pofx.data.binary import Preprocess
from pofx.data.download import Data
from pofx.models import store
from pofx.sample import rows
from pofx.score.energy import Energy
from pofx.score.extractor import Fid
from pofx.score.likelihood import Likelihood
from pofx.score.probe import Probe
from pofx.score.sweep import Sweep
from pofx.train.config import settings

SECTIONS = {"data": Data, "preprocess": Preprocess, "fid": Fid, "likelihood": Likelihood, "probe": Probe,
            "sweep": Sweep, "energy": Energy}  # fmt: skip


def check(tree: dict[str, Any]) -> None:
    """Read every parameter as the stages will.

    Raises:
        UserError: an unknown, missing or wrongly typed key, a value out of bounds, or a model that is no family.
    """
    families = config.family_names()
    config.known(tree, [*config.SHARED_SECTIONS, *families], "params.yaml")
    for key in [*config.SHARED_SECTIONS, *families]:
        if key not in tree:
            raise UserError(f"section {key} is missing: add it (presets/default.yaml has one)")
    config.convert(int, tree["seed"], "seed")
    for key, cls in SECTIONS.items():
        config.build(cls, tree[key], key)
    for name in families:
        config.build(store.module(name).Config, config.untrained(tree[name]), name)
        settings(name, tree)
    _sample(tree)
    _names("models", tree["models"], at_least=1)
    for key in ("sweep", "energy"):  # of which there may be none
        _names(f"{key}.models", tree[key].get("models", []), at_least=0)


def _sample(tree: dict[str, Any]) -> None:
    families = config.family_names()
    drawn = {"n": Annotated[int, Ge(2)], "seeds": Annotated[int, Ge(1)]} | {name: dict for name in families}
    config.build(dataclasses.make_dataclass("Drawn", drawn.items()), tree["sample"], "sample")
    config.build(dataclasses.make_dataclass("Rows", [(name, dict) for name in families]), tree["rows"], "rows")
    for name in families:
        rows.rows(name, tree["sample"][name], tree["rows"][name])


def _names(key: str, names: Any, at_least: int) -> None:
    names = config.convert(tuple[str, ...], names, key)
    for name in names:
        if name not in (families := config.family_names()):
            raise UserError(f"{key} names {name!r}, which is no family: {config.nearest(name, families)}")
    if len(set(names)) < len(names) or len(names) < at_least:
        count = "one family or more" if at_least else "families"
        raise UserError(f"{key} = {list(names)} should name {count}, each once")


def main() -> None:
    check(config.params())
    files.write_json(Path("metrics/check.json"), {"params.yaml": "valid"})  # the same whatever the values


if __name__ == "__main__":
    run(main, *sys.argv[1:])
