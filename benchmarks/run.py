"""`make bench`: ours against other people's code and against ceilings, on this machine.

    python -m benchmarks.run [--only PATTERN ...]     all benchmarks, or those whose names match ('loop *')
    python -m benchmarks.run --list                   their names
    python -m benchmarks.run --page                   writes the tables of docs/performance.md anew, measures nothing

Sides of a benchmark run in turns within one process (benchmarks/race.py), with the same images, batch, dropout and size
of network. Ratios, not speeds, travel between machines. Every record is saved to benchmarks/results/<machine>.json as
soon as it is there; those of earlier runs stay until their benchmark runs again.
"""

import argparse
import dataclasses
import fnmatch
import functools
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import page, peers
from benchmarks.race import Race, Runner, convolution, run, seconds, short, stamp
from benchmarks.task import RESULTS, preset, slug
from pofx.base import config, files, machine
from pofx.base.errors import UserError
from pofx.base.images import to_model, to_uint8
from pofx.base.rng import Noise
from pofx.data.sprites import generate
from pofx.models import store
from pofx.models.family import Family
from pofx.sample import drawing
from pofx.sample.cost import Counter
from pofx.sample.samplers import Sample
from pofx.score import distances, extractor
from pofx.train import loop
from pofx.train.config import Train, settings
from pofx.train.pool import Pool
from pofx.train.state import Slot
from stages import ROOT, RUNS
from stages import run as guarded

IMAGES = 1280
SHAPE = (3, 32, 32)
NFE = 10
SHARE_SHAPES = [(32, 16), (64, 8)]  # width and side of maps in the default networks


@dataclasses.dataclass(frozen=True)
class Bench:
    """What benchmarks share."""

    device: torch.device
    scratch: Path

    @functools.cached_property
    def images(self) -> np.ndarray:
        return generate(IMAGES, seed=0)[0]

    @functools.cached_property
    def pool(self) -> torch.Tensor:
        return torch.from_numpy(self.images).to(self.device)

    @functools.cached_property
    def folder(self) -> Path:
        """The images as PNG files in one class folder, as ImageFolder and the pytorch-fid command want them."""
        from PIL import Image

        where = self.scratch / "png" / "all"
        where.mkdir(parents=True)
        for i, image in enumerate(self.images):
            Image.fromarray(image.transpose(1, 2, 0)).save(where / f"{i:05d}.png")
        return where.parent

    @property
    def half(self) -> bool:
        """bf16, as at the gpu scale."""
        return self.device.type == "cuda"

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.half else torch.float32


# --- models of ours


def build(name: str, cfg: Any = None) -> Family:
    """An untrained model, on untrained ones of what it needs: as fast as a trained one."""
    module, needs = store.module(name), store.needs(name)
    return module.Model(cfg or config.section(name, module.Config), SHAPE, *([build(needs)] if needs else []))


def looped(model: Family, images: torch.Tensor, train: Train, name: str) -> Callable[[], None]:
    """The training loop, from its start to its saved end."""

    def go() -> None:
        with tempfile.TemporaryDirectory() as folder, Slot(Path(folder), name, [], train.precision) as slot:
            loop.train(model, Pool(images, train.batch, 0, train.flip), train, loop.Run(0, slot))

    return go


def published(bench: Bench, batch: int, steps: int) -> tuple[Any, Train, Any]:
    """DDPM as published, at a quarter of its width; and 10 steps of DDIM."""
    cfg, train, sample = preset("ddpm", "ddpm-ho2020", "paper")
    train = dataclasses.replace(
        train, batch=batch, images=batch * steps, warmup=0, rows=1, preview_rows=0, compile=False,
        validation=0, patience=0, precision="bf16" if bench.half else "fp32",
    )  # fmt: skip
    net = dataclasses.replace(cfg.net, channels=32)
    sample = Sample(batch=sample.batch, sampler="ddim", steps=NFE, spacing="uniform", clip=True)
    return dataclasses.replace(cfg, net=net, guide=0.0), train, sample


