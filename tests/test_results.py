"""Kept results: whole or not at all, and listed without a typed number."""

import re
import shutil

import numpy as np
import pytest
from fake_run import BEYOND, MODELS, ROWS, fake_energy, fake_material, fake_metrics
from PIL import Image

from pofx.base import files
from pofx.base.errors import UserError
from pofx.base.images import grid, save_grid
from tools import results, runs

SIZE = 8  # of the images


@pytest.fixture
def finished(tmp_path):
    """A repository after `dvc repro`."""
    material = fake_material(tmp_path / "in", fake_metrics())
    (tmp_path / "params.yaml").write_text(
        "# composed by: python -m tools.compose sprites laptop\n\nmodels: [vae, ebm, ncsn]\nsome_old_section: 1\n"
    )
    got, floor = material.metrics, {}
    for key, row in got.items():
        floor |= {key: {"floor": row["floor"]}} if "floor" in row else {}
    files.write_json(tmp_path / "metrics/reference.json", floor)
    files.write_json(tmp_path / "metrics/data.json", material.data)
    files.write_json(tmp_path / "metrics/summary.json", {"fd_effnet": {"vae": 1.0}})
    (tmp_path / "plots/curves").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for f in MODELS:
        mine = {key: {row: value[row] for row in ROWS if ROWS[row] == f and row in value} for key, value in got.items()}
        files.write_json(tmp_path / f"metrics/fid/{f}.json", mine)
        for part in ("train/{}", "time/train_{}", "time/sample_{}"):
            files.write_json(tmp_path / f"metrics/{part.format(f)}.json", {})
        shutil.copy(material.plots / f"curves/{f}.csv", tmp_path / "plots/curves")
    files.write_npy(tmp_path / "data/test.npy", rng.integers(0, 256, (100, 3, SIZE, SIZE), np.uint8))
    for row, f in ROWS.items():
        images = rng.integers(0, 256, (100, 3, SIZE, SIZE), np.uint8)
        files.write_npy(tmp_path / f"samples/{f}/{row}.npy", images)
    (tmp_path / "plots/comparison").mkdir()
    Image.new("RGBA", (30, 20), "#80889033").save(tmp_path / "plots/comparison/cost.png")
    return tmp_path


def kept(root, name="a"):
    return runs.Run(results.save(name, root))


def test_results_are_kept_and_listed(finished):
    folder = results.save("sprites-laptop", finished)
    run = runs.Run(folder)
    assert run.card["device"] == ["cpu"] and run.card["seconds"] == pytest.approx(61 * 6 + 2 * (0.4 + 0.5 + 8 + 160))
    assert run.card["made"] == "python -m tools.compose sprites laptop" and run.scale == "laptop"
    assert {path.name for path in folder.iterdir()} == {
        "run.json", "params.yaml", "samples.npz", "strips.png", "cost.png",
    }  # fmt: skip
    assert not list((finished / "results").glob(".*"))
    page = runs.markdown([run])
    numbers = ("1,500", "5.432 ± 0.010", "| 2,000 ", "11 min 44 s")
    for needed in (*numbers, "## sprites-laptop", "| ncsn", "results/sprites-laptop/strips.png", "cost.png"):
        assert needed in page, needed
    assert "nfe.png" not in page and "Missing" not in page


def test_a_kept_run_holds_every_metric_and_curve(finished):
    run = kept(finished)
    for path in (finished / "metrics").rglob("*.json"):
        *folders, name = path.relative_to(finished / "metrics").with_suffix("").parts
        if name != "summary":
            node = run.files[folders[0]][name] if folders else run.files[name]
            assert node == files.read_json(path), path
    assert "summary" not in run.files and run.metrics["fd_effnet"] == fake_metrics()["fd_effnet"]
    assert set(run.curves) == set(MODELS) and len(run.curves["vae"]["loss"]) == 100


def test_the_first_samples_of_every_row_are_kept_as_bytes(finished):
    folder = results.save("a", finished)
    with np.load(folder / "samples.npz") as samples:
        assert list(samples) == list(ROWS)
        for row, f in ROWS.items():
            assert samples[row].dtype == np.uint8
            assert np.array_equal(samples[row], np.load(finished / f"samples/{f}/{row}.npy")[: results.KEPT])


def test_the_strips_of_samples_show_their_very_pixels_the_worst_last(finished):
    sheet = np.asarray(Image.open(results.save("a", finished) / "strips.png").convert("RGB"))
    last = np.load(finished / "samples/vae/vae.npy")[:6]
    line = np.asarray(grid(last, 6, scale=12))
    assert np.array_equal(sheet[-len(line) :, : line.shape[1]], line)


def test_what_has_not_learned_is_called_so(finished):
    assert "learned" not in kept(finished).markdown(), "no Gaussian was scored"
    path = finished / "metrics/reference.json"
    tree = files.read_json(path)
    tree["fd_effnet"]["pca_gaussian"] = 1250.0
    files.write_json(path, tree)
    run = kept(finished)
    assert "| vae, not learned " in (table := run.markdown()) and "| vae-mixture, not learned " in table
    assert "ncsn, " not in table and "ebm, " not in table
    assert ">vae, not learned</td>" in runs.html([run])


