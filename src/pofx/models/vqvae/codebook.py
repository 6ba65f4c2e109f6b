"""Vector quantisation with a codebook that follows the encoder (van den Oord et al. 2017, arXiv 1711.00937).

    N_k <- g N_k + (1 - g) n_k,   m_k <- g m_k + (1 - g) sum of the vectors nearest to k,   e_k = m_k / N_k

(appendix A.1; N smoothed by Laplace). No gradient reaches the codes. A code that is hardly used starts anew from a
vector of the encoder.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from pofx.base import dist

SMOOTHING = 1e-5  # Laplace's, of the counts


class Codebook(nn.Module):
    """`size` codes of `dim` numbers, in buffers; `decay` is g. A code starts anew whose average count falls below the
    share `revive` of an even one."""

    def __init__(self, size: int, dim: int, decay: float, revive: float):
        super().__init__()
        self.decay, self.revive = decay, revive
        self.register_buffer("codes", torch.randn(size, dim))
        self.register_buffer("counts", torch.ones(size))
        self.register_buffer("sums", self.codes.clone())

    def nearest(self, z: Float[Tensor, "n dim"]) -> Int64[Tensor, " n"]:
        """The nearest code of every vector. In float32, and by differences: products in half precision or TF32 would
        choose other codes."""
        with torch.autocast(z.device.type, enabled=False):
            far = torch.cdist(z.float(), self.codes, compute_mode="donot_use_mm_for_euclid_dist")
        return far.argmin(1)

    @torch.no_grad()
    def start(self, z: Float[Tensor, "n dim"], count: int, rounds: int = 10) -> None:
        """Lloyd's k-means of these vectors, from some of them; `count` is the number of vectors in a training step."""
        # With fewer vectors than codes some codes are equal at first: those that are never chosen are revived.
        self.codes.copy_(z[torch.randperm(len(z), device=z.device)[torch.arange(len(self.codes)) % len(z)]])
        for _ in range(rounds):
            n, total = self._gather(z, self.nearest(z))
            self.codes.copy_(torch.where(n[:, None] > 0, total / n.clamp(min=1)[:, None], self.codes))
        self.counts.copy_(n * (count / len(z)))
        self.sums.copy_(self.counts[:, None] * self.codes)

    @torch.no_grad()
    def follow(self, z: Float[Tensor, "n dim"], nearest: Int64[Tensor, " n"]) -> None:
        """One step of the averages, and of what is dead; decided on the device, without a sync."""
        chosen, sums = map(dist.total, self._gather(z, nearest))
        self.counts.lerp_(chosen, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        n = len(z) * dist.parts()
        least = self.revive * n / len(self.codes)  # what it starts with as well: unused, it moves on at once
        dead = (self.counts < least)[:, None]
        fresh = dist.gather(z)[torch.randint(n, (len(self.codes),), device=z.device)]
        self.counts.clamp_(min=least)
        self.sums.copy_(torch.where(dead, least * fresh, self.sums))
        whole = self.counts.sum()
        smooth = (self.counts + SMOOTHING) / (whole + len(self.codes) * SMOOTHING) * whole
        self.codes.copy_(self.sums / smooth[:, None])

    def count(self, nearest: Int64[Tensor, " n"]) -> Float[Tensor, " size"]:
        """How often each code was chosen. Not by bincount, which waits for the device."""
        return F.one_hot(nearest, len(self.codes)).float().sum(0)

    def _gather(self, z: Tensor, nearest: Tensor) -> tuple[Float[Tensor, " size"], Float[Tensor, "size dim"]]:
        """How many vectors chose each code, and their sum; by a product, since adding by index varies on GPUs."""
        chosen = F.one_hot(nearest, len(self.codes)).float()
        with torch.autocast(z.device.type, enabled=False):
            return chosen.sum(0), chosen.T @ z.float()


def perplexity(counts: Float[Tensor, " size"]) -> Float[Tensor, ""]:
    """exp of the entropy of the codes' frequencies: how many codes are used, in effect."""
    return torch.special.entr(counts / counts.sum()).sum().exp()
