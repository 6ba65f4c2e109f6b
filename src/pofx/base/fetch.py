"""A file that parameters name by path or URL: fetched once, with resume, and used only if its sha256 fits."""

import fcntl
import re
import time
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from ssl import SSLError
from urllib.error import URLError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

from pofx.base import files
from pofx.base.errors import UserError
from pofx.base.progress import Bar

TRIES = 4  # attempts in a row without a new byte
PAUSE = 1.0  # seconds before the second attempt; doubled each time
BROKEN = (URLError, ConnectionError, TimeoutError, SSLError, HTTPException)  # not OSError: that is a full disk too


@dataclass(frozen=True)
class File:
    """A file as parameters name it."""

    source: str | None  # a path or file:// (absolute or relative), https:// or http://; None: not given
    sha256: str  # the file's digest, or how it begins: 8 to 64 hex digits
    keys: tuple[str, str]  # the parameters that these two are, for messages
    example: str  # name of the file that is wanted, for messages

    def fits(self, path: Path) -> bool:
        return path.is_file() and files.digest(path).startswith(self.sha256.lower())

    def wrong(self, path: Path) -> UserError:
        got, key = files.digest(path), self.keys[1]
        return UserError(f"{self.source} has sha256 {got}, not {self.sha256} ({key}): replace one of the two")


def find(want: File, cache: Path, base: Path) -> Path:
    """Path of the verified file: a local one where it lies, from `base` on, any other in the folder `cache`.

    Of several processes one fetches, the others wait.

    Raises:
        UserError: the file is missing, cannot be fetched or is not the expected one.
    """
    source, (key, key_sha256) = want.source, want.keys
    if not re.fullmatch("[0-9a-fA-F]{8,64}", want.sha256):
        raise UserError(f"{key_sha256} = {want.sha256!r} should be 8 to 64 hex digits, the sha256 of {want.example}")
    if source is None:
        raise UserError(f"{key} is null: give the path or URL of {want.example}")
    scheme, mark, rest = source.partition("://")
    if not mark or scheme == "file":
        path = base / (unquote(rest) if mark else source)
        if not path.is_file():
            raise UserError(f"{key} = {source}: there is no file {path}: correct the path or give a URL")
        if not want.fits(path):
            raise want.wrong(path)
        return path
    if scheme not in ("http", "https"):
        raise UserError(f"{key} = {source!r} should be a path, or start with https://, http:// or file://")
    path = cache / f"{want.sha256[:8].lower()}-{Path(urlsplit(source).path).name}"
    part = path.with_name(f"{path.name}.part")
    cache.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f"{path.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not want.fits(path):
            if not want.fits(part):
                _download(want, part)
            if not want.fits(part):
                error = want.wrong(part)
                part.unlink()
                raise error
            part.replace(path)
    return path


def _download(want: File, part: Path) -> None:
    """Fetch into `part`, going on after what is there, over as many broken connections as bring new bytes."""
    part.touch()
    most, failures = part.stat().st_size, 0
    while True:
        try:
            return _attempt(want.source, part)
        except BROKEN as error:
            code, reason = getattr(error, "code", None), str(error)
        if code == 416:  # nothing after what we have, yet that is not the file: start again
            part.write_bytes(b"")
        size = part.stat().st_size
        most, failures = max(most, size), 0 if size > most else failures + 1
        refused = code is not None and code < 500 and code not in (408, 416, 429)
        if refused or failures == TRIES:
            mend = f"check the network, or set {want.keys[0]} to a mirror or a local file (file://PATH)"
            raise UserError(f"cannot fetch {want.source}: {reason}: {mend}")
        time.sleep(PAUSE * 2**failures)


def _attempt(url: str, part: Path) -> None:
    have = part.stat().st_size
    headers = {"User-Agent": "pofx"} | ({"Range": f"bytes={have}-"} if have else {})
    with urlopen(Request(url, headers=headers), timeout=30) as answer:
        have = have if answer.status == 206 else 0  # a server that knows no Range sends the whole file
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else None
        bar = Bar(total=total, initial=have, unit="B", unit_scale=True, desc=part.stem)
        with bar, open(part, "ab" if have else "wb") as file:
            while chunk := answer.read1(1 << 16):
                file.write(chunk)
                bar.update(len(chunk))
    if total and bar.n < total:  # http.client is silent about a body that ends early
        raise ConnectionError(f"the connection broke after {bar.n} of {total} bytes")
