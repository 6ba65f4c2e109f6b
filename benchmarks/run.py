"""`make bench`: ours against a ceiling or a peer, interleaved in one process, on this machine.

- train: the training loop against bare steps (forward, backward, Adam) of the same model on one fixed batch;
- sample: the family's sampler against as many bare calls of its network as it makes (of an energy-based model, also of
  presets: forward and the gradient with respect to the image);
- features: the folded extractor against the package's own forward.
Writes benchmarks/results/<machine>.json and prints a table. Ratios, not absolute speeds, travel between machines.
"""

import dataclasses
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from ruamel.yaml import YAML

from pofx.core import config, family, files, loop, machine
from pofx.core.data import Pool
from pofx.core.images import to_model
from pofx.core.rng import Noise
from pofx.core.state import Slot
from pofx.data.sprites import generate
from pofx.eval import extractor
from stages import ROOT, RUNS, run
from tools import compose

ROUNDS = 5


def ratio(ours: Callable[[], None], other: Callable[[], None], images: int) -> dict[str, float]:
    """Images/s of both and the ratio ours/other: median of interleaved rounds after one to warm up."""
    seconds = {ours: [], other: []}
    for k in range(ROUNDS + 1):
        for what in (ours, other):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            began = time.perf_counter()
            what()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if k:
                seconds[what].append(time.perf_counter() - began)
    pairs = sorted(b / a for a, b in zip(seconds[ours], seconds[other], strict=True))
    return {
        "ours images/s": round(images / float(np.median(seconds[ours])), 1),
        "other images/s": round(images / float(np.median(seconds[other])), 1),
        "ratio": round(pairs[ROUNDS // 2], 3),
        "ratio min": round(pairs[0], 3),
        "ratio max": round(pairs[-1], 3),
    }


def build(name: str, cfg: Any = None) -> family.Family:
    """An untrained model, on untrained ones of what it needs: as fast as a trained one."""
    module = family.module(name)
    base = [build(module.Model.needs)] if module.Model.needs else []
    return module.Model(cfg or config.section(name, module.Config), *base)


def training(name: str, images: torch.Tensor, device: torch.device) -> dict[str, float]:
    cfg = config.section(name, family.module(name).Config)
    steps = 10
    train = dataclasses.replace(cfg.train, images=steps * cfg.train.batch, rows=1, preview_rows=0, compile=False)
    model, bare = build(name).to(device), build(name).to(device)
    for each in (model, bare):
        each.fetch(RUNS / "weights", RUNS.parent)
    if train.channels_last:
        bare.to(memory_format=torch.channels_last)
    optimiser = torch.optim.Adam([p for p in bare.parameters() if p.requires_grad], lr=1e-5, fused=True)
    batch = to_model(images[: train.batch])

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder, Slot(Path(folder), name, []) as slot:
            loop.train(model, Pool(images, train.batch, 0, train.flip), train, 0, slot)

    def other() -> None:
        bare.train()
        for _ in range(steps):
            with torch.autocast(device.type, torch.bfloat16, enabled=train.precision == "bf16"):
                loss = bare(batch)["loss"].mean()
            loss.backward()
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

    return ratio(ours, other, steps * train.batch)


def sampling(name: str, device: torch.device, preset: str = "") -> dict[str, float]:
    module = family.module(name)
    own, cfg = config.section(name, module.Config), config.section(f"sample.{name}", module.Sample)
    if preset:
        tree = YAML(typ="safe").load(compose.text([preset]))
        own = config.build(module.Config, tree[name], name)
        cfg = config.build(module.Sample, tree["sample"][name], f"sample.{name}")
    model = build(name, own).to(device, memory_format=torch.channels_last).eval()
    inputs: list[tuple[torch.Tensor, ...]] = []
    handle = model.net.register_forward_pre_hook(lambda _, given: inputs.append(given))
    with torch.no_grad():
        model.sample(Noise(0, 0, 64, device), cfg)
    handle.remove()

    def other() -> None:
        for given in inputs:
            if any(x.requires_grad for x in given):  # a chain needs the gradient with respect to the image
                leaf = given[0].detach().requires_grad_(True)
                torch.autograd.grad(model.net(leaf, *given[1:]).sum(), leaf)
            else:
                with torch.no_grad():
                    model.net(*given)

    def ours() -> None:
        with torch.no_grad():
            model.sample(Noise(0, 0, 64, device), cfg)

    for p in model.parameters():
        p.requires_grad_(False)
    return ratio(ours, other, 64)


def features(images: np.ndarray, device: torch.device) -> dict[str, float]:
    cfg = config.section("fid", extractor.Fid)
    net = extractor.build(cfg, RUNS / "weights", RUNS.parent, device)
    peer = extractor.package_forward(device)

    def other() -> None:
        for part in np.split(images, len(images) // cfg.batch):
            peer(torch.from_numpy(part).to(device))

    return ratio(lambda: net.features(images, cfg.batch, "bench"), other, len(images))


def main() -> None:
    device = machine.device()
    images = generate(1000, seed=0)[0]
    pool = torch.from_numpy(images).to(device)
    rows = {"features": features(images[:100], device)}
    for name in config.family_names():
        rows[f"train {name}"] = training(name, pool, device)
        if name != "vqprior":  # calls of a network with a cache cannot be repeated as they were recorded
            rows[f"sample {name}"] = sampling(name, device)
    for preset in ("ebm=igebm", "ebm=icd"):
        rows[f"sample {preset}"] = sampling("ebm", device, preset)
    called = machine.name(device)
    table = pd.DataFrame(rows).T
    print(f"\n{called}, torch {torch.__version__}, median of {ROUNDS} interleaved rounds\n\n{table.to_markdown()}")
    slug = re.sub(r"[^a-z0-9]+", "-", called.lower()).strip("-")
    files.write_json(
        ROOT / f"benchmarks/results/{slug}.json", {"machine": called, "torch": torch.__version__, "rows": rows}
    )


if __name__ == "__main__":
    sys.exit(run(main))
