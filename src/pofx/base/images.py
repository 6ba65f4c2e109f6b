"""Value ranges (uint8 on disk, float in [-1, 1] in the models), batches and grids of images."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from pofx.base.files import atomic

Images = UInt8[np.ndarray, "n 3 h w"]
Sheet = UInt8[np.ndarray, "rows columns 3 h w"]  # a picture of images, for `save_sheet`


def to_model(x: UInt8[Tensor, "*n 3 h w"]) -> Float[Tensor, "*n 3 h w"]:
    """Bytes to floats: 0 -> -1, 255 -> 1."""
    return x.float().div_(127.5).sub_(1)


def to_uint8(x: Float[Tensor, "*n 3 h w"]) -> UInt8[Tensor, "*n 3 h w"]:
    """Floats to the nearest byte, saturating outside [-1, 1]."""
    return x.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class Batches:
    """How images go through a model: `size` at a time, at most, on `device`."""

    size: int
    device: torch.device

    def of(self, images: Images) -> Iterator[Float[Tensor, "b 3 h w"]]:
        """All images on [-1, 1], batch by batch, on the device."""
        for start in range(0, len(images), self.size):
            yield to_model(torch.from_numpy(np.array(images[start : start + self.size])).to(self.device))

    @torch.no_grad()
    def map(self, f: Callable[[Tensor], Tensor], images: Images) -> Float[Tensor, "n ..."]:
        """f of all images, on the CPU."""
        return torch.cat([f(part).float().cpu() for part in self.of(images)])


def sheet(columns: Sequence[Float[Tensor, "rows 3 h w"]]) -> Sheet:
    """Columns of images on [-1, 1], side by side."""
    return to_uint8(torch.stack([*columns], 1)).cpu().numpy()


def grid(images: Images, columns: int, pad: int = 2, scale: int = 2) -> Image.Image:
    """The images as one picture, row by row, with `pad` white pixels between them, enlarged `scale` times."""
    n, c, h, w = images.shape
    rows = -(-n // columns)
    sheet = np.full((rows * (h + pad) + pad, columns * (w + pad) + pad, c), 255, np.uint8)
    for i, image in enumerate(images):
        y, x = pad + i // columns * (h + pad), pad + i % columns * (w + pad)
        sheet[y : y + h, x : x + w] = image.transpose(1, 2, 0)
    return Image.fromarray(sheet).resize((sheet.shape[1] * scale, sheet.shape[0] * scale), Image.Resampling.NEAREST)


def save_grid(images: Images, path: Path, columns: int = 10) -> None:
    """Write `grid` as a PNG, creating its folder."""
    with atomic(path) as file:
        grid(images, columns).save(file, "PNG", optimize=True)


def save_sheet(images: Sheet, path: Path) -> None:
    """Write a sheet as a PNG."""
    save_grid(images.reshape(-1, *images.shape[2:]), path, images.shape[1])
