"""How to train: the block `train:` of params.yaml, and what a family's own block overrides of it."""

import math
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt

from pofx.base import config, machine

# Settings that decide no weight. Of `from` that is the name: the kept weights themselves do.
HARMLESS = ("from", "save_seconds", "memory_mib", "preview_rows")


@dataclass(frozen=True)
class Train:
    """Durations are counted in images, so that they survive a change of the batch size."""

    images: Annotated[int, Ge(1)] = 10_000  # budget
    from_: str | None = None  # `from`: the folder of kept weights to start from (store.start); null: random weights
    batch: Annotated[int, Ge(1)] = 16  # images of an optimiser step, of all processes together
    accumulate: Annotated[int, Ge(1)] = 1  # parts that a batch is split into: less memory, the same gradient
    optimizer: Literal["adam", "muon"] = "muon"  # muon: of hidden matrices, with Adam for the rest
    lr: Annotated[float, Gt(0)] = 1e-2
    warmup: Annotated[int, Ge(0)] = 1000  # images of the linear ramp of the rate
    decay: Literal["constant", "cosine"] = "cosine"
    betas: tuple[float, float] = (0.9, 0.99)  # of Adam
    weight_decay: Annotated[float, Ge(0)] = 0.0  # of Adam
    clip: Annotated[float, Gt(0)] = 1000.0  # largest norm of the gradient
    ema_half_life: Annotated[int, Ge(0)] = 2000  # images, of the average of the weights; 0: no average
    flip: bool = True  # mirror every image with probability one half
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # of the network; auto: see `on`
    channels_last: bool = True  # memory layout
    compile: bool = False  # the network, by torch.compile
    rows: Annotated[int, Ge(1)] = 50  # of the curve: the number of host syncs of the run
    save_seconds: Annotated[float, Ge(0)] = 60.0  # between saves of the resumable state
    memory_mib: Annotated[int, Ge(0)] = 0  # most memory of a process; 0: as much as there is
    preview_rows: Annotated[int, Ge(0)] = 10  # rows of the curve between grids of samples; 0: one at the end
    validation: Annotated[int, Ge(0)] = 0  # last training images, held out to measure their loss; 0: none
    patience: Annotated[int, Ge(0)] = 0  # rows without a smaller validation loss before the run ends; 0: all of them
    rollbacks: Annotated[int, Ge(0)] = 0  # times that a fired guard goes back to an earlier state, at a lower rate

    def __post_init__(self) -> None:
        if self.batch % self.accumulate:
            raise ValueError(f"accumulate = {self.accumulate} should divide the batch ({self.batch})")
        if self.images < self.batch:
            raise ValueError(f"images = {self.images} should be at least one batch ({self.batch})")
        if self.patience and not self.validation:
            raise ValueError(f"patience = {self.patience} needs validation images")
        if self.weight_decay and self.optimizer == "muon":
            raise ValueError(f"weight_decay = {self.weight_decay} is Adam's: muon has none, set it to 0")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas = {list(self.betas)} should lie in [0, 1)")

    def deciding(self) -> dict[str, Any]:
        """The settings that decide the weights, and so whether a resumable state may be resumed. Of precision a slot
        knows by itself (state.py)."""
        return {key: value for key, value in config.tree(self).items() if key not in (*HARMLESS, "precision")}

    def on(self, device: torch.device) -> "Train":
        """These settings with the precision that `auto` is on `device`."""
        return replace(self, precision=machine.precision(self.precision, device))

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole budget."""
        return self.images // self.batch

    @property
    def row_steps(self) -> int:
        """Steps of a row of the curve; the last row may have fewer."""
        return -(-self.steps // self.rows)

    def ends_row(self, step: int) -> bool:
        """Whether a row of the curve ends after `step` steps."""
        return step == self.steps or step % self.row_steps == 0

    def shows(self, step: int) -> bool:
        """Whether a preview is due after `step` steps."""
        return self.preview_rows > 0 and step % (self.preview_rows * self.row_steps) == 0


def settings(name: str, tree: dict[str, Any] | None = None) -> Train:
    """How to train the family `name`: defaults, then `train:`, then `<family>.train:`, key by key.

    Of the parameters `tree`, by default those of params.yaml. Errors: see config.build.
    """
    tree = config.params() if tree is None else tree
    config.build(Train, shared := tree.get("train", {}), "train")
    own = config.convert(dict, tree.get(name, {}).get("train", {}), f"{name}.train")
    return config.build(Train, shared | own, f"{name}.train")


def lr_at(cfg: Train, seen: int) -> float:
    """Learning rate as a function of the images seen: linear ramp, then constant or a half cosine down to zero."""
    ramp = min(1.0, (seen + cfg.batch) / cfg.warmup) if cfg.warmup else 1.0
    fall = 1.0
    if cfg.decay == "cosine":
        done = max(0, seen - cfg.warmup) / max(1, cfg.images - cfg.warmup)
        fall = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return cfg.lr * ramp * fall
