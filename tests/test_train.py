"""The stage that trains: what it hands to the loop, what a state belongs to, what it writes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pofx.base import config, files, machine
from pofx.base.errors import UserError
from pofx.data.sprites import generate
from pofx.models import edm, store
from pofx.train import loop
from stages import train as stage

TINY = {"net": {"channels": 8, "attention": [], "patch": 4}}
BUDGET = {"images": 32, "batch": 8, "rows": 2, "preview_rows": 1, "warmup": 0, "precision": "fp32"}


@pytest.fixture
def images(tmp_path, monkeypatch):
    """(64, 3, 32, 32), as the training data of a repository in the current folder."""
    images = generate(64, seed=7)[0]
    files.write_npy(tmp_path / "data/train.npy", images)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stage, "RUNS", tmp_path / "runs")
    yield images
    config.params.cache_clear()


def run(section: dict, **train) -> None:
    """The stage, with the family's section and the shared block as given."""
    Path("params.yaml").write_text(json.dumps({"seed": 0, "train": BUDGET | train, "edm": section}))
    config.params.cache_clear()
    stage.main("edm", None)


def slots() -> list[Path]:
    return list(Path("runs/train_edm").iterdir())


def test_a_family_sees_the_training_images_without_the_validation_part(images, monkeypatch):
    seen = {}
    monkeypatch.setattr(edm.Model, "prepare", lambda self, x, batch: seen.update(prepare=x, batch=batch) or {})
    monkeypatch.setattr(edm.Model, "finish", lambda self, x: seen.update(finish=x))
    run(TINY, validation=24, accumulate=2)
    for hook in ("prepare", "finish"):
        np.testing.assert_array_equal(seen[hook].numpy(), images[:40])
    assert seen["batch"] == 4, "images of a part of a batch"


def test_the_card_says_what_bitwise_weights_depend_on(images):
    run(TINY)
    card = files.read_json(Path("models/edm/model.json"))
    assert card["format"] == store.FORMAT and card["shape"] == [3, 32, 32] and card["train"]["images"] == 32
    assert card["config"]["net"]["channels"] == 8 and "train" not in card["config"]
    want = {"seed": 0, "device": "cpu", "threads": torch.get_num_threads(), "processes": 1, "dtype": "float32"}
    want |= {"instructions": torch.backends.cpu.get_cpu_capability(), "data": files.digest(Path("data/train.npy"))}
    assert {key: card["provenance"][key] for key in want} == want and card["provenance"]["code"]


def test_a_state_belongs_to_the_resolved_parameters(images):
    """However params.yaml spells them: with defaults written out, and in whichever block."""
    run(TINY)
    run(TINY | {"log_mean": edm.Config().log_mean, "train": {"clip": 1000.0}}, save_seconds=5.0)
    assert len(slots()) == 1
    run(TINY | {"log_mean": -1.0})
    run(TINY, clip=1.0)
    assert len(slots()) == 3


@pytest.fixture
def on(monkeypatch):
    """To be called with what `auto` is on this machine from now on."""
    real = machine.precision

    def now(auto: str) -> None:
        monkeypatch.setattr(machine, "precision", lambda asked, at: auto if asked == "auto" else real(asked, at))

    return now


@pytest.mark.parametrize(("auto", "dtype"), [("fp32", "float32"), ("bf16", "bfloat16")])
def test_card_and_state_say_what_auto_was(images, on, auto, dtype):
    on(auto)
    run(TINY, precision="auto")
    card = files.read_json(Path("models/edm/model.json"))
    assert card["provenance"]["dtype"] == dtype and card["train"]["precision"] == "auto"
    (folder,) = slots()
    assert torch.load(folder / "state.pt")["precision"] == auto
    for other in ("fp32", "bf16"):  # and where it is used, auto is what that machine has
        on(other)
        assert store.load(Path("models/edm")).precision == other


def test_a_state_is_not_gone_on_with_in_another_precision_unasked(images, on, monkeypatch):
    on("bf16")
    run(TINY, precision="auto")
    made = files.digest(Path("models/edm/model.safetensors"))
    on("fp32")
    with pytest.raises(UserError) as error:
        run(TINY, precision="auto")
    told = "trained in bf16, and precision auto is fp32 on this machine: set edm.train.precision=bf16 to go on with it"
    assert told in str(error.value) and "\n" not in str(error.value)
    monkeypatch.setattr(loop, "clip_grad_norm_", lambda *_: pytest.fail("trained a step"))
    run(TINY, precision="bf16")
    assert files.digest(Path("models/edm/model.safetensors")) == made, "which is what it says"


