"""Images drawn at many settings of one model from the same noise, and what each setting costs."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from pofx.base.errors import UserError
from pofx.base.images import to_uint8
from pofx.base.progress import Bar
from pofx.base.rng import Noise
from pofx.models.family import Family
from pofx.sample import drawing
from pofx.sample.cost import counted

Row = dict[str, Any]
Images = UInt8[np.ndarray, "_ 3 h w"]  # of test images there may be fewer than of samples
Setting = tuple[Row, Any]  # its name, and the Sample to draw with


@torch.no_grad()
def draw(
    model: Family, settings: list[Setting], n: int, noise_at: Callable[[int, int], Noise]
) -> tuple[list[Row], list[Images]]:
    """n images at every setting.

    Args:
        noise_at: noise of the images from one index to another; all settings share it.

    Returns:
        A row for every setting: its name, and "nfe" (network evaluations for a batch, counted) and
        "seconds_per_1000", or "refused": why the sampler does not work there. And the images of those that do.
    """
    rows, drawn = [], []
    with Bar(total=len(settings) * n, desc="settings", unit="img") as bar:
        for name, cfg in settings:
            rows.append(dict(name))
            bar.set_postfix_str(", ".join(f"{key} {value}" for key, value in name.items()), refresh=False)
            starts, parts, began = range(0, n, cfg.batch), [], time.monotonic()
            try:
                with counted(model.networks()) as calls:
                    for start in starts:
                        noise = noise_at(start, min(n, start + cfg.batch))
                        images = drawing.draw(model, noise, cfg)
                        if not images.isfinite().all():
                            raise UserError("values that are not finite")
                        parts.append(to_uint8(images).cpu().numpy())
                        bar.update(len(noise))
            except UserError as error:
                rows[-1]["refused"] = str(error)
                continue
            seconds = time.monotonic() - began
            rows[-1] |= {"nfe": calls[0] / len(starts), "seconds_per_1000": 1000 * seconds / n}
            drawn.append(np.concatenate(parts))
    return rows, drawn


def accepted(rows: list[Row]) -> list[Row]:
    """Those that have images."""
    return [row for row in rows if "refused" not in row]
