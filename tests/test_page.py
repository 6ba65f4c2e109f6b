"""The report in a real browser, headless: it asks for nothing from elsewhere, everything on it works by mouse and by
keyboard, and axe finds nothing to object to.

Without Chromium these tests are skipped, but where POFX_BROWSER=require (as in .ci/run) its absence is a failure.
POFX_BROWSER=/path/to/chromium names one.
"""

import os
import re
import shutil
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from fake_run import MODELS, ROWS, fake_material, fake_metrics, with_beyond, with_seeds
from playwright.sync_api import Page, expect, sync_playwright

from pofx.report import page as report
from pofx.report.text import BLANK

FLAGS = (
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync",
)  # fmt: skip
WISH = os.environ.get("POFX_BROWSER") or ("require" if os.environ.get("CI") else "")
NAMES = [WISH] if WISH not in ("", "require") else ["chromium", "chromium-browser", "google-chrome"]
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)  # not one that playwright would download
pytestmark = pytest.mark.skipif(
    not BROWSER and not WISH, reason="no Chromium found: `make browser`, or POFX_BROWSER=/path/to/it"
)
WCAG = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa"]}}


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("page")
    report.build(
        fake_material(folder / "in", with_seeds(with_beyond(fake_metrics()))), folder / "report", folder / "comparison"
    )
    return (folder / "report/index.html").as_uri()


@pytest.fixture(scope="module")
def chromium():
    assert BROWSER, f"POFX_BROWSER={WISH}, and there is no {' or '.join(NAMES)}: `make browser`"
    expect.set_options(timeout=60_000)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def opened(chromium, address):
    """The page at some width and theme, loaded once, and what went wrong or was asked for since."""
    pages: dict[tuple, tuple[Page, list[str]]] = {}

    def get(to: str, width: int, scheme: str, script: bool) -> tuple[Page, list[str]]:
        if (to, width, scheme, script) in pages:
            return pages[to, width, scheme, script]
        context = chromium.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, java_script_enabled=script
        )
        context.set_default_timeout(120_000)  # a busy machine is no fault of the page
        page, wrong = context.new_page(), []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda told: wrong.append(told.text) if told.type in ("error", "warning") else None)

        def answer(route):
            if route.request.url.startswith(("file:", "data:", "blob:")):
                return route.continue_()
            wrong.append(f"asked for {route.request.url}")
            return route.abort()

        context.route("**/*", answer)
        page.goto(to or address)
        pages[to, width, scheme, script] = page, wrong
        return page, wrong

    yield get
    for page, _ in pages.values():
        page.context.close()


@pytest.fixture
def open_page(opened):
    """The page; at the end of the test nothing may have gone wrong, and nothing been asked for."""
    seen = []

    def get(width: int = 1280, scheme: str = "light", script: bool = True, to: str = "") -> Page:
        page, wrong = opened(to, width, scheme, script)
        seen.append(wrong)
        return page

    yield get
    assert not any(seen), seen


def column(page: Page, table: str, i: int) -> list[str]:
    """Cells of the part of a table that is sorted."""
    return page.locator(f"{table} tbody").last.locator(f"tr > td:nth-child({i + 1})").all_inner_texts()


def test_every_picture_loads_and_every_chart_is_drawn(open_page):
    page = open_page()
    pictures = page.locator("figure img")
    assert pictures.count() > 20
    assert pictures.evaluate_all("all => all.filter(i => !i.complete || !i.naturalWidth).length") == 0
    drawn = page.locator(".chart").evaluate_all(
        "all => all.map(c => c.querySelectorAll('.trace .point, .js-line').length)"
    )
    assert len(drawn) == 1 + len(MODELS) + 2 + 1 + 1 and all(drawn), drawn


