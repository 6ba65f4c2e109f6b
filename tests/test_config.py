"""A bad params.yaml is one line that names the key and, where there is one, the nearest right key."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest
from annotated_types import Ge, Gt, Le, Len, Lt, MinLen, MultipleOf

from pofx.base import config
from pofx.base.errors import UserError


@dataclass(frozen=True)
class Inner:
    lr: float
    betas: tuple[float, ...]


@dataclass(frozen=True)
class Outer:
    images: int
    flip: bool
    decay: Literal["constant", "cosine"]
    step: float | None
    widths: tuple[int, ...]
    name: str
    train: Inner


@dataclass(frozen=True)
class Net:
    widths: Annotated[tuple[Annotated[int, Ge(1)], ...], MinLen(1)] = (8, 16)
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.1


@dataclass(frozen=True)
class Defaults:
    levels: Annotated[int, Ge(2)] = 4
    rate: Annotated[float, Gt(0)] = 1e-3
    steps: Annotated[int, Le(9)] | None = None
    batch: Annotated[int, MultipleOf(64)] = 64
    net: Net = field(default_factory=Net)

    def __post_init__(self) -> None:
        if self.steps and self.steps > self.levels:
            raise ValueError(f"steps = {self.steps} should be at most levels = {self.levels}")


GOOD = """
seed: 3
models: [vae, ncsn]
fid:
  images: 10
  flip: true
  decay: cosine
  step: null
  widths: [1, 2]
  name: "3"
  train: {lr: 1e-4, betas: [0, 0.9]}
