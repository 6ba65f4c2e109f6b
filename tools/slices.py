"""Training in slices, on a machine that one has for minutes: with PyTorch, without DVC.

    python -m tools.slices cifar10 gpu --family edm --minutes 8 --out away

composes parameters (the words are those of tools.compose), makes the data, and trains one family until the time is up.
The same command goes on from there, while runs/ is still on the machine; once training is complete it samples and
scores. Every call leaves what there is in the folder `away`: manifest.json, and run.tar in parts of at most 16 MiB.

`cat away/run.tar.* | tar x` unpacks metrics, parameters, the curve, previews, samples, and the weights in bf16. Weights
of an unfinished training are among them: `edm.train.from` starts from these, should runs/ be lost.

Making the data and one step of training are done whatever the time; the other stages are ended by it, and begin again
with the next call. The exit code is 75 where something is left to do.
"""

import argparse
import hashlib
import io
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from pofx.base import config, files, machine, provenance
from pofx.base.images import save_grid
from pofx.models import store
from pofx.train.config import settings
from pofx.train.ema import Ema
from stages import ROOT, RUNS, run
from tools import compose, weights

LEFT = 75  # the exit code of a training whose time is up, and of this tool while something is left to do
PART = 16 * 2**20  # bytes of a file to take away
TAKEN = ("params.yaml", "metrics", "plots", "weights")  # of the folder that stages work in
ALWAYS = ("check", "download", "preprocess")  # stages that no time limit ends


class Slice(NamedTuple):
    """What a call works on: one family, in a folder of its own with params.yaml and all that stages write."""

    family: str
    folder: Path
    until: float  # of time.monotonic

    @property
    def stages(self) -> list[tuple[str, ...]]:
        base, own = store.needs(self.family), self.family
        trainings = [("train", name) for name in (base, own) if name]
        return [*((name,) for name in ALWAYS), *trainings, ("sample", own), ("reference",), ("fid", own)]


def main(words: list[str], family: str, minutes: float, out: Path) -> None:
    until = time.monotonic() + 60 * minutes
    store.module(family)
    text = compose.text(words)
    part = Slice(family, RUNS / "slices" / _key(text), until)
    part.folder.mkdir(parents=True, exist_ok=True)
    (part.folder / "params.yaml").write_text(text)
    code, seconds = work(part)
    left = [" ".join(stage) for stage in part.stages if not _done(part, stage).exists()]
    if left and left[0].startswith("train ") and code >= LEFT:  # it was stopped, and has saved its state
        unfinished(part, left[0].split()[1])
    told = {"family": family, "presets": words, "left": left, "stages": seconds}
    take_away(part.folder, out, told | provenance.here(ROOT) | trained(part))
    print(f"{out}: {f'left to do: {left[0]}, the same command goes on' if left else 'complete'}", file=sys.stderr)
    sys.exit(code)


def _key(text: str) -> str:
    """Of the folder that stages work in: the parameters without the line that names their presets, and all code."""
    digest = hashlib.sha256(text.partition("\n")[2].encode())
    for path in sorted(path for room in ("src", "stages") for path in (ROOT / room).rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _done(part: Slice, words: tuple[str, ...]) -> Path:
    """The file that says that a stage has ended well."""
    return part.folder / "done" / "_".join(words)


def work(part: Slice) -> tuple[int, dict[str, float]]:
    """Run the stages that are left until the first that does not end well: its exit code, and seconds of each."""
    seconds = {}
    for words in part.stages:
        if (done := _done(part, words)).exists():
            continue
        began = time.monotonic()
        rest = max(0.0, part.until - began)
        if words[0] == "train":
            code = _run(part.folder, [*words, "--minutes", str(rest / 60)])
        elif words[0] in ALWAYS:
            code = _run(part.folder, words)
        else:
            code = _run(part.folder, words, rest) if rest else LEFT
        seconds[" ".join(words)] = round(time.monotonic() - began, 1)
        if code:
            return code, seconds
        done.parent.mkdir(exist_ok=True)
        done.touch()
    return 0, seconds


def _run(folder: Path, words: list[str] | tuple[str, ...], limit: float | None = None) -> int:
    """The exit code of a stage in `folder`; LEFT if `limit` seconds have ended it. Ctrl-C and SIGTERM reach it."""
    name, *arguments = words
    command = [sys.executable, "-m", f"stages.{name}", *arguments]
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    process = subprocess.Popen(command, cwd=folder, env=os.environ | {"PYTHONPATH": paths})
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: process.terminate())
    try:
        code = process.wait(limit)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.wait()
        return LEFT
    return code if code >= 0 else 128 - code


