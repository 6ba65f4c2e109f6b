"""Distance against the number of function evaluations: one denoiser, many samplers and step counts, the same noise."""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge
from jaxtyping import UInt8

from pofx.base.rng import Noise
from pofx.models.denoiser import Denoiser
from pofx.sample.samplers import SAMPLERS, Sample
from pofx.score import drawing


@dataclass(frozen=True)
class Sweep:
    models: tuple[str, ...] = ("ncsn", "ddpm", "edm")  # denoisers to do this for
    n: Annotated[int, Ge(2)] = 64  # images a point
    samplers: tuple[str, ...] = ("ddim", "dpmpp", "heun")
    steps: tuple[Annotated[int, Ge(2)], ...] = (3, 6, 12)  # noise levels visited

    def __post_init__(self) -> None:
        for name in self.samplers:
            if name not in SAMPLERS:
                raise ValueError(f"samplers names {name!r}, which is none of {', '.join(SAMPLERS)}")


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
    """The images of all points, as `pofx.score.drawing.draw` gives them; `seed` is that of the noise."""
    noise = Noise(seed, 0, min(cfg.n, own.batch), device)
    model.denoise(model.sigma_range[1] * noise.normal(3, 32, 32), model.sigma_range[1])  # not timed: kernels are chosen
    return drawing.draw(model, points(own, cfg), cfg.n, seed, device, "sweep")
