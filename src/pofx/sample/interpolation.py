"""Ways from one point to another, among noise and among codes."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

PARALLEL = 1e-3  # sine of an angle below which float32 knows no circle


def lerp(a: Float[Tensor, "n *shape"], b: Float[Tensor, "n *shape"], share: Float[Tensor, " k"]) -> Tensor:
    """Points (n, k, *shape) on the straight line from `a` (share 0) to `b` (share 1), at equal steps."""
    return torch.lerp(a[:, None], b[:, None], share.view(-1, *[1] * (a.ndim - 1)))


def slerp(a: Float[Tensor, "n *shape"], b: Float[Tensor, "n *shape"], share: Float[Tensor, " k"]) -> Tensor:
    """Points (n, k, *shape) from `a` (share 0) to `b` (share 1) at equal angles (Shoemake 1985): between two of one
    length all have that length. Where `a` and `b` are parallel, as codes of one unit are, those of `lerp`."""
    angle = F.cosine_similarity(a.flatten(1), b.flatten(1)).clamp(-1, 1).acos()
    angle, share = angle.view(-1, *[1] * a.ndim), share.view(-1, *[1] * (a.ndim - 1))
    left, right = ((w * angle).sin() / angle.sin() for w in (1 - share, share))
    arc = left * a[:, None] + right * b[:, None]
    return torch.where(angle.sin() > PARALLEL, arc, lerp(a, b, share.flatten()))
