"""Layers that several networks share, each by what is fast on the device."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class LayerNorm(nn.Module):
    """Layer norm of every position by itself (Ba et al. 2016, arXiv 1607.06450), without parameters:

        y_k = (x_k - mean) / sqrt(var + 1e-5),   mean and variance over the channels k of one position

    One pass over memory where maps lie channels last: on CPUs in bf16 several times as fast as GroupNorm. A small shape
    on a plain ground is not drowned by the ground's statistics.
    """

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2]).permute(0, 3, 1, 2)


def attend(
    q: Float[Tensor, "b heads n d"], k: Float[Tensor, "b heads m d"], v: Float[Tensor, "b heads m d"], causal: bool
) -> Float[Tensor, "b heads n d"]:
    """softmax(q k' / sqrt(d)) v (Vaswani et al. 2017, arXiv 1706.03762, eq. 1); `causal`: query i sees keys 0..i alone.

    On a CPU by two products and a softmax, elsewhere by PyTorch's fused kernel. On CPUs, for some 64 positions, the
    fused kernel is no faster in fp32 and several times slower in bf16.
    """
    return products(q, k, v, causal) if q.device.type == "cpu" else fused(q, k, v, causal)


def fused(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal)


def products(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, float("-inf"))
    return scores.softmax(-1).to(v.dtype) @ v
