"""The one training loop. What differs between families is in their loss and sampler, never here.

Training is a function of (seed, step): a resumed run is bitwise the undisturbed one, with the same machine, number of
threads and dtype. Others round differently from the first step on; model.json records them (machine.arithmetic).
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.nn.utils import clip_grad_norm_

from pofx.base import dist, machine
from pofx.base.errors import UserError
from pofx.base.progress import Bar
from pofx.base.rng import fold
from pofx.models.family import Family
from pofx.train.config import Train
from pofx.train.curve import Curve, Row
from pofx.train.ema import Ema
from pofx.train.optimiser import Optimiser
from pofx.train.pool import Pool
from pofx.train.safety import Event, Safety, guide_step
from pofx.train.state import Slot


@dataclass(frozen=True)
class Run:
    """One run of a training, as far as it is not settings."""

    seed: int  # of everything random in training
    slot: Slot  # where the state is saved, and resumed from if it holds one
    stop: Callable[[], bool] = lambda: False  # asked after every step; true saves and raises Stopped
    # Called with the images seen and the averaged weights in the model, at rows of the curve but not at the end.
    preview: Callable[[int], None] = lambda seen: None


class Trained(NamedTuple):
    """What a training leaves besides the model."""

    curve: list[Row]
    seconds: float  # of training, those of undone rows included
    events: list[Event]


class Stopped(Exception):
    """Training was asked to stop; its state is saved."""


def train(model: Family, pool: Pool, cfg: Train, run: Run) -> Trained:
    """Train `model` in place and leave it with its averaged weights: the last ones or, with validation images, those of
    the row of the curve with the smallest loss on them (of the rows since a guide was kept, if the model has one).

    Of several processes each computes its rows of a batch; the first alone saves, previews and prints (pofx.base.dist).

    Raises:
        Stopped: `run.stop` asked for it; the state is saved.
        UserError: a guard fired (see Safety), or these settings do not suit the model, the processes or the memory.
    """
    if cfg.batch % (cfg.accumulate * dist.world()):
        parts = f"train.accumulate x processes ({cfg.accumulate} x {dist.world()})"
        raise UserError(f"train.batch = {cfg.batch} should be a multiple of {parts}: change one of them")
    if cfg.compile and model.second_order:
        raise UserError("train.compile = true: PyTorch compiles no second derivatives, which this model takes")
    device = next(model.parameters()).device
    if cfg.channels_last:
        model.to(memory_format=torch.channels_last)
    if cfg.compile:
        model.net.compile(dynamic=False)
    params = [p for p in model.parameters() if p.requires_grad]
    optimiser, ema, curve = Optimiser(model, cfg), Ema(model, cfg.ema_half_life), Curve()
    wrapped = dist.wrapped(model)
    parts = {"model": model, "optimizer": optimiser, "ema": ema, "curve": curve}
    safety = Safety(parts, cfg, run.slot, run.seed, pool.held_out)
    state = parts | {"safety": safety}
    step, total, guide_at = run.slot.resume(state, device), cfg.steps * cfg.batch, guide_step(model, cfg)
    where = f"from {step * cfg.batch:,} of {total:,} images" if step else "from the beginning"
    print(f"train {where} (state in {run.slot.folder})", file=sys.stderr)

    model.train()
    with Bar(total=total, initial=step * cfg.batch, unit="img", unit_scale=True, desc="train") as bar:
        while step < cfg.steps and not safety.stops_early:
            torch.manual_seed(fold(run.seed, step))
            for i, part in enumerate(pool(step).chunk(cfg.accumulate)):
                with dist.sharing(), dist.silent(wrapped, last=i == cfg.accumulate - 1):
                    with machine.autocast(device, cfg.precision):
                        terms = wrapped(dist.rows(part))
                    (terms["loss"].mean() / cfg.accumulate).backward()
                curve.add(terms, cfg.accumulate)
            curve.add({"grad_norm": clip_grad_norm_(params, cfg.clip)})
            optimiser.step(safety.rate(step))
            step += 1
            ema.update(seen=step * cfg.batch, batch=cfg.batch)
            if step == guide_at:
                with ema.swapped():
                    model.keep()

            bar.update(cfg.batch)
            safety.check_memory()
            stopping, late = dist.most(run.stop(), run.slot.age > cfg.save_seconds)
            if not (stopping or late or cfg.ends_row(step)):
                continue
            before, step = step, safety.ask(step)
            done = step == cfg.steps or safety.stops_early
            if curve.rows:
                bar.set_postfix(loss=f"{curve.rows[-1]['loss']:.4g}", refresh=False)
            bar.update(step * cfg.batch - bar.n)
            if stopping or late or done or step < before:
                run.slot.keep(state, step)
            if stopping and not done:
                dist.barrier()  # whoever ends first would have the others ended, the one that saves among them
                raise Stopped(f"stopped at {step * cfg.batch:,} of {total:,} images, state saved in {run.slot.folder}")
            if cfg.shows(step) and not done and step == before:
                with ema.swapped(), torch.no_grad():
                    model.eval()
                    if dist.first():
                        run.preview(step * cfg.batch)
                    model.train()
    safety.finish()
    model.eval()
    return Trained(curve.rows, run.slot.seconds, safety.events)
