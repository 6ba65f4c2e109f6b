"""The nearest possible face: calibrated on faces, on what is no face, and against the search of every kind."""

from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from pofx.data import smileys, sprites
from pofx.score import faces

SEED = 99  # validation images: of all kinds, and in no data set of the default seed


def kinds(f: np.ndarray) -> np.ndarray:
    return np.ravel_multi_index(f[:, :5].astype(int).T, smileys.COUNTS)


def whole(images: np.ndarray) -> np.ndarray:
    return np.rint(images).clip(0, 255).astype(np.uint8)


def blurred(images: np.ndarray, sigma: float = 1.0) -> np.ndarray:
    return whole(gaussian_filter(images.astype(float), (0, 0, sigma, sigma)))


@pytest.mark.parametrize(("side", "n"), [(16, 200), (32, 400), (64, 40)])
def test_a_face_is_found_with_its_kind_and_place(side, n):
    images, f = smileys.generate(n, SEED, split=1, side=side)
    found = faces.nearest(images)
    assert (found.kind == kinds(f)).all() and np.abs(found.pose - f[:, 5:]).max() < 0.01
    assert found.error.max() < 0.3, "bytes are rounded"


@pytest.mark.parametrize("side", [16, 32, 64])
def test_what_is_no_face_is_not_valid(side):
    images, _ = smileys.generate(1600 // side, SEED, split=1, side=side)
    other, half = np.roll(images, 1, 0), np.s_[:, :, side // 2 :]
    joined, erased = images.copy(), images.copy()
    joined[half], erased[half] = other[half], images[:, :, :1, :1]
    spoilt = {
        "blurred": blurred(images, max(1, side / 32)),  # by a pixel, of 64 by two
        "mixed": whole(images / 2 + other / 2),
        "halves of two": joined,
        "half erased": erased,
        "noise": np.random.default_rng(0).integers(0, 256, images.shape, np.uint8),
    }
    for name, x in spoilt.items():
        assert faces.nearest(x).error.min() > faces.VALID, name
    slight = whole(images + np.random.default_rng(0).normal(0, 5, images.shape))
    assert faces.evaluate([slight])["valid"] == 1


def every_kind_refined(images: np.ndarray) -> np.ndarray:
    kind, pose = faces.candidates(images, 863)
    far = []
    for i, x in enumerate(images):
        _, error = faces.refine(x[None].astype(float), np.zeros(863, int), kind[i], pose[i], 6)
        far.append(np.sqrt(error.min()))
    return np.array(far)


def test_the_nearest_of_few_candidates_is_the_nearest_of_all():
    rng = np.random.default_rng(0)
    images, _ = smileys.generate(3, 5, split=1, side=16)
    noisy = whole(images + rng.normal(0, 30, images.shape))
    clouds = gaussian_filter(rng.normal(size=images.shape), (0, 0, 2, 2))
    drawn = whole(blurred(images, 0.5) + 100 * clouds)  # as by a model
    for x in (blurred(images), noisy, drawn):
        got, best = faces.nearest(x).error, every_kind_refined(x)
        assert got == pytest.approx(best, abs=0.05) and (got > 10).all()
    mixed = whole(images / 2 + np.roll(images, 1, 0) / 2)
    assert (faces.nearest(mixed).error > every_kind_refined(mixed) - 0.05).all(), "a bound from above"


def test_the_distance_is_that_of_the_face_that_is_named():
    x = blurred(smileys.generate(20, SEED, split=1)[0])
    found = faces.nearest(x)
    face = smileys.paint(faces.KINDS[found.kind], found.pose, 32)
    assert found.error == pytest.approx(np.sqrt(np.square(x - face).mean((1, 2, 3))), abs=1e-9)
    assert (found.pose >= smileys.LOW).all() and (found.pose <= smileys.HIGH).all()


def test_the_metrics_have_the_floors_that_the_data_give_them():
    train, _ = smileys.generate(150, 0, split=0)
    test, f = smileys.generate(300, 0, split=1)
    f = f[:150]
    copies, new = faces.evaluate([train]), faces.evaluate([test[:150], test[150:]])
    assert copies["valid"] == new["valid"] == 1 and copies["held_out"] == 0
    assert new["held_out"] == pytest.approx(np.isin(kinds(f), smileys.HELD_OUT).mean()) and new["held_out"] > 0.05
    counts = [np.bincount(column.astype(int), minlength=n) for column, n in zip(f.T, smileys.COUNTS, strict=False)]
    assert new["kinds_tv"] == pytest.approx(np.mean([np.abs(c / 150 - 1 / len(c)).sum() / 2 for c in counts]))
    one = faces.evaluate([train[:1].repeat(20, 0)])
    assert one["kinds_tv"] == pytest.approx(np.mean([1 - 1 / n for n in smileys.COUNTS])), "of one kind alone"
    assert {key: new[f"{key}_seeds"][0] for key in copies} == {key: new[key] for key in copies}
    assert all(len(new[f"{key}_seeds"]) == 2 for key in copies)


def test_held_out_is_missing_where_nothing_is_valid():
    x = blurred(smileys.generate(20, SEED)[0])
    found = faces.evaluate([x, smileys.generate(20, SEED)[0]])
    assert found["valid_seeds"] == [0, 1] and {"held_out", "held_out_seeds"}.isdisjoint(found)


def test_smileys_are_known_by_their_factors(tmp_path: Path):
    for source in (smileys, sprites):
        np.savez(tmp_path / "labels.npz", train=[0], factor_names=np.array(source.FACTORS))
        with np.load(tmp_path / "labels.npz") as labels:
            assert faces.known(labels) is (source is smileys)
    assert not faces.known({"train": np.zeros(1)})
