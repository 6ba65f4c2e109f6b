"""Atomic writes: to a temporary file, flushed to disk, then renamed."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import numpy as np


@contextmanager
def atomic(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that takes the name `path` when the block ends without an error, and is removed otherwise."""
    with _renamed(path) as part, open(part, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A folder that takes the name `path`, in place of what was there, only when the block ends without an error."""
    with _renamed(path) as part:
        part.mkdir()
        yield part
        if path.exists():
            shutil.rmtree(path)


@contextmanager
def _renamed(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    _remove(part)  # of a process that was killed
    try:
        yield part
        part.replace(path)
    except OSError as error:
        if error.errno is not None and error.filename is None:  # a full disk names no file
            error.filename = str(path)
        raise
    finally:
        _remove(part)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_csv(path: Path, rows: list[dict[str, int | float]]) -> None:
    """One line per dict, the keys of the first as header; integers in full, floats to six digits."""
    lines = [",".join(rows[0])] + [",".join(_short(row[k]) for k in rows[0]) for row in rows]
    with atomic(path) as file:
        file.write(("\n".join(lines) + "\n").encode())


def _short(number: int | float) -> str:
    return str(number) if isinstance(number, int) else f"{number:.6g}"


def write_json(path: Path, tree: Any) -> None:
    with atomic(path) as file:
        file.write((json.dumps(tree, indent=2) + "\n").encode())


def read_json(path: Path) -> Any:
    return json.loads(Path(path).read_text())


def write_npy(path: Path, array: np.ndarray) -> None:
    with atomic(path) as file:
        # Through write(): ndarray.tofile, which np.save uses for real files, hides the errno of a full disk.
        np.save(SimpleNamespace(write=file.write), array, allow_pickle=False)


def digest(path: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
