"""Several processes that train one model: which of them this is, and what they send each other.

Each holds the whole model and computes its rows of every batch; the gradients are averaged. Each draws the random
numbers of the whole batch, from the same seed, and takes its rows (pofx.base.rng). What a family measures of a batch
goes through `mean`, `total` or `gather` here. So the number of processes decides nothing but the time. All that holds
within `sharing`, the step of training: elsewhere every process computes as if there were no other.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as td
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

WAIT = timedelta(hours=2)  # for each other, while the first writes a state or draws a preview

_parts, _rank = 1, 0  # plain numbers: what asks for them may be compiled


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def world() -> int:
    """How many processes there are, by torchrun's variables."""
    return int(os.environ.get("WORLD_SIZE", 1))


def first() -> bool:
    """Whether this is the process that writes and draws previews."""
    return rank() == 0


@contextmanager
def joined() -> Iterator[None]:
    """Within the block the processes reach each other: a tensor on the CPU travels by gloo, one on a GPU by NCCL."""
    if world() > 1:
        td.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=WAIT)
    yield
    if world() > 1:  # after an error nothing: it would wait for the others
        td.destroy_process_group()


def barrier() -> None:
    """Wait until every process is here."""
    most(0)


@contextmanager
def in_turn() -> Iterator[None]:
    """The block is the first process's before it is the others': it may leave files for them."""
    if not first():
        barrier()
    yield
    if first():
        barrier()


@contextmanager
def sharing() -> Iterator[None]:
    """Within the block a batch belongs to all processes, and each computes its rows of it."""
    global _parts, _rank
    _parts, _rank = world(), rank()
    try:
        yield
    finally:
        _parts = 1


def parts() -> int:
    """How many processes share a batch at this moment; 1 outside `sharing`."""
    return _parts


def rows(x: Tensor, dim: int = 0) -> Tensor:
    """This process's rows of what belongs to the whole batch, along `dim`."""
    return x if parts() == 1 else x.chunk(parts(), dim)[_rank]


def gather(x: Tensor) -> Tensor:
    """The whole batch, of which this process has the rows x; no gradient passes."""
    if parts() == 1:
        return x
    found = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world())]
    td.all_gather(found, x.detach().contiguous())
    return torch.cat(found)


def total(x: Tensor) -> Tensor:
    """The sum over processes; no gradient passes."""
    if parts() == 1:
        return x
    x = x.detach().clone(memory_format=torch.contiguous_format)
    td.all_reduce(x)
    return x


def mean(x: Tensor) -> Tensor:
    """The mean of the whole batch, of which this process has the rows x: (b, ...) -> (...).

    Its gradient is that of the own rows: averaged over processes, as gradients are, it is that of the mean.
    """
    own = x.mean(0)
    return own if parts() == 1 else total(own) / world() + (own - own.detach())


def average(x: Tensor) -> Tensor:
    """The mean over processes of what each has computed outside `sharing`."""
    with sharing():
        return total(x) / world()


def most(*numbers: int) -> tuple[int, ...]:
    """Of each number the largest that any process gives. On the CPU: no GPU is waited for."""
    if world() == 1:
        return numbers
    shared = torch.tensor(numbers)
    td.all_reduce(shared, td.ReduceOp.MAX)
    return tuple(shared.tolist())


def assembled(array: np.ndarray) -> np.ndarray:
    """One array from those of all processes, in each of which the others' entries are zero; all get it."""
    if world() > 1:
        td.all_reduce(torch.from_numpy(array))
    return array


def wrapped(model: nn.Module) -> nn.Module:
    """What to call in place of the model: averages gradients over processes, while the backward pass still runs."""
    if world() == 1:
        return model
    return DistributedDataParallel(model, forward_sync_buffers=False, gradient_as_bucket_view=True)


def silent(model: nn.Module, last: bool) -> AbstractContextManager:
    """Around all parts of a batch but its last: gradients are added up, and not yet averaged."""
    return nullcontext() if last or world() == 1 else model.no_sync()
