"""What an energy is for: scores, chains, inpainting and denoising, on energies known on paper and a tiny EBM."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import build, small
from ruamel.yaml import YAML

from pofx.base import config, files
from pofx.base.errors import UserError
from pofx.base.images import Batches, to_model, to_uint8
from pofx.base.rng import Noise
from pofx.models import family, store
from pofx.models.ebm import ebm
from pofx.models.ebm.network import EnergyConfig
from pofx.score import energy
from pofx.score.extractor import Fid
from stages import energy as stage

CPU = torch.device("cpu")
FID = Fid("efficientnet_lite0", None, "0" * 8, n_reference=64, batch=64, kid_subsets=2, kid_subset_size=32)
TRAIN = {"precision": "fp32", "channels_last": False}
OWN = ebm.Sample(batch=64, chain=4, start="noise")
NET = EnergyConfig(channels=16, multipliers=(1, 2, 2), spectral=True)
OBJECTIVES = {
    "contrast": {"chain": 2, "net": NET},
    "recovery": {"chain": 0, "net": dataclasses.replace(NET, spectral=False)},
}


class Bowl(family.EnergyBased):
    """E = |x|^2."""

    layer = "pixels"

    def energy(self, x):
        return x.square().sum((1, 2, 3))

    def _unused(self, *_):
        raise NotImplementedError

    forward = preview = sample = features = path = inpaint = restore = _unused


def tiny(objective: str) -> family.EnergyBased:
    """An energy-based model, untrained."""
    module, cfg = small("ebm")
    return build(module, dataclasses.replace(cfg, objective=objective, **OBJECTIVES[objective])).eval()


@pytest.fixture(scope="module", params=OBJECTIVES)
def model(request) -> family.EnergyBased:
    return tiny(request.param)


# --- scores


def test_auroc_of_gaussians_is_that_on_paper():
    """|x|^2 of two dimensions is exponential with mean 2 s^2: P(out > in) = s_out^2 / (s_in^2 + s_out^2)."""
    rng = np.random.default_rng(0)
    inside, outside = (np.square(s * rng.normal(size=(20_000, 2))).sum(1) for s in (1.0, 2.0))
    assert energy.auroc(inside, outside) == pytest.approx(4 / 5, abs=0.01)
    assert energy.auroc(outside, inside) == pytest.approx(1 / 5, abs=0.01)


def test_auroc_counts_pairs_and_ties_by_half():
    inside, outside = np.array([0.0, 1.0, 2.0]), np.array([1.0, 3.0])
    assert energy.auroc(inside, outside) == pytest.approx((1.5 + 3) / 6)


def test_chance_is_the_spread_of_auroc_of_like_sets():
    rng = np.random.default_rng(1)
    areas = [energy.auroc(*rng.normal(size=(2, 50))) for _ in range(400)]
    assert np.std(areas) == pytest.approx(energy.chance(50), rel=0.12) and np.mean(areas) == pytest.approx(
        0.5, abs=0.01
    )


def test_scores_of_a_known_energy(sprites):
    """Of E = |x|^2 grey is the likeliest image of all: blends come nearer to it, noise does not."""
    images = sprites.numpy()
    sets = {"grey": np.full_like(images, 128), "ends": np.full_like(images, 255), "same": images}
    scores = energy.scores(Bowl(None, (3, 32, 32)), images, sets, Batches(50, CPU))
    assert [row["auroc"] for row in scores["auroc"]] == [0.0, 1.0, 0.5]
    assert scores["test_energy"] == pytest.approx(to_model(sprites).square().sum((1, 2, 3)).mean().item(), rel=1e-5)


def test_energies_that_are_not_finite_are_refused(sprites):
    bowl = Bowl(None, (3, 32, 32))
    bowl.energy = lambda x: x.sum((1, 2, 3)) / 0
    with pytest.raises(UserError, match="not finite"):
        energy.energies(bowl, sprites.numpy(), Batches(64, CPU))


def test_outsiders_are_what_they_are_called(sprites):
    images = sprites.numpy()
    test, train = images[:60], images[60:]
    sets = energy.outsiders(test, train, "cifar10", 3)
    assert all(x.shape == test.shape and x.dtype == np.uint8 for x in sets.values())
    assert np.array_equal(sets["training"], train[:60])
    assert (sets["constant colours"] == sets["constant colours"][..., :1, :1]).all()
    assert len(np.unique(sets["constant colours"][:, :, 0, 0], axis=0)) > 50
    assert np.abs(sets["blends"] - (test / 2 + np.roll(test, 1, 0) / 2)).max() <= 0.5
    assert np.array_equal(sets["inverted"].astype(int), 255 - test.astype(int))
    assert not np.array_equal(sets["sprites"], test) and "sprites" not in energy.outsiders(test, train, "sprites", 3)
    again = energy.outsiders(test, train, "cifar10", 3)
    assert all(np.array_equal(sets[k], again[k]) for k in sets)


def test_outsiders_have_the_size_of_the_data():
    images = np.random.default_rng(0).integers(0, 256, (6, 3, 18, 26), np.uint8)
    sets = energy.outsiders(images[:3], images[3:], "folder", 3)
    assert "sprites" not in sets and all(x.shape == (3, 3, 18, 26) for x in sets.values())
    moved = sets["shuffled tiles"]
    assert np.array_equal(moved[..., 16:, :], images[:3, :, 16:]), "left over"
    assert np.array_equal(np.sort(moved, None), np.sort(images[:3], None)) and not np.array_equal(moved, images[:3])


def test_shuffling_moves_whole_tiles():
    side = 32 // energy.TILES
    tile = np.arange(energy.TILES**2).reshape(energy.TILES, energy.TILES).repeat(side, 0).repeat(side, 1)
    images = np.broadcast_to(tile, (5, 3, 32, 32)).astype(np.uint8)
    moved = energy.shuffled(images, np.random.default_rng(0))
    corners = moved[:, :, ::side, ::side]
    assert np.array_equal(moved, corners.repeat(side, 2).repeat(side, 3))
    assert (np.sort(corners.reshape(5, 3, -1)) == np.arange(energy.TILES**2)).all()
    assert len({image.tobytes() for image in moved}) == 5 and (moved[:, 0] == moved[:, 1]).all()


# --- chains


def test_every_row_at_every_length():
    rows = {"ebm": dataclasses.replace(OWN, start="buffer"), "ebm-fresh": OWN}
    points = energy.settings(rows, (60, 0))
    assert [name for name, _ in points] == [{"row": r, "chain": k} for r in rows for k in (0, 60)]
    assert [(cfg.start, cfg.chain) for _, cfg in points] == [("buffer", 0), ("buffer", 60), ("noise", 0), ("noise", 60)]


def test_a_strip_goes_from_the_start_to_the_sample(model):
    picture = energy.strip(model, OWN, Noise(1, 0, 3), 4)
    contrast = model.cfg.objective == "contrast"
    start = 2 * Noise(1, 0, 3).uniform(3, 32, 32) - 1 if contrast else 20 * Noise(1, 0, 3).normal(3, 32, 32)
    assert picture.shape == (3, 4, 3, 32, 32)
    with torch.no_grad():
        assert np.array_equal(picture[:, -1], to_uint8(model.sample(Noise(1, 0, 3), OWN)).numpy())
    assert np.array_equal(picture[:, 0], to_uint8(start).numpy())
    short = dataclasses.replace(OWN, chain=1)
    assert energy.strip(model, short, Noise(1, 0, 3), 10).shape[1] == (2 if contrast else model.own.levels + 2)


# --- images in part or in noise


@pytest.fixture
def mask() -> torch.Tensor:
    """Observed pixels of 70 images."""
    return torch.from_numpy(~energy.hidden(70, 32, 32))


def test_hidden_are_a_half_and_a_quarter_of_the_pixels():
    masks = energy.hidden(3, 32, 32)
    assert masks.shape == (3, 1, 32, 32) and masks.mean((1, 2, 3)).tolist() == [0.5, 0.25, 0.5]
    assert masks[0, 0, :, 16:].all() and masks[1, 0, 8:24, 8:24].all()


def test_inpainting_keeps_observed_pixels_bit_for_bit_and_draws_the_others(model, sprites, mask):
    x = to_model(sprites[:70])
    with torch.no_grad():
        one, again, other = (model.inpaint(x, mask, Noise(seed, 0, 70), OWN) for seed in (1, 1, 2))
        grey = model.inpaint(x.where(mask, 0.0), mask, Noise(1, 0, 70), OWN)
    everywhere = mask.expand_as(x)
    assert torch.equal(one[everywhere], x[everywhere]) and torch.equal(other[everywhere], x[everywhere])
    assert (one[~everywhere] != x[~everywhere]).float().mean() > 0.99
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert torch.equal(one, grey), "what is hidden must not matter"
    assert one.isfinite().all()


def test_restoring_lowers_the_energy(model, sprites):
    noisy = to_model(sprites[:16]) + 0.4 * Noise(3, 0, 16).normal(3, 32, 32)
    with torch.no_grad():
        again = model.restore(noisy, 0.4, Noise(1, 0, 16), dataclasses.replace(OWN, chain=20))
        assert (model.energy(again) < model.energy(noisy)).all()
        assert torch.equal(again, model.restore(noisy, 0.4, Noise(1, 0, 16), dataclasses.replace(OWN, chain=20)))


def test_an_image_does_not_depend_on_its_batch(model, sprites, mask):
    x = to_model(sprites[:70])
    with torch.no_grad():
        for use in (
            lambda a, b: model.inpaint(x[a:b], mask[a:b], Noise(1, a, b), OWN),
            lambda a, b: model.restore(x[a:b], 0.2, Noise(1, a, b), OWN),
        ):
            together, apart = use(0, 70), torch.cat([use(0, 64), use(64, 70)])
            gap = (to_uint8(together).short() - to_uint8(apart).short()).abs()
            assert gap.max() <= 1 and (gap > 0).float().mean() < 0.01  # rounding of the kernels


def test_inpainting_and_restoring_show_and_count(model, sprites):
    noises = [Noise(i, 0, n) for i, n in enumerate((10, 4, 4))]
    shown, rows = energy.inpainting(model, OWN, sprites[:10], noises)
    assert shown.shape == (4, 5, 3, 32, 32)
    assert np.array_equal(shown[:, -1], sprites[[0, 2, 1, 3]].numpy())
    assert (shown[:2, 0, :, :, 16:] == 128).all() and (shown[2:, 0, :, 8:24, 8:24] == 128).all()
    assert [(r["unknown"], r["images"]) for r in rows] == [("right half", 5), ("centre", 5)]
    assert all(5 < r["psnr"] < r["psnr_filled"] for r in rows), "untrained, and near to noise"

    shown, rows = energy.restoring(model, OWN, sprites[:10], (0.2, 0.4), lambda: Noise(0, 0, 10))
    assert shown.shape == (10, 5, 3, 32, 32)
    assert rows[0]["psnr_noisy"] == pytest.approx(20, abs=1) and rows[1]["psnr_noisy"] < rows[0]["psnr_noisy"]


# --- configuration, and the stage


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 1}, "energy.n = 1 "),
        ({"images": 1}, "energy.images = 1 "),
        ({"chains": []}, r"energy.chains = \[\] should"),
        ({"chains": [0, -1]}, "energy.chains"),
        ({"chains": [5, 5]}, "energy.chains = "),
        ({"chain": [5]}, "did you mean chains"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_one_line(change, message):
    good = {"models": ["ebm"], "n": 10, "chains": [0, 5], "images": 10}
    config.build(energy.Energy, good | {"models": []}, "energy")
    with pytest.raises(UserError, match=message):
        config.build(energy.Energy, good | change, "energy")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sprites):
    """A folder with all that energy@ebm needs, of an EBM with a replay buffer; what it holds writes params.yaml."""
    monkeypatch.chdir(tmp_path)
    store.save(Path("models/ebm"), "ebm", tiny("contrast"), TRAIN, {})
    for split, part in (("train", sprites[:64]), ("test", sprites[64:])):
        files.write_npy(Path(f"data/{split}.npy"), part.numpy())
    files.write_json(Path("metrics/data.json"), {"name": "sprites"})
    files.write_npy(Path("features/train.npy"), np.random.default_rng(0).random((64, 1280), np.float32))

    def parameters(n: int = 16) -> None:
        tree = {
            "seed": 0,
            "sample": {"ebm": {"batch": 64, "chain": 2, "start": "buffer"}, "vae": {"batch": 64}},
            "rows": {"ebm": {"fresh": {"start": "noise"}}, "vae": {}},
            "fid": dataclasses.asdict(FID),
            "energy": {"n": n, "images": 20, "chains": [0, 3]},
        }
        with Path("params.yaml").open("w") as file:
            YAML().dump(tree, file)
        config.params.cache_clear()

    yield parameters
    config.params.cache_clear()


def measured() -> dict[str, Any]:
    return files.read_json(Path("metrics/energy/ebm.json"))


def test_the_stage_measures_and_draws(run):
    run()
    stage.main("ebm")
    record = measured()
    names = {p.name for p in Path("plots/energy/ebm").iterdir()}
    assert names == {"inpainting.png", "denoising.png", "chain_ebm.png", "chain_ebm-fresh.png"}
    assert [(r["row"], r["chain"]) for r in record["rows"]] == [
        ("test images", None), ("ebm", 0), ("ebm", 3), ("ebm-fresh", 0), ("ebm-fresh", 3),
    ]  # fmt: skip
    assert all({*record["keys"], "saturated", "energy"} <= row.keys() for row in record["rows"])
    assert [row["nfe"] for row in record["rows"][1:]] == [0, 3, 0, 3]
    assert record["protocol"]["test_images"] == 20 and record["protocol"]["kid_subset_size"] == 16
    assert [r["sigma"] for r in record["restoring"]] == [0.2, 0.4]
    assert "sprites" not in {row["set"] for row in record["auroc"]}
    assert all(0 <= row["auroc"] <= 1 for row in record["auroc"])
    stage.main("ebm")
    again = measured()
    for row in record["rows"] + again["rows"]:
        row.pop("seconds_per_1000", None)
    assert again == record


def test_a_row_that_cannot_be_drawn_is_a_blank_with_its_reason(run):
    run(n=150)  # the buffer holds 128
    stage.main("ebm")
    rows = {row["row"]: row for row in measured()["rows"]}
    assert "buffer = 128" in rows["ebm"]["refused"] and "energy" not in rows["ebm"]
    assert "refused" not in rows["ebm-fresh"] and not Path("plots/energy/ebm/chain_ebm.png").exists()


def test_a_family_without_energy_is_a_user_error(run):
    run()
    store.save(Path("models/vae"), "vae", build(*small("vae")), TRAIN, {})
    with pytest.raises(UserError, match=r"vae has no energy: take it out of energy\.models"):
        stage.main("vae")
