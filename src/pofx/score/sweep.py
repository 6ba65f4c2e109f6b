"""Distance against the number of function evaluations: one denoiser, many samplers and step counts, the same noise."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch

from pofx.base.rng import Noise
from pofx.models.denoiser import Denoiser
from pofx.sample.samplers import SAMPLERS, Sample
from pofx.score import points


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


def settings(own: Sample, cfg: Sweep) -> list[points.Setting]:
    """The family's own setting with and without the last denoising step (Song & Ermon 2020, arXiv 2006.09011: FID 10.87
    with, 31.75 without), and every sampler at every number of steps, along the family's own spacing of noise levels."""
    mine = [dataclasses.replace(own, denoise=last) for last in (True, False)]
    other = [own.by(sampler, steps) for sampler in cfg.samplers for steps in cfg.steps]
    return [
        ({"own": i < len(mine), "sampler": p.sampler, "steps": p.steps, "denoise": p.denoise}, p)
        for i, p in enumerate(mine + other)
    ]


@torch.no_grad()
def draw(
    model: Denoiser, own: Sample, cfg: Sweep, noise_at: Callable[[int, int], Noise]
) -> tuple[list[points.Row], list[points.Images]]:
    """The images of all settings, as `pofx.score.points.draw` gives them."""
    largest = model.sigma_range[1]
    model.denoise(largest * noise_at(0, min(cfg.n, own.batch)).normal(*model.shape), largest)  # kernels are chosen
    return points.draw(model, settings(own, cfg), cfg.n, noise_at)
