"""The data set as one folder in CIFAR-10's binary layout: an archive fetched and unpacked, or smileys or sprites drawn.

The folder holds data_batch_1.bin .. data_batch_5.bin, test_batch.bin, batches.meta.txt (class names, one a line) and
meta.json (name, origin, side of the images, records per file); where they are drawn also factors.npz (train, test:
float32 (N, 8); names).
"""

import gzip
import lzma
import shutil
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Literal

import numpy as np

from pofx.base.errors import UserError
from pofx.base.fetch import File, find
from pofx.base.files import atomic_folder, write_json
from pofx.base.progress import Bar
from pofx.data import binary, smileys, sprites
from pofx.data.smileys import Smileys
from pofx.data.sprites import Sprites

CIFAR10_SIDE, CIFAR10_RECORDS = 32, dict.fromkeys([*binary.TRAIN, *binary.TEST], 10_000)
MIRROR = "set data.url to a mirror, such as file:///path/to/cifar-10-binary.tar.gz"


@dataclass(frozen=True)
class Data:
    name: Literal["smileys", "sprites", "cifar10"] = "smileys"
    url: str = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"  # of CIFAR-10's binary archive
    sha256: str = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
    smileys: Smileys = field(default_factory=Smileys)
    sprites: Sprites = field(default_factory=Sprites)


def build(data: Data, out: Path, cache: Path, base: Path) -> None:
    """Make the folder `out`, whole or not at all; `cache` and `base` as for `find`."""
    if data.name == "smileys":
        draw(smileys, data.smileys, partial(smileys.render, side=data.smileys.size), out)
    elif data.name == "sprites":
        draw(sprites, data.sprites, sprites.render, out)
    else:
        fetch_cifar10(data, out, cache, base, CIFAR10_RECORDS)


def fetch_cifar10(data: Data, out: Path, cache: Path, base: Path, records: dict[str, int]) -> None:
    """CIFAR-10 from `data.url`, with `records` images in each file; errors of `find`, `unpack` and `binary.read`."""
    wanted = {binary.NAMES: 1 << 16} | {file: n * binary.record(CIFAR10_SIDE) for file, n in records.items()}
    path = find(File(data.url, data.sha256, ("data.url", "data.sha256"), "cifar-10-binary.tar.gz"), cache, base)
    with atomic_folder(out) as folder:
        unpack(path, folder, wanted)
        meta = {"name": data.name, "url": data.url, "sha256": data.sha256, "side": CIFAR10_SIDE, "records": records}
        write_json(folder / binary.META, meta)
        binary.read(folder)


def unpack(path: Path, folder: Path, wanted: dict[str, int | None]) -> None:
    """Copy the files `wanted` (base name -> largest size in bytes) into `folder`, wherever in the tar `path` they lie.

    Only bytes are taken: no mode, owner, link or path of the archive reaches the disk.

    Raises:
        UserError: the tar is damaged, lacks a file or has one twice, or holds a path out of it, a link or a device.
    """
    left = dict(wanted)
    try:
        with tarfile.open(path, "r:*") as tar:
            for member in tar:
                where = PurePosixPath(member.name)
                if where.is_absolute() or ".." in where.parts or not (member.isfile() or member.isdir()):
                    raise UserError(f"{path} is not safe to unpack: {member.name!r} is no plain file in it: {MIRROR}")
                if where.name not in wanted or member.isdir():
                    continue
                if member.size > left.pop(where.name, 0):
                    raise UserError(f"{path} holds {member.name} twice, or larger than CIFAR-10 has it: {MIRROR}")
                with tar.extractfile(member) as source, open(folder / where.name, "wb") as file:
                    shutil.copyfileobj(source, file, 1 << 20)
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is truncated or not a tar archive ({error}): {MIRROR}") from None
    if left:
        raise UserError(f"{path} lacks {', '.join(left)}: {MIRROR}")


def draw(source: ModuleType, cfg: Smileys | Sprites, render: Callable[[np.ndarray], np.ndarray], out: Path) -> None:
    """Both splits of `source`, smileys or sprites, whose factors `render` turns into images; the label is a factor."""
    name, label = source.__name__.rpartition(".")[2], source.FACTORS.index(source.LABEL)
    records, truth = {}, {}
    with atomic_folder(out) as folder, Bar(total=cfg.n_train + cfg.n_test, unit="img", desc=name) as bar:
        for i, (split, n) in enumerate({"train": cfg.n_train, "test": cfg.n_test}.items()):
            truth[split] = source.factors(n, cfg.seed, i)
            files = binary.FILES[split]
            for file, rows in zip(files, np.array_split(truth[split], len(files)), strict=True):
                images = []
                for block in np.array_split(rows, -(-len(rows) // 250)):
                    images.append(render(block))
                    bar.update(len(block))
                binary.write_batch(folder / file, np.concatenate(images), rows[:, label].astype(np.uint8))
                records[file] = len(rows)
        (folder / binary.NAMES).write_text("\n".join(source.CLASSES) + "\n")
        with open(folder / "factors.npz", "wb") as file:
            np.savez(file, **truth, names=np.array(source.FACTORS))
        side = images[0].shape[-1]
        write_json(folder / binary.META, {"name": name, **asdict(cfg), "side": side, "records": records})
