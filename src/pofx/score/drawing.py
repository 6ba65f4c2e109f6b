"""Images drawn at many settings of one model from the same noise, and their distances to real ones."""

import time
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8

from pofx.base.errors import UserError
from pofx.base.images import to_uint8
from pofx.base.progress import Bar
from pofx.base.rng import Noise
from pofx.models.family import Family, counted
from pofx.score.measures import Reference

Row = dict[str, Any]
Images = UInt8[np.ndarray, "_ 3 h w"]  # of test images there may be fewer than of samples


@torch.no_grad()
def draw(
    model: Family, plan: list[tuple[Row, Any]], n: int, seed: int, device: torch.device, label: str
) -> tuple[list[Row], list[Images]]:
    """The images of all points.

    Args:
        plan: of every point how it is called, and the Sample to draw with.
        n: images a point.
        seed: of the noise, which all points share.
        label: names them on the progress bar.

    Returns:
        A row for every point: its name and "nfe" (counted, calls of the network for one batch) and "seconds_per_1000",
        or "refused": why the sampler does not work there; and the images of those that do.
    """
    rows, drawn = [], []
    with Bar(total=len(plan) * n, desc=label, unit="img") as bar:
        for told, cfg in plan:
            row = dict(told)
            rows.append(row)
            bar.set_postfix_str(", ".join(f"{key} {value}" for key, value in told.items()), refresh=False)
            starts, images, began = range(0, n, cfg.batch), [], time.monotonic()
            try:
                with counted(model.net, *model.guides()) as calls:
                    for start in starts:
                        noise = Noise(seed, start, min(n, start + cfg.batch), device)
                        images.append(_bytes(model.sample(noise, cfg)))
                        bar.update(len(noise))
            except UserError as error:
                row["refused"] = str(error)
                continue
            seconds = time.monotonic() - began
            row |= {"nfe": calls[0] / len(starts), "seconds_per_1000": 1000 * seconds / n}
            drawn.append(np.concatenate(images))
    return rows, drawn


def _bytes(images: Float[torch.Tensor, "n 3 h w"]) -> Images:
    if not images.isfinite().all():
        raise UserError("values that are not finite")
    return to_uint8(images).cpu().numpy()


def accepted(rows: list[Row]) -> list[Row]:
    """Those that have images."""
    return [row for row in rows if "refused" not in row]


def score(reference: Reference, rows: list[Row], drawn: list[Images], label: str) -> None:
    """Put the distances to the training images, under the names of the extractor, into the rows that were not refused.

    A Frechet distance of so few images is far above its value for many; KID is unbiased, whatever their number.
    """
    if not drawn:
        return
    ends = np.cumsum([len(images) for images in drawn])[:-1]
    features = np.split(reference.features(np.concatenate(drawn), label), ends)
    pairs = zip(accepted(rows), features, strict=True)
    for row, vectors in Bar(list(pairs), desc="distances", unit="point"):
        row |= reference.distances(vectors)