"""


@pytest.fixture
def params(tmp_path: Path):
    """Write GOOD with one text replaced, and return the path."""

    def write(old: str = "", new: str = "") -> str:
        assert old in GOOD
        path = tmp_path / "params.yaml"
        path.write_text(GOOD.replace(old, new, 1))
        config.params.cache_clear()
        return str(path)

    return write


def section(path: str) -> Outer:
    return config.section("fid", Outer, path)


def test_good(params):
    assert section(params()) == Outer(10, True, "cosine", None, (1, 2), "3", Inner(1e-4, (0.0, 0.9)))
    assert config.value("seed", int, params()) == 3
    assert config.value("models", tuple[str, ...], params()) == ("vae", "ncsn")
    assert config.section("fid.train", Inner, params()).lr == 1e-4
    assert type(section(params()).train.betas[0]) is float


NOTATIONS = [("1e-4", 1e-4), ("3e-05", 3e-05), ("3.e-05", 3e-05), ("1E3", 1e3), ("2", 2)]


@pytest.mark.parametrize(("text", "number"), NOTATIONS)
def test_numbers_in_any_notation(params, text, number):
    """1e-4 as people write it, 3e-05 as DVC writes it: strings for PyYAML, numbers here."""
    assert section(params("1e-4", text)).train.lr == number
    assert section(params("step: null", f"step: {text}")).step == number


@pytest.mark.parametrize(
    ("old", "new", "key", "hint"),
    [
        ("images:", "image:", "'image' in fid", "images"),  # misspelt
        ("  images: 10\n", "", "fid.images", "missing"),
        ("  name:", "  extra: 1\n  name:", "'extra' in fid", "did you mean"),
        ("lr:", "lrr:", "'lrr' in fid.train", "lr"),
        ("lr: 1e-4, ", "", "fid.train.lr", "missing"),
        ("train: {lr: 1e-4, betas: [0, 0.9]}", "train: 3", "fid.train = 3", "lr, betas"),
        ("images: 10", "images: abc", "fid.images = 'abc'", "int"),
        ("images: 10", "images: 10.0", "fid.images = 10.0", "int"),
        ("images: 10", "images: true", "fid.images = True", "int"),
        ("images: 10", "images: null", "fid.images = None", "int"),
        ("images: 10", "images: [10]", "fid.images", "int"),
        ("flip: true", "flip: 1", "fid.flip = 1", "bool"),
        ("flip: true", "flip: yes", "fid.flip = 'yes'", "bool"),  # YAML 1.2
        ("decay: cosine", "decay: cosin", "fid.decay = 'cosin'", "'cosine'"),
        ("step: null", "step: abc", "fid.step = 'abc'", "float"),
        ("widths: [1, 2]", "widths: 1", "fid.widths = 1", "list"),
        ("widths: [1, 2]", "widths: [1, a]", "fid.widths[1] = 'a'", "int"),
        ('name: "3"', "name: 3", "fid.name = 3", "str"),
        ("1e-4", "true", "fid.train.lr = True", "float"),
        ("1e-4", "'1e-4'", "fid.train.lr = '1e-4'", "float"),
    ],
)
def test_bad_key_or_type(params, old, new, key, hint):
    with pytest.raises(UserError, match=re.escape(key)) as error:
        section(params(old, new))
    assert hint in str(error.value) and "\n" not in str(error.value)


def test_bad_sections(params):
    with pytest.raises(UserError, match=r"'fidd'.*did you mean fid"):
        section(params("fid:", "fidd:"))
    with pytest.raises(UserError, match="data is missing"):
        config.section("data", Outer, params())
    with pytest.raises(UserError, match=r"sample\.n|sample is missing"):
        config.value("sample.n", int, params())
    with pytest.raises(UserError, match="seed = 'x' is str, should be int"):
        config.value("seed", int, params("seed: 3", "seed: x"))


def test_bad_files(params, tmp_path: Path):
    with pytest.raises(UserError, match="missing"):
        section(str(tmp_path / "none.yaml"))
    with pytest.raises(UserError, match="empty"):
        section(params(GOOD, ""))
    with pytest.raises(UserError, match="not valid YAML") as error:
        section(params("models: [vae, ncsn]", "models: [vae, ncsn"))
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="not valid YAML"):  # a key given twice
        section(params("seed: 3", "seed: 3\nseed: 4"))


def test_what_is_left_out_takes_its_default():
    assert config.build(Defaults, {}, "edm") == Defaults()
    assert config.build(Defaults, {"net": {"dropout": 0}}, "edm").net == Net(dropout=0.0)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"levels": 1}, "edm.levels = 1 should be at least 2"),
        ({"rate": 0}, "edm.rate = 0.0 should be above 0"),
        ({"steps": 10}, "edm.steps = 10 should be at most 9"),
        ({"batch": 100}, "edm.batch = 100 should be a multiple of 64"),
        ({"net": {"dropout": 1.0}}, "edm.net.dropout = 1.0 should be below 1"),
        ({"net": {"dropout": -1.0}}, "edm.net.dropout = -1.0 should be at least 0"),
        ({"net": {"widths": [4, 0]}}, "edm.net.widths[1] = 0 should be at least 1"),
        ({"net": {"widths": []}}, "edm.net.widths = [] should have 1 or more entries"),
        ({"net": {"width": [4]}}, "unknown key 'width' in edm.net: did you mean widths?"),
        ({"rate": float("nan")}, "edm.rate = nan should be a finite number"),
        ({"rate": float("inf")}, "edm.rate = inf should be a finite number"),
        ({"steps": 5}, "edm.steps = 5 should be at most levels = 4"),  # what the dataclass itself refuses
    ],
)
def test_out_of_bounds(tree, message):
    with pytest.raises(UserError, match=re.escape(message)) as error:
        config.build(Defaults, tree, "edm")
    assert "\n" not in str(error.value)


def test_bounds_of_an_optional_value_leave_null_alone():
    @dataclass(frozen=True)
    class Optional:
        steps: Annotated[int | None, Ge(1)] = 3

    assert config.build(Optional, {"steps": None}, "x").steps is None
    with pytest.raises(UserError, match="at least 1"):
        config.build(Optional, {"steps": 0}, "x")


def test_a_bound_that_is_not_checked_is_a_bug():
    @dataclass(frozen=True)
    class Odd:
        names: Annotated[tuple[str, ...], Len(1, 2)] = ("a",)

    with pytest.raises(TypeError, match="no bound that can be checked"):
        config.build(Odd, {"names": ["a"]}, "x")


def test_the_section_of_a_family_holds_its_training_beside_its_config(params):
    @dataclass(frozen=True)
    class Vae:
        latent: int = 10

    path = params("fid:", "vae: {latent: 3, train: {lr: 1e-4}}\nfid:")
    assert config.section("vae", Vae, path).latent == 3
    with pytest.raises(UserError, match="unknown key 'train' in fid"):
        config.build(Vae, {"train": {}}, "fid")
