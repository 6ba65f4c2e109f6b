"""Renew the code dependencies and the parameters in dvc.yaml from the source: `python -m tools.deps`.

DVC neither finds imports nor warns of an undeclared one: the stage is then silently stale. So each stage lists the
files of this repository that its main imports, directly or not, a package's __init__.py included; the file of the
family that it works on, which is imported by name; and a template or other file that one of these names by a string.
"""

import ast
import io
import re
from functools import cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pofx.base import files
from pofx.base.errors import UserError
from stages import ROOT, run

CMD = re.compile(r"python -m stages\.(\w+)(?: (\w+|\$\{item\.model\}))?")
LAZY = "pofx.families."  # import_module(f"pofx.families.{name}"): the one import by name


def parts(cmd: str) -> tuple[Path, str | None]:
    """The main and the family (or its placeholder) of a stage's command.

    Raises:
        UserError: the command is not `python -m stages.NAME [family]`.
    """
    match = CMD.fullmatch(cmd)
    if match is None:
        raise UserError(f"dvc.yaml: the command {cmd!r} should be `python -m stages.NAME [family]`")
    return ROOT / "stages" / f"{match[1]}.py", match[2]


def code(cmd: str) -> list[str]:
    """The files that a stage's code consists of, relative to the repository; of a matrix, see the head of dvc.yaml."""
    main, item = parts(cmd)
    found = closure(main)
    names = {str(p.relative_to(ROOT)) for p in found}
    if item and any(_read(p)[1] for p in found if p.suffix == ".py"):
        family = ROOT / "src/pofx/families" / f"{item}.py"
        if item.isidentifier():
            names |= {str(p.relative_to(ROOT)) for p in closure(family)}
        else:
            names |= {str(p.relative_to(ROOT)) for p in [family, *_packages(family)]}
    return sorted(names)


def params(cmd: str) -> set[str]:
    """The keys that a stage's main reads by config.section and config.value, the family's name put in."""
    main, item = parts(cmd)
    return {key.replace("{}", item or "{}") for key in read_keys(main)}


def read_keys(path: Path) -> set[str]:
    """First arguments of config.section and config.value in a file; {} stands for whatever an f-string puts in."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("config.section", "config.value"):
            pieces = node.args[0].values if isinstance(node.args[0], ast.JoinedStr) else [node.args[0]]
            found.add("".join(p.value if isinstance(p, ast.Constant) else "{}" for p in pieces))
    return found


def closure(start: Path) -> set[Path]:
    """`start` and all files of this repository that it imports, directly or not."""
    found, todo = set(), {start}
    while todo:
        path = todo.pop()
        found.add(path)
        todo |= ((_read(path)[0] if path.suffix == ".py" else set()) | _packages(path)) - found
    return found


@cache
def _read(path: Path) -> tuple[set[Path], bool]:
    """The files that one file imports or names, and whether it imports families by name."""
    found: set[Path] = set()
    lazy = False
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {p for alias in node.names for p in _files(alias.name)}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise UserError(f"{path}: a relative import; this project writes `from pofx.x import y`")
            found |= {p for alias in node.names for p in _files(f"{node.module}.{alias.name}") + _files(node.module)}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            lazy = lazy or LAZY in ast.unparse(node)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"[\w.-]+", node.value):
            beside = path.parent / node.value
            found |= {beside} if beside.is_file() and beside.suffix != ".py" else set()
    return found, lazy


def _files(module: str) -> list[Path]:
    """The file of a module of this repository; nothing for others, and for names that are no modules."""
    base = (ROOT if module.split(".")[0] == "stages" else ROOT / "src") / module.replace(".", "/")
    return [p for p in (base.with_name(f"{base.name}.py"), base / "__init__.py") if p.is_file()]


def _packages(path: Path) -> set[Path]:
    """The __init__.py files that are imported before `path`."""
    return {p / "__init__.py" for p in path.parents if (p / "__init__.py").is_file()} - {path}


def renew(stage: dict[str, Any]) -> None:
    """Put the code's files and parameters into one stage of dvc.yaml; other deps, and orders that hold, stay."""
    data = [d for d in stage["deps"] if not d.startswith(("stages/", "src/"))]
    stage["deps"][:] = [*code(stage["cmd"]), *data]
    want = params(stage["cmd"])
    if want:
        have = stage.setdefault("params", [])
        have[:] = [k for k in have if k in want] + sorted(want - set(have))
    else:
        stage.pop("params", None)


def renewed(text: str) -> str:
    """The text of dvc.yaml with every stage renewed; comments and layout stay."""
    yaml, out = YAML(), io.StringIO()
    yaml.preserve_quotes, yaml.width = True, 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    tree = yaml.load(text)
    for stage in tree["stages"].values():
        renew(stage)
    yaml.dump(tree, out)
    return out.getvalue()


def main() -> None:
    path = ROOT / "dvc.yaml"
    text = renewed(path.read_text())
    with files.atomic(path) as file:
        file.write(text.encode())


if __name__ == "__main__":
    run(main)
