"""Compose conf/ into params.yaml, the one file that stages read.

    python -m tools.compose data=cifar10 ncsn=v2 scale=laptop [ncsn.n_sigmas=20 ...]     writes params.yaml
    python -m tools.compose --flags data=cifar10 scale=laptop                            prints the difference alone

conf/config.yaml holds every key with its comment. Over it are laid, in this order, a data set (conf/data/), a preset of
each family that has some (conf/vae/, conf/ebm/, ...), a scale (conf/scale/), what the preset wants at that scale
(conf/vae_at/, ...), and further words (Hydra's override grammar). `--flags` prints `-S key=value` words:
`dvc exp run $(python -m tools.compose --flags scale=gpu)`; a value that Hydra wants in quotes needs
`eval "dvc exp run $(...)"` instead. The one place where keys come and go is sample.<family>.also, the further rows of
the report: `+sample.edm.also.ddim.sampler=ddim` adds one, `~sample.vae.also.mixture` takes one out, here as after -S.
"""

import dataclasses
import difflib
import io
import re
import shlex
import sys
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.representer import RoundTripRepresenter

from pofx.base import config, files
from pofx.base.errors import UserError
from stages import ROOT, run

CONF = ROOT / "conf"
HEADER = "# composed by: python -m tools.compose "
USAGE = (
    "usage: python -m tools.compose [--flags | --check] "
    "[data=... vae=... ebm=... ncsn=... ddpm=... scale=...] [key=value ...]"
)
DEFAULTS = re.compile(r"\A(?:#.*\n|\n)*defaults:.*\n(?:[ -].*\n)*\n*")  # head of conf/config.yaml, not for params.yaml
PLAIN = re.compile(r"[A-Za-z_/][\w/.:%?@+-]*")  # strings that Hydra's grammar takes without quotes
INERT = re.compile(r"~?[\w@%+=:,./\[\]-]+")  # words that no POSIX shell changes: ~key is no user's home
ROW = re.compile(r"sample\.\w+\.also\.\w+")  # a key that need not be in conf/config.yaml


class Representer(RoundTripRepresenter):
    """ruamel's own, but for null, which it would write as nothing at all."""


Representer.add_representer(type(None), lambda self, _: self.represent_scalar("tag:yaml.org,2002:null", "null"))


def schema() -> dict[str, Any]:
    """The type of every section of params.yaml: each dataclass lives next to the code that reads it."""
    from pofx.data.binary import Preprocess
    from pofx.data.download import Data
    from pofx.models import family  # with torch: not for those who only ask for usage
    from pofx.score.energy import Energy
    from pofx.score.extractor import Fid
    from pofx.score.likelihood import Likelihood
    from pofx.score.probe import Probe
    from pofx.score.sweep import Sweep

    families = {name: family.module(name) for name in config.family_names()}
    sample = dataclasses.make_dataclass(
        "sample", [("n", int), ("seeds", int), *((f, m.Sample) for f, m in families.items())]
    )
    configs = {name: module.Config for name, module in families.items()}
    return {"seed": int, "models": tuple[str, ...], "data": Data, "preprocess": Preprocess, **configs,
            "sample": sample, "fid": Fid, "likelihood": Likelihood, "probe": Probe, "sweep": Sweep,
            "energy": Energy}  # fmt: skip


def check(tree: dict[str, Any]) -> None:
    """Check all of params.yaml as a whole, as the stages will do piece by piece.

    Raises:
        UserError: an unknown, missing or wrongly typed key, or a model that is not a family.
    """
    from pofx.models import family  # as in schema

    kinds = schema()
    for key in tree:
        if key not in kinds:
            raise UserError(f"unknown section {key!r}: {_near(key, kinds)}")
    for key, kind in kinds.items():
        if key not in tree:
            raise UserError(f"section {key} is missing: add it to conf/config.yaml")
        if dataclasses.is_dataclass(kind):
            config.build(kind, tree[key], key)
    values = [(key, kind) for key, kind in kinds.items() if not dataclasses.is_dataclass(kind)]
    plain = dataclasses.make_dataclass("plain", values)
    config.build(plain, {key: tree[key] for key, _ in values}, "params.yaml")
    sample = config.build(kinds["sample"], tree["sample"], "sample")
    for name in config.family_names():
        family.draws(name, getattr(sample, name))
        family.stems(name, sample.seeds)
    further = {f"{key}.models": tree[key]["models"] for key in ("sweep", "energy")}  # of which there may be none
    for key, names in ({"models": tree["models"]} | further).items():
        for name in names:
            if name not in config.family_names():
                raise UserError(f"{key} names {name!r}, which is no family: {_near(name, config.family_names())}")
        if len(set(names)) < len(names) or not (names or key in further):
            raise UserError(
                f"{key} = {list(names)} should name {'families' if key in further else 'one family or more'}, each once"
            )


