"""The training curve: means of what the steps of a row computed."""

from typing import Any

import torch
from torch import Tensor

from pofx.base import dist

Row = dict[str, int | float]  # images, loss, the family's terms, grad_norm, lr, and val_loss of validation images


class Curve:
    """Rows of the curve so far, and the sums of the row under way: until its end they stay on the device."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.sums: dict[str, Tensor] = {}

    def add(self, terms: dict[str, Tensor], parts: int = 1) -> None:
        """Add the mean of every term over one of the `parts` of a step's batch."""
        for key, value in terms.items():
            mean = value.detach().float().mean() / parts
            self.sums[key] = self.sums[key] + mean if key in self.sums else mean

    def means(self, steps: int) -> dict[str, float]:
        """Mean of every term over the `steps` of the row under way and over all processes."""
        means = dist.average(torch.stack(list(self.sums.values())) / steps)
        return dict(zip(self.sums, means.tolist(), strict=True))

    def end(self, row: Row) -> None:
        """Append the row and begin the next one."""
        self.rows.append(row)
        self.sums = {}

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "sums": self.sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows, self.sums = state["rows"], state["sums"]
