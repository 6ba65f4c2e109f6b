"""Which files of this repository a file imports, directly or not, read from the source: DVC does not look."""

import ast
from functools import cache
from pathlib import Path

from pofx.base import config

ROOT = Path(__file__).resolve().parents[1]


@cache
def direct(path: Path) -> frozenset[Path]:
    """The files that one file imports, in functions too. All imports of this project are absolute."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: write `from pofx.x import y`"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(file for name in names if (file := _file(name)))


def closure(*start: Path) -> set[Path]:
    """These files and all that they import. An __init__.py counts where it holds more than a docstring."""
    seen: set[Path] = set()
    todo = set(start)
    while todo:
        path = todo.pop()
        seen.add(path)
        packages = {folder / "__init__.py" for folder in path.parents if folder.is_relative_to(ROOT)}
        todo |= (direct(path) | {p for p in packages if p.is_file()}) - seen
    return {path for path in seen if path.name != "__init__.py" or len(ast.parse(path.read_text()).body) > 1}


def family(name: str) -> Path:
    """The module of a family, which mains import by name."""
    return ROOT / "src" / f"{config.family_module(name).replace('.', '/')}.py"


def _file(module: str) -> Path | None:
    """The file of a module of this repository."""
    folder = ROOT if module.split(".")[0] == "stages" else ROOT / "src"
    base = folder / module.replace(".", "/")
    return next((p for p in (base.with_name(f"{base.name}.py"), base / "__init__.py") if p.is_file()), None)