# --- against peers


def ddpm_training(bench: Bench) -> dict[str, Any]:
    batch, steps = 16, 16
    cfg, train, _ = published(bench, batch, steps)
    model, x = build("ddpm", cfg).to(bench.device), to_model(bench.pool[:batch])
    others = {
        "diffusers": peers.runner(peers.diffusers_training, cfg.net, x, steps, bench.half),
        "denoising-diffusion-pytorch": peers.runner(peers.lucidrains_training, cfg.net, x, steps, bench.half),
    }
    what = f"DDPM's U-Net as published, {cfg.net.channels} channels, batch {batch}, dropout {cfg.net.dropout:g}"
    ours = Runner(looped(model, bench.pool, train, "ddpm"), peers.size(model))
    return run(Race(what, batch * steps, ours, others, rounds=3, counted=True, dtype=bench.dtype), bench.device)


def ddpm_sampling(bench: Bench) -> dict[str, Any]:
    n = 16
    cfg, _, sample = published(bench, n, 1)
    model = build("ddpm", cfg).to(bench.device, memory_format=torch.channels_last).eval().requires_grad_(False)

    def ours() -> None:
        with torch.no_grad(), torch.autocast(bench.device.type, torch.bfloat16, enabled=bench.half):
            to_uint8(drawing.draw(model, Noise(0, 0, n, bench.device), sample)).cpu()

    others = {
        "bare network": bare(model, ours),
        "diffusers": peers.runner(peers.diffusers_sampling, cfg.net, n, NFE, bench.device, bench.half),
        "denoising-diffusion-pytorch": peers.runner(
            peers.lucidrains_sampling, cfg.net, n, NFE, bench.device, bench.half
        ),
    }
    what = f"DDIM, {NFE} evaluations of DDPM's U-Net as published, {cfg.net.channels} channels, batch {n}"
    race = Race(what, n, Runner(ours, peers.size(model)), others, rounds=3, counted=True, dtype=bench.dtype)
    return run(race, bench.device)


def vae_training(bench: Bench) -> dict[str, Any]:
    cfg, train, _ = preset("vae", "laptop")
    batch = train.batch
    train = dataclasses.replace(
        train,
        images=IMAGES,
        rows=1,
        preview_rows=0,
        validation=0,
        patience=0,
        precision="fp32",  # as the peer's
    )
    model, parts = build("vae", cfg).to(bench.device), build("vae", cfg).to(bench.device)
    other = build("vae", cfg).to(bench.device).train()
    pythae = (parts.encoder, parts.net, cfg.latent, to_model(bench.pool), batch, bench.scratch / "pythae")
    others = {
        "pythae": peers.runner(peers.pythae_training, *pythae),
        "ImageFolder": peers.runner(peers.folder_training, other, bench.folder, batch, bench.device),
    }
    ours = Runner(looped(model, bench.pool, train, "vae"), peers.size(model))
    return run(Race(f"VAE, laptop scale, batch {batch}", IMAGES, ours, others), bench.device)


