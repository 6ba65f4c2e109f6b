"""params.yaml as frozen dataclasses: exact keys, exact types, defaults and bounds beside the code that reads them.

A dataclass says all of it at once: `n_sigmas: Annotated[int, Ge(2)] = 32` is the key, its type, its bound and its
default. What params.yaml leaves out takes the default. ruamel reads YAML 1.2, so that `1e-4` and the `3e-05` that DVC
writes are numbers (PyYAML reads both as strings).
"""

import dataclasses
import difflib
import math
import operator
import re
import types
import typing
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

from annotated_types import Ge, Gt, Le, Lt, MinLen, MultipleOf
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pofx.base.errors import UserError

T = TypeVar("T")
MODELS = Path(__file__).resolve().parents[1] / "models"
SHARED_SECTIONS = ("seed", "models", "data", "preprocess", "train", "sample", "rows", "fid", "likelihood", "probe",
                   "sweep", "energy")  # fmt: skip
BOUNDS = {  # bound -> whether a value keeps it, and what else it should do
    Ge: (operator.ge, "be at least {}"),
    Gt: (operator.gt, "be above {}"),
    Le: (operator.le, "be at most {}"),
    Lt: (operator.lt, "be below {}"),
    MultipleOf: (lambda got, step: got % step == 0, "be a multiple of {}"),
    MinLen: (lambda got, least: len(got) >= least, "have {} or more entries"),
}


def family_names() -> list[str]:
    """Every family of the project: one file or folder in models/, whose module defines `Config`."""
    return sorted(path.stem for path in MODELS.rglob("*.py") if re.search(r"^class Config\b", path.read_text(), re.M))


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
    refuse_unknown(tree, [*SHARED_SECTIONS, *family_names()], path)
    return tree


def section(key: str, cls: type[T], path: str = "params.yaml") -> T:
    """The section `key` (dotted for nested ones, `sample.vae`) as an instance of the dataclass `cls`."""
    tree = _find(key, path)
    return build(cls, untrained(tree) if key in family_names() else tree, key)


def untrained(tree: Any) -> Any:
    """A family's section without its `train`, which is no part of its Config (see pofx.train.config)."""
    return {k: v for k, v in tree.items() if k != "train"} if isinstance(tree, dict) else tree


def value(key: str, kind: Any, path: str = "params.yaml") -> Any:
    """The single value `key`, checked against the type `kind`."""
    return convert(kind, _find(key, path), key)


def build(cls: type[T], tree: Any, where: str) -> T:
    """An instance of the dataclass `cls` from the mapping `tree`; `where` names it in errors.

    A field whose key is a word of Python's own has an underscore more (PEP 8): `from_` is the key `from`.

    Raises:
        UserError: an unknown key, a missing one that has no default, a value of the wrong type or out of bounds, or
            one that the dataclass itself refuses (ValueError).
    """
    fields = {f.name.removesuffix("_"): f for f in dataclasses.fields(cls)}
    if not isinstance(tree, dict):
        raise UserError(f"{where} = {tree!r} should be a mapping with the keys {', '.join(fields)}")
    refuse_unknown(tree, fields, where)
    for key, field in fields.items():
        if key not in tree and field.default is field.default_factory is dataclasses.MISSING:
            raise UserError(f"{where}.{key} is missing: add it")
    hints = typing.get_type_hints(cls, include_extras=True)
    values = {(field := fields[key].name): convert(hints[field], got, f"{where}.{key}") for key, got in tree.items()}
    try:
        return cls(**values)
    except ValueError as error:  # what no bound of a single key can say; the message starts with the key
        raise UserError(f"{where}.{error}") from None


def tree(settings: Any) -> dict[str, Any]:
    """The mapping from which `build` makes the dataclass `settings`."""
    return dataclasses.asdict(settings, dict_factory=lambda items: {k.removesuffix("_"): v for k, v in items})


def refuse_unknown(keys: Collection[str], allowed: Collection[str], where: str) -> None:
    """Refuse a key that is none of `allowed`, and name the nearest of them."""
    for key in keys:
        if key not in allowed:
            raise UserError(f"unknown key {key!r} in {where}: {nearest(str(key), allowed)}")


def nearest(word: str, allowed: Collection[str]) -> str:
    """A question after the nearest right word, and all there are."""
    near = difflib.get_close_matches(word, allowed, n=1, cutoff=0.0)
    return f"did you mean {near[0]}? (known: {', '.join(allowed)})" if near else "remove it"


def convert(kind: Any, got: Any, where: str) -> Any:
    """The value `got` as the type `kind`, bounds included.

    Raises:
        UserError: it is of another type, out of bounds, or not finite.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return _bounded(convert(args[0], got, where), kind.__metadata__, where)
    if dataclasses.is_dataclass(kind):
        return build(kind, got, where)
    if origin in (typing.Union, types.UnionType):
        if got is None and type(None) in args:
            return None
        return convert(next(a for a in args if a is not type(None)), got, where)
    if origin is typing.Literal:
        if got not in args:
            raise UserError(f"{where} = {got!r} should be one of {', '.join(map(repr, args))}")
        return got
    if origin is tuple and isinstance(got, list | tuple):
        if args[-1] is not Ellipsis and len(args) != len(got):
            raise UserError(f"{where} = {list(got)!r} should have {len(args)} entries")
        return tuple(convert(args[0], item, f"{where}[{i}]") for i, item in enumerate(got))
    if kind is float and type(got) is int:
        return float(got)
    if origin is not None or type(got) is not kind:
        want = "list" if origin is tuple else getattr(kind, "__name__", str(kind))
        raise UserError(f"{where} = {got!r} is {type(got).__name__}, should be {want}")
    if kind is float and not math.isfinite(got):
        raise UserError(f"{where} = {got} should be a finite number")
    return got


def _bounded(got: Any, bounds: Collection[Any], where: str) -> Any:
    for bound in bounds:
        if type(bound) not in BOUNDS:
            raise TypeError(f"{where}: {bound!r} is no bound that can be checked here")
        holds, should = BOUNDS[type(bound)]
        (limit,) = dataclasses.astuple(bound)
        if got is not None and not holds(got, limit):
            shown = list(got) if isinstance(got, tuple) else got
            raise UserError(f"{where} = {shown!r} should {should.format(limit)}")
    return got


def _find(key: str, path: str) -> Any:
    node, seen = params(path), []
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            raise UserError(f"{'.'.join([*seen, part])} is missing from {path}: add it (presets/default.yaml has one)")
        node, seen = node[part], [*seen, part]
    return node
