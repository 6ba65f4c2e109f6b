"""Energy-based models, p(x) ~ exp(-E(x)): drawn from by Langevin dynamics, trained to one of two objectives.

contrast.py sets data against chains from a replay buffer, recovery.py maximises the likelihood of one noise level given
the next. No likelihood is reported for either.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge

from pofx.models.ebm.chains import Sample
from pofx.models.ebm.contrast import Contrast, ContrastConfig
from pofx.models.ebm.network import EnergyConfig
from pofx.models.ebm.recovery import Recovery, RecoveryConfig
from pofx.models.family import Shape

__all__ = ["Config", "Model", "Sample"]


@dataclass(frozen=True)
class Config:
    objective: Literal["contrast", "recovery"] = "recovery"
    net: EnergyConfig = field(default_factory=EnergyConfig)
    chain: Annotated[int, Ge(0)] = 0  # Langevin steps a training step; recovery: 0 for the normal approximation
    contrast: ContrastConfig = field(default_factory=ContrastConfig)
    recovery: RecoveryConfig = field(default_factory=RecoveryConfig)

    def __post_init__(self) -> None:
        if self.objective == "contrast" and self.chain < 1:
            raise ValueError(f"chain = {self.chain} should be at least 1: contrast trains by chains")


def Model(cfg: Config, shape: Shape) -> Contrast | Recovery:
    return Contrast(cfg, shape) if cfg.objective == "contrast" else Recovery(cfg, shape)