def loading(bench: Bench) -> dict[str, Any]:
    batch = 128
    batches = Pool(bench.pool, batch, 0, flip=True)

    def ours() -> None:
        for step in range(IMAGES // batch):
            batches(step)

    others = {"DataLoader": peers.runner(peers.loading, bench.folder, batch, bench.device)}
    return run(Race(f"batches of {batch}, flipped, on [-1, 1]", IMAGES, Runner(ours), others), bench.device)


def codes(bench: Bench) -> dict[str, Any]:
    n = 256  # as sample.vqprior
    model = build("vqprior").to(bench.device).eval().requires_grad_(False)
    u = torch.rand(n, 64, device=bench.device)

    @torch.no_grad()
    def ours() -> torch.Tensor:
        return model.draw(u)

    @torch.no_grad()
    def other() -> None:
        drawn = u.new_zeros(n, 0, dtype=torch.long)
        for i in range(u.shape[1]):
            rising = model.net(drawn)[:, -1].float().softmax(1).cumsum(1)
            now = (rising < u[:, i, None] * rising[:, -1:]).sum(1, keepdim=True)
            drawn = torch.cat([drawn, now], 1)

    parameters = peers.size(model.net)
    what = f"64 codes each from the transformer of vqprior, batch {n}"
    others = {"the same without a cache": Runner(other, parameters, 10.0)}
    return run(Race(what, n, Runner(ours, parameters), others, rounds=2, counted=True), bench.device)


# --- distances


def inception_features(bench: Bench) -> dict[str, Any]:
    n = 24 if bench.device.type == "cpu" else 1000
    weights = peers.inception_weights(bench.images[-16:])
    path = bench.scratch / "inception.pth"
    torch.save(weights, path)
    cfg = dataclasses.replace(
        config.section("fid", extractor.Fid), extractor="inception", inception_weights=str(path),
        inception_sha256=files.digest(path),
    )  # fmt: skip
    net = extractor.build(cfg, RUNS / "weights", RUNS.parent, bench.device)
    few = bench.scratch / "few"
    few.mkdir(exist_ok=True)
    for name in sorted(bench.folder.rglob("*.png"))[:n]:
        (few / name.name).hardlink_to(name)
    others = {"pytorch-fid": peers.runner(peers.pytorch_fid_features, few, weights, bench.device)}
    ours = Runner(lambda: net.features(bench.images[:n], cfg.batch, "bench"), peers.size(net.net))
    what = f"features of {n} images by pytorch-fid's InceptionV3, random weights"
    return run(Race(what, n, ours, others, rounds=2, counted=True), bench.device)


def frechet(bench: Bench) -> dict[str, Any]:
    n, d = 10_000, 2048
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(d, d)).astype(np.float32) / d**0.5
    x, y = (np.maximum(rng.standard_normal((n, d), np.float32) @ mix + 0.3, 0) for _ in range(2))
    statistics = np.mean(y, 0), np.cov(y, rowvar=False)
    others = {"pytorch-fid": peers.runner(peers.pytorch_fid_distance, x, statistics)}
    what = f"Frechet distance of {n:,} vectors of length {d:,} to {n:,} others; the peer has these others' moments"
    race = Race(
        what, 1, Runner(lambda: distances.frechet(x, distances.Target(y))), others, "distances", rounds=1, warm=False
    )
    return run(race, bench.device)


def fid(bench: Bench) -> dict[str, Any]:
    """Composed of the two before: the network's time grows as the number of images, and 10,000 take an hour."""
    found, n = page.read(RESULTS / f"{slug(machine.name(bench.device))}.json")["rows"], 10_000
    parts = [found.get("inception features"), found.get("frechet distance")]
    if not all(part and "pytorch-fid" in part["others"] for part in parts):
        raise UserError("it is composed of 'inception features' and 'frechet distance': run these first")
    one, two = parts
    ours = n / one["ours"]["rate"] + 1 / two["ours"]["rate"]
    forward, distance = n / one["others"]["pytorch-fid"]["rate"], 1 / two["others"]["pytorch-fid"]["rate"]
    others = {
        f"pytorch-fid, {where}": {"rate": short(1 / other), "ratio": short(other / ours), "target": 3.0}
        for where, other in (("two folders", 2 * forward + distance), ("reference cached", forward + distance))
    }
    what = f"FID of {n:,} images against a cached reference, composed of the two before"
    record = {"what": what, "unit": "FIDs/s", "ours": {"rate": short(1 / ours)}, "others": others, "absent": {}}
    return record | stamp(os.getloadavg()[0])


