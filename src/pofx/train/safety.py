"""What may end a training early or undo a part of it: guards with roll-backs, and early stopping by validation images.

A fault begins before it is seen: a roll-back goes to the oldest of the states kept at the last rows of the curve, of
which the start is one. Batches and noise are the same again; the learning rate differs.
"""

import copy
import math
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from pofx.base import dist, machine
from pofx.base.errors import UserError
from pofx.base.images import to_model
from pofx.base.progress import Bar
from pofx.base.rng import fold
from pofx.models.family import Family
from pofx.train.config import Train, lr_at
from pofx.train.curve import Row
from pofx.train.state import Slot

FACTOR = 0.3  # of the learning rate, at every roll-back
KEPT = 3  # states
ALARM, WARNING = "alarm_", "warn_"  # how a family's terms begin that are no part of the curve
# What a guard did: images at which it fired, its name as guard, did; of a warning also the rows in which it held.
Event = dict[str, int | str]


def guide_step(model: Family, cfg: Train) -> int | None:
    """Step after which the averaged network is kept as the guide of a denoiser; None: the model has no guide."""
    if getattr(model, "guide", None) is None:  # no import of Denoiser: an edit of it must not retrain other families
        return None
    return math.ceil(max(1, int(model.cfg.guide * cfg.images)) / cfg.batch)