def test_pages_say_what_was_dropped_and_why(finished):
    folder = results.save("a", finished)
    tree = files.read_json(folder / "run.json")
    tree["card"]["dropped"] = {"recon_ssim": "it had another range"}
    files.write_json(folder / "run.json", tree)
    page = runs.markdown([runs.Run(folder), runs.Run(folder)])
    assert page.count("recon_ssim: it had another range.") == 1


def test_the_kept_runs_are_small_and_lack_what_was_computed_wrongly():
    folders = [path.parent for path in (results.ROOT / "results").glob("*/run.json")]
    assert folders and all(len(list(folder.iterdir())) <= 8 for folder in folders)
    assert all(sum(path.stat().st_size for path in folder.iterdir()) <= 2e6 for folder in folders)
    for run in map(runs.Run, folders):
        if "bpd of ddpm" in run.card["dropped"]:
            assert "ddpm" not in run.metrics.get("bpd", {})
        if "recon_ssim" in run.card["dropped"]:
            assert "recon_ssim" not in run.metrics


@pytest.mark.parametrize(
    ("made", "scale"),
    [
        ("python -m tools.compose data=cifar10 scale=gpu", "gpu"),
        ("python -m tools.compose cifar10 hour ncsn-v1", "hour"),
        ("by hand", "unknown"),
    ],
)
def test_a_run_tells_its_scale(finished, made, scale):
    run = kept(finished)
    run.card["made"] = made
    assert run.scale == scale


def test_scores_of_energies_are_listed_where_a_run_has_them(finished):
    assert "AUROC" not in runs.html([kept(finished)])
    files.write_json(finished / "metrics/energy/ebm.json", fake_energy("ebm"))
    html = " ".join(runs.html([kept(finished)]).split())
    assert ">0.473</td>" in html and "below 0.5" in html


def test_pictures_besides_samples_are_shown_where_a_run_has_them(finished):
    assert "pictures.png" not in runs.markdown([kept(finished)])
    images = np.zeros((24, 3, SIZE, SIZE), np.uint8)
    save_grid(images, finished / "plots/fid/vae/reconstructions.png", columns=6)
    folder = results.save("a", finished)
    assert runs.markdown([runs.Run(folder)]).count("../results/a/pictures.png") == 1
    line = np.asarray(grid(images[:12], 6))
    assert np.array_equal(np.asarray(Image.open(folder / "pictures.png").convert("RGB"))[-len(line) :], line)


def test_what_a_distance_leaves_out_is_listed_where_a_run_has_it(finished):
    assert "duplicates" not in runs.html([kept(finished)])
    path = finished / "metrics/fid/vae.json"
    got = files.read_json(path)
    for row, protocol in got["protocol"].items():
        protocol |= {"n_test": 1500, "n_manifold": 1800}
        for key, value in BEYOND.items():
            got.setdefault(key, {})[row] = value
    files.write_json(path, got)
    html = " ".join(runs.html([kept(finished)]).split())
    assert "-7.9, +8.2, +3.0" in html and "1,800 images a side" in html


def test_saving_again_replaces_the_whole(finished):
    (results.save("a", finished) / "old").touch()
    assert not (results.save("a", finished) / "old").exists()


@pytest.mark.parametrize("name", ["../a", "", "A b", ".a"])
def test_a_result_needs_a_plain_name(finished, name):
    with pytest.raises(UserError, match="cannot name a result"):
        results.save(name, finished)


@pytest.mark.parametrize("gone", ["metrics/fid/ebm.json", "samples/vae", "params.yaml"])
def test_an_unfinished_run_is_not_kept(finished, gone):
    path = finished / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UserError, match="run `dvc repro` first"):
        results.save("a", finished)
    assert not (finished / "results/a").exists()


def test_all_runs_share_a_page(finished):
    """Two runs of the same data: every row of both, the floor that they share once."""
    both = [kept(finished, name) for name in ("a-run", "b-run")]
    found = [row for run in both for row in runs.rows(run)]
    assert len(found) == 2 * (1 + len(ROWS))
    first = next(row for row in found if row["row"][0] == "vae-mixture")
    assert {key: value for key, (_, value) in first.items() if key not in ("bits/dim", "images/s")} == {
        "run": "a-run", "data": "sprites", "scale": "laptop", "row": "vae-mixture", "N": 2000, "KID": 1.7,
        "reference": "train, 10,000 images (fd_effnet)", "Frechet distance": 1300.0, "training": 61.0, "machine": "cpu",
    }  # fmt: skip
    html = runs.html(both)
    bodies = re.findall(r"<tbody.*?</tbody>", html, re.DOTALL)
    assert bodies[0].count("<tr>") == 1 + 2 * len(ROWS)
    assert html.count(">any</td>") == 1 and "1.700 ± 0.040" in html and html.count("<svg") == 1
    assert not re.search(r"@import|url\(|src=|<link", html.replace('clip-path="url(', "")), "nothing is loaded"
    assert runs.html(both) == html, "no dates, no random names"
