"""Adam, or Muon for the hidden matrices and Adam for all else (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

    M <- 0.95 M + 0.05 G,   U = orthogonal(0.05 G + 0.95 M),   W <- W - rate 0.2 sqrt(max(rows, columns)) U

U is the step with singular values near one, by five steps of Newton-Schulz. The factor gives its elements the size of
Adam's (Liu et al. 2025, arXiv 2502.16982, eq. 4), so that one rate serves both. Muon's part has no weight decay.

A hidden matrix is the weight of a linear layer, or of a convolution with one group. Not one are a weight of a layer
marked as `outer` (models/family.py), and one computed from other parameters, as under a spectral norm. A convolution is
the matrix (out, in h w). A transposed one is the adjoint of a convolution, and its matrix (in, out h w) is that one's.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pofx.train.config import Train

MOMENTUM = 0.95
STEPS, A, B, C = 5, 3.4445, -4.7750, 2.0315  # of Newton-Schulz


def hidden(model: nn.Module) -> dict[nn.Parameter, int]:
    """The weights that are hidden matrices, each with the number of equal matrices that are stacked in it."""
    found = {}
    for layer in model.modules():
        dense = isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)) and getattr(layer, "groups", 1) == 1
        weight = dict(layer.named_parameters(recurse=False)).get("weight")  # None where it is computed
        if dense and weight is not None and weight.requires_grad and not getattr(layer, "outer", False):
            found[weight] = getattr(layer, "stacked", 1)
    return found


def orthogonal(x: Float[Tensor, "n rows columns"]) -> Float[Tensor, "n rows columns"]:
    """Every matrix with its singular values moved to about one: x <- (A + B x x' + C (x x')^2) x, five times.

    In full float32 the steps are taken in s = x x', which is small where the matrix is wide, and x is multiplied once:
    half the time or less. In bfloat16 or TF32 rounding would give s negative eigenvalues, which diverge.
    """
    if x.shape[1] > x.shape[2]:
        return orthogonal(x.mT).mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    if x.dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest":
        s = x @ x.mT
        product = factor = _factor(s)
        for _ in range(STEPS - 1):
            s = factor @ s @ factor
            factor = _factor(s)
            product = factor @ product
        return product @ x
    for _ in range(STEPS):
        s = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(s, s, s, beta=B, alpha=C), x, beta=A)
    return x


def _factor(s: Float[Tensor, "n rows rows"]) -> Float[Tensor, "n rows rows"]:
    """A + B s + C s^2."""
    factor = torch.baddbmm(s, s, s, beta=B, alpha=C)
    factor.diagonal(dim1=1, dim2=2).add_(A)
    return factor


class Muon(torch.optim.Optimizer):
    """Muon of `matrices`, which `hidden` found. Those of one shape are stacked: a few large products, not many small.

    Args:
        half: Newton-Schulz in bfloat16.
    """

    def __init__(self, matrices: dict[nn.Parameter, int], lr: float, half: bool):
        shapes: dict[tuple[int, ...], dict[str, Any]] = {}
        for weight, count in matrices.items():
            group = shapes.setdefault(
                (count, *weight.shape), {"params": [], "shape": (count, len(weight) // count, -1)}
            )
            group["params"].append(weight)
        super().__init__(list(shapes.values()), {"lr": lr})
        self.half = half

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if not weights:
                continue
            for p in weights:
                if not self.state[p]:
                    self.state[p]["mean"] = torch.zeros_like(p)
            gradients, means = [p.grad for p in weights], [self.state[p]["mean"] for p in weights]
            torch._foreach_lerp_(means, gradients, 1 - MOMENTUM)
            ahead = torch._foreach_lerp(gradients, means, MOMENTUM)  # Nesterov's
            x = torch.cat([u.reshape(group["shape"]) for u in ahead])
            x = orthogonal(x.bfloat16() if self.half else x).to(x.dtype)
            updates = [u.reshape(p.shape) for u, p in zip(x.chunk(len(weights)), weights, strict=True)]
            torch._foreach_add_(weights, updates, alpha=-0.2 * max(x.shape[1:]) ** 0.5 * group["lr"])


class Optimiser:
    """What the loop steps: one object, whatever is in it."""

    def __init__(self, model: nn.Module, cfg: Train):
        matrices = hidden(model) if cfg.optimizer == "muon" else {}
        rest = [p for p in model.parameters() if p.requires_grad and p not in matrices]
        self.parts: dict[str, torch.optim.Optimizer] = {}
        if rest:
            decay = cfg.weight_decay
            self.parts["adam"] = torch.optim.Adam(rest, cfg.lr, betas=cfg.betas, weight_decay=decay, fused=True)
        if matrices:
            self.parts["muon"] = Muon(matrices, cfg.lr, half=cfg.precision == "bf16")

    def step(self, rate: float) -> None:
        """One step at this learning rate; the gradients are spent."""
        for part in self.parts.values():
            for group in part.param_groups:
                group["lr"] = rate
            part.step()
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        return {key: part.state_dict() for key, part in self.parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for key, part in self.parts.items():
            part.load_state_dict(state[key])
