"""Check all of params.yaml in an instant, before anything is computed; every training depends on what this writes."""

import dataclasses
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, MinLen

from stages import run
from pofx.base import config, files
from pofx.base.errors import UserError
from pofx.data.binary import Preprocess
from pofx.data.download import Data
from pofx.models import store
from pofx.sample import rows
from pofx.score.denoising import Sweep
from pofx.score.energy import Energy
from pofx.score.extractor import Fid
from pofx.score.likelihood import Likelihood
from pofx.score.probe import Probe
from pofx.train.config import settings

SECTIONS = {"data": Data, "preprocess": Preprocess, "fid": Fid, "likelihood": Likelihood, "probe": Probe,
            "sweep": Sweep, "energy": Energy}  # fmt: skip


def check(tree: dict[str, Any]) -> None:
    """Read every parameter as the stages will.

    Raises:
        UserError: an unknown, missing or wrongly typed key, a value out of bounds, or a model that is no family.
    """
    families = config.family_names()
    sections = [*config.SHARED_SECTIONS, *families]
    config.refuse_unknown(tree, sections, "params.yaml")
    if missing := [key for key in sections if key not in tree]:
        raise UserError(f"section {missing[0]} is missing: add it (presets/default.yaml has one)")
    config.convert(int, tree["seed"], "seed")
    built = {key: config.build(cls, tree[key], key) for key, cls in SECTIONS.items()}
    for name in families:
        config.build(store.module(name).Config, config.untrained(tree[name]), name)
        settings(name, tree)
    blocks = [(name, dict) for name in families]
    drawn = [("n", Annotated[int, Ge(2)]), ("seeds", Annotated[int, Ge(1)]), *blocks]
    config.build(dataclasses.make_dataclass("Drawn", drawn), tree["sample"], "sample")
    config.build(dataclasses.make_dataclass("Rows", blocks), tree["rows"], "rows")
    for name in families:
        rows.rows(name, tree["sample"][name], tree["rows"][name])
    _names("models", config.convert(Annotated[tuple[str, ...], MinLen(1)], tree["models"], "models"))
    _names("sweep.models", built["sweep"].models)
    _names("energy.models", built["energy"].models)


def _names(key: str, names: Collection[str]) -> None:
    families = config.family_names()
    for name in names:
        if name not in families:
            raise UserError(f"{key} names {name!r}, which is no family: {config.nearest(name, families)}")
    if len(set(names)) < len(names):
        raise UserError(f"{key} = {list(names)} should name each family once")


def main() -> None:
    check(config.params())
    files.write_json(Path("metrics/check.json"), {"params.yaml": "valid"})  # the same whatever the values


if __name__ == "__main__":
    run(main, *sys.argv[1:])