class Safety:
    """Answers what to do after a row of the curve; resumable.

    Args:
        parts: what a state is made of, each with state_dict and load_state_dict: model, optimiser, EMA, curve.
        slot: where the last good state is saved.
        seed: of the noise of validation.
        held_out: validation images, maybe none.
    """

    def __init__(self, parts: dict[str, Any], cfg: Train, slot: Slot, seed: int, held_out: UInt8[Tensor, "n c h w"]):
        self.parts, self.cfg, self.slot, self.seed, self.held_out = parts, cfg, slot, seed, held_out
        self.model, self.ema, self.curve = parts["model"], parts["ema"], parts["curve"]
        self.used = 0  # roll-backs
        self.states: list[dict[str, Any]] = []
        self.events: list[Event] = []
        # The smallest validation loss, the averaged weights that had it, and the rows of the curve since.
        self.best: dict[str, Any] = {"loss": math.inf, "rows": 0, "weights": None}
        self._keep(0)

    @property
    def left(self) -> int:
        """Roll-backs that are left."""
        return self.cfg.rollbacks - self.used

    @property
    def stops_early(self) -> bool:
        """Whether the validation loss has not fallen for `patience` rows."""
        return 0 < self.cfg.patience <= self.best["rows"]

    def rate(self, step: int) -> float:
        """Learning rate of the step that follows `step` steps."""
        return lr_at(self.cfg, step * self.cfg.batch) * FACTOR**self.used

    def check_memory(self) -> None:
        """Raises UserError if this process has taken more memory than `memory_mib`."""
        if 0 < self.cfg.memory_mib < (peak := machine.peak_mib(self.held_out.device)):
            took = f"training took {peak:,.0f} MiB, more than train.memory_mib = {self.cfg.memory_mib:,}"
            raise UserError(f"{took}: raise train.accumulate or lower train.batch")

    def ask(self, step: int) -> int:
        """The step to go on from after `step` steps: `step` or, after a roll-back, an earlier one.

        To be asked at the end of every row of the curve, and before a save within one.

        Raises:
            UserError: a guard fired (a mean was not finite, or an alarm of the family), and no roll-back is left.
        """
        means = self.curve.means(1 + (step - 1) % self.cfg.row_steps)
        fault = self._fault(means, step * self.cfg.batch)
        if fault and not self.left:
            saved = self.slot.path.exists()
            kept = f"the last good state is kept in {self.slot.folder}" if saved else "nothing was saved"
            raise UserError(f"{fault[1]}; {kept}")
        if not self.cfg.ends_row(step):  # a fault waits for the end of its row: no clock has a say in what is undone
            return step
        if fault:
            return self._roll_back(fault[0], step)
        self._end_row(step, means)
        return step

    def finish(self) -> None:
        """Leave the model with the weights of the smallest validation loss, or with the averaged ones."""
        if self.best["weights"] is None:
            self.ema.swap()
        else:
            self.model.load_state_dict(self.best["weights"])

    def _fault(self, means: dict[str, float], seen: int) -> tuple[str, str] | None:
        """The guard that fired in steps of the given means, and the reason to end there; None: all is well."""
        for key, share in means.items():
            if key.startswith(ALARM) and share > 0:
                name = key.removeprefix(ALARM)
                return name, f"stopped at {seen:,} images: {self.model.alarms[name]}"
        if bad := ", ".join(key for key, mean in means.items() if not math.isfinite(mean)):
            return "not finite", f"diverged before {seen:,} images: {bad} not finite; lower lr or clip under train"
        return None

    def _end_row(self, step: int, means: dict[str, float]) -> None:
        row: Row = {"images": step * self.cfg.batch}
        row |= {key: mean for key, mean in means.items() if not key.startswith((ALARM, WARNING))}
        row["lr"] = self.rate(step - 1)
        if len(self.held_out):
            with self.ema.swapped():
                row["val_loss"] = loss = self._validate()
                if step >= (guide_step(self.model, self.cfg) or 0):  # earlier weights would be without their guide
                    self._compare(loss)
        self._warn(means, row["images"])
        self.curve.end(row)
        self._keep(step)

    @torch.no_grad()
    def _validate(self) -> float:
        """Mean loss of the validation images, under the same noise every time; leaves the model in train mode."""
        self.model.eval()
        torch.manual_seed(fold(self.seed, "validation"))  # a step seeds by itself: nothing else is disturbed
        with machine.autocast(self.held_out.device, self.cfg.precision):
            parts = self.held_out.split(self.cfg.batch)
            losses = [self.model.validate(to_model(part)).double() for part in parts]
        self.model.train()
        return dist.average(torch.cat(losses).mean()).item()

    def _compare(self, loss: float) -> None:
        """Keep the weights that the model has now, if their validation loss is the smallest so far."""
        self.best["rows"] += 1
        if loss < self.best["loss"]:
            weights = {key: value.detach().clone() for key, value in self.model.state_dict().items()}
            self.best = {"loss": loss, "rows": 0, "weights": weights}

    def _warn(self, means: dict[str, float], seen: int) -> None:
        """Count the rows in which a warning held in more than half of the steps; print it the first time."""
        before = {event["guard"]: event for event in self.events if event["did"] == "warned"}
        for key, share in means.items():
            name = key.removeprefix(WARNING)
            if name == key or share <= 0.5:
                continue
            if name in before:
                before[name]["rows"] += 1
            else:
                self.events.append({"images": seen, "guard": name, "did": "warned", "rows": 1})
                Bar.note(f"warning: at {seen:,} images: {self.model.warnings[name]}")

    def _keep(self, step: int) -> None:
        """Keep the good state after `step` steps, while there is a roll-back left to use it."""
        if self.left:
            state = {key: part.state_dict() for key, part in self.parts.items()} | {"best": self.best, "step": step}
            self.states = [*self.states, copy.deepcopy(state)][-KEPT:]

    def _roll_back(self, name: str, step: int) -> int:
        """Go back to the oldest state kept, since the guard `name` fired; returns its step."""
        state = copy.deepcopy(self.states[0])  # an optimiser goes on in the tensors that it is given
        for key, part in self.parts.items():
            part.load_state_dict(state[key])
        self.best = state["best"]
        self.used += 1
        self.states = self.states[:1] if self.left else []
        seen, back = step * self.cfg.batch, f"back to {state['step'] * self.cfg.batch:,} images"
        self.events.append({"images": seen, "guard": name, "did": f"rolled {back}, learning rate x {FACTOR}"})
        rate = f"learning rate {self.rate(state['step']):.3g}"
        Bar.note(f"guard {name!r} fired at {seen:,} images: {back}, {rate}, roll-backs left: {self.left}")
        return state["step"]

    def state_dict(self) -> dict[str, Any]:
        return {"used": self.used, "states": self.states, "events": self.events, "best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.used, self.states, self.events, self.best = (state[key] for key in ("used", "states", "events", "best"))