def lite0_features(bench: Bench) -> dict[str, Any]:
    cfg, n = config.section("fid", extractor.Fid), 100
    net = extractor.build(cfg, RUNS / "weights", RUNS.parent, bench.device)
    peer = extractor.Lite0(peers.efficientnet_lite0()).to(bench.device)

    @torch.no_grad()
    def other() -> None:
        for part in np.split(bench.images[:n], n // cfg.batch):
            peer(torch.from_numpy(part).to(bench.device))

    ours = Runner(lambda: net.features(bench.images[:n], cfg.batch, "bench"))
    others = {"efficientnet-lite-pytorch": Runner(other, None, 1.7)}
    return run(Race("features by EfficientNet-Lite0, 96x96", n, ours, others, counted=True), bench.device)


# --- against bare loops


def training(bench: Bench, name: str) -> dict[str, Any]:
    steps, device, train = 50, bench.device, settings(name).on(bench.device)
    train = dataclasses.replace(train, images=steps * train.batch, rows=1, preview_rows=0, compile=False)
    train = dataclasses.replace(train, validation=0, patience=0)
    model, plain = build(name).to(device), build(name).to(device)
    for each in (model, plain):
        each.fetch(RUNS / "weights", RUNS.parent)
    if train.channels_last:
        plain.to(memory_format=torch.channels_last)
    optimiser = torch.optim.Adam([p for p in plain.parameters() if p.requires_grad], lr=1e-5, fused=True)
    batch = to_model(bench.pool[: train.batch])

    def other() -> None:
        plain.train()
        for _ in range(steps):
            with machine.autocast(device, train.precision):
                loss = plain(batch)["loss"].mean()
            loss.backward()
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

    ours = Runner(looped(model, bench.pool, train, name), peers.size(model))
    others = {"bare steps": Runner(other, None, 0.95)}
    what = f"the training loop of {name}, {steps} steps of {train.batch}, from its start to its saved end"
    return run(Race(what, steps * train.batch, ours, others), device)


def sampling(bench: Bench, name: str, words: str = "") -> dict[str, Any]:
    n, (own, _, cfg) = 64, preset(name, *words.split())
    model = build(name, own).to(bench.device, memory_format=torch.channels_last).eval().requires_grad_(False)

    def ours() -> None:
        with torch.no_grad():
            drawing.draw(model, Noise(0, 0, n, bench.device), cfg)

    what = f"drawing {n} images from {words or name}"
    return run(Race(what, n, Runner(ours), {"bare network": bare(model, ours)}), bench.device)


def bare(model: Family, sampler: Callable[[], None]) -> Runner:
    """The calls of the network that `sampler` makes, and nothing else; of an energy-based model with the gradient with
    respect to the image."""
    inputs: list[tuple[torch.Tensor, ...]] = []
    handle = model.net.register_forward_pre_hook(lambda _, given: inputs.append(given))
    sampler()
    handle.remove()

    def run() -> None:
        for given in inputs:
            if any(x.requires_grad for x in given):
                leaf = given[0].detach().requires_grad_(True)
                torch.autograd.grad(model.net(leaf, *given[1:]).sum(), leaf)
            else:
                with torch.no_grad():
                    model.net(*given)

    return Runner(run, None, 0.9 if any(x.requires_grad for x in inputs[0]) else 0.95)


# --- against the machine's convolutions


def share(bench: Bench, name: str, precision: Literal["fp32", "bf16"]) -> dict[str, Any]:
    """FLOPs a second of training steps of a family at its default, beside those of its largest 3x3 convolutions."""
    half, steps, rounds = precision == "bf16", 3, 7
    if half and machine.precision("auto", bench.device) == "fp32":
        raise UserError(f"{machine.name(bench.device)} has no arithmetic in bf16")
    cfg, train, _ = preset(name, "laptop")
    batch = train.batch
    model = build(name, cfg).to(bench.device, memory_format=torch.channels_last).train()
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-5, fused=True)
    x = to_model(bench.pool[:batch])

    def step() -> None:
        with machine.autocast(bench.device, precision):
            loss = model(x)["loss"].mean()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    with sdpa_kernel(SDPBackend.MATH), Counter() as counter:
        step()
    dtype, cpu, load = torch.bfloat16 if half else torch.float32, bench.device.type == "cpu", os.getloadavg()[0]
    ceilings = {shape: convolution(*shape, batch, bench.device, dtype) for shape in SHARE_SHAPES}
    took: dict[Any, list[float]] = {key: [] for key in ["step", *ceilings]}
    for _ in range(rounds):
        took["step"].append(seconds(lambda: [step() for _ in range(steps)])[cpu] / steps)
        for shape, both in ceilings.items():
            took[shape].append(seconds(lambda both=both: [both() for _ in range(steps)])[cpu] / steps)
    ceiling = max(54 * w**2 * side**2 * batch / float(np.median(took[w, side])) for w, side in ceilings)
    each = float(np.median(took["step"]))
    kind = f", {torch.backends.cpu.get_cpu_capability()}" if cpu else ""
    found = {"what": f"a training step of {name}, batch {batch}, {precision}{kind}", "rate": short(batch / each)}
    found |= {"gflop": short(counter.total / batch / 1e9), "gflops": short(counter.total / each / 1e9)}
    found |= {"convolution_gflops": short(ceiling / 1e9), "share": short(counter.total / each / ceiling), "target": 0.5}
    return found | stamp(load)


