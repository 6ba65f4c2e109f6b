"""Train one family: data/train.npy -> models/<family>/, its curve, its cost.

The run's state is kept in runs/: a killed run goes on where it stopped when the same command is given again, FRESH=1
starts over. With --minutes the run saves and exits 75 when its time is up, and writes no output. NPROC=2 trains in two
processes (see stages.processes).
"""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from stages import FRESH, ROOT, RUNS, processes
from pofx.base import config, dist, files, images, machine, provenance, rng
from pofx.models import store
from pofx.train import loop, pool, state
from pofx.train.config import settings


def main(name: str, minutes: float | None) -> None:
    cfg, asked, seed = config.section(name, store.module(name).Config), settings(name), config.value("seed", int)
    device, stop, data = machine.device(), machine.StopRequest(minutes), Path("data/train.npy")
    train = asked.on(device)
    batches = pool.Pool(torch.from_numpy(np.load(data)).to(device), train.batch, seed, train.flip, train.validation)
    torch.manual_seed(rng.fold(seed, "init"))
    model = store.create(name, cfg, tuple(batches.images.shape[1:]), Path("models")).to(device)
    start = store.start(name, model, RUNS.parent, train.from_) if train.from_ else {}
    with dist.in_turn():
        model.fetch(RUNS / "weights", RUNS.parent)
    noted = model.prepare(batches.images, train.batch // train.accumulate)
    origin = {"seed": seed, "data": files.digest(data), "code": provenance.code_hash()}
    base = store.needs(name) and files.digest(Path(f"models/{store.needs(name)}/model.safetensors"))
    key = [asdict(cfg), train.deciding(), origin, base, start.get("sha256")]
    with state.Slot(RUNS, f"train_{name}", key, train.precision, fresh=FRESH) as slot:
        if asked.precision == "auto" and not FRESH:
            slot.refuse_other_precision(name)

        def preview(seen: int) -> None:
            drawn = model.preview(rng.Noise(rng.fold(seed, "sample", name), 0, 16, device))
            files.write_npy(slot.folder / f"{seen:012d}.npy", images.to_uint8(drawn).cpu().numpy())

        try:
            curve, seconds, events = loop.train(model, batches, train, loop.Run(seed, slot, stop, preview))
        except loop.Stopped as stopped:
            print(f"{stopped}: the same command goes on from there", file=sys.stderr)
            sys.exit(*dist.most(stop.code))
        if not dist.first():
            return
        seen = curve[-1]["images"]
        with torch.no_grad():
            torch.manual_seed(rng.fold(seed, "finish"))
            model.finish(batches.images)
            preview(seen)
        # A row that a roll-back undid, and that early stopping never reached again, may have left a later preview.
        previews = [np.load(path) for path in sorted(slot.folder.glob("*.npy")) if int(path.stem) <= seen]
    total = seen + start.get("images", 0)
    origin |= machine.arithmetic(device, train.precision) | {"images": total} | ({"start": start} if start else {})
    store.save(Path(f"models/{name}"), name, model, config.tree(asked), origin)
    files.write_csv(Path(f"plots/curves/{name}.csv"), curve)
    images.save_grid(np.concatenate(previews), Path(f"plots/progress/{name}.png"), columns=16)
    size = sum(p.numel() for key, p in model.named_parameters() if not key.startswith("guide."))
    losses = {"train_loss": curve[-1]["loss"], "parameters": size, "images_seen": total, "guards": events} | noted
    losses |= {"start_images": start["images"]} if start else {}
    files.write_json(Path(f"metrics/train/{name}.json"), {key: {name: value} for key, value in losses.items()})
    cost = {"train_seconds": round(seconds, 1), "train_images_per_second": round(seen / seconds, 1)}
    cost |= {"train_peak_mib": round(machine.peak_mib(device), 1), "device": machine.name(device)}
    cost |= {"trained": provenance.here(ROOT) | origin}
    files.write_json(Path(f"metrics/time/train_{name}.json"), {key: {name: value} for key, value in cost.items()})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("family", choices=config.family_names())
    parser.add_argument("--minutes", type=float)
    arguments = parser.parse_args()
    mend = f"raise accumulate, or lower batch, under {arguments.family}.train"
    processes.run(main, arguments.family, arguments.minutes, memory=mend)
