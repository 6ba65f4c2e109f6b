"""Weights of frozen networks that no package holds: a local file, or one fetched once, used only if its sha256 fits."""

import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from pofx.base import files
from pofx.base.errors import UserError
from pofx.base.progress import Bar


@dataclass(frozen=True)
class Weights:
    """A file of weights as parameters name it.

    Attributes:
        source: path or URL; None: not given.
        sha256: how the file's digest begins, 8 hex digits or more.
        keys: the parameters that these two are, for messages.
        example: name of the file that is wanted, which tells how its digest begins, for messages.
    """

    source: str | None
    sha256: str
    keys: tuple[str, str]
    example: str


def find(want: Weights, cache: Path, base: Path) -> Path:
    """Path of the verified file.

    Args:
        cache: folder in which files given by URL are kept.
        base: folder at which a relative path starts.

    Raises:
        UserError: the file is missing, cannot be fetched or is not the expected one.
    """
    key, key_sha256 = want.keys
    if not 8 <= len(want.sha256) <= 64 or set(want.sha256.lower()) - set("0123456789abcdef"):
        raise UserError(f"{key_sha256} = {want.sha256!r} should be 8 to 64 hex digits, such as those in {want.example}")
    if want.source is None:
        raise UserError(f"{key} is null: give the path or URL of {want.example}")
    if "://" not in want.source:
        path = base / want.source
        if not path.is_file():
            raise UserError(f"{key} = {want.source}: there is no such file; correct the path or give a URL")
    else:
        path = cache / want.source.rsplit("/", 1)[-1]
        if not path.is_file():
            _fetch(want.source, path, want)
    _verify(path, want, str(path))
    return path


def _verify(path: Path, want: Weights, name: str) -> None:
    got = files.digest(path)
    if not got.startswith(want.sha256.lower()):
        raise UserError(f"{name} has sha256 {got[:16]}..., not {want.sha256} ({want.keys[1]}): replace one of the two")


def _fetch(url: str, path: Path, want: Weights) -> None:
    """`url` to `path`; the name is given only to a whole file with the right digest."""
    try:
        with urllib.request.urlopen(url, timeout=30) as reply, files.atomic(path) as file:
            size = int(reply.headers.get("Content-Length") or 0) or None
            with Bar(total=size, desc=path.name, unit="B", unit_scale=True) as bar:
                while chunk := reply.read(1 << 20):
                    file.write(chunk)
                    bar.update(len(chunk))
            if size and file.tell() != size:
                raise ConnectionError(f"the connection ended after {file.tell()} of {size} bytes")
            file.flush()
            _verify(Path(file.name), want, url)
    except (urllib.error.URLError, TimeoutError, ConnectionError, HTTPException, ValueError) as error:
        raise UserError(
            f"cannot fetch {url} ({error}): check the network, or give a local path in {want.keys[0]}"
        ) from None
