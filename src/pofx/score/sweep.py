"""Distance against the number of function evaluations: one denoiser, many samplers and step counts, the same noise."""

import dataclasses
from dataclasses import dataclass

from pofx.sample.samplers import SAMPLERS, Sample
from pofx.sample.settings import Setting


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


def settings(own: Sample, cfg: Sweep) -> list[Setting]:
    """The family's own setting with and without the last denoising step (Song & Ermon 2020, arXiv 2006.09011: FID 10.87
    with, 31.75 without), and every sampler at every number of steps, along the family's own spacing of noise levels."""
    mine = [dataclasses.replace(own, denoise=last) for last in (True, False)]
    other = [own.by(sampler, steps) for sampler in cfg.samplers for steps in cfg.steps]
    return [
        ({"own": i < len(mine), "sampler": p.sampler, "steps": p.steps, "denoise": p.denoise}, p)
        for i, p in enumerate(mine + other)
    ]
