"""Ours and others, timed in turns within one process; and what the machine could do at best."""

import datetime
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

SIDE = 2048  # of the matrices whose product is the ceiling


@dataclass(frozen=True)
class Runner:
    """One side of a race."""

    run: Callable[[], Any]
    parameters: int | None = None  # of its network
    target: float | None = None  # how many times as fast ours should be
    note: str = ""  # what differs from ours
    workers: bool = False  # whether processes of its own do part of the work


@dataclass(frozen=True)
class Race:
    """Ours against others. An entry that is a string says why that one does not run."""

    what: str  # the task, with its sizes
    items: float  # what one run of a side gets through
    ours: Runner
    others: dict[str, Runner | str]
    unit: str = "images"
    rounds: int = 5
    warm: bool = True  # a round before the first one that is timed
    counted: bool = False  # FLOPs, and with them the share of the ceiling
    dtype: torch.dtype = torch.float32  # of the ceiling's matrices


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(what: Callable[[], Any]) -> tuple[float, float]:
    """Of the clock, and of the processor within this process (all threads)."""
    synchronise()
    began, used = time.perf_counter(), time.process_time()
    what()
    synchronise()
    return time.perf_counter() - began, time.process_time() - used


def ceiling(device: torch.device, dtype: torch.dtype) -> Callable[[], None]:
    """A product of two square matrices, 2 SIDE^3 operations: as fast as anything runs here."""
    a, b = (torch.randn(SIDE, SIDE, device=device, dtype=dtype) for _ in range(2))

    def product() -> None:
        a @ b

    return product


def convolution(width: int, side: int, batch: int, device: torch.device, dtype: torch.dtype) -> Callable[[], None]:
    """A 3x3 convolution as networks have it, channels last, forwards and backwards: 6 x 9 width^2 side^2 operations an
    image."""
    layer = torch.nn.Conv2d(width, width, 3, padding=1, bias=False, device=device, dtype=dtype)
    x = torch.randn(batch, width, side, side, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    layer, x = layer.to(memory_format=torch.channels_last), x.requires_grad_()
    slope = torch.ones_like(layer(x))

    def both() -> None:
        layer(x).backward(slope)

    return both


def run(race: Race, device: torch.device) -> dict[str, Any]:
    """The record of a race: a round to warm up, in which FLOPs are counted, then `race.rounds` timed ones.

    All sides run once in every round, one after the other, in the opposite order in every second one. A ratio is the
    median of the rounds' own ratios, ours over the other's, with the smallest and the largest beside it: other work on
    the machine slows both sides of a round. On a CPU the ratio of processor seconds stands beside it, which other work
    disturbs far less; the share of the ceiling is one of processor seconds as well.
    """
    sides = {"ours": race.ours} | {name: other for name, other in race.others.items() if isinstance(other, Runner)}
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    product, alone = ceiling(device, race.dtype), []
    flops: dict[str, int] = {}
    load, cpu = os.getloadavg()[0], device.type == "cpu"
    for name, side in sides.items() if race.warm else ():
        with FlopCounterMode(display=False) if race.counted else nullcontext() as counter:
            side.run()
        if race.counted:
            flops[name] = counter.get_total_flops()
    for k in range(race.rounds):
        order = list(sides) if k % 2 == 0 else list(sides)[::-1]
        for name in order:
            took[name].append(seconds(sides[name].run))
        if race.counted:
            alone += [seconds(product)[cpu] for _ in range(3)]

    def ratios(name: str, clock: int) -> list[float]:
        return sorted(b[clock] / a[clock] for a, b in zip(took["ours"], took[name], strict=True))

    def row(name: str) -> dict[str, Any]:
        side = sides[name]
        wall, used = np.median(took[name], axis=0).tolist()
        found: dict[str, Any] = {"rate": short(race.items / wall)}
        if side.parameters:
            found["parameters"] = side.parameters
        if side.note:
            found["note"] = side.note
        if race.counted:
            rate = 2 * SIDE**3 / float(np.median(alone))
            found |= {"gflop": short(flops[name] / race.items / 1e9)}
            found |= {"ceiling": short(flops[name] / (used if cpu else wall) / rate)}
        if name != "ours":
            whole = ratios(name, 0)
            found |= {"ratio": short(float(np.median(whole))), "min": short(whole[0]), "max": short(whole[-1])}
            if cpu and not side.workers:
                found["cpu ratio"] = short(float(np.median(ratios(name, 1))))
            found["target"] = side.target
        return found

    record = {"what": race.what, "unit": f"{race.unit}/s", "rounds": race.rounds, "ours": row("ours")}
    record["others"] = {name: row(name) for name in sides if name != "ours"}
    record["absent"] = {name: other for name, other in race.others.items() if isinstance(other, str)}
    if race.counted:
        record["matmul_gflops"] = short(2 * SIDE**3 / float(np.median(alone)) / 1e9)
    return record | stamp(load)


def stamp(load: float) -> dict[str, Any]:
    """When a record was made, and how busy the machine was before and after (mean number of running processes)."""
    return {"date": datetime.date.today().isoformat(), "load": [round(load, 1), round(os.getloadavg()[0], 1)]}


def short(number: float) -> float:
    """To four digits."""
    return float(f"{number:.4g}")