def text(overrides: list[str]) -> str:
    """The whole text of params.yaml for these overrides, checked.

    Raises:
        UserError: an override names no group, option or key, or a value does not pass `check`.
    """
    source = (CONF / "config.yaml").read_text()
    head = DEFAULTS.match(source)
    if head is None:
        raise UserError("conf/config.yaml has no defaults list: `git checkout conf/config.yaml`")
    chosen: dict[str, str] = {}
    for entry in YAML(typ="safe").load(head[0])["defaults"]:
        if entry != "_self_":  # an optional group is chosen by the others
            chosen |= {group: option for group, option in entry.items() if not group.startswith("optional ")}
    yaml = YAML()
    yaml.Representer, yaml.preserve_quotes, yaml.width = Representer, True, 4096
    tree = yaml.load(source[head.end() :])

    values = []
    for word in overrides:
        key, equal, value = word.partition("=")
        row = ROW.match(key.lstrip("+~"))
        if not equal and not row:
            raise UserError(f"{word!r} is not key=value; {USAGE}")
        if key in chosen:
            options = sorted(p.stem for p in (CONF / key).glob("*.yaml"))
            if value not in options:
                raise UserError(f"{word}: {_near(value, options)}")
            chosen[key] = value
        elif not row and key not in (known := [*chosen, *_keys(tree)]):
            raise UserError(f"{word}: no parameter is called {key!r}: {_near(key, known, show=0)}")
        else:
            values.append(word)
    words = [f"{group}={option}" for group, option in chosen.items()] + values

    _lay(tree, _composed(words), "")
    body = io.StringIO()
    yaml.dump(tree, body)
    check(YAML(typ="safe").load(body.getvalue()))
    return f"{HEADER}{shlex.join(words)}\n\n{body.getvalue()}"


def flags(now: dict[str, Any], wanted: dict[str, Any]) -> str:
    """What turns `now` into `wanted`, as `-S key=value` words.

    Raises:
        UserError: the two do not have the same keys.
    """
    before, after = _leaves(now), _leaves(wanted)
    if odd := sorted(key for key in before.keys() ^ after.keys() if not ROW.fullmatch(key)):
        raise UserError(f"params.yaml and conf/ differ in {', '.join(odd)}: write params.yaml anew, without --flags")
    words = []
    for key in after | before:
        if key in before and key in after and not _differ(before[key], after[key]):
            continue
        if ROW.fullmatch(key):
            words += [f"~{key}"] * (key in before)
            words += [f"+{leaf}={_hydra(value)}" for leaf, value in _leaves(after.get(key, {}), f"{key}.").items()]
        else:
            words.append(f"{key}={_hydra(after[key])}")
    return " ".join(f"-S {word if INERT.fullmatch(word) else shlex.quote(word)}" for word in words)


def main(*arguments: str) -> None:
    options = [a for a in arguments if a.startswith("-")]
    if options not in ([], ["--flags"], ["--check"]):
        raise UserError(USAGE)
    if options == ["--check"]:
        check(config.params("params.yaml"))
        return
    composed = text([a for a in arguments if a not in options])
    if options:
        print(flags(config.params("params.yaml"), YAML(typ="safe").load(composed)))
        return
    for edit in _edits(Path("params.yaml")):
        print(f"dropped an edit of params.yaml: {edit}", file=sys.stderr)
    with files.atomic(Path("params.yaml")) as file:
        file.write(composed.encode())
    print(composed.splitlines()[0].replace("# composed", "params.yaml composed"))


