"""The stage that trains: what it hands to the loop, what a state belongs to, what it writes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pofx.base import config, files, machine
from pofx.base.errors import UserError
from pofx.data.sprites import generate
from pofx.models import edm, store
from pofx.train import loop
from stages import train as stage

TINY = {"net": {"channels": 8, "attention": [], "patch": 4}}
BUDGET = {"images": 32, "rows": 2, "preview_rows": 1, "warmup": 0, "precision": "fp32"}


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
    assert card["format"] == 2 and card["shape"] == [3, 32, 32] and card["train"]["images"] == 32
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