def test_tables_are_sorted_by_mouse_and_keyboard_with_blanks_last(open_page):
    page, board = open_page(), "[aria-label=Leaderboard] table"
    heads = page.locator(f"{board} th")
    assert column(page, board, 0) == ["ncsn", "ebm, not learned", "vae-mixture, not learned", "vae, not learned"]
    expect(heads.nth(1)).to_have_attribute("aria-sort", "ascending")
    fixed = page.locator(f"{board} tbody").first.inner_text()

    heads.nth(3).get_by_role("button").click()  # bits/dim, of the VAE alone
    expect(heads.nth(3)).to_have_attribute("aria-sort", "ascending")
    assert heads.nth(1).get_attribute("aria-sort") is None
    assert column(page, board, 3)[0].startswith("5.432") and set(column(page, board, 3)[1:]) == {BLANK}
    heads.nth(3).get_by_role("button").click()
    expect(heads.nth(3)).to_have_attribute("aria-sort", "descending")
    assert column(page, board, 3)[0].startswith("5.432"), "blanks stay last"

    seconds = next(i for i, head in enumerate(heads.all_inner_texts()) if head.startswith("s per 1,000"))
    heads.nth(seconds).get_by_role("button").focus()
    for key, down in (("Enter", False), ("Space", True)):
        page.keyboard.press(key)
        values = [float(cell) for cell in column(page, board, seconds)]
        assert values == sorted(values, reverse=down) and len(set(values)) == len(ROWS), key
    assert page.locator(f"{board} tbody").first.inner_text() == fixed


def test_a_reader_chooses_what_charts_show(open_page):
    page = open_page()
    axis = "box => box.layout.{0}.title.text"
    cost = page.locator("#chart-cost .chart")
    options = page.locator("#chart-cost select").first.locator("option").all_inner_texts()
    assert "seconds of training" in options and "GFLOP a call of the network" in options
    assert not any("sampling" in option for option in options), "no row has a number for it"
    page.locator("#chart-cost select").first.select_option("parameters")
    page.locator("#chart-cost select").last.select_option("kid_effnet")
    assert cost.evaluate(axis.format("xaxis")) == "parameters" and "KID" in cost.evaluate(axis.format("yaxis"))
    front = cost.evaluate("box => box.data.find(t => t.name === 'Pareto front').x")
    assert front == [68_200, 682_000, 6_820_000]

    kind, log = "all => all.map(box => box.layout.yaxis.type)", page.locator("#chart-nfe .log")
    assert page.locator("#chart-nfe .chart").evaluate_all(kind) == ["linear", "linear"], "the floor of KID is below 0"
    page.locator("#chart-nfe select").select_option("fd_effnet")
    assert page.locator("#chart-nfe .chart").evaluate_all(kind) == ["log", "log"]
    log.focus()
    page.keyboard.press("Space")
    assert page.locator("#chart-nfe .chart").evaluate_all(kind) == ["linear", "linear"]

    curves = page.locator("#chart-curves .chart")
    page.locator("#chart-curves select").select_option("seconds")
    last = curves.evaluate_all("all => all.map(box => box.data[0].x.at(-1))")
    assert sorted(last) == [61, 122, 183], "all of train_seconds at the end"


def test_hovering_tells_sampler_and_levels(open_page):
    page = open_page()
    told = page.locator("#chart-nfe .chart").first.evaluate("box => box.data[0].text[0]")
    assert told.startswith("ddim, 5 levels")
    chart = page.locator("#chart-cost .chart")
    chart.scroll_into_view_if_needed()
    chart.locator(".trace.scatter .point").last.hover(force=True)
    expect(chart.locator(".hoverlayer .hovertext")).to_be_visible()


def test_rows_and_seeds_are_chosen(open_page):
    page = open_page()
    shown = page.locator(".samples.pixels figure:visible h3")
    assert shown.all_inner_texts() == ["data", "ncsn", "ebm", "vae-mixture", "vae"]
    page.get_by_role("button", name="none", exact=True).click()
    page.get_by_label("vae-mixture", exact=True).check()
    page.get_by_label("ncsn", exact=True).check()
    assert shown.all_inner_texts() == ["data", "ncsn", "vae-mixture"]
    page.get_by_role("button", name="all", exact=True).click()
    assert shown.count() == 1 + len(ROWS)

    grids = page.locator("figure[data-row] img:visible")
    first = grids.evaluate_all("all => all.map(i => i.src)")
    page.locator("#seed").select_option("2")
    second = grids.evaluate_all("all => all.map(i => i.src)")
    assert len(first) == len(second) == len(ROWS) and not set(first) & set(second)
    caption = page.locator("figure[data-row=ncsn] figcaption").inner_text()
    page.locator("#seed").select_option("0")
    assert caption == "fd_effnet 686 with seed 2" and page.locator(".missing:visible").count() == 0


