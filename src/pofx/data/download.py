"""The data set as one folder in CIFAR-10's binary layout: an archive fetched and unpacked, or the sprites drawn.

The folder holds data_batch_1.bin .. data_batch_5.bin, test_batch.bin, batches.meta.txt (class names, one a line) and
meta.json (name, origin, records per file); for the sprites also factors.npz (train, test: float32 (N, 8); names).
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from pofx.base.errors import UserError
from pofx.base.files import write_json
from pofx.base.progress import Bar
from pofx.data import binary
from pofx.data.archive import archive, unpack
from pofx.data.sprites import FACTORS, SHAPES, Sprites, factors, render

CIFAR10_RECORDS = dict.fromkeys([*binary.TRAIN, *binary.TEST], 10_000)


@dataclass(frozen=True)
class Data:
    name: Literal["sprites", "cifar10"]
    url: str
    sha256: str
    sprites: Sprites


def build(data: Data, out: Path, scratch: Path, base: Path) -> None:
    """Make the folder `out`, whole or not at all; `scratch` and `base` as for `archive`."""
    if data.name == "sprites":
        draw_sprites(data.sprites, out)
    else:
        fetch_cifar10(data, out, scratch, base, CIFAR10_RECORDS)


def fetch_cifar10(
    data: Data, out: Path, scratch: Path, base: Path, records: dict[str, int], pause: float = 1.0
) -> None:
    """CIFAR-10 from `data.url`, with `records` images in each file.

    Raises:
        UserError: see `archive` and `unpack`; a label that has no class.
    """
    wanted = {file: n * binary.RECORD for file, n in records.items()}
    with (
        archive(data.url, data.sha256, scratch, base, pause) as path,
        whole_folder(out) as folder,
    ):
        unpack(path, folder, {**wanted, binary.NAMES: None})
        meta = {"name": data.name, "url": data.url, "sha256": data.sha256, "records": records}
        write_json(folder / binary.META, meta)
        binary.read(folder)


def draw_sprites(sprites: Sprites, out: Path) -> None:
    """The sprites of both splits; the label is the shape."""
    for key, least in (("seed", 0), ("n_train", len(binary.TRAIN)), ("n_test", len(binary.TEST))):
        if getattr(sprites, key) < least:
            raise UserError(f"data.sprites.{key} = {getattr(sprites, key)} should be at least {least}")
    records, truth = {}, {}
    with whole_folder(out) as folder, Bar(total=sprites.n_train + sprites.n_test, unit="img", desc="sprites") as bar:
        for i, (split, n) in enumerate({"train": sprites.n_train, "test": sprites.n_test}.items()):
            truth[split] = factors(n, sprites.seed, i)
            files = binary.FILES[split]
            for file, rows in zip(files, np.array_split(truth[split], len(files)), strict=True):
                images = []
                for block in np.array_split(rows, -(-len(rows) // 250)):
                    images.append(render(block))
                    bar.update(len(block))
                binary.write_batch(folder / file, np.concatenate(images), rows[:, 0].astype(np.uint8))
                records[file] = len(rows)
        (folder / binary.NAMES).write_text("\n".join(SHAPES) + "\n")
        with open(folder / "factors.npz", "wb") as file:
            np.savez(file, **truth, names=np.array(FACTORS))
        write_json(folder / binary.META, {"name": "sprites", **asdict(sprites), "records": records})


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder that takes the name `path`, in place of what was there, only when the block ends without an error."""
    part = path.with_name(f".{path.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a run that was killed
    part.mkdir(parents=True)
    try:
        yield part
        if path.exists():
            shutil.rmtree(path)
        part.rename(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a write that fails names no file
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
