"""The report from small made-up metrics: complete, self-contained, honest about blanks."""

import dataclasses
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from fake_run import MODELS, SWEPT, fake_material, fake_metrics, fake_sweep
from PIL import Image

from pofx.core.errors import UserError
from pofx.eval import plots, report


class Page(HTMLParser):
    """Everything in a page that a browser would load, and its pictures."""

    def __init__(self, html: str):
        super().__init__()
        self.loads, self.images, self.open = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        got = dict(attributes)
        self.loads += [
            got[k] for k in ("src", "href", "srcset", "poster", "data") if k in got and not got[k].startswith("#")
        ]
        if tag == "img":
            self.images.append(got)
        if tag not in ("img", "meta", "link", "br", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    board = report.build(fake_material(folder / "in", fake_metrics()), folder / "report", folder / "comparison")
    return folder, board


def test_page_is_self_contained(built):
    html = (built[0] / "report/index.html").read_text()
    page = Page(html)
    assert not page.open, "unclosed tags"
    assert page.loads and all(load.startswith("data:image/png;base64,") for load in page.loads)
    assert not re.search(r"https?://|@import|url\(", html)
    # Samples and data, comparison, denoising, errors and NFE, curves, progress, data.
    assert len(page.images) == 4 + 2 + 3 * len(SWEPT) + 2 + 3 + 2 + 1
    assert all(image["alt"] for image in page.images)
    assert "prefers-color-scheme: dark" in html and "viewport" in html


def test_page_tells_all_that_a_number_needs(built):
    html = (built[0] / "report/index.html").read_text()
    protocol = ("train, 10,000 images", "E &lt;1280-d&gt;", "100 of 1000", "&#34;width&#34;: 32", "cpu")
    published = ("not comparable with published Inception FIDs", "Paper, Inception-FID, 50k", "25.32", "40.6", "4.64")
    published += ("10.87", "arXiv:2006.09011", "1.97", "arXiv:2206.00364")
    for needed in protocol + published:
        assert needed in html, needed


def test_page_shows_how_denoisers_denoise(built):
    html = (built[0] / "report/index.html").read_text()
    pictures = (
        " = 60, 8, 0.5, 0.02; last",
        "langevin, all noise levels",
        "During training",
        "Error at every noise level",
    )
    ladder = (
        "C = 0.21, where 0.3 or more is wanted",
        "is 30.1, images on [0, 1]; the largest noise level there, 30.",
    )
    for needed in pictures + ladder:
        assert needed in html, needed
    assert html.count("overlap by") == 1, "only where it was measured"


def test_every_point_of_a_sweep_is_listed_and_what_was_refused_with_its_reason(built):
    html, markdown = ((built[0] / "report" / name).read_text() for name in ("index.html", "report.md"))
    rows = report.points({"ncsn": fake_sweep(1.0)})
    assert len(rows) == 2 + 3 * 3 and list(rows[0])[:3] == ["model", "sampler", "levels"]
    own, blank = rows[0], next(row for row in rows if row["refused"][0])
    assert own["sampler"][0] == "langevin (own)" and own["levels"] == ("all", float("inf"))
    assert own["kid_effnet"] == ("0.130 ± 0.050", pytest.approx(0.13)) and own["fd_effnet, N = 256"][0] == "117"
    assert [row["last denoising"][0] for row in rows[:3]] == ["yes", "no", "yes"]
    assert blank["NFE"] == (report.BLANK, float("inf")) and blank["kid_effnet"][0] == report.BLANK
    assert "ancestral &lt;needs&gt; more steps" in html and "ancestral <needs> more steps" in markdown
    assert html.count('class="note"') == len(SWEPT) * len(rows)
    for told in ("256 images a point", "50 subsets of 256", "must not be set beside the leaderboard"):
        assert told in html and told in markdown, told
    assert "cpu &lt;fast&gt;" in html


def test_without_denoisers_there_are_no_empty_sections(tmp_path):
    got = fake_material(tmp_path / "in", fake_metrics())
    got = dataclasses.replace(got, sweeps={}, denoising={}, progress={})
    report.build(got, tmp_path / "report", tmp_path / "comparison")
    html, markdown = ((tmp_path / "report" / name).read_text() for name in ("index.html", "report.md"))
    assert not Page(html).open
    for heading in ("Denoising", "NFE</h2>", "During training"):
        assert heading not in html, heading
    assert "Distance against NFE" not in markdown
    assert not (tmp_path / "comparison/nfe.png").exists()


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
        plots.nfe({f"f{i}": sweep for i, sweep in enumerate(sweeps)}, -0.001, tmp_path / f"{name}.png")
        assert (np.asarray(Image.open(tmp_path / f"{name}.png"))[..., 3] > 0).any()


def test_leaderboard_is_sorted_below_the_floor_and_blank_where_there_is_no_likelihood(built):
    board = built[1]
    assert list(board.index) == ["floor", "gaussian", "pixel_gaussian", "ncsn", "ebm", "vae"]
    assert list(board["model"])[:3] == ["test images (floor)", "full-covariance Gaussian", "per-pixel Gaussian"]
    assert board.at["gaussian", "bits/dim"] == "4.7712 ± 0.0071" and board.at["gaussian", "fd_effnet"] == report.BLANK
    assert board.at["vae", "bits/dim"] == "5.432 ± 0.010"
    assert board.at["ncsn", "bits/dim"] == board.at["floor", "bits/dim"] == report.BLANK
    assert board.at["vae", "parameters"] == "68.2k" and board.at["vae", "training"] == "1 min 01 s"
    markdown = (built[0] / "report/report.md").read_text()
    assert "| ncsn" in markdown and "not comparable" in markdown and "| 25.32 " in markdown


def test_the_fixed_rows_stand_in_a_body_of_their_own(built):
    bodies = re.findall(r"<tbody.*?</tbody>", (built[0] / "report/index.html").read_text(), re.DOTALL)
    assert bodies[0].count("<tr>") == 1 + len(report.LINES) and bodies[1].count("<tr>") == len(MODELS)


def test_runs_without_gaussians_are_still_listed():
    metrics = fake_metrics()
    for key in ("bpd", "bpd_stderr"):
        metrics[key] = {f: value for f, value in metrics[key].items() if f in MODELS}
    assert list(report.leaderboard(MODELS, metrics).index) == ["floor", "ncsn", "ebm", "vae"]


def test_the_brief_table_fits_a_terminal():
    lines = report.brief(MODELS, fake_metrics()).splitlines()
    assert len(lines) == 2 + 1 + len(report.LINES) + len(MODELS) and len(lines[0]) <= 120


def test_figures_are_not_empty(built):
    names = {p.name for p in (built[0] / "comparison").iterdir()}
    fixed = {f"{name}.png" for name in ("distance", "cost", "overview", "nfe", "levels")}
    assert names == fixed | {f"curve_{f}.png" for f in MODELS}
    for name in names:
        alpha = np.asarray(Image.open(built[0] / "comparison" / name))[..., 3]
        assert 0.01 < (alpha > 0).mean() < 0.9, name


def test_summary_holds_a_dozen_numbers():
    summary = report.summary(MODELS, fake_metrics())
    assert list(summary) == ["fd_effnet", "kid_effnet", "bpd", "train_seconds"]
    assert list(summary["fd_effnet"]) == ["floor", *MODELS]
    assert summary["bpd"] == {"vae": 5.4321} and list(summary["train_seconds"]) == list(MODELS)
    json.dumps(summary)


def test_only_inception_drops_the_warning_and_is_called_fid():
    metrics = fake_metrics(["fid", "kid", "kid_std"])
    assert "not comparable" not in report.notice(metrics)
    assert "fid" in report.leaderboard(MODELS, metrics).columns and "fid" in report.summary(MODELS, metrics)


def test_models_choose_the_rows_whatever_else_was_measured():
    assert list(report.table(("vae",), fake_metrics()).index) == ["floor", "vae"]
    assert set(report.summary(("ncsn",), fake_metrics())) == {"fd_effnet", "kid_effnet", "train_seconds"}


def test_no_models_is_a_user_error():
    with pytest.raises(UserError, match="models is empty"):
        report.table((), fake_metrics())


def test_a_value_in_two_files_is_an_error():
    with pytest.raises(ValueError, match="train_loss of vae"):
        report.merge([{"train_loss": {"vae": 1.0}}, {"train_loss": {"vae": 2.0}}])


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.5, "0.5 s"), (59.0, "59 s"), (200.0, "3 min 20 s"), (7500.0, "2 h 05 min"), (float("nan"), report.BLANK)],
)
def test_clock(seconds, shown):
    assert report.clock(seconds) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(12.0, "12"), (950.0, "950"), (68_200.0, "68.2k"), (999_999.0, "1M"), (1.25e6, "1.25M"), (357e6, "357M")],
)
def test_count(value, shown):
    assert report.count(value) == shown


@pytest.mark.parametrize(
    ("pair", "shown"),
    [((0.2851, 0.0161), "0.285 ± 0.016"), ((-0.0004, 0.003), "-0.0004 ± 0.0030"), ((2.0, 0.0), "2.0000 ± 0.0000")],
)
def test_between(pair, shown):
    assert report.between(*pair) == shown


def test_short_numbers_have_no_exponent():
    assert [plots.short(v) for v in (1400.0, 99.96, 0.0123, 25.316)] == ["1,400", "100", "0.0123", "25.3"]
