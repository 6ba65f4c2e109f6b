"""Several rows from one trained model: how they are asked for, drawn and scored."""

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import budget, build, defaults, small
from ruamel.yaml import YAML

from pofx.base import config, files
from pofx.base.errors import UserError
from pofx.data import smileys
from pofx.models import store
from pofx.sample.rows import rows
from stages import fid, reference, sample

N = 64
WORDS = [f"sample.n={N}", "sample.seeds=1", "sample.vae.batch=64", "rows.vae={mixture: {prior: mixture}}",
         "fid.kid_subsets=2", "fid.kid_subset_size=32", "likelihood.images=4", "likelihood.importance=2"]  # fmt: skip


def of(name: str, more: Any) -> dict[str, Any]:
    return rows(name, defaults()["sample"][name], more)


def test_the_first_row_is_the_same_whatever_the_others(name):
    alone = of(name, {})
    assert list(alone) == [name]
    assert of(name, {"small": {"batch": 64}})[name] == alone[name]


def test_a_row_differs_in_what_is_said():
    ways = of("edm", {"ddim": {"sampler": "ddim", "steps": 20}, "v2": {"rho": 3}})
    assert list(ways) == ["edm", "edm-ddim", "edm-v2"]
    assert ways["edm-ddim"] == dataclasses.replace(ways["edm"], sampler="ddim", steps=20)
    assert ways["edm-v2"] == dataclasses.replace(ways["edm"], rho=3.0)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"a-b": {"steps": 3}}, "rows.edm: 'a-b' cannot name a row"),
        ({"": {"steps": 3}}, "cannot name a row"),
        ({"A": {"steps": 3}}, "cannot name a row"),
        ({"a": None}, "rows.edm.a = None should say what differs"),
        ({"a": {}}, "should say what differs"),
        ({"a": {"step": 3}}, "unknown key 'step' in rows.edm.a: did you mean steps"),
        ({"a": {"steps": "x"}}, "rows.edm.a.steps = 'x' is str"),
        ({"a": {"steps": 1}}, "rows.edm.a.steps = 1 should"),
        ([], "rows.edm = [] should be a mapping"),
    ],
)
def test_errors_are_one_line(more, message):
    with pytest.raises(UserError) as error:
        of("edm", more)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sprites):
    """A folder with all that sample@vae and fid@vae need; what it holds writes params.yaml."""
    monkeypatch.chdir(tmp_path)
    for stage in (sample, fid):
        monkeypatch.setattr(stage, "RUNS", tmp_path / "runs")
    model = build(*small("vae"))
    with torch.no_grad():
        model.mixture.means += 1  # as if fitted
    store.save(Path("models/vae"), "vae", model, dataclasses.asdict(budget("vae")), {})
    for split in ("train", "test"):
        files.write_npy(Path(f"data/{split}.npy"), sprites[:N].numpy())
    labels = np.arange(N) % 3  # that mean nothing
    np.savez("data/labels.npz", train=labels, test=labels)
    for i, split in enumerate(("train", "test")):
        files.write_npy(Path(f"features/{split}.npy"), np.random.default_rng(i).random((N, 1280), np.float32))

    def parameters(*words: str) -> None:
        tree = copy.deepcopy(defaults())
        for word in [*WORDS, *words]:
            key, _, text = word.partition("=")
            node, (*parents, last) = tree, key.split(".")
            for parent in parents:
                node = node[parent]
            node[last] = YAML(typ="safe").load(text)
        Path("params.yaml").write_text(json.dumps(tree))  # which is YAML too
        config.params.cache_clear()

    yield parameters
    config.params.cache_clear()


def test_rows_are_drawn_and_scored_one_by_one(run):
    run("rows.vae={}")
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
    samples = {"nearest_ratio", "copied", "duplicates", "colour_shift", "saturated"}
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
        assert sorted(p.stem for p in Path(folder, "vae").glob(f"*.{kind}")) == stems
    drawn = {stem: np.load(f"samples/vae/{stem}.npy") for stem in stems}
    assert np.array_equal(drawn["vae"], alone)
    assert len({images.tobytes() for images in drawn.values()}) == len(stems)
    found = files.read_json(Path("metrics/fid/vae.json"))
    lists = {key: found.pop(f"{key}_seeds") for key in ("fd_effnet", "kid_effnet")}
    for key, draws in lists.items():
        assert list(draws) == ["vae", "vae-mixture"] and all(len(set(values)) == 3 for values in draws.values())
        assert all(values[0] == once[key][row] for row, values in draws.items())
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
        draws = found[f"{key}_seeds"]
        assert list(draws) == ["floor", "pixel_gaussian"], "64 images are too few for the others"
        assert all(len(set(values)) == 2 and values[0] == found[key][row] for row, values in draws.items())
    assert found["protocol"]["floor"]["seeds"] == found["protocol"]["pixel_gaussian"]["seeds"] == 2

    run(*words, f"sample.n={N}")  # no other test images are left
    reference.main()
    found = files.read_json(Path("metrics/reference.json"))
    assert list(found["fd_effnet_seeds"]) == ["pixel_gaussian"] and found["protocol"]["floor"]["seeds"] == 1


def test_rows_of_smileys_have_the_distance_to_the_nearest_face(run):
    for i, split in enumerate(("train", "test")):
        files.write_npy(Path(f"data/{split}.npy"), smileys.generate(N, 0, i)[0])
    labels = np.arange(N) % 3
    np.savez("data/labels.npz", train=labels, test=labels, factor_names=np.array(smileys.FACTORS))
    run("rows.vae={}", "sample.seeds=2", f"sample.n={N}", f"fid.n_reference={N}")
    sample.main("vae")
    fid.main("vae")
    reference.main()
    drawn, floors = (files.read_json(Path(f"metrics/{name}.json")) for name in ("fid/vae", "reference"))
    for key, perfect in {"face_error": 0, "valid": 1}.items():
        assert floors[key]["floor"] == pytest.approx(perfect, abs=0.3) == floors[key]["halves"]
        for found, row in ((drawn, "vae"), (floors, "pixel_gaussian")):
            assert abs(found[key][row] - perfect) > 0.9
            assert found[f"{key}_seeds"][row][0] == found[key][row] and len(found[f"{key}_seeds"][row]) == 2
    assert list(drawn["kinds_tv"]) == ["vae"] and "held_out" not in drawn, "an untrained model draws no face"
    assert set(floors["held_out"]) == {"floor", "halves"} and floors["held_out"]["halves"] == 0
    assert drawn["protocol"]["vae"]["valid_below"] == floors["protocol"]["floor"]["valid_below"] == 8


def test_a_row_is_drawn_once_or_more(run):
    run("sample.seeds=0")
    with pytest.raises(UserError, match=r"sample\.seeds = 0 should be 1 or more"):
        sample.main("vae")


def test_every_row_is_checked_before_any_is_drawn(run):
    run("rows.vae={odd: {batch: 65}}")
    with pytest.raises(UserError, match="multiple of 64"):
        sample.main("vae")
    assert not Path("samples").exists()