@pytest.mark.parametrize("way", ["by name", "FRESH"])
def test_another_precision_that_is_asked_for_is_a_fresh_start(images, on, monkeypatch, capsys, way):
    on("bf16")
    run(TINY, precision="auto")
    on("fp32")
    monkeypatch.setattr(stage, "FRESH", way == "FRESH")
    run(TINY, precision="auto" if way == "FRESH" else "fp32")
    assert capsys.readouterr().err.count("train from the beginning") == 2 and len(slots()) == 2
    monkeypatch.setattr(stage, "FRESH", False)
    run(TINY, precision="auto")  # now this machine has a state of its own
    assert len(slots()) == 2


def test_starting_over_leaves_no_preview_of_an_earlier_run(images, monkeypatch):
    run(TINY)
    (folder,) = slots()
    assert sorted(path.stem for path in folder.glob("*.npy")) == ["000000000016", "000000000032"]
    files.write_npy(folder / "000000000008.npy", np.zeros((16, 3, 32, 32), np.uint8))
    monkeypatch.setattr(stage, "FRESH", True)
    run(TINY)
    assert sorted(path.stem for path in folder.glob("*.npy")) == ["000000000016", "000000000032"]


def test_more_memory_than_the_bound_ends_a_training(images, monkeypatch):
    """At its first step; and the bound is no part of what a state belongs to."""
    monkeypatch.setattr(stage.machine, "StopRequest", lambda minutes: lambda: pytest.fail("a step more"))
    for bound in (1, 2):
        says = rf"training took [0-9,]+ MiB, more than train\.memory_mib = {bound}: raise train\.accumulate"
        with pytest.raises(UserError, match=says):
            run(TINY, memory_mib=bound)
    assert len(slots()) == 1


@pytest.fixture
def kept(images) -> Path:
    """A model after 32 images, kept as weights/first."""
    run(TINY, ema_half_life=0)
    shutil.copytree("models/edm", "weights/first")
    return Path("weights/first")


def test_a_training_starts_from_kept_weights(kept, monkeypatch):
    """But for the guide, which is made anew; and images of both trainings are added up."""
    monkeypatch.setattr(stage.loop, "train", lambda *_: stage.loop.Trained([{"images": 0, "loss": 0.0}], 1.0, []))
    run(TINY | {"guide": 0.5, "train": {"from": "weights/first"}})
    old, new = (load_file(folder / "model.safetensors") for folder in (kept, Path("models/edm")))
    assert all(torch.equal(old[key], new[key]) for key in old if not key.startswith("guide."))
    assert any(not torch.equal(old[key], new[key]) for key in old if key.startswith("guide."))
    card = files.read_json(Path("models/edm/model.json"))
    start = card["provenance"]["start"]
    assert start["from"] == card["train"]["from"] == "weights/first" and start["images"] == 32
    assert start["sha256"] == files.digest(kept / "model.safetensors") and "inexact" in start["note"]
    assert files.read_json(kept / "model.json")["provenance"]["images"] == 32


def test_images_of_both_trainings_are_counted(kept):
    run(TINY | {"train": {"from": "weights/first", "images": 16}})
    assert files.read_json(Path("models/edm/model.json"))["provenance"]["images"] == 48
    metrics = files.read_json(Path("metrics/train/edm.json"))
    assert metrics["images_seen"] == {"edm": 48} and metrics["start_images"] == {"edm": 32}


def test_a_state_belongs_to_the_weights_that_it_started_from(kept):
    """To their bytes, not to their name."""
    run(TINY | {"train": {"from": "weights/first"}})
    shutil.copytree(kept, "weights/same")
    run(TINY | {"train": {"from": "weights/same"}})
    assert len(slots()) == 2, "that of the first training, and one of both"
    tensors = load_file(kept / "model.safetensors")
    save_file({key: 0.99 * value for key, value in tensors.items()}, kept / "model.safetensors")
    run(TINY | {"train": {"from": "weights/first"}})
    assert len(slots()) == 3


@pytest.mark.parametrize(
    ("section", "says"),
    [
        (TINY | {"log_mean": -1.0}, r"has edm\.log_mean = -1\.2, and here it is -1\.0: make them agree"),
        ({"net": TINY["net"] | {"channels": 16}}, r"has edm\.net\.channels = 8, and here it is 16"),
        (TINY | {"train": {"from": "weights/none"}}, r"there is no model\.json in .*weights/none: give a folder"),
    ],
)
def test_weights_of_another_model_are_refused_in_one_line(kept, section, says):
    with pytest.raises(UserError, match=says) as error:
        run({"train": {"from": "weights/first"}} | section)
    assert "\n" not in str(error.value)


def test_weights_that_do_not_say_what_they_have_seen_are_refused(kept):
    card = files.read_json(kept / "model.json")
    del card["provenance"]["images"]
    files.write_json(kept / "model.json", card)
    with pytest.raises(UserError, match="does not say how many images"):
        run(TINY | {"train": {"from": "weights/first"}})