def unfinished(part: Slice, name: str) -> None:
    """Model, curve and previews of the training of `name` so far, from its resumable state, which was just written."""
    states = sorted((RUNS / f"train_{name}").glob("*/state.pt"), key=os.path.getmtime)
    if not states:
        return
    state = torch.load(states[-1], map_location="cpu", weights_only=True)
    where = str(part.folder / "params.yaml")
    device, data = machine.device(), np.load(part.folder / "data/train.npy", mmap_mode="r")
    train = settings(name, config.params(where))
    cfg = config.section(name, store.module(name).Config, where)
    model = store.create(name, cfg, data.shape[1:], part.folder / "models")
    start = store.start(name, model, RUNS.parent, train.from_) if train.from_ else {}
    model.load_state_dict(state["model"])
    ema = Ema(model, train.ema_half_life)
    ema.load_state_dict(state["ema"])
    ema.swap()
    seen = state["step"] * train.batch
    origin = {"images": seen + start.get("images", 0), "unfinished": f"after {seen:,} of {train.images:,} images"}
    origin |= machine.arithmetic(device, state["precision"]) | ({"start": start} if start else {})
    store.save(part.folder / "unfinished" / name, name, model, config.tree(train), origin)
    cost = {"train_seconds": round(state["seconds"], 1), "train_images_per_second": round(seen / state["seconds"], 1)}
    cost |= {"device": machine.name(device), "trained": provenance.here(ROOT) | origin}
    files.write_json(part.folder / f"metrics/time/train_{name}.json", {key: {name: v} for key, v in cost.items()})
    if rows := state["curve"]["rows"]:
        files.write_csv(part.folder / f"plots/curves/{name}.csv", rows)
    if previews := [np.load(path) for path in sorted(states[-1].parent.glob("*.npy"))]:
        save_grid(np.concatenate(previews), part.folder / f"plots/progress/{name}.png", columns=16)


def trained(part: Slice) -> dict[str, Any]:
    """Keep the weights that there are, for the folder to take away: what training them has cost."""
    for stage in reversed(part.stages):
        for kind in ("models", "unfinished"):
            if stage[0] == "train" and (part.folder / kind / stage[1] / "model.json").is_file():
                name = stage[1]
                weights.keep(part.folder / kind / name, part.folder / "weights" / name, part.folder)
                cost = files.read_json(part.folder / f"metrics/time/train_{name}.json")
                origin = cost.pop("trained")[name]
                told = {key: rows[name] for key, rows in cost.items()} | {k: origin[k] for k in ("images", "dtype")}
                return {key.removeprefix("train_"): value for key, value in told.items()}
    return {}


def take_away(folder: Path, out: Path, told: dict[str, Any]) -> None:
    """What is TAKEN of `folder` as out/run.tar.000 and so on, and the manifest: what is `told`, and these files."""
    with io.BytesIO() as whole:
        with tarfile.open(fileobj=whole, mode="w") as tar:
            for name in TAKEN:
                if (folder / name).exists():
                    tar.add(folder / name, name)
        content = whole.getvalue()
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("run.tar.*"):
        old.unlink()
    parts = {}
    for i, start in enumerate(range(0, len(content), PART)):
        with files.atomic(path := out / f"run.tar.{i:03d}") as file:
            file.write(content[start : start + PART])
        parts[path.name] = {"bytes": path.stat().st_size, "sha256": files.digest(path)}
    files.write_json(out / "manifest.json", told | {"files": parts, "unpack": "cat run.tar.* | tar x"})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tools.slices", description=__doc__.partition("\n")[0])
    parser.add_argument("words", nargs="*", help="presets and key=value, as for tools.compose")
    parser.add_argument("--family", default="edm")
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--out", type=Path, default=RUNS / "slices" / "out")
    given = parser.parse_args()
    run(main, given.words, given.family, given.minutes, given.out.resolve())
