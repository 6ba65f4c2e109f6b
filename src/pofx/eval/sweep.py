"""Distance against the number of function evaluations: one denoiser, many samplers and step counts, the same noise."""

import dataclasses
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8

from pofx.core.errors import UserError
from pofx.core.family import counted
from pofx.core.guidance import Denoiser
from pofx.core.images import to_uint8
from pofx.core.progress import Bar
from pofx.core.rng import Noise
from pofx.core.samplers import SAMPLERS, Sample
from pofx.eval import distances
from pofx.eval.extractor import Extractor, Fid


@dataclass(frozen=True)
class Sweep:
    models: tuple[str, ...]  # denoisers to do this for
    n: int  # images a point
    samplers: tuple[str, ...]
    steps: tuple[int, ...]  # noise levels visited

    def __post_init__(self) -> None:
        if self.n < 2:
            raise ValueError(f"n = {self.n} should be at least 2")
        for name in self.samplers:
            if name not in SAMPLERS:
                raise ValueError(f"samplers names {name!r}, which is none of {', '.join(SAMPLERS)}")
        if min(self.steps, default=2) < 2:
            raise ValueError(f"steps = {list(self.steps)} should be 2 or more each")


def points(own: Sample, cfg: Sweep) -> list[tuple[dict[str, Any], Sample]]:
    """What to draw with, and how it is called: the family's own setting with and without the last denoising step (Song
    & Ermon 2020, arXiv 2006.09011: FID 10.87 with, 31.75 without), and every sampler at every number of steps.

    Steps that a setting takes a level, and its spacing of the levels, are the family's own.
    """
    mine = [dataclasses.replace(own, denoise=last) for last in (True, False)]
    other = [
        dataclasses.replace(own, sampler=sampler, steps=steps, variance="small", denoise=True, step_size=None)
        for sampler in cfg.samplers
        for steps in cfg.steps
    ]
    return [
        ({"own": i < len(mine), "sampler": p.sampler, "steps": p.steps, "denoise": p.denoise}, p)
        for i, p in enumerate(mine + other)
    ]


@torch.no_grad()
def draw(
    model: Denoiser, own: Sample, cfg: Sweep, seed: int, device: torch.device
) -> tuple[list[dict[str, Any]], list[UInt8[np.ndarray, "n 3 h w"]]]:
    """The images of all points.

    Args:
        seed: of the noise, which all points share.

    Returns:
        A row for every point with its setting and "nfe" (counted, calls of the network for one batch) and
        "seconds_per_1000", or "refused": why the sampler does not work there; and the images of those that do.
    """
    rows, drawn = [], []
    starts, noise = range(0, cfg.n, own.batch), Noise(seed, 0, min(cfg.n, own.batch), device)
    model.denoise(model.sigma_range[1] * noise.normal(3, 32, 32), model.sigma_range[1])  # not timed: kernels are chosen
    plan = points(own, cfg)
    with Bar(total=len(plan) * cfg.n, desc="sweep", unit="img") as bar:
        for row, point in plan:
            rows.append(row)
            bar.set_postfix_str(f"{point.sampler}, {point.steps or 'all'} steps", refresh=False)
            images, began = [], time.monotonic()
            try:
                with counted(model.net, *model.guides()) as calls:
                    for start in starts:
                        noise = Noise(seed, start, min(cfg.n, start + own.batch), device)
                        images.append(_bytes(model.sample(noise, point)))
                        bar.update(len(noise))
            except UserError as error:
                row["refused"] = str(error)
                continue
            seconds = time.monotonic() - began
            row |= {"nfe": calls[0] / len(starts), "seconds_per_1000": 1000 * seconds / cfg.n}
            drawn.append(np.concatenate(images))
    return rows, drawn


def _bytes(images: Float[torch.Tensor, "n 3 h w"]) -> UInt8[np.ndarray, "n 3 h w"]:
    if not images.isfinite().all():
        raise UserError("values that are not finite")
    return to_uint8(images).cpu().numpy()


def score(
    rows: list[dict[str, Any]],
    drawn: list[UInt8[np.ndarray, "n 3 h w"]],
    net: Extractor,
    reference: Float[np.ndarray, "m d"],
    cfg: Fid,
    seed: int,
) -> None:
    """Put the distances to `reference`, under the names of the extractor, into the rows that were not refused.

    A Frechet distance of so few images is far above its value for many; KID is unbiased, whatever their number.
    """
    if not drawn:
        return
    features = np.split(net.features(np.concatenate(drawn), cfg.batch, "sweep"), len(drawn))
    size = min(cfg.kid_subset_size, len(drawn[0]))
    accepted = [row for row in rows if "refused" not in row]
    pairs = zip(accepted, features, strict=True)
    for row, vectors in Bar(list(pairs), desc="distances", unit="point"):
        row |= distances.compare(vectors, reference, net.keys, cfg.kid_subsets, size, seed)
