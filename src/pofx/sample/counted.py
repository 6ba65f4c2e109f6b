"""Counting evaluations of networks."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


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
