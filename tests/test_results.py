"""Kept results: whole or not at all, and listed without a typed number."""

import re
import shutil

import pytest
from fake_run import BEYOND, MODELS, ROWS, fake_energy, fake_material, fake_metrics

from pofx.base import files
from pofx.base.errors import UserError
from tools import results, runs


@pytest.fixture
def finished(tmp_path):
    """A repository after `dvc repro`."""
    material = fake_material(tmp_path / "in", fake_metrics())
    (tmp_path / "params.yaml").write_text(
        "# composed by: python -m tools.compose data=sprites\n\nmodels: [vae, ebm, ncsn]\nsome_old_section: 1\n"
    )
    got, floor = material.metrics, {}
    for key, row in got.items():
        floor |= {key: {"floor": row["floor"]}} if "floor" in row else {}
    files.write_json(tmp_path / "metrics/reference.json", floor)
    files.write_json(tmp_path / "metrics/data.json", material.data)
    for f in MODELS:
        mine = {key: {row: value[row] for row in ROWS if ROWS[row] == f and row in value} for key, value in got.items()}
        files.write_json(tmp_path / f"metrics/fid/{f}.json", mine)
        for part in ("train/{}", "time/train_{}", "time/sample_{}"):
            files.write_json(tmp_path / f"metrics/{part.format(f)}.json", {})
    for part in results.PLOTS:
        (tmp_path / "plots" / part).mkdir(parents=True)
        (tmp_path / "plots" / part / "vae.png").write_bytes(b"png")
    return tmp_path


def test_results_are_kept_and_listed(finished):
    folder = results.save("sprites-laptop", finished)
    card = files.read_json(folder / "run.json")
    assert card["device"] == ["cpu"] and card["seconds"] == pytest.approx(61 * 6 + 2 * (0.4 + 0.5 + 8 + 160))
    assert (folder / "plots/samples/vae.png").read_bytes() == b"png" and not list((finished / "results").glob(".*"))
    page = results.page([folder])
    numbers = ("1,500", "5.432 ± 0.010", "N = 2,000", "11 min 44 s", "5.123 ± 0.010", "7 of 10")
    for needed in (
        *numbers,
        "## sprites-laptop",
        "data=sprites",
        "| ncsn",
        "results/sprites-laptop/plots/samples/ebm/ebm.png",
        "results/sprites-laptop/plots/samples/vae/vae-mixture.png",
    ):
        assert needed in page, needed


def test_scores_of_energies_are_listed_where_a_run_has_them(finished):
    assert "AUROC" not in results.page([results.save("a", finished)])
    with (finished / "params.yaml").open("a") as file:
        file.write("energy: {models: [ebm]}\n")
    files.write_json(finished / "metrics/energy/ebm.json", fake_energy("ebm"))
    (finished / "metrics/energy/.gitkeep").touch()
    folder = results.save("a", finished)
    page = results.page([folder])
    assert "| 0.473 " in page and "below 0.5" in page
    assert not list(folder.rglob(".gitkeep"))


def test_pictures_besides_samples_are_shown_where_a_run_has_them(finished):
    assert "reconstructions.png" not in results.page([results.save("a", finished)])
    (finished / "plots/fid/vae").mkdir()
    (finished / "plots/fid/vae/reconstructions.png").write_bytes(b"png")
    page = results.page([results.save("a", finished)])
    assert page.count("../results/a/plots/fid/vae/reconstructions.png") == 1 and "energy/vae" not in page


def test_what_a_distance_leaves_out_is_listed_where_a_run_has_it(finished):
    assert "duplicates" not in results.page([results.save("a", finished)])
    path = finished / "metrics/fid/vae.json"
    got = files.read_json(path)
    for row, told in got["protocol"].items():
        told |= {"n_test": 1500, "n_manifold": 1800}
        for key, value in BEYOND.items():
            got.setdefault(key, {})[row] = value
    files.write_json(path, got)
    page = results.page([results.save("a", finished)])
    assert "-7.9, +8.2, +3.0" in page and "1,800 images a side" in page


def test_saving_again_replaces_the_whole(finished):
    (results.save("a", finished) / "old").touch()
    assert not (results.save("a", finished) / "old").exists()


@pytest.mark.parametrize("name", ["../a", "", "A b", ".a"])
def test_a_result_needs_a_plain_name(finished, name):
    with pytest.raises(UserError, match="cannot name a result"):
        results.save(name, finished)


@pytest.mark.parametrize("gone", ["metrics/fid/ebm.json", "plots/samples"])
def test_an_unfinished_run_is_not_kept(finished, gone):
    path = finished / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UserError, match="run `dvc repro` first"):
        results.save("a", finished)
    assert not (finished / "results/a").exists()


def test_all_runs_share_a_page(finished):
    """Two runs of the same data: every row of both, the floor that they share once."""
    folders = [results.save(name, finished) for name in ("a-run", "b-run")]
    found = [row for folder in folders for row in runs.rows(folder)]
    assert len(found) == 2 * (1 + len(ROWS))
    first = next(row for row in found if row["row"] == "vae-mixture")
    told = {key: first[key] for key in ("run", "data", "scale", "n", "reference", "distance", "kid", "train_seconds")}
    assert told == {
        "run": "a-run", "data": "sprites", "scale": "unknown", "n": 2000, "distance": 1300.0, "kid": 1.7,
        "reference": "train, 10,000 images (fd_effnet)", "train_seconds": 61.0,
    }  # fmt: skip
    html = runs.html(folders)
    bodies = re.findall(r"<tbody.*?</tbody>", html, re.DOTALL)
    assert len(bodies) == 1 and bodies[0].count("<tr>") == 1 + 2 * len(ROWS)
    assert html.count(">any</td>") == 1 and "1.700 ± 0.040" in html and html.count("<svg") == 1
    assert not re.search(r"@import|url\(|src=|<link", html.replace('clip-path="url(', "")), "nothing is loaded"
    assert runs.html(folders) == html, "no dates, no random names"
