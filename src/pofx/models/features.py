"""Features taken inside a network, for a linear probe."""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
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
