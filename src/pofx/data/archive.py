"""An archive from a URL: fetched with resume, its checksum proved before it is opened, unpacked without trust."""

import fcntl
import gzip
import lzma
import shutil
import ssl
import tarfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from urllib.error import HTTPError, URLError
from urllib.parse import unquote
from urllib.request import Request, urlopen

from pofx.base.errors import UserError
from pofx.base.files import digest
from pofx.base.progress import Bar

TRIES = 4  # attempts in a row without a new byte
BROKEN = (URLError, ConnectionError, TimeoutError, ssl.SSLError, HTTPException)  # not OSError: that is a full disk too
MIRROR = "set data.url to a mirror, such as file:///path/to/cifar-10-binary.tar.gz"


@contextmanager
def archive(url: str, sha256: str, scratch: Path, base: Path, pause: float = 1.0) -> Iterator[Path]:
    """The archive at `url`, verified, for the length of the block.

    A download lies in `scratch` under its checksum, survives an interruption, and is removed when the block ends well.
    A file:// URL is read where it lies and never removed.

    Args:
        url: http://, https:// or file:// (absolute, or relative to `base`).
        sha256: of the archive, in hex.
        scratch: folder for unfinished downloads.
        base: what a relative file:// path starts from.
        pause: seconds before the second attempt; doubled each time.

    Raises:
        UserError: anything that keeps the archive from being there and right.
    """
    if len(sha256) != 64 or set(sha256) - set("0123456789abcdef"):
        raise UserError(f"data.sha256 = {sha256!r} should be 64 digits of lower-case hex")
    scheme, _, rest = url.partition("://")
    if scheme == "file":
        path = base / unquote(rest)
        if not path.is_file():
            raise UserError(f"data.url = {url}: there is no file {path}: correct the path")
        _verify(path, url, sha256)
        yield path
    elif scheme in ("http", "https"):
        scratch.mkdir(parents=True, exist_ok=True)
        with _alone(scratch / "lock"):
            path = scratch / f"{sha256}.part"
            if not path.exists() or digest(path) != sha256:
                download(url, path, pause)
                try:
                    _verify(path, url, sha256)
                except UserError:
                    path.unlink()
                    raise
            yield path
            path.unlink()
    else:
        raise UserError(f"data.url = {url!r} should start with https://, http:// or file://")


def download(url: str, part: Path, pause: float) -> None:
    """Fetch `url` into `part`, going on after what is there, over as many broken connections as bring new bytes."""
    most, failures = _size(part), 0
    with Bar(unit="B", unit_scale=True, desc="download") as bar:
        while True:
            try:
                return _attempt(url, part, bar)
            except HTTPError as error:
                reason = f"HTTP {error.code} {error.reason}"
                if error.code == 416:  # nothing after what we have, yet that is not the file: start again
                    part.unlink(missing_ok=True)
                elif error.code < 500 and error.code not in (408, 429):
                    raise UserError(f"cannot fetch {url}: {reason}: {MIRROR}") from None
            except BROKEN as error:
                reason = getattr(error, "reason", None) or error
            most, failures = max(most, _size(part)), 0 if _size(part) > most else failures + 1
            if failures == TRIES:
                raise UserError(f"cannot fetch {url}: {reason}: check the network, or {MIRROR}")
            time.sleep(pause * 2**failures)


def _attempt(url: str, part: Path, bar: Bar) -> None:
    have = _size(part)
    request = Request(url, headers={"User-Agent": "pofx", **({"Range": f"bytes={have}-"} if have else {})})
    with urlopen(request, timeout=30) as answer:
        have = have if answer.status == 206 else 0  # a server that knows no Range sends the whole file
        length = answer.headers.get("Content-Length")
        bar.total, bar.n, bar.initial = have + int(length) if length else None, have, have
        with open(part, "ab" if have else "wb") as file:
            while chunk := answer.read1(1 << 16):
                file.write(chunk)
                bar.update(len(chunk))
    if bar.total and bar.n < bar.total:  # http.client is silent about a body that ends early
        raise ConnectionError(f"the connection broke after {bar.n} of {bar.total} bytes")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _verify(path: Path, url: str, sha256: str) -> None:
    got = digest(path)
    if got != sha256:
        raise UserError(
            f"the archive at {url} has sha256 {got}, expected {sha256}: run again in case the transfer was at fault, "
            "else correct data.url, or data.sha256 if you trust this archive"
        )


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the lock file `path`: two processes must not write one download."""
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is downloading into {path.parent}: wait for it and run again") from None
        yield


def unpack(path: Path, folder: Path, wanted: dict[str, int | None]) -> None:
    """Copy the members named `wanted` into `folder`, whatever folder of the archive they lie in.

    Only bytes are taken: the files' names are ours, and no mode, owner, link or path of the archive reaches the disk.

    Args:
        path: a tar, plain or compressed.
        folder: where the files go.
        wanted: base name -> size in bytes, or None for any up to 64 KiB.

    Raises:
        UserError: the archive is damaged, lacks a file or has one of another size or twice, or holds an absolute path,
            a `..`, a link or a device.
    """
    left = dict(wanted)
    total = sum(size or 0 for size in wanted.values())
    try:
        with tarfile.open(path, "r:*") as tar, Bar(total=total, unit="B", unit_scale=True, desc="unpack") as bar:
            for member in tar:
                _refuse_hostile(member, path)
                name = PurePosixPath(member.name).name
                if name not in wanted or member.isdir():
                    continue
                size = left.pop(name, -1)
                if member.size != size and not (size is None and member.size <= 1 << 16):
                    want = "only one of them" if size == -1 else f"{size or 'at most 65536'} bytes"
                    raise UserError(f"{path} holds {member.name} of {member.size} bytes, should be {want}: {MIRROR}")
                with tar.extractfile(member) as source, open(folder / name, "wb") as file:
                    shutil.copyfileobj(source, file, 1 << 20)
                bar.update(member.size)
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is truncated or not a tar archive ({error}): {MIRROR}") from None
    if left:
        raise UserError(f"{path} lacks {', '.join(left)}: {MIRROR}")


def _refuse_hostile(member: tarfile.TarInfo, path: Path) -> None:
    name = PurePosixPath(member.name)
    faults = {
        "an absolute path": name.is_absolute(),
        "a path with ..": ".." in name.parts,
        "a link": member.issym() or member.islnk(),
        "a device": member.isdev(),
        "no plain file": not (member.isfile() or member.isdir()),
    }
    for fault, found in faults.items():
        if found:
            raise UserError(f"{path} is not safe to unpack: {member.name!r} is {fault}: {MIRROR}")
