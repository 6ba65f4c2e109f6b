"""The report from small made-up metrics: complete, self-contained, honest about blanks."""

import dataclasses
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from fake_run import (
    BASED,
    CODE,
    MODELS,
    ROWS,
    SWEPT,
    fake_energy,
    fake_material,
    fake_metrics,
    fake_sweep,
    with_beyond,
    with_faces,
    with_seeds,
)
from matplotlib.figure import Figure
from PIL import Image
from plotly.offline import get_plotlyjs

from pofx.base.errors import UserError
from pofx.base.files import read_json
from pofx.base.images import grid, save_grid
from pofx.report import charts, interactive, page, plots, tables, text
from pofx.report import metrics as measured


class Page(HTMLParser):
    """Everything in a page that a browser would load, and its pictures."""

    def __init__(self, html: str):
        super().__init__()
        self.loads, self.images, self.open = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        got = dict(attributes)
        loading = ("src", "srcset", "poster", "data") + ("href",) * (tag != "a")  # a link is followed by choice
        self.loads += [got[k] for k in loading if k in got]
        if tag == "img":
            self.images.append(got)
        if tag not in ("img", "meta", "link", "br", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def drawn(figure: Figure) -> np.ndarray:
    """Its pixels, RGB."""
    file = io.BytesIO()
    figure.savefig(file, dpi="figure")
    return np.asarray(Image.open(file).convert("RGB"))


def flat(path: Path) -> str:
    """A document wherever its lines break."""
    return " ".join(path.read_text().split())


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    board = page.build(fake_material(folder / "in", fake_metrics()), folder / "report", folder / "comparison")
    return folder, board


def test_page_is_self_contained(built):
    html = (built[0] / "report/index.html").read_text()
    page = Page(html)
    assert not page.open, "unclosed tags"
    assert page.loads and all(load.startswith("data:image/png;base64,") for load in page.loads)
    written = html.replace(get_plotlyjs(), "")
    assert len(html) - len(written) == len(get_plotlyjs()), "the library once"
    assert not re.search(r"https?://|@import|url\(", written)
    # The first, samples and data, comparison, neighbours, codes, denoising, errors and NFE, energy, curves, progress,
    # data; the one that is enlarged.
    assert len(page.images) == 1 + 5 + 2 + 2 + 3 + 3 * len(SWEPT) + 2 + 1 + 4 * len(BASED) + 3 + 2 + 1 + 1
    assert all(image["alt"] for image in page.images)
    assert "color-scheme: light dark" in html and "viewport" in html


def test_page_tells_all_that_a_number_needs(built):
    html = (built[0] / "report/index.html").read_text()
    protocol = ("train, 10,000 images", "E &lt;1280-d&gt;", "100 of 1000", "&#34;width&#34;: 32", "cpu")
    published = ("not comparable with published Inception FIDs", "Paper, Inception-FID, 50k", "25.32", "40.6", "4.64")
    published += ("10.87", "arXiv:2006.09011", "1.97", "arXiv:2206.00364")
    for needed in protocol + published:
        assert needed in html, needed


def test_page_tells_which_guards_fired(built):
    html = " ".join((built[0] / "report/index.html").read_text().split())
    mended = "energy, at 3,200 images: rolled back to 2,400 images, learning rate x 0.3"
    warned = "&lt;still&gt;, at 4,000 images: warned (12 rows of the curve)"
    lines = "".join(f' <span class="line">{told}</span>' for told in (mended, warned))
    assert f"Guards that fired:{lines}</figcaption>" in html
    assert html.count("No guard fired.") == len(MODELS) - 1


def test_page_shows_how_denoisers_denoise(built):
    html = " ".join((built[0] / "report/index.html").read_text().split())
    pictures = (
        " = 60, 8, 0.5, 0.02; last",
        "langevin, all noise levels",
        "During training",
        "Error at every noise level",
    )
    schedule = (
        "C = 0.21, where 0.3 or more is wanted",
        "is 30.1, images on [0, 1]; the largest noise level there, 30.",
    )
    for needed in pictures + schedule:
        assert needed in html, needed
    assert html.count("overlap by") == 1, "only where it was measured"


def test_every_point_of_a_sweep_is_listed_and_what_was_refused_with_its_reason(built):
    html, markdown = (flat(built[0] / "report" / name) for name in ("index.html", "report.md"))
    rows = tables.points({"ncsn": fake_sweep(1.0)})
    assert len(rows) == 2 + 3 * 3 and list(rows[0])[:3] == ["model", "sampler", "levels"]
    own, blank = rows[0], next(row for row in rows if row["refused"][0])
    assert own["sampler"][0] == "langevin (own)" and own["levels"] == ("all", float("inf"))
    assert own["kid_effnet"] == ("0.130 ± 0.050", pytest.approx(0.13)) and own["fd_effnet, N = 256"][0] == "117"
    assert [row["last denoising"][0] for row in rows[:3]] == ["yes", "no", "yes"]
    assert blank["NFE"] == (text.BLANK, float("inf")) and blank["kid_effnet"][0] == text.BLANK
    assert "ancestral &lt;needs&gt; more steps" in html and "ancestral <needs> more steps" in markdown
    assert html.count('class="note"') == len(SWEPT) * len(rows) + len(fake_energy("ebm")["rows"])
    for told in ("256 images a point", "50 subsets of 256", "must not be set beside the leaderboard"):
        assert told in html and told in markdown, told
    assert "cpu &lt;fast&gt;" in html


def test_page_shows_what_an_energy_is_for(built):
    html, markdown = (flat(built[0] / "report" / name) for name in ("index.html", "report.md"))
    (row,) = tables.scores({"ebm": fake_energy("ebm")})
    assert {k: v[0] for k, v in row.items()} == {
        "model": "ebm", "training": "0.473", "uniform noise": "1.000", "blends": "0.251",
    }  # fmt: skip
    first, *rows = tables.chains({"ebm": fake_energy("ebm")})
    assert first["row"][0] == "test images (ebm)" and first["Langevin steps"] == (text.BLANK, float("inf"))
    assert first["energy"][0] == "+0.04" and rows[0]["energy"][0] == "+4.00" and rows[0]["saturated"][0] == "1.00%"
    assert rows[-1]["refused"][0] == "the <buffer> is too small" and rows[-1]["kid_effnet"][0] == text.BLANK
    for told in ("0.251", "below 0.5: the model finds the others likelier", "subsets of 128", "± 0.018", "+4.00"):
        assert told in html and told in markdown, told
    captions = (
        "Right half hidden, 32 images: PSNR of the hidden pixels 12.1 dB",
        "filled with the mean of the rest, 13.9 dB",
    )
    captions += (
        "PSNR 20.2 dB with noise, 22.4 dB restored",
        "from where they start to the sample, evenly spaced",
        'href="#energy"',
    )
    for needed in captions:
        assert needed in html, needed
    assert "the &lt;buffer&gt; is too small" in html


def test_page_shows_codes_and_neighbours(built):
    html, markdown = ((built[0] / "report" / name).read_text() for name in ("index.html", "report.md"))
    html = " ".join(html.split())
    links = ('<a href="#neighbours">', '<a href="#codes">', 'id="neighbours"', 'id="codes"')
    captions = ("first 10,000 training images", "(the largest: 2.5, 1.25, 0 nats", "-1.5, 0, 1.5 standard deviations")
    for needed in links + captions:
        assert needed in html, needed
    rows = tables.codes(MODELS, fake_metrics())
    assert [row["model"][0] for row in rows] == ["test images (floor)", "vae"], "no row of dashes alone"
    floor, vae = rows
    assert floor["recon_fd_effnet"] == ("62", 62.0) and floor["SSIM"] == (text.BLANK, float("inf"))
    assert vae["active units"] == ("7 of 10", 7) and vae["codes used"][0] == text.BLANK
    cells = ("5.123 ± 0.010", "5.18", "0.25", "123", "22.2", "0.57", text.BLANK, "7 of 10")
    assert [cell for cell, _ in vae.values()] == ["vae", *cells, *4 * [text.BLANK]]
    for cell in cells:
        assert f">{cell}</td>" in html and f" {cell} " in markdown, cell


def test_a_codebook_has_a_figure(tmp_path):
    metrics = fake_metrics()
    metrics |= {
        "code_counts": {"ebm": [5, 2, 1, 0], "gone": [1]},
        "perplexity": {"ebm": 2.5},
        "codes_used": {"ebm": 0.75},
    }
    metrics["config"]["ebm"]["base"] = {"codes": 4}
    page.build(fake_material(tmp_path / "in", metrics), tmp_path / "report", tmp_path / "comparison")
    assert "How often each code" in (tmp_path / "report/index.html").read_text()
    assert (np.asarray(Image.open(tmp_path / "comparison/codebook.png"))[..., 3] > 0).mean() > 0.01
    row = tables.codes(MODELS, metrics)[-1]
    assert (row["perplexity"][0], row["codes used"][0]) == ("2.5 of 4", "75.0%")


def test_the_figure_of_a_codebook_draws_every_count_and_the_even_share():
    panels = charts.codebook({"a": [5, 2, 1, 0], "b": [3, 3]}, {"a": 2.5, "b": 2.0}, {"a": "red", "b": "blue"})
    first, second = plots.draw(panels, named=False).axes
    assert first.lines[0].get_ydata().tolist() == [5, 2, 1, 0]
    assert first.lines[-1].get_ydata()[0] == 2 and second.lines[-1].get_ydata()[0] == 3
    assert "perplexity 2.5 of 4 codes; dashed: even share 2" in first.get_title(loc="left")


def test_a_run_without_codes_and_pictures_is_shown_too(tmp_path):
    """As runs were before these were measured."""
    metrics = {key: row for key, row in fake_metrics().items() if key not in (*CODE, "recon_fd_effnet", "guards")}
    for row in metrics["protocol"].values():
        row.pop("traversal", None), row.pop("n_reference", None)
    got = fake_material(tmp_path / "in", metrics)
    shutil.rmtree(tmp_path / "in/fid")
    page.build(got, tmp_path / "report", tmp_path / "comparison")
    html, markdown = ((tmp_path / "report" / name).read_text() for name in ("index.html", "report.md"))
    html = html.replace(get_plotlyjs(), "")
    assert not Page(html).open and "Codes and" not in html + markdown and "Nearest" not in html
    assert "guard" not in html.lower()
    assert not (tmp_path / "comparison/codebook.png").exists()
    metrics["recon_psnr"] = {"vae": 22.25}
    (row,) = tables.codes(MODELS, metrics)
    assert row["PSNR, dB"][0] == "22.2" and row["weighted bits/dim"][0] == text.BLANK


def test_without_denoisers_there_are_no_empty_sections(tmp_path):
    got = fake_material(tmp_path / "in", fake_metrics())
    got = dataclasses.replace(got, sweeps={}, energies={})
    shutil.rmtree(tmp_path / "in/progress")
    page.build(got, tmp_path / "report", tmp_path / "comparison")
    html, markdown = ((tmp_path / "report" / name).read_text() for name in ("index.html", "report.md"))
    assert not Page(html).open
    for heading in ("Denoising", "NFE</h2>", "Energy", "During training"):
        assert heading not in html, heading
    assert "Distance against NFE" not in markdown and "## Energy" not in markdown
    assert not any((tmp_path / f"comparison/{name}.png").exists() for name in ("nfe", "chain"))


def test_the_figure_of_a_sweep_stands_what_a_run_may_bring(tmp_path):
    """One family, every point refused, distances below zero, no point but the own setting."""
    refused, below, lonely = fake_sweep(1.0), fake_sweep(-0.1), fake_sweep(1.0)
    refused["rows"] = [{**row, "refused": "no"} for row in refused["rows"]]
    lonely["rows"] = lonely["rows"][:1]
    for name, sweeps in {
        "refused": [refused],
        "below": [below, lonely],
        "four": [below, refused, below, lonely],
    }.items():
        chart = charts.nfe({f"f{i}": sweep for i, sweep in enumerate(sweeps)}, -0.001)
        plots.save(plots.draw(chart.still, shared=True), tmp_path / f"{name}.png")
        assert (np.asarray(Image.open(tmp_path / f"{name}.png"))[..., 3] > 0).any()


def test_leaderboard_is_sorted_below_the_floor_and_blank_where_there_is_no_likelihood(built):
    board = built[1]
    assert list(board.index) == ["floor", "gaussian", "pixel_gaussian", "ncsn", "ebm", "vae-mixture", "vae"]
    assert list(board["model"])[:3] == ["test images (floor)", "full-covariance Gaussian", "per-pixel Gaussian"]
    assert board.at["gaussian", "bits/dim"] == "4.7712 ± 0.0071" and board.at["gaussian", "fd_effnet"] == text.BLANK
    assert board.at["vae", "bits/dim"] == "5.432 ± 0.010"
    assert board.at["ncsn", "bits/dim"] == board.at["floor", "bits/dim"] == text.BLANK
    assert board.at["vae", "parameters"] == "68.2k" and board.at["vae", "training"] == "1 min 01 s"
    markdown = (built[0] / "report/report.md").read_text()
    assert "| ncsn" in markdown and "not comparable" in markdown and "| 25.32 " in markdown


def test_the_fixed_rows_stand_in_a_body_of_their_own(built):
    bodies = re.findall(r"<tbody.*?</tbody>", (built[0] / "report/index.html").read_text(), re.DOTALL)
    assert bodies[0].count("<tr>") == 1 + 2 and bodies[1].count("<tr>") == len(ROWS)


def test_runs_without_gaussians_are_still_listed():
    metrics = fake_metrics()
    for key in ("bpd", "bpd_stderr"):
        metrics[key] = {f: value for f, value in metrics[key].items() if f not in measured.LINES}
    assert list(tables.leaderboard(MODELS, metrics).index) == ["floor", "ncsn", "ebm", "vae-mixture", "vae"]


def test_what_a_distance_leaves_out_has_a_table(tmp_path):
    metrics = with_beyond(fake_metrics())
    metrics |= {"fd_inf_effnet": {"ncsn": 432.1}, "fd_inf_effnet_stderr": {"ncsn": 1.2}}
    board = page.build(fake_material(tmp_path / "in", metrics), tmp_path / "report", tmp_path / "comparison")
    html, markdown = (flat(tmp_path / "report" / name) for name in ("index.html", "report.md"))
    assert not Page(html).open and 'href="#beyond"' in html
    lines = ["floor", "halves", "gaussian", "pixel_gaussian"]
    assert list(board.index) == [*lines, "ncsn", "ebm", "vae-mixture", "vae"]
    assert list(board.loc["halves", ["model", "fd_effnet"]]) == ["training images (floor)", "31.4"]
    assert (board.loc["gaussian"].drop("model") == text.BLANK).sum() >= 5
    rows = tables.beyond(["ncsn", "vae"], metrics)
    assert [row["model"][0] for row in rows] == [*board["model"][:4], "ncsn", "vae"]
    floor, _, refused, _, ncsn, vae = rows
    assert ncsn["fd_inf_effnet"] == ("432.1 ± 1.2", 432.1) and vae["fd_inf_effnet"] == (text.BLANK, float("inf"))
    blank, shift = 2 * (text.BLANK,), ("-7.9, +8.2, +3.0", 8.16)
    assert floor["nearest_ratio"][0] == floor["fd_test_effnet"][0] == text.BLANK and floor["colour_shift"] == shift
    assert [cell for cell, _ in vae.values()] == ["vae", text.BLANK, "640", "1.234 ± 0.032", "0.812", "0.0456",
        "1.25", "0.375", "0.875", "1.2%", "25.0%", "-7.9, +8.2, +3.0", "3.1%"]  # fmt: skip
    assert {cell for cell, _ in list(refused.values())[1:]} == set(blank)
    for words in (
        "against 1,500 test images",
        "1,234 training images",
        "1,800 images a side",
        "10,000 training images",
    ):
        assert words in html and words in markdown, words
    assert "full-covariance Gaussian: blank, &lt;60&gt; are too few." in html and "<60> are too few." in markdown
    assert "train, 1,234 other images" in html
    body = html[html.index('id="beyond"') :]
    assert re.findall(r"<tbody.*?</tbody>", body, re.DOTALL)[0].count("<tr>") == len(lines)
    assert set(measured.summary(MODELS, metrics)) == {"fd_effnet", "bpd", "recon_psnr", "learned"}


def test_runs_that_measured_distances_alone_have_no_such_table(built):
    assert tables.beyond(list(ROWS), fake_metrics()) == []
    for name in ("index.html", "report.md"):
        assert "Beyond" not in (built[0] / "report" / name).read_text()


def test_the_brief_table_fits_a_terminal():
    metrics = with_faces(with_seeds(fake_metrics()))
    metrics["fd_effnet"]["pixel_gaussian"] = 700.0
    lines = tables.brief(MODELS, metrics).splitlines()
    assert len(lines) == 2 + 1 + 2 + len(ROWS) and max(map(len, lines)) <= 120 and "face_error" in lines[0]


def test_figures_are_not_empty(built):
    names = {p.name for p in (built[0] / "comparison").iterdir()}
    fixed = {f"{name}.png" for name in ("distance", "cost", "overview", "nfe", "levels", "chain")}
    assert names == fixed | {f"curve_{f}.png" for f in MODELS}
    for name in names:
        alpha = np.asarray(Image.open(built[0] / "comparison" / name))[..., 3]
        assert 0.01 < (alpha > 0).mean() < 0.9, name


def test_a_row_has_its_own_drawing_and_the_training_of_its_family(built):
    board, html = built[1], (built[0] / "report/index.html").read_text()
    one, other = board.loc["vae"], board.loc["vae-mixture"]
    shared = ["parameters", "images seen", "training", "training img/s", "trained on"]
    assert other[shared].equals(one[shared])
    assert (other[["test loss", "bits/dim"]] == text.BLANK).all() and (
        one[["test loss", "bits/dim"]] != text.BLANK
    ).all()
    assert (other["fd_effnet"], other["kid_effnet"], other["s per 1,000 samples"]) == ("1,300", "1.700 ± 0.040", "0.5")
    for needed in ("vae-mixture: the model of the row", "Images drawn by vae-mixture", "Parameters of vae-mixture"):
        assert needed in html, needed
    assert "Curves of vae-mixture" not in html and "<h1>ncsn, ebm, vae on sprites" in html
    blank = f"<td>{text.BLANK}</td>"
    assert re.search(f'<td>vae-mixture</td><td>2,000</td>{blank * 2}.*<td class="text">cpu</td>', html)


def test_sampling_seeds_give_a_mean_and_a_spread():
    """700 with the first seed; 724.5 and 686 with two more."""
    metrics = with_seeds(fake_metrics())
    board = tables.leaderboard(MODELS, metrics)
    assert board.at["ncsn", "fd_effnet"] == "704 ± 19 (3 seeds)"
    assert board.at["ncsn", "kid_effnet"] == "1.000 ± 0.040", "of the first seed, over subsets"
    assert board.at["floor", "fd_effnet"] == "62"
    rows = tables.sampled(MODELS, metrics)
    ncsn = next(row for row in rows if row["model"][0] == "ncsn" and row["measure"][0] == "fd_effnet")
    assert [cell for cell, _ in ncsn.values()] == ["ncsn", "fd_effnet", "700", "724", "686", "704", "19.5"]
    assert len(rows) == 2 * len(ROWS) and tables.sampled(MODELS, fake_metrics()) == []
    assert measured.summary(MODELS, metrics)["fd_effnet"]["ncsn"] == 700


@pytest.mark.parametrize(
    ("gaussians", "verdict"),
    [  # of a row whose three draws have 700, 724.5 and 686: 703.5 ± 19.4
        ({"pixel_gaussian": [750.0], "pca_gaussian": [800.0]}, ""),
        ({"pixel_gaussian": [800.0], "pca_gaussian": [650.0]}, "not learned"),
        ({"pca_gaussian": [710.0]}, "learned?"),
        ({"pixel_gaussian": [690.0]}, "not learned?"),
        ({"pixel_gaussian": [640.0, 680.0, 720.0]}, "not learned?"),
        ({"pixel_gaussian": [749.0, 750.0, 751.0]}, ""),
        ({"gaussian": [600.0]}, ""),
    ],
)
def test_a_row_behind_a_simple_gaussian_has_not_learned(gaussians, verdict):
    metrics = with_seeds(fake_metrics())
    metrics["fd_effnet"] |= {name: draws[0] for name, draws in gaussians.items()}
    metrics["fd_effnet_seeds"] |= gaussians
    found = measured.verdicts(MODELS, metrics)
    assert str(found.get("ncsn", "")) == verdict
    if "gaussian" in gaussians:
        assert not found and "learned" not in measured.summary(MODELS, metrics), "it has learned more than they"
    else:
        assert measured.summary(MODELS, metrics)["learned"]["ncsn"] is not verdict.startswith("not")
        assert tables.leaderboard(MODELS, metrics).at["ncsn", "model"] == ", ".join(filter(None, ("ncsn", verdict)))


def test_without_seeds_nothing_is_close():
    metrics = fake_metrics()
    metrics["fd_effnet"]["pca_gaussian"] = 700.0
    assert measured.verdicts(MODELS, metrics)["ncsn"] == measured.Verdict(learned=True, close=False)
    assert measured.verdicts(MODELS, metrics)["vae"] == measured.Verdict(learned=False, close=False)


def test_faces_have_columns_where_they_were_measured(tmp_path, built):
    metrics = with_faces(fake_metrics())
    board = page.build(fake_material(tmp_path / "in", metrics), tmp_path / "report", tmp_path / "comparison")
    columns = ["face_error", "valid", "kinds_tv", "held_out"]
    assert list(board.columns[1:7]) == ["fd_effnet", "kid_effnet", *columns]
    assert list(board.loc["floor", columns]) == ["0.1", "10.0%", "0.1", "10.0%"]
    assert list(board.loc["ncsn", columns]) == ["32.2 ± 1", "12.5%", "0.0812", "6.2%"], "mean of three seeds"
    assert list(board.loc["ebm", ["valid", "held_out"]]) == ["0.0%", text.BLANK]
    assert len(tables.leading(MODELS, metrics)[0]) <= 12
    assert [row["measure"][0] for row in tables.sampled(MODELS, metrics)] == ["face_error"]
    assert measured.summary(MODELS, metrics)["valid"]["ebm"] == 0.0
    for name in ("index.html", "report.md"):
        assert "kinds_tv: total" in flat(tmp_path / "report" / name)
        assert "kinds_tv" not in flat(built[0] / "report" / name)
    assert not set(columns) & set(built[1].columns)


def test_strips_show_the_first_images_in_whole_pixels():
    rng = np.random.default_rng(0)
    for side, columns, scale in ((16, 7, 6), (32, 8, 3), (64, 6, 2)):
        images = rng.integers(0, 256, (10, 3, side, side), np.uint8)
        pixels = drawn(plots.strips({"a": images, "b": images[:2]}))
        assert pixels.shape[1] <= plots.STRIP
        strip = pixels[26 : 26 + (side + 4) * scale, : ((side + 2) * columns + 2) * scale]
        assert np.array_equal(strip, np.asarray(grid(images[:columns], columns, scale=scale)))


def test_the_first_line_of_a_grid_is_read_back(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (20, 3, 8, 8), np.uint8)
    save_grid(images, tmp_path / "a.png", plots.COLUMNS)
    assert np.array_equal(plots.first_line(tmp_path / "a.png"), images[: plots.COLUMNS])


def test_the_page_leads_with_the_best_row_of_each_family_best_first(tmp_path):
    metrics = fake_metrics()
    metrics["fd_effnet"]["pca_gaussian"] = 1200.0
    got = fake_material(tmp_path, metrics)
    found = page.first_images(got)
    assert list(found) == ["data", "ncsn", "ebm", "vae-mixture, not learned"]
    mixture = plots.first_line(tmp_path / "samples/vae/vae-mixture.png")
    assert np.array_equal(found["vae-mixture, not learned"], mixture)


def test_costs_are_repeated_in_every_row_of_a_family_and_left_out_where_unknown():
    columns = [list(tables.costs(MODELS, metrics)[0]) for metrics in (fake_metrics(), with_seeds(fake_metrics()))]
    assert not {"GFLOP a call", "training MiB", "sampling MiB"} & set(columns[0])
    assert {"GFLOP a call", "training MiB"} < set(columns[1]) and "sampling MiB" not in columns[1]
    assert all(len(names) <= 12 for names in columns) and len(tables.leading(MODELS, fake_metrics())[0]) <= 12
    found = {row["model"][0]: row for row in tables.costs(MODELS, with_seeds(fake_metrics()))}
    assert list(found) == ["ncsn", "ebm", "vae-mixture", "vae"]
    assert found["vae-mixture"]["GFLOP a call"] == found["vae"]["GFLOP a call"] == ("1.5", 1.5)


def test_an_inexact_start_is_named_with_its_images(tmp_path):
    metrics = with_seeds(fake_metrics()) | {"start_images": {"vae": 60_000}}
    start = {"from": "weights/first", "images": 60_000, "note": "an inexact start"}
    metrics["trained"] = {"vae": metrics["trained"]["vae"] | {"start": start}}
    shown = {row["model"][1]: row["of these before an inexact start"][0] for row in tables.costs(MODELS, metrics)}
    assert shown == {"vae": "60k", "vae-mixture": "60k", "ebm": text.BLANK, "ncsn": text.BLANK}
    page.build(fake_material(tmp_path / "in", metrics), tmp_path / "report", tmp_path / "comparison")
    told = "<dt>started from</dt><dd>weights/first, 60,000 images: an inexact start</dd>"
    assert flat(tmp_path / "report/index.html").count(told) == 2, "the rows of that family"


def test_probes_have_a_row_for_pixels_and_none_for_families_without():
    assert tables.probes(MODELS, fake_metrics()) == []
    pixels, vae = tables.probes(MODELS, with_seeds(fake_metrics()))
    assert [cell for cell, _ in pixels.values()] == ["pixels", "40.0% ± 1.0%", *4 * [text.BLANK]]
    assert [cell for cell, _ in vae.values()] == ["vae", "51.2% ± 2.0%", "25.0%", "128", "9,000", "mean of the <code>"]


def test_each_row_tells_where_its_model_comes_from(tmp_path):
    got = fake_material(tmp_path / "in", with_seeds(fake_metrics()))
    page.build(got, tmp_path / "report", tmp_path / "comparison")
    html = flat(tmp_path / "report/index.html")
    facts = {
        name: html.split(f"<summary>{name}</summary>")[1].split("</details>")[0] for name in ("vae-mixture", "ncsn")
    }
    for fact in ("0123abc, with changes</dd>", "<dt>date of training</dt> <dd>2026-01-02</dd>", "<dd>7</dd>"):
        assert fact in facts["vae-mixture"], fact
    assert "&#34;prior&#34;: &#34;mixture&#34;" in facts["vae-mixture"]
    for name in ("revision", "torch"):
        assert f"<dt>{name}</dt> <dd>unknown</dd>" in facts["ncsn"]
    assert "<dt>machine</dt><dd>cpu</dd>" in facts["ncsn"]


def test_the_front_holds_what_nothing_beats():
    """By train_seconds the EBM beats nothing, and costs more than the VAE."""
    metrics, tints = fake_metrics(), dict.fromkeys(MODELS, "#000000")
    metrics["fd_effnet"] |= {"vae": 700.0, "ebm": 800.0, "ncsn": 600.0, "vae-mixture": 900.0}
    found = measured.table(MODELS, metrics)
    chart = charts.cost(found, measured.distance_keys(metrics), ROWS, tints)
    panel = chart.panels[""]["train_seconds/fd_effnet"]
    front = next(line for line in panel.lines if line.name == "Pareto front")
    assert (front.x, front.y) == ([61, 183], [700, 600])
    traces = interactive.figure(panel, 380)["data"]
    assert [trace["name"] for trace in traces] == ["Pareto front", *ROWS, "floor (62)"]
    assert list(chart.choices["Cost"])[:3] == ["train_seconds", "sample_seconds_per_1000", "nfe"]


def test_rows_are_those_of_the_families_compared():
    metrics = fake_metrics()
    assert measured.rows(MODELS, metrics) == ROWS
    metrics["protocol"]["gaussian"] = {}
    assert list(measured.rows(("ncsn", "vae"), metrics)) == ["ncsn", "vae", "vae-mixture"]


def test_summary_holds_the_headline_numbers_of_every_row():
    """Every one is a column of `dvc exp show`."""
    summary = measured.summary(MODELS, fake_metrics())
    assert list(summary) == ["fd_effnet", "bpd", "recon_psnr"]
    assert list(summary["fd_effnet"]) == list(ROWS) and summary["bpd"] == {"vae": 5.4321}
    json.dumps(summary)


def test_the_summary_in_git_holds_headline_metrics_alone():
    """A column of `dvc exp show` for every row: more metrics would make it unreadable."""
    tree = read_json(Path(__file__).parents[1] / "metrics/summary.json")
    assert set(tree) <= {"fd_effnet", "fid", "fd_inception", *measured.SUMMARY, "learned"}
    assert all(np.isfinite(value) for values in tree.values() for value in values.values())


def test_only_inception_drops_the_warning_and_is_called_fid(tmp_path):
    metrics = fake_metrics(["fid", "kid", "kid_std"])
    got = dataclasses.replace(fake_material(tmp_path / "in", metrics), sweeps={}, energies={})
    page.build(got, tmp_path / "report", tmp_path / "comparison")
    assert "not comparable" not in (tmp_path / "report/report.md").read_text()
    assert "fid" in tables.leaderboard(MODELS, metrics).columns and "fid" in measured.summary(MODELS, metrics)


def test_models_choose_the_rows_whatever_else_was_measured():
    assert list(measured.table(("vae",), fake_metrics()).index) == ["floor", "vae", "vae-mixture"]
    assert set(measured.summary(("ncsn",), fake_metrics())) == {"fd_effnet"}


def test_no_models_is_a_user_error():
    with pytest.raises(UserError, match="models is empty"):
        measured.table((), fake_metrics())


def test_a_value_in_two_files_is_an_error():
    with pytest.raises(ValueError, match="train_loss of vae"):
        measured.merge([{"train_loss": {"vae": 1.0}}, {"train_loss": {"vae": 2.0}}])


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.5, "0.5 s"), (59.0, "59 s"), (200.0, "3 min 20 s"), (7500.0, "2 h 05 min")],
)
def test_clock(seconds, shown):
    assert text.clock(seconds) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(12.0, "12"), (950.0, "950"), (68_200.0, "68.2k"), (999_999.0, "1M"), (1.25e6, "1.25M"), (357e6, "357M")],
)
def test_count(value, shown):
    assert text.count(value) == shown


@pytest.mark.parametrize(
    ("pair", "shown"),
    [((0.2851, 0.0161), "0.285 ± 0.016"), ((-0.0004, 0.003), "-0.0004 ± 0.0030"), ((2.0, 0.0), "2.0000 ± 0.0000")],
)
def test_between(pair, shown):
    assert text.between(*pair) == shown


def test_short_numbers_have_no_exponent():
    assert [text.short(v) for v in (1400.0, 99.96, 0.0123, 25.316)] == ["1,400", "100", "0.0123", "25.3"]
