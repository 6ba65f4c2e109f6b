"""params.yaml as frozen dataclasses: exact keys, exact types, no defaults.

Each dataclass lives next to the code that reads it; this file only knows how to fill one. ruamel reads YAML 1.2, so
that `1e-4` and the `3e-05` that DVC writes are numbers (PyYAML reads both as strings).
"""

import dataclasses
import difflib
import types
import typing
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pofx.base.errors import UserError

T = TypeVar("T")
MODELS = Path(__file__).resolve().parents[1] / "models"
SHARED_SECTIONS = ("seed", "models", "data", "preprocess", "sample", "fid", "likelihood", "probe", "sweep", "energy")


def family_names() -> list[str]:
    """Every family of the project: one file or folder in models/, whose module defines `Config`."""
    return sorted(path.stem for path in MODELS.rglob("*.py") if "\nclass Config:" in path.read_text())


def family_module(name: str) -> str:
    """The dotted name of a family's module: models/edm.py, or models/vae/vae.py."""
    return f"pofx.models.{name}.{name}" if (MODELS / name).is_dir() else f"pofx.models.{name}"


@cache
def params(path: str = "params.yaml") -> dict[str, Any]:
    """The whole of params.yaml.

    Raises:
        UserError: the file is missing, is not YAML, or has a section that nothing in the project reads.
    """
    try:
        tree = YAML(typ="safe").load(Path(path).read_text())
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run from the repository's root, or `git checkout {path}`") from None
    except YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path} is empty: `git checkout {path}`")
    for key in tree:
        _known(key, [*SHARED_SECTIONS, *family_names()], where=path)
    return tree


def section(key: str, cls: type[T], path: str = "params.yaml") -> T:
    """The section `key` (dotted for nested ones, `sample.vae`) as an instance of the dataclass `cls`."""
    return build(cls, _find(key, path), key)


def untracked(key: str, cls: type[T], path: str = "params.yaml") -> T:
    """`section`, for what decides nothing that the stage outputs: DVC need not track it, a change reruns nothing."""
    return section(key, cls, path)


def value(key: str, kind: Any, path: str = "params.yaml") -> Any:
    """The single value `key`, checked against the type `kind`."""
    return _convert(kind, _find(key, path), key)


def build(cls: type[T], tree: Any, where: str) -> T:
    """An instance of the dataclass `cls` from the mapping `tree`; `where` names it in errors.

    Raises:
        UserError: an unknown, missing or wrongly typed key, or a value that the dataclass refuses (ValueError).
    """
    if not isinstance(tree, dict):
        raise UserError(f"{where} = {tree!r} should be a mapping with the keys {', '.join(_fields(cls))}")
    hints, fields = typing.get_type_hints(cls), _fields(cls)
    for key in tree:
        _known(key, fields, where)
    for key in fields:
        if key not in tree:
            raise UserError(f"{where}.{key} is missing: add it (see conf/ for a value)")
    values = {k: _convert(hints[k], tree[k], f"{where}.{k}") for k in fields}
    try:
        return cls(**values)
    except ValueError as error:  # a dataclass refuses a value out of range, and names the key
        raise UserError(f"{where}.{error}") from None


def _find(key: str, path: str) -> Any:
    node, seen = params(path), []
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            raise UserError(f"{'.'.join([*seen, part])} is missing from {path}: add it (see conf/ for a value)")
        node, seen = node[part], [*seen, part]
    return node


def _fields(cls: type) -> list[str]:
    return [f.name for f in dataclasses.fields(cls)]


def _known(key: str, allowed: list[str], where: str) -> None:
    if key not in allowed:
        near = difflib.get_close_matches(str(key), allowed, n=1, cutoff=0.0)
        hint = f"did you mean {near[0]}?" if near else "remove it"
        raise UserError(f"unknown key {key!r} in {where}: {hint} (known: {', '.join(allowed)})")


def _convert(kind: Any, got: Any, where: str) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return build(kind, got, where)
    if origin in (typing.Union, types.UnionType):
        if got is None and type(None) in args:
            return None
        return _convert(next(a for a in args if a is not type(None)), got, where)
    if origin is typing.Literal:
        if got not in args:
            raise UserError(f"{where} = {got!r} should be one of {', '.join(map(repr, args))}")
        return got
    if origin is tuple and isinstance(got, list | tuple):
        if args[-1] is not Ellipsis and len(args) != len(got):
            raise UserError(f"{where} = {list(got)!r} should have {len(args)} entries")
        return tuple(_convert(args[0], item, f"{where}[{i}]") for i, item in enumerate(got))
    if kind is float and type(got) is int:
        return float(got)
    if origin is not None or type(got) is not kind:
        want = "list" if origin is tuple else getattr(kind, "__name__", str(kind))
        raise UserError(f"{where} = {got!r} is {type(got).__name__}, should be {want}")
    return got
