"""Distance against the number of function evaluations: one denoiser, many samplers and step counts, the same noise."""

import dataclasses
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from pofx.sample.samplers import SAMPLERS, Sample
from pofx.sample.settings import Setting


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


def settings(own: Sample, cfg: Sweep) -> list[Setting]:
    """The family's own setting with and without the last denoising step (Song & Ermon 2020, arXiv 2006.09011: FID 10.87
    with, 31.75 without), and every sampler at every number of steps, along the family's own spacing of noise levels."""
    mine = [dataclasses.replace(own, denoise=last) for last in (True, False)]
    other = [own.by(sampler, steps) for sampler in cfg.samplers for steps in cfg.steps]
    return [
        ({"own": i < len(mine), "sampler": p.sampler, "steps": p.steps, "denoise": p.denoise}, p)
        for i, p in enumerate(mine + other)
    ]
