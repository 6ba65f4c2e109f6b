"""Guards of a training run: what fired, and the roll-backs that mend it.

A fault begins before it is seen: a roll-back goes to the oldest of the states kept at the last rows of the curve, of
which the start is one. The batches and the noise of its steps come again; the learning rate is what differs.
"""

import copy
import math
from typing import Any

from pofx.models.family import Family

FACTOR = 0.3  # of the learning rate, at every roll-back
KEPT = 3  # states
ALARM, WARNING = "alarm_", "warn_"  # how the family's terms are called that are none of the curve


class Guards:
    """What the guards of a run know and did; resumable.

    Args:
        model: whose `alarms` and `warnings` say what the terms of these names mean.
        parts: what a state is made of, each with state_dict and load_state_dict.
        rollbacks: how many there may be; 0: no state is kept.
    """

    def __init__(self, model: Family, parts: dict[str, Any], rollbacks: int):
        self.model, self.parts, self.rollbacks = model, parts, rollbacks
        self.used = 0
        self.states: list[dict[str, Any]] = []
        # images, guard, did; of a warning also the rows, those included that a roll-back undid
        self.events: list[dict[str, int | str]] = []

    @property
    def left(self) -> int:
        return self.rollbacks - self.used

    @property
    def factor(self) -> float:
        """Of the learning rate."""
        return FACTOR**self.used

    def fault(self, means: dict[str, float], seen: int) -> tuple[str, str] | None:
        """The guard that fired in an interval of the given means, and the reason to end there; None: all is well."""
        for key, share in means.items():
            if key.startswith(ALARM) and share > 0:
                name = key.removeprefix(ALARM)
                return name, f"stopped at {seen:,} images: {self.model.alarms[name]}"
        if bad := [key for key, mean in means.items() if not math.isfinite(mean)]:
            reason = f"{', '.join(bad)} not finite; lower lr or clip under train"
            return "not finite", f"diverged before {seen:,} images: {reason}"
        return None

    def warn(self, means: dict[str, float], seen: int) -> list[str]:
        """Count the warnings that held in more than half of a row's steps; returns what to say of the new ones."""
        said = []
        for name in (key.removeprefix(WARNING) for key, share in means.items() if key[:5] == WARNING and share > 0.5):
            known = [event for event in self.events if event["guard"] == name and event["did"] == "warned"]
            if known:
                known[0]["rows"] += 1
            else:
                self.events.append({"images": seen, "guard": name, "did": "warned", "rows": 1})
                said.append(f"warning: at {seen:,} images: {self.model.warnings[name]}")
        return said

    def keep(self, step: int) -> None:
        """Keep the good state after `step` steps, while there is a roll-back left to use it."""
        if self.left:
            state = {key: part.state_dict() for key, part in self.parts.items()}
            self.states = [*self.states, copy.deepcopy(state) | {"step": step}][-KEPT:]

    def roll_back(self, name: str, seen: int, batch: int) -> int:
        """Go back to the oldest state kept, since the guard `name` fired at `seen` images; returns its step."""
        state = self.states[0]
        for key, part in self.parts.items():  # an optimiser goes on in the tensors it is given: they are kept apart
            part.load_state_dict(copy.deepcopy(state[key]))
        self.used += 1
        self.states = [state] if self.left else []
        did = f"rolled back to {state['step'] * batch:,} images, learning rate x {FACTOR}"
        self.events.append({"images": seen, "guard": name, "did": did})
        return state["step"]

    def state_dict(self) -> dict[str, Any]:
        return {"used": self.used, "states": self.states, "events": self.events}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.used, self.states, self.events = (state[key] for key in ("used", "states", "events"))
