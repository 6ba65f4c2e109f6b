"""The one training loop. What differs between families is in their loss and sampler, never here."""

import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from pofx.base import dist
from pofx.base.errors import UserError
from pofx.base.images import to_model
from pofx.base.progress import Bar
from pofx.base.rng import fold
from pofx.models.family import Family
from pofx.train.best import Best
from pofx.train.config import Train, lr_at
from pofx.train.ema import Ema
from pofx.train.pool import Pool
from pofx.train.safety import ALARM, WARNING, Guards
from pofx.train.state import Slot


class Stopped(Exception):
    """Training was asked to stop; its state is saved."""


def train(
    model: Family,
    pool: Pool,
    cfg: Train,
    seed: int,
    slot: Slot,
    stop: Callable[[], bool] = lambda: False,
    preview: Callable[[int], None] = lambda seen: None,
) -> tuple[list[dict[str, int | float]], float, list[dict[str, int | str]]]:
    """Train `model` in place and leave it with its averaged weights: the last ones or, where the pool holds images out,
    those of the row of the curve that knew these best (of the rows since a guide was kept, if the model keeps one).

    Where several processes train (pofx.base.dist), each computes its rows of every part of a batch, and all come to the
    same weights; the first alone saves, previews and speaks.

    Args:
        pool: batches as a function of the step, on the model's device, and the images held out.
        seed: of everything random in training.
        slot: where the state is saved, and resumed from if it holds one.
        stop: asked after every step; true saves and raises Stopped.
        preview: called between steps, with the averaged weights in the model and the images seen. At the end it is the
            caller's to show the model.

    Returns:
        The curve (one dict a row: images, loss, the family's terms, grad_norm, lr, and val_loss of images held out);
        the seconds of training, those of undone rows included; and what guards did, one dict an event: images at which
        it fired, its name as guard, did, and of a warning (told once) the rows in which it held.

    Raises:
        Stopped: `stop` asked for it; the state is saved.
        UserError: a gradient or loss was not finite, or an alarm of the family went off, and no roll-back was left; the
            last good state is kept.
    """
    device = next(model.parameters()).device
    if cfg.channels_last:
        model.to(memory_format=torch.channels_last)
    params = [p for p in model.parameters() if p.requires_grad]
    opt = torch.optim.Adam(params, lr=cfg.lr, betas=cfg.betas, weight_decay=cfg.weight_decay, fused=True)
    wrapped = dist.wrapped(model)
    ema, best = Ema(model, cfg.ema_half_life), Best(cfg.patience)
    parts = {"model": model, "opt": opt, "ema": ema, "best": best}
    guards = Guards(model, parts, cfg.rollbacks)
    if cfg.compile:
        model.net.compile(dynamic=False)

    steps = cfg.images // cfg.batch
    every = -(-steps // cfg.rows)
    step, curve, seconds, sums = 0, [], 0.0, {}
    if (state := slot.load(device)) is None:
        guards.keep(step)
    else:
        for key, part in (parts | {"guards": guards}).items():
            part.load_state_dict(state[key])
        step, curve, seconds, sums = (state[k] for k in ("step", "curve", "seconds", "sums"))
    where = f"from {step * cfg.batch:,} of {steps * cfg.batch:,} images" if step else "from the beginning"
    print(f"train {where} (state in {slot.folder})", file=sys.stderr)

    def save() -> None:
        now = {key: part.state_dict() for key, part in (parts | {"guards": guards}).items()}
        passed = seconds + time.monotonic() - began
        slot.save(now | {"step": step, "curve": curve, "sums": sums, "seconds": passed})

    model.train()
    began = saved = time.monotonic()
    with Bar(total=steps * cfg.batch, initial=step * cfg.batch, unit="img", unit_scale=True, desc="train") as bar:
        while step < steps and not best.over:
            torch.manual_seed(fold(seed, step))
            seen = step * cfg.batch
            for group in opt.param_groups:
                group["lr"] = lr = lr_at(cfg, seen) * guards.factor
            for i, part in enumerate(pool(step).chunk(cfg.accumulate)):
                with dist.sharing(), dist.silent(wrapped, last=i == cfg.accumulate - 1):
                    with torch.autocast(device.type, torch.bfloat16, enabled=cfg.precision == "bf16"):
                        terms = wrapped(dist.rows(part))
                    (terms["loss"].mean() / cfg.accumulate).backward()
                for key, value in terms.items():  # on the device: no sync before a row or a save
                    _add(sums, key, value.detach().float().mean() / cfg.accumulate)
            norm = clip_grad_norm_(params, cfg.clip)
            opt.step()
            opt.zero_grad(set_to_none=True)
            seen, step = seen + cfg.batch, step + 1
            ema.update(seen=seen, batch=cfg.batch)
            if model.keep_at is not None and seen - cfg.batch < model.keep_at <= seen:
                with ema.swapped():
                    model.keep()

            _add(sums, "grad_norm", norm)
            bar.update(cfg.batch)
            last = step == steps
            full = last or step % every == 0
            stopping, late = dist.most(stop(), time.monotonic() - saved > cfg.save_seconds)
            due = last or stopping or late
            if not (full or due):
                continue
            means = _means(sums, 1 + (step - 1) % every)
            fault = guards.fault(means, seen)
            if fault and not guards.left:
                kept = f"the last good state is kept in {slot.folder}" if slot.path.exists() else "nothing was saved"
                raise UserError(f"{fault[1]}; {kept}")
            if full and fault:  # seen at a save it waits for its row's end: no clock has a say in what is undone
                step = guards.roll_back(fault[0], seen, cfg.batch)
                back = step * cfg.batch
                bar.note(
                    f"guard {fault[0]!r} fired at {seen:,} images: back to {back:,} images, "
                    f"learning rate {lr_at(cfg, back) * guards.factor:.3g}, roll-backs left: {guards.left}"
                )
                bar.update(back - seen)
                curve, sums, seen = [row for row in curve if row["images"] <= back], {}, back
                last, due = False, True
            elif full:
                row = {"images": seen} | {k: v for k, v in means.items() if not k.startswith((ALARM, WARNING))}
                row["lr"] = lr
                if len(pool.held_out):
                    with ema.swapped():
                        row["val_loss"] = _validate(model, pool.held_out, cfg, seed)
                        if model.keep_at is None or seen >= model.keep_at:  # earlier weights would be without a guide
                            best.update(row["val_loss"], model)
                for line in guards.warn(means, seen):
                    bar.note(line)
                curve.append(row)
                sums = {}
                guards.keep(step)
                last, due = last or best.over, due or best.over
                bar.set_postfix(loss=f"{row['loss']:.4g}", refresh=False)
            if due:
                save()
                saved = time.monotonic()
            if stopping and not last:
                dist.barrier()  # whoever ends first would have the others ended, the one that saves among them
                raise Stopped(f"stopped at {seen:,} of {steps * cfg.batch:,} images, state saved in {slot.folder}")
            if full and not (fault or last) and cfg.preview_rows and len(curve) % cfg.preview_rows == 0:
                with ema.swapped(), torch.no_grad():
                    model.eval()
                    if dist.first():
                        preview(seen)
                    model.train()
    seconds += time.monotonic() - began
    if best.weights is None:
        ema.swap()
    else:
        model.load_state_dict(best.weights)
    model.eval()
    return curve, seconds, guards.events


@torch.no_grad()
def _validate(model: Family, images: UInt8[Tensor, "n 3 h w"], cfg: Train, seed: int) -> float:
    """Mean loss of the images, under the same noise every time; leaves the model in train mode."""
    model.eval()
    torch.manual_seed(fold(seed, "validation"))  # a step seeds by itself: nothing else is disturbed
    with torch.autocast(images.device.type, torch.bfloat16, enabled=cfg.precision == "bf16"):
        parts = [model.validate(to_model(part)).double() for part in images.split(cfg.batch)]
    model.train()
    return dist.average(torch.cat(parts).mean()).item()


def _add(sums: dict[str, Any], key: str, value: Tensor) -> None:
    sums[key] = sums[key] + value if key in sums else value


def _means(sums: dict[str, Any], steps: int) -> dict[str, float]:
    means = dist.average(torch.stack(list(sums.values())) / steps)
    return dict(zip(sums, means.tolist(), strict=True))