def test_pictures_are_enlarged_by_mouse_and_keyboard(open_page):
    page = open_page()
    dialog, title, large = page.locator("#zoom"), page.locator("#zoom-title"), page.locator("#zoom-picture")
    buttons = page.locator("button.zoom:visible")
    names = [name or "" for name in buttons.locator("img").evaluate_all("all => all.map(i => i.alt)")]
    grids = page.locator(".samples.pixels button.zoom:visible")
    grids.first.click()
    expect(dialog).to_be_visible()
    expect(title).to_have_text("Test images of the data set")
    expect(large).to_have_css("image-rendering", "pixelated")
    assert large.evaluate("i => new Promise(done => setTimeout(() => done(i.width / i.naturalWidth), 100))") == 3
    page.keyboard.press("-")
    assert large.evaluate("i => i.width / i.naturalWidth") == 2

    at = names.index("Test images of the data set")
    page.keyboard.press("ArrowRight")
    expect(title).to_have_text(names[at + 1])
    page.locator("#zoom-next").click()
    expect(title).to_have_text(names[at + 2])
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    expect(title).to_have_text(names[at - 1])
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()

    grids.nth(1).focus()
    page.keyboard.press("Enter")
    expect(title).to_have_text("Images drawn by ncsn, not chosen by hand")
    page.locator("#zoom-close").click()
    expect(dialog).to_be_hidden()
    expect(grids.nth(1)).to_be_focused()


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_window(open_page, width):
    page = open_page(width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert (
        page.locator(".chart").evaluate_all("all => Math.max(...all.map(c => c.getBoundingClientRect().right))")
        <= width
    )


def test_the_theme_follows_the_system_and_the_reader(open_page):
    page = open_page(scheme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    ink = "document.querySelector('.chart').layout.font.color"
    dark = page.evaluate(ground), page.evaluate(ink)
    page.get_by_label("Theme").select_option("light")
    light = page.evaluate(ground), page.evaluate(ink)
    assert light[0] == "rgb(255, 255, 255)" and all(a != b for a, b in zip(dark, light, strict=True))
    page.get_by_label("Theme").select_option("")
    assert (page.evaluate(ground), page.evaluate(ink)) == dark
    page.emulate_media(color_scheme="light")
    assert (page.evaluate(ground), page.evaluate(ink)) == light


def test_without_javascript_pictures_stand_for_charts(open_page):
    page = open_page(script=False)
    assert page.get_by_alt_text(re.compile("Frechet distance of every row against its seconds")).is_visible()
    assert page.locator(".controls:visible").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(open_page, scheme):
    page = open_page(scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    found = Axe().run(page, options=WCAG)
    assert found.violations_count == 0, found.generate_report()
    page.locator("button.zoom").first.press("Enter")
    found = Axe().run(page, context="#zoom", options=WCAG)
    assert found.violations_count == 0, found.generate_report()
    page.keyboard.press("Escape")


def test_the_page_of_all_runs_works_too(open_page):
    page = open_page(390, "dark", to=(Path(__file__).parents[1] / "docs/results.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    table = "[aria-label='Every row of every run'] table"
    page.locator(table).get_by_role("button", name="Frechet distance").click()
    values = [float(cell.split()[0].replace(",", "")) for cell in column(page, table, 6)]
    assert len(values) > 10 and values == sorted(values)
    assert page.locator("figure svg").count() == 1
    found = Axe().run(page, options=WCAG)
    assert found.violations_count == 0, found.generate_report()
