"""Several rows from one trained model: how they are asked for, drawn and scored."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import build, defaults, small
from ruamel.yaml import YAML

from pofx.base import config, files
from pofx.base.errors import UserError
from pofx.models import family
from stages import fid, reference, sample
from tools import compose

N = 64
WORDS = [f"sample.n={N}", "sample.vae.batch=64", "fid.kid_subsets=2", "fid.kid_subset_size=32", "likelihood.images=4",
         "likelihood.importance=2"]  # fmt: skip


def rows(name: str, also: Any) -> dict[str, Any]:
    tree = defaults()["sample"][name] | {"also": also}
    return family.draws(name, config.build(family.module(name).Sample, tree, f"sample.{name}"))


def test_the_first_row_is_the_same_whatever_the_others(name):
    alone = rows(name, {})
    assert list(alone) == [name]
    assert rows(name, {"small": {"batch": 64}})[name] == alone[name]


def test_a_row_differs_in_what_is_said():
    found = rows("edm", {"ddim": {"sampler": "ddim", "steps": 20}, "v2": {"rho": 3}})
    assert list(found) == ["edm", "edm-ddim", "edm-v2"]
    assert found["edm-ddim"] == dataclasses.replace(found["edm"], sampler="ddim", steps=20)
    assert found["edm-v2"] == dataclasses.replace(found["edm"], rho=3.0)


@pytest.mark.parametrize(
    ("also", "message"),
    [
        ({"a-b": {"steps": 3}}, "sample.edm.also: 'a-b' cannot name a row"),
        ({"": {"steps": 3}}, "cannot name a row"),
        ({"A": {"steps": 3}}, "cannot name a row"),
        ({"a": None}, "sample.edm.also.a = None should say what differs"),
        ({"a": {}}, "should say what differs"),
        ({"a": {"also": {}}}, "should say what differs"),
        ({"a": {"step": 3}}, "unknown key 'step' in sample.edm.also.a: did you mean steps"),
        ({"a": {"steps": "x"}}, "sample.edm.also.a.steps = 'x' is str"),
        ({"a": {"steps": 1}}, "sample.edm.also.a.steps = 1 should lie"),
        ([], "sample.edm.also = [] is list, should be dict"),
    ],
)
def test_errors_are_one_line(also, message):
    with pytest.raises(UserError) as error:
        rows("edm", also)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sprites):
    """A folder with all that sample@vae and fid@vae need; what it holds writes params.yaml."""
    monkeypatch.chdir(tmp_path)
    module, cfg = small("vae")
    model = build(module, cfg)
    with torch.no_grad():
        model.mixture.means += 1  # as if fitted
    family.save_model(Path("models/vae"), "vae", cfg, model, {})
    for split in ("train", "test"):
        files.write_npy(Path(f"data/{split}.npy"), sprites[:N].numpy())
    labels = np.arange(N) % 3  # that mean nothing
    np.savez("data/labels.npz", train=labels, test=labels)
    for i, split in enumerate(("train", "test")):
        files.write_npy(Path(f"features/{split}.npy"), np.random.default_rng(i).random((N, 1280), np.float32))

    def parameters(*words: str) -> dict[str, Any]:
        Path("params.yaml").write_text(compose.text([*WORDS, *words]))
        config.params.cache_clear()
        return YAML(typ="safe").load(Path("params.yaml").read_text())

    yield parameters
    config.params.cache_clear()


def test_rows_are_drawn_and_scored_one_by_one(run):
    run("~sample.vae.also.mixture")
    sample.main("vae")
    fid.main("vae")
    alone, scored = np.load("samples/vae/vae.npy"), files.read_json(Path("metrics/fid/vae.json"))
    assert [p.name for p in Path("plots/samples/vae").iterdir()] == ["vae.png"]

    run()
    sample.main("vae")
    fid.main("vae")
    other = np.load("samples/vae/vae-mixture.npy")
    assert np.array_equal(np.load("samples/vae/vae.npy"), alone) and not np.array_equal(other, alone)
    both, cost = (files.read_json(Path(f"metrics/{name}.json")) for name in ("fid/vae", "time/sample_vae"))
    assert {key: {"vae": found["vae"]} for key, found in both.items()} == scored
    further = {key: found["vae-mixture"] for key, found in both.items() if "vae-mixture" in found}
    distances = {f"{key}{kind}" for key in ("fd", "kid") for kind in ("_effnet", "_test_effnet")}
    distances |= {"kid_effnet_std", "kid_test_effnet_std", "precision", "recall", "density", "coverage"}
    samples = {"nearest_ratio", "copied", "duplicates", "colour_shift", "saturated", "sample_gflop", "forward_gflop"}
    assert set(further) == distances | samples | {"protocol", "config"}, "too few to extrapolate"
    assert further["fd_effnet"] != scored["fd_effnet"]["vae"]
    assert further["config"]["sample.vae"] == {"batch": 64, "prior": "mixture"}
    assert "bpd_images" not in further["protocol"] and scored["protocol"]["vae"]["bpd_images"] == 4
    assert cost.pop("sample_peak_mib")["vae"] > 100, "Python, PyTorch and a model"
    assert all(list(value) == ["vae", "vae-mixture"] for value in cost.values())
    assert {"linear_probe", "linear_probe_random"} <= set(both) and both["protocol"]["vae"]["probe_test"] == N
    assert all((Path("features/vae") / f"{row}.npy").is_file() for row in ("vae", "vae-mixture"))


def test_further_draws_leave_the_first_alone(run):
    run()
    sample.main("vae")
    fid.main("vae")
    alone, once = np.load("samples/vae/vae.npy"), files.read_json(Path("metrics/fid/vae.json"))
    assert not any(key.endswith("_seeds") for key in once) and once["protocol"]["vae"]["seeds"] == 1

    run("sample.seeds=3")
    sample.main("vae")
    fid.main("vae")
    stems = ["vae", "vae-mixture", "vae-mixture.seed1", "vae-mixture.seed2", "vae.seed1", "vae.seed2"]
    for folder, kind in (("samples", "npy"), ("plots/samples", "png")):
        assert sorted(p.name for p in Path(folder, "vae").iterdir()) == sorted(f"{stem}.{kind}" for stem in stems)
    drawn = {stem: np.load(f"samples/vae/{stem}.npy") for stem in stems}
    assert np.array_equal(drawn["vae"], alone)
    assert len({images.tobytes() for images in drawn.values()}) == len(stems)
    found = files.read_json(Path("metrics/fid/vae.json"))
    lists = {key: found.pop(f"{key}_seeds") for key in ("fd_effnet", "kid_effnet")}
    for key, rows in lists.items():
        assert list(rows) == ["vae", "vae-mixture"] and all(len(set(values)) == 3 for values in rows.values())
        assert all(values[0] == once[key][row] for row, values in rows.items())
    assert [told.pop("seeds") for told in found["protocol"].values()] == [3, 3]
    assert [told.pop("seeds") for told in once["protocol"].values()] == [1, 1]
    assert found == once, "all else is measured of the first draw"


def test_floor_and_gaussians_are_drawn_again_too(run, sprites):
    files.write_npy(Path("data/test.npy"), sprites[N:].numpy())
    words = f"sample.n={N // 2}", f"fid.n_reference={N}", "sample.seeds=2"
    run(*words)
    reference.main()
    found = files.read_json(Path("metrics/reference.json"))
    for key in ("fd_effnet", "kid_effnet"):
        assert list(rows := found[f"{key}_seeds"]) == ["floor", "pixel_gaussian"], (
            "64 images are too few for the others"
        )
        assert all(len(set(values)) == 2 and values[0] == found[key][row] for row, values in rows.items())
    assert found["protocol"]["floor"]["seeds"] == found["protocol"]["pixel_gaussian"]["seeds"] == 2

    run(*words, f"sample.n={N}")  # no other test images are left
    reference.main()
    found = files.read_json(Path("metrics/reference.json"))
    assert list(found["fd_effnet_seeds"]) == ["pixel_gaussian"] and found["protocol"]["floor"]["seeds"] == 1


def test_a_row_is_drawn_once_or_more(run):
    with pytest.raises(UserError, match=r"sample\.seeds = 0 should be 1 or more"):
        run("sample.seeds=0")


def test_every_row_is_checked_before_any_is_drawn(run):
    run("+sample.vae.also.odd.batch=65")
    with pytest.raises(UserError, match="multiple of 64"):
        sample.main("vae")
    assert not Path("samples").exists()
