"""What drawing costs, counted rather than timed: the same on every machine."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from pofx.base.rng import Noise
from pofx.models.family import Family
from pofx.sample import drawing


@contextmanager
def counted(networks: list[nn.Module]) -> Iterator[list[int]]:
    """Count the calls of the networks in the block: the one-element list holds their number."""
    calls = [0]

    def count(*_) -> None:
        calls[0] += 1

    handles = [net.register_forward_pre_hook(count) for net in networks]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


class Counter(TorchDispatchMode):
    """Adds up what PyTorch's formulas say of every operation. PyTorch's own FlopCounterMode separates modules, which
    fails at gradients with respect to a network's input, and loads the compiler, which takes longer than the count."""

    def __init__(self):
        super().__init__()
        self.total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # what loads the compiler: to keep it, once it is there, from compiling what is counted

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if (formula := flop_registry.get(func.overloadpacket)) is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


def gflop(model: Family, cfg: Any, device: torch.device) -> dict[str, float]:
    """Billions of floating-point operations for one image that is drawn by `cfg`, a Sample.

    Convolutions, matrix products and attention are counted, a multiplication and an addition as two. Operations on
    single elements, such as activations, are not.

    Returns:
        sample_gflop: of drawing it, by the network and all else: gradients, guides, decoders.
        forward_gflop: of one evaluation of `model.net`, forwards, the mean over those of the draw; blank without any.
    """
    inside, calls, start = 0, 0, 0

    def enter(*_):
        nonlocal start
        start = counter.total

    def leave(*_):
        nonlocal inside, calls
        inside, calls = inside + counter.total - start, calls + 1

    handles = [model.net.register_forward_pre_hook(enter), model.net.register_forward_hook(leave)]
    try:
        # Attention by plain matrix products: the counter does not know every fused kernel.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), Counter() as counter:
            drawing.draw(model, Noise(0, 0, 1, device), cfg)
    finally:
        for handle in handles:
            handle.remove()
    total = {"sample_gflop": counter.total / 1e9}
    return total | ({"forward_gflop": inside / calls / 1e9} if calls else {})
