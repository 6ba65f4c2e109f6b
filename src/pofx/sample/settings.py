"""Images drawn in batches, at one setting of a model or at many from the same noise, and what each setting costs."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from pofx.base import dist, machine
from pofx.base.errors import UserError
from pofx.base.images import to_uint8
from pofx.base.progress import Bar
from pofx.base.rng import Noise
from pofx.models.family import Family
from pofx.sample import drawing
from pofx.sample.cost import counted

Row = dict[str, Any]
Images = UInt8[np.ndarray, "_ 3 h w"]
NoiseAt = Callable[[int, int], Noise]  # noise of the images from one index to another
Setting = tuple[Row, Any]  # its name, and the Sample to draw with


@torch.no_grad()
def draw(model: Family, cfg: Any, n: int, noise_at: NoiseAt, label: str) -> tuple[Images, dict[str, float]]:
    """n images by `cfg`, the Sample of the family; `label` names them on the progress bar.

    Several processes draw every so many batches each, the same images as one would; their seconds are added up.

    Returns:
        The images; and "nfe", network evaluations for a batch, and "seconds_per_1000" images.

    Raises:
        UserError: an image is not finite, or the sampler does not work with these settings.
    """
    drawn, mine = np.zeros((n, *model.shape), np.uint8), range(0, n, cfg.batch)[dist.rank() :: dist.world()]
    began = time.monotonic()
    with counted(model.networks()) as calls:
        for start in Bar(mine, desc=label, unit="batch"):
            noise = noise_at(start, min(n, start + cfg.batch))
            # Of the network alone: samplers keep images in fp32.
            with machine.autocast(noise.device, model.precision):
                images = drawing.draw(model, noise, cfg)
            if not images.isfinite().all():
                raise UserError("images are not finite: train the model longer, or change how it draws")
            drawn[start : start + len(noise)] = to_uint8(images).cpu().numpy()
    drawn = dist.assembled(drawn)
    seconds = (time.monotonic() - began) * dist.world()
    return drawn, {"nfe": calls[0] / max(1, len(mine)), "seconds_per_1000": 1000 * seconds / n}


def draw_all(
    model: Family, settings: list[Setting], n: int, noise_at: NoiseAt
) -> tuple[list[Row], list[tuple[Row, Images]]]:
    """n images at every setting, all from the same noise.

    Returns:
        A row for every setting: its name, and what `draw` counts or "refused", why the sampler does not work there.
        And the rows that have images, with these.
    """
    rows, drawn = [], []
    for name, cfg in settings:
        row = dict(name)
        rows.append(row)
        try:
            images, cost = draw(model, cfg, n, noise_at, ", ".join(f"{key} {value}" for key, value in name.items()))
        except UserError as error:
            row["refused"] = str(error)
        else:
            row |= cost
            drawn.append((row, images))
    return rows, drawn