# --- seconds


def start_up(bench: Bench) -> dict[str, Any]:
    """A stage that trains, told to stop after its first step: imports, images, model, step, saved state."""
    where = bench.scratch / "stage"
    (where / "data").mkdir(parents=True)
    (where / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    files.write_npy(where / "data/train.npy", np.repeat(bench.images, 16, 0)[:20_000])
    environment = os.environ | {"DVC_ROOT": str(where), "PYTHONPATH": str(ROOT), "FRESH": "1"}
    stage = ("-m", "stages.train", "ddpm", "--minutes", "0")
    record = clocked("python -m stages.train ddpm, to its first step", 2.0, stage, where, environment, 75)
    return record | {"of which import torch": clocked("", 0, ("-c", "import torch"), where, environment)["seconds"]}


def no_op(bench: Bench) -> dict[str, Any]:
    """`dvc repro` of a finished run. Asked before whether it is one: nothing is trained for a benchmark."""
    told = subprocess.run(
        [sys.executable, "-m", "dvc", "status", "--json"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if told.returncode or told.stdout.strip() != "{}":
        raise UserError("the workspace is no finished run (`dvc status`): `make repro` first")
    return clocked("dvc repro, nothing to do", 5.0, ("-m", "dvc", "repro"), ROOT, dict(os.environ))


def clocked(
    what: str, limit: float, words: tuple[str, ...], where: Path, environment: dict[str, str], code: int = 0
) -> dict[str, Any]:
    """Median of three starts of Python with these words, in seconds of the clock and of the processor."""
    load, walls, used = os.getloadavg()[0], [], []

    def go() -> None:
        done = subprocess.run(
            [sys.executable, *words], cwd=where, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode != code:
            raise UserError(f"{' '.join(words)} ended with {done.returncode}: {done.stderr.strip()[-200:]}")

    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        walls.append(seconds(go)[0])
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    found = {"what": what, "seconds": short(float(np.median(walls))), "fastest": short(min(walls))}
    return found | {"cpu seconds": short(float(np.median(used))), "target": limit} | stamp(load)


def cost(bench: Bench) -> dict[str, Any]:
    """Seconds (on a CPU those of the processor) of drawing from DDPM against images, evaluations and the batch."""
    cfg, _, sample = preset("ddpm", "laptop")
    model = build("ddpm", cfg).to(bench.device, memory_format=torch.channels_last).eval().requires_grad_(False)

    def draw(n: int, nfe: int, batch: int) -> Callable[[], None]:
        @torch.no_grad()
        def go() -> None:
            for start in range(0, n, batch):
                noise = Noise(0, start, min(n, start + batch), bench.device)
                drawing.draw(model, noise, sample.by("ddim", nfe))

        return go

    points = {
        "images": {n: draw(n, 5, 64) for n in (64, 128, 192, 256)},
        "evaluations": {k: draw(64, k, 64) for k in (5, 10, 15, 20)},
        "batch": {b: draw(256, 5, b) for b in (64, 128, 256)},
    }
    draw(64, 5, 64)()
    load, found = os.getloadavg()[0], {}
    for axis, each in points.items():
        took: dict[int, list[float]] = {size: [] for size in each}
        for _ in range(3):
            for size, go in each.items():
                took[size].append(seconds(go)[bench.device.type == "cpu"])
        found[axis] = {str(size): short(min(times)) for size, times in took.items()}  # other work only ever adds
    what = "drawing from DDPM (laptop scale): images at 5 evaluations in batches of 64; evaluations for 64 images; "
    record = {"what": what + "the batch for 256 images at 5", "curves": found} | stamp(load)
    page.plot(record, RESULTS / f"{slug(machine.name(bench.device))}-cost.png")
    return record


def benchmarks() -> dict[str, Callable[[Bench], dict[str, Any]]]:
    """Every benchmark by name; those that explain most come first."""
    found: dict[str, Callable[[Bench], dict[str, Any]]] = {
        "ddpm training": ddpm_training,
        "ddpm sampling": ddpm_sampling,
        "vae training": vae_training,
        "data": loading,
        "codes": codes,
        "inception features": inception_features,
        "frechet distance": frechet,
        "fid": fid,
        "lite0 features": lite0_features,
        "start-up": start_up,
        "no-op repro": no_op,
        "cost": cost,
    }
    for name in config.family_names():
        found[f"loop {name}"] = functools.partial(training, name=name)
        if name != "vqprior":  # calls of a network with a cache cannot be repeated as they were recorded
            found[f"sampler {name}"] = functools.partial(sampling, name=name)
    for name in ("edm", "ncsn", "ddpm", "ebm", "vae", "vqvae"):
        for precision in ("fp32", "bf16"):
            found[f"share {name} {precision}"] = functools.partial(share, name=name, precision=precision)
    for words in ("ebm-igebm", "ebm-icd"):
        found[f"sampler {words}"] = functools.partial(sampling, name="ebm", words=words)
    return found


def main(only: list[str]) -> None:
    device, known = machine.device(), benchmarks()
    chosen = [name for name in known if not only or any(fnmatch.fnmatch(name, pattern) for pattern in only)]
    if not chosen:
        raise UserError(f"no benchmark is called {' or '.join(only)}: they are {', '.join(known)}")
    path = RESULTS / f"{slug(machine.name(device))}.json"
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(device, Path(scratch))
        for name in chosen:
            print(f"\n--- {name}", file=sys.stderr, flush=True)
            try:
                record = known[name](bench)
            except UserError as error:
                print(f"{name}: not measured: {error}", flush=True)
                continue
            kept = page.read(path) | {"machine": machine.name(device), "torch": torch.__version__}
            kept["rows"] = {key: row for key in known if (row := {**kept["rows"], name: record}.get(key))}
            files.write_json(path, kept)
            print(page.line(name, record), flush=True)
    page.write(page.PAGE, RESULTS)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="PATTERN", help="names or patterns of benchmarks")
    parser.add_argument("--list", action="store_true", help="print their names")
    parser.add_argument("--page", action="store_true", help="write docs/performance.md anew from what was measured")
    arguments = parser.parse_args()
    if arguments.list:
        print("\n".join(benchmarks()))
    elif arguments.page:
        guarded(page.write, page.PAGE, RESULTS)
    else:
        guarded(main, arguments.only)
