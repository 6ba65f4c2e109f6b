"""Features inside a network, and what a Gaussian code is measured by."""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

PROBED = 0.1  # noise level at which features are taken, images on [-1, 1]: that of small things


class _Reached(Exception):
    """Ends the forward pass: what comes after the layer is not computed."""


def inside(layer: nn.Module, run: Callable[[], Any]) -> Float[Tensor, "b d"]:
    """The map that `layer` puts out while `run` runs, by `averaged`."""

    def stop(_module: nn.Module, _input: Any, out: Tensor) -> None:
        raise _Reached(out)

    handle = layer.register_forward_hook(stop)
    try:
        run()
    except _Reached as reached:
        return averaged(reached.args[0])
    finally:
        handle.remove()
    raise ValueError("the layer was not reached")


def averaged(h: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
    """A map averaged to 2x2 places, which keeps roughly where things are: 4 numbers a channel."""
    return F.adaptive_avg_pool2d(h.float(), 2).flatten(1)


def kl(mean: Float[Tensor, "b latent"], log_var: Float[Tensor, "b latent"]) -> Float[Tensor, "b latent"]:
    """KL( q(z|x) || N(0, I) ) of every unit of a Gaussian code, in nats."""
    return 0.5 * (mean.square() + log_var.exp() - log_var - 1)


def active(mean: Float[Tensor, "n latent"]) -> Bool[Tensor, " latent"]:
    """The units in use: the mean of q(z|x) has a variance over images above 0.01 (Burda et al. 2016)."""
    return mean.var(0, correction=0) > 0.01
