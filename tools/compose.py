"""Compose presets/ into params.yaml, the one file that stages read.

    python -m tools.compose cifar10 gpu ncsn-v2 ncsn.n_sigmas=20      writes params.yaml
    python -m tools.compose --flags cifar10 gpu                       prints the difference as -S words for DVC
    python -m tools.compose --check                                   checks params.yaml as it is

Over presets/default.yaml are laid a data set, a scale, presets of families (`ncsn-v2`) and key=value words, in this
order whatever that of the words. A block `laptop`, `gpu` or `paper` of a preset holds at that scale alone.
"""

import io
import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pofx.base import config, files
from pofx.base.errors import UserError
from stages import ROOT, run
from stages.check import check

PRESETS = ROOT / "presets"
# Scale -> the block of a preset that holds.
SCALES = {"laptop": "laptop", "hour": "laptop", "night": "laptop", "gpu": "gpu", "paper": "paper"}
DATA = ("smileys", "sprites", "cifar10")  # the first is the default
KINDS = dict.fromkeys(DATA, "data") | dict.fromkeys(SCALES, "scale")  # others: a family, `-`, a variant
HEADER = "# composed by: python -m tools.compose "
USAGE = "usage: python -m tools.compose [--flags | --check] [preset ...] [key=value ...]"
PLAIN = re.compile(r"(?!(?:null|true|false|nan|inf)$)[A-Za-z_/][\w/.:%?@+-]*", re.I)  # no quotes in Hydra's grammar
INERT = re.compile(r"~?[\w@%+=:,./\[\]-]+")  # words that no POSIX shell changes: ~key is no user's home
load = YAML(typ="safe").load


def text(words: list[str]) -> str:
    """The whole of params.yaml for these words; UserError: a word names no preset or key, or does not pass `check`."""
    edits = [word for word in words if "=" in word]
    names, layers = _presets([word for word in words if word not in edits])
    yaml = YAML()  # it keeps comments, and would write null as nothing at all
    yaml.width, yaml.default_flow_style, yaml.representer.ignore_aliases = 4096, None, lambda _: True
    yaml.representer.add_representer(type(None), lambda r, _: r.represent_scalar("tag:yaml.org,2002:null", "null"))
    tree = yaml.load((PRESETS / "default.yaml").read_text())
    for layer in [*layers, *map(_parsed, edits)]:
        _lay(tree, layer)
    yaml.dump(tree, body := io.StringIO())
    check(load(body.getvalue()))
    return f"{HEADER}{shlex.join([*names, *edits])}\n\n{body.getvalue()}"


def flags(now: dict[str, Any], wanted: dict[str, Any], where: str = "") -> Iterator[str]:
    """What turns `now` into `wanted`: key=value, +key=value for a new key, ~key for one that goes."""
    yield from (f"~{where}{key}" for key in now if key not in wanted)
    for key, value in wanted.items():
        if isinstance(value, dict) and isinstance(now.get(key, {}), dict):
            yield from flags(now.get(key, {}), value, f"{where}{key}.")
        elif key not in now or now[key] != value:
            yield f"{'' if key in now else '+'}{where}{key}={_hydra(value)}"


def main(*arguments: str) -> None:
    options = [a for a in arguments if a.startswith("-")]
    words = [a for a in arguments if a not in options]
    if options == ["--check"]:
        check(config.params())
    elif options == ["--flags"]:
        changes = flags(config.params(), load(text(words)))
        print(" ".join(f"-S {word if INERT.fullmatch(word) else shlex.quote(word)}" for word in changes))
    elif options:
        raise UserError(USAGE)
    else:
        composed = text(words)
        for edit in _edits(Path("params.yaml")):
            print(f"dropped an edit of params.yaml: {edit}", file=sys.stderr)
        with files.atomic(Path("params.yaml")) as file:
            file.write(composed.encode())
        print(composed.partition("\n")[0].replace("# composed", "params.yaml composed"))


def _edits(path: Path) -> list[str]:
    """What its own header does not explain in params.yaml: edits by hand or by -S."""
    try:
        header, _, body = path.read_text().partition("\n")
        return list(flags(load(text(shlex.split(header.split(HEADER)[1]))), load(body) or {}))
    except (FileNotFoundError, IndexError, ValueError, UserError, YAMLError):
        return []  # no file, a broken one or one of older presets: nothing to compare with


def _presets(words: list[str]) -> tuple[list[str], list[dict[str, Any]]]:
    """The presets that apply, in order, and what they say: each in general, then for this scale."""
    known = sorted(path.stem for path in PRESETS.glob("*.yaml") if path.stem != "default")
    chosen: dict[str, str] = {}
    for word in words:
        if word not in known:
            raise UserError(f"no preset is called {word!r}: {config.nearest(word, known)}; {USAGE}")
        kind = KINDS.get(word, word.partition("-")[0])
        if chosen.setdefault(kind, word) != word:
            raise UserError(f"{chosen[kind]} and {word} are both {kind} presets: choose one")
    names = [chosen.pop("data", DATA[0]), chosen.pop("scale", "laptop"), *sorted(chosen.values())]
    layers = []
    for tree in (load((PRESETS / f"{name}.yaml").read_text()) or {} for name in names):
        layers += [{k: v for k, v in tree.items() if k not in SCALES}, tree.get(SCALES[names[1]], {})]
    return names, layers


def _parsed(word: str) -> dict[str, Any]:
    """a.b=1, also written +a.b=1, as {a: {b: 1}}."""
    key, _, value = word.partition("=")
    try:
        tree = load(value)
    except YAMLError:
        raise UserError(f"{word}: {value!r} is no value in YAML") from None
    for part in reversed(key.lstrip("+").split(".")):
        tree = {part: tree}
    return tree


def _lay(tree: Any, new: dict[str, Any], where: str = "") -> None:
    """Put the values of `new` into `tree` in place, so that comments, order and layout stay; {} empties a section."""
    for key, value in new.items():
        if key not in tree:  # goes before the last key, whose comment ends with the heading of the next section
            tree.insert(max(0, len(tree) - 1), key, type(tree)() if isinstance(value, dict) else value)
        if isinstance(value, dict):
            if not isinstance(tree[key], dict):
                raise UserError(f"{where}{key} = {tree[key]!r} has no keys: {', '.join(value)} cannot be set")
            if not value:
                tree[key].clear()
            _lay(tree[key], value, f"{where}{key}.")
        else:
            tree[key] = value


def _hydra(value: Any) -> str:
    """A value in the grammar of Hydra's overrides, which DVC reads after -S."""
    if isinstance(value, list):
        return f"[{','.join(map(_hydra, value))}]"
    if not isinstance(value, str):
        return json.dumps(value)
    escaped = re.sub(r"(\\+)(?='|$)", r"\1\1", value).replace("'", r"\'")  # backslashes count before a quote alone
    return value if PLAIN.fullmatch(value) else f"'{escaped}'"


if __name__ == "__main__":
    run(main, *sys.argv[1:])
