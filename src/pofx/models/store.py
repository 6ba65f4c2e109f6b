"""Models by name and in folders: built, saved and loaded.

A folder holds model.safetensors, the weights, and model.json, the card: format number, family, resolved config,
training settings, shape of an image, provenance. A key that an older card lacks takes today's default. MOVED says where
its other keys are now, BEFORE which keys take another value than today's default.
"""

import dataclasses
import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pofx.base import config, files, machine
from pofx.base.errors import UserError
from pofx.models.family import Family, Shape

# 1: `train` within the config, images of 3x32x32, no format number; 2: data were taken to have mean 0 and a sigma_data
FORMAT = 3
# family -> section of today -> its keys, which in format 1 were beside it
MOVED = {
    "ebm": {
        "contrast": ["alpha", "data_noise", "buffer", "fresh", "augment", "step_size", "noise", "grad_clip", "kl",
                     "entropy", "energy_limit"],
        "recovery": ["sigma_min", "sigma_max", "levels", "sigma_data", "log_mean", "log_std", "step"],
    }
}  # fmt: skip
MEASURED = ("mean", "sigma_data")  # buffers of models/moments.py, which formats 1 and 2 lack
ASSUMED = {"ncsn": 0.5, "ddpm": 1.0, "edm": 0.5, "ebm": 0.5}  # family -> sigma_data of formats 1 and 2
BEFORE = {"vqvae": {"arch": "conv"}}  # family -> keys that came later, as models were before there was a choice


def module(name: str) -> ModuleType:
    """The module of the family `name`, with Config and Model."""
    if name not in config.family_names():
        raise UserError(f"no family is called {name!r}: the families are {', '.join(config.family_names())}")
    return importlib.import_module(config.family_module(name))


def needs(name: str) -> str | None:
    """The family whose trained model `name` is built on: `NEEDS` of its module."""
    return getattr(module(name), "NEEDS", None)


def create(name: str, cfg: Any, shape: Shape, models: Path) -> Family:
    """A model to be trained; what it needs is loaded from the folder `models`."""
    base = needs(name)
    return module(name).Model(cfg, shape, *([load(models / base)] if base else []))


def start(name: str, model: Family, root: Path, folder: str) -> dict[str, Any]:
    """Give `model`, of the family `name`, the weights that are kept in `folder`, a path from `root` on.

    An inexact start: neither the optimiser's state nor the order of the images goes on. A guide is made anew.

    Returns:
        Where it started, for the card: "from", "sha256" of the weights, "images" that they have seen.

    Raises:
        UserError: there is no model in the folder, or it is another than `model`.
    """
    path, key = Path(root) / folder, f"{name}.train.from = {folder}"
    if not (path / "model.json").is_file():
        raise UserError(f"{key}: there is no model.json in {path}: give a folder that tools.weights has written")
    have = card(path)
    if needs(name):
        raise UserError(f"{key}: {name} rests on the codes of {needs(name)}: start that one from kept weights")
    if "images" not in have["provenance"]:
        raise UserError(f"{key}: its card does not say how many images it has seen: keep weights of a new training")
    kept = load(path)
    ours = _settings(have["family"], have["shape"], kept.cfg), _settings(name, model.shape, model.cfg)
    for setting in ours[0] | ours[1]:
        theirs, asked = (tree.get(setting) for tree in ours)
        if theirs != asked and not setting.endswith(".guide"):
            raise UserError(f"{key} has {setting} = {theirs}, and here it is {asked}: make them agree, or leave it out")
    tensors = {k: v for k, v in kept.state_dict().items() if not k.startswith("guide.")}
    model.load_state_dict(model.state_dict() | tensors)
    return {
        "from": folder,
        "sha256": files.digest(path / "model.safetensors"),
        "images": have["provenance"]["images"],
        "note": "an inexact start: the weights alone, without the state of the optimiser",
    }


def _settings(name: str, shape: Shape, cfg: Any) -> dict[str, Any]:
    """What kept weights and a model have to agree in, by dotted key."""

    def flat(tree: dict[str, Any], where: str) -> dict[str, Any]:
        out = {}
        for key, value in tree.items():
            out |= flat(value, f"{where}{key}.") if isinstance(value, dict) else {f"{where}{key}": value}
        return out

    return {"family": name, "shape of images": tuple(shape)} | flat(dataclasses.asdict(cfg), f"{name}.")


def save(folder: Path, name: str, model: Family, train: dict[str, Any], provenance: dict[str, Any]) -> None:
    """Write all that sampling needs into `folder`: `provenance` says what data, code and machine it comes from."""
    card = {
        "format": FORMAT,
        "family": name,
        "config": dataclasses.asdict(model.cfg),
        "train": train,
        "shape": model.shape,
        "provenance": provenance,
    }
    if base := needs(name):
        card["base"] = {"family": base, "config": dataclasses.asdict(model.base.cfg)}
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    with files.atomic(Path(folder) / "model.safetensors") as file:
        save_file(tensors, file.name)
    files.write_json(Path(folder) / "model.json", card)


def card(folder: Path) -> dict[str, Any]:
    """The card of the model in `folder`, in today's format; "written" is the format of the file.

    Raises:
        UserError: it was written by a newer version.
    """
    read = files.read_json(Path(folder) / "model.json")
    written = read.get("format", 1)
    if written > FORMAT:
        raise UserError(f"{folder}/model.json has format {written}, newer than {FORMAT}: update the project")
    if written == 1:
        read |= {"train": read["config"].pop("train"), "shape": (3, 32, 32)}
        for section, keys in MOVED.get(read["family"], {}).items():
            read["config"][section] = {key: read["config"].pop(key) for key in keys if key in read["config"]}
        if "base" in read:
            read["base"]["config"].pop("train")
    if written < 3 and read["family"] in ASSUMED:
        config = read["config"]["recovery"] if read["family"] == "ebm" else read["config"]
        config["centre"] = False
        config.setdefault("sigma_data", ASSUMED[read["family"]])
    read |= {"format": FORMAT, "written": written}
    for part in filter(None, (read, read.get("base"))):
        part["config"] = BEFORE.get(part["family"], {}) | part["config"]
    return read | {"shape": tuple(read["shape"])}


def load(folder: Path, device: torch.device | str = "cpu") -> Family:
    """The model in `folder`, on `device`, in eval mode; a precision that was left to the machine is that of `device`,
    whatever it was trained in."""
    model, tensors = _build(folder, torch.device(device)), load_file(Path(folder) / "model.safetensors")
    if card(folder)["written"] < 3:
        tensors = _measured(model.state_dict()) | tensors
    model.load_state_dict(tensors)
    return model


def untrained(folder: Path, seed: int, device: torch.device | str = "cpu") -> Family:
    """A model like that in `folder`, on `device`, in eval mode, with random initial weights (its base's too). It knows
    of its data what the trained one was told before training."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = _build(folder, torch.device(device))
    model.load_state_dict(_measured(load_file(Path(folder) / "model.safetensors")), strict=False)
    return model


def _measured(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensors[key] for key in MEASURED if key in tensors}


def _build(folder: Path, device: torch.device) -> Family:
    have = card(folder)

    def build(part: dict[str, Any], *base: Family) -> Family:
        family = module(part["family"])
        cfg = config.build(family.Config, part["config"], f"{folder}/model.json")
        return family.Model(cfg, have["shape"], *base)

    model = build(have, *([build(have["base"])] if "base" in have else []))
    model.precision = machine.precision(have["train"]["precision"], device)
    if have["train"]["channels_last"]:
        model.to(memory_format=torch.channels_last)
    return model.eval().to(device)