def _edits(path: Path) -> list[str]:
    """Values in params.yaml that its own header does not explain, as key=value: edits by hand or by -S."""
    first = path.read_text().partition("\n")[0] if path.is_file() else ""
    if not first.startswith(HEADER):
        return []
    try:
        was = _leaves(YAML(typ="safe").load(text(shlex.split(first.removeprefix(HEADER)))))
        now = _leaves(YAML(typ="safe").load(path.read_text()))
    except (UserError, YAMLError):
        return []  # an older conf/, or a broken file: nothing to compare with
    gone = [f"~{key}" for key in was if key not in now]
    return [f"{key}={value}" for key, value in now.items() if key not in was or _differ(was[key], value)] + gone


def _composed(words: list[str]) -> dict[str, Any]:
    """Hydra's composition of conf/; its chained errors cut down to one line."""
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return OmegaConf.to_container(hydra_compose("config", words), resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        lines = [line.strip() for line in str(error.__cause__ or error).splitlines() if line.strip()]
        raise UserError(f"conf/ cannot be composed with {shlex.join(words)}: {lines[0]}") from None


def _lay(tree: Any, new: dict[str, Any], where: str) -> None:
    """Put the values of `new` into `tree` in place, so that its comments, order and layout stay."""
    for key in [key for key in tree if ROW.fullmatch(f"{where}{key}")]:
        del tree[key]  # all that is wanted is in `new`
    for key, value in new.items():
        if ROW.fullmatch(f"{where}{key}"):
            tree[key] = value
            tree.fa.set_flow_style()  # an empty mapping has none of its own
        elif key not in tree:
            near = _near(f"{where}{key}", [where + k for k in tree], show=0)
            raise UserError(f"conf/ sets {where}{key}, which conf/config.yaml does not have: {near}")
        elif isinstance(tree[key], dict):
            if not isinstance(value, dict):
                raise UserError(f"{where}{key} = {value!r} should be a mapping with the keys {', '.join(tree[key])}")
            _lay(tree[key], value, f"{where}{key}.")
        elif isinstance(tree[key], list) and isinstance(value, list):
            tree[key][:] = value
            tree[key].fa.set_flow_style()  # an empty list has none of its own
        elif _differ(tree[key], value):
            tree[key] = value


def _keys(tree: dict[str, Any], where: str = "") -> list[str]:
    """Every dotted key, sections included."""
    found = []
    for key, value in tree.items():
        found += [where + key, *(_keys(value, f"{where}{key}.") if isinstance(value, dict) else [])]
    return found


def _leaves(tree: dict[str, Any], where: str = "") -> dict[str, Any]:
    """Every dotted key that is no section; a row is a value as a whole."""
    found = {}
    for key, value in tree.items():
        section = isinstance(value, dict) and not ROW.fullmatch(f"{where}{key}")
        found |= _leaves(value, f"{where}{key}.") if section else {where + key: value}
    return found


def _differ(a: Any, b: Any) -> bool:
    return a != b or isinstance(a, bool) != isinstance(b, bool)  # 1 == True, and 1 == 1.0 may stay


def _hydra(value: Any) -> str:
    """A value in Hydra's override grammar."""
    if value is None:
        return "null"
    if isinstance(value, list):
        return f"[{','.join(map(_hydra, value))}]"
    if not isinstance(value, str):
        return repr(value).lower()  # True -> true
    if PLAIN.fullmatch(value) and value.lower() not in ("null", "true", "false", "nan", "inf"):
        return value
    quoted = re.sub(r"(\\+)(?='|$)", r"\1\1", value).replace("'", r"\'")  # backslashes count only before a quote
    return f"'{quoted}'"


def _near(word: str, known: Any, show: int = 12) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.0)
    listed = f" (known: {', '.join(known)})" if 0 < len(list(known)) <= show else ""
    return (f"did you mean {near[0]}?" if near else "nothing is known here") + listed


if __name__ == "__main__":
    run(main, *sys.argv[1:])
