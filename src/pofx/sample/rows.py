"""Rows of the report: the ways to draw from one trained family."""

import re
from typing import Any

from pofx.base import config
from pofx.base.errors import UserError
from pofx.models import store
from pofx.sample.samplers import READS, Sample


def kind(family: str) -> type:
    """The dataclass of sample.<family>: the family's own Sample, or that of all denoisers."""
    return getattr(store.module(family), "Sample", Sample)


def rows(family: str, own: Any, more: Any) -> dict[str, Any]:
    """Row -> its Sample. The first is called like the family and drawn by `own`.

    Args:
        own: the section sample.<family>, a mapping.
        more: the section rows.<family>: {ddim: {sampler: ddim}} makes a row edm-ddim, which differs from the first in
            its sampler alone.

    Raises:
        UserError: a row's name is not of small letters and digits, or what differs is no valid part of a Sample.
    """
    where, found = f"rows.{family}", {family: config.build(kind(family), own, f"sample.{family}")}
    if not isinstance(more, dict):
        raise UserError(f"{where} = {more!r} should be a mapping of rows, such as {{}}")
    for word, differs in more.items():
        if not re.fullmatch("[a-z0-9]+", str(word)):
            raise UserError(f"{where}: {word!r} cannot name a row: use small letters and digits")
        if not isinstance(differs, dict) or not differs:
            raise UserError(f"{where}.{word} = {differs!r} should say what differs from sample.{family}, key by key")
        found[f"{family}-{word}"] = config.build(kind(family), _inherited(own, differs) | differs, f"{where}.{word}")
    return found


def _inherited(own: dict[str, Any], differs: dict[str, Any]) -> dict[str, Any]:
    """What a row takes over from the first; of a setting that samplers do not share, only what its own reads."""
    if "sampler" not in differs:
        return own
    unread = set().union(*READS.values()) - READS.get(differs["sampler"], set())
    return {key: value for key, value in own.items() if key not in unread}


def stems(row: str, seeds: int) -> list[str]:
    """What the files of a row are called that is drawn `seeds` times: edm, edm.seed1, edm.seed2.

    Raises:
        UserError: it is not drawn at all.
    """
    if seeds < 1:
        raise UserError(f"sample.seeds = {seeds} should be 1 or more: images are drawn so many times")
    return [row, *(f"{row}.seed{k}" for k in range(1, seeds))]
