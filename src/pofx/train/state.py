"""Resumable state of a training run, outside DVC's outputs.

DVC deletes a stage's outputs before it runs it, so the state lives in `runs/<stage>/<key>/`, where key is a hash of all
that the result depends on: resolved parameters, code, input data, and the precision, by which the key ends. An
interrupted run with the same key goes on where it stopped; another key is a fresh start. One run at a time holds a
slot. Of several processes the first holds it and saves for all; how many there are is no part of the key.
"""

import fcntl
import hashlib
import io
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pofx.base import dist
from pofx.base.errors import UserError
from pofx.base.files import atomic
from pofx.base.machine import Precision


class Slot:
    """The folder of one run's state, locked against a second trainer until it is closed: `with Slot(...) as slot`.

    Args:
        parts: what the result depends on (parameters, code hash, data hash), as JSON-able values.
        precision: in which the network is trained; the state says so too.
        fresh: forget what an earlier run left in the slot.

    Raises:
        UserError: another process holds the slot.
    """

    def __init__(self, root: Path, stage: str, parts: Any, precision: Precision = "fp32", fresh: bool = False):
        self.precision = precision
        self.key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = Path(root) / stage / f"{self.key}-{precision}"
        self.path = self.folder / "state.pt"
        self._before, self._began, self._saved = 0.0, time.monotonic(), time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)
        if dist.first():
            self._hold(fresh)
        dist.barrier()

    def _hold(self, fresh: bool) -> None:
        self._lock = open(self.folder / "lock", "a+")  # noqa: SIM115  (held until close)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            owner = (self.folder / "lock").read_text() or "unknown"
            busy = f"process {owner} is already training in {self.folder}"
            raise UserError(f"{busy}: wait for it, or stop it and run this again") from None
        self._lock.truncate(0)
        self._lock.write(str(os.getpid()))
        self._lock.flush()
        if fresh:
            for path in (self.path, *self.folder.glob("*.npy")):  # the state, and previews of an earlier run
                path.unlink(missing_ok=True)

    def __enter__(self) -> "Slot":
        return self

    def __exit__(self, *_) -> None:
        if dist.first():
            self._lock.close()

    def refuse_other_precision(self, name: str) -> None:
        """To be asked where the precision was left to the machine, which may be another than the state's.

        Raises:
            UserError: there is no state here, but one of the same training in another precision.
        """
        others = [path.parent for path in self.folder.parent.glob(f"{self.key}-*/state.pt")]
        if others and self.folder not in others:
            made = others[0].name.removeprefix(f"{self.key}-")
            raise UserError(
                f"the state in {others[0]} was trained in {made}, and precision auto is {self.precision} on this "
                f"machine: set {name}.train.precision={made} to go on with it, or FRESH=1 to start over"
            )

    def load(self, device: torch.device | str) -> dict[str, Any] | None:
        """The state last saved, or None."""
        return torch.load(self.path, map_location=device, weights_only=True) if self.path.exists() else None

    def save(self, state: dict[str, Any]) -> None:
        """Replace the state; a crash or a full disk at any moment leaves the old one whole."""
        if dist.first():
            buffer = io.BytesIO()  # PyTorch's own file writer hides the errno of a full disk
            torch.save(state, buffer)
            with atomic(self.path) as file:
                file.write(buffer.getbuffer())

    def resume(self, parts: dict[str, Any], device: torch.device) -> int:
        """Bring the parts of a training to the state last saved, if there is one; returns its step, else 0."""
        state = self.load(device)
        if state is not None:
            for key, part in parts.items():
                part.load_state_dict(state[key])
            self._before = state["seconds"]
        self._began = self._saved = time.monotonic()
        return state["step"] if state is not None else 0

    def keep(self, parts: dict[str, Any], step: int) -> None:
        """Save the parts of a training after `step` steps."""
        state = {key: part.state_dict() for key, part in parts.items()}
        self.save(state | {"step": step, "seconds": self.seconds, "precision": self.precision})
        self._saved = time.monotonic()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The clock of `seconds` stands still within the block."""
        paused = time.monotonic()
        try:
            yield
        finally:
            self._began += time.monotonic() - paused

    @property
    def age(self) -> float:
        """Seconds since the last `keep`."""
        return time.monotonic() - self._saved

    @property
    def seconds(self) -> float:
        """Seconds of the training so far, in all of its runs."""
        return self._before + time.monotonic() - self._began
