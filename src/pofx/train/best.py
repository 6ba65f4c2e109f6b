"""Early stopping: the weights with the smallest loss on images held out of training, and how long ago that was."""

import math
from typing import Any

from torch import Tensor, nn


class Best:
    """The best state of a model so far, parameters and buffers, and the rows of the curve since.

    Args:
        patience: rows without a new best after which training is over; 0: never.
    """

    def __init__(self, patience: int):
        self.patience = patience
        self.loss, self.rows = math.inf, 0
        self.weights: dict[str, Tensor] | None = None

    def update(self, loss: float, model: nn.Module) -> None:
        """After a row of the curve, at which `model` had this loss on the held-out images."""
        self.rows += 1
        if loss < self.loss:
            self.loss, self.rows = loss, 0
            self.weights = {key: value.detach().clone() for key, value in model.state_dict().items()}

    @property
    def over(self) -> bool:
        return 0 < self.patience <= self.rows

    def state_dict(self) -> dict[str, Any]:
        return {"loss": self.loss, "rows": self.rows, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loss, self.rows, self.weights = (state[key] for key in ("loss", "rows", "weights"))
