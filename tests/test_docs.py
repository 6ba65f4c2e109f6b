"""The hand-written pages: short, in the field's words, and true to the files that they name."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tools import compose

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")])
PAGES = [page for page in PAGES if page.name != "results.md"]  # written by tools.results
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]

GENERATED = re.compile(r"<!-- written by .*?<!-- end -->", re.DOTALL)  # the tables of docs/performance.md
FENCE = re.compile(r"^ *```.*?^ *```$", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"`[^`]+`")
LINK = re.compile(r"!?\[([^\]]*)\]\(([^)\s]+)\)")
OTHER_WORDS = re.compile(
    r"\b(rungs?|ladders?|earlier self|averaged self|how well images are known|images told apart)\b", re.IGNORECASE
)
SUFFIXES = (".py", ".md", ".yaml", ".toml", ".ipynb", ".txt", ".j2", ".lock")
# Of the report.
ROWS = {"vae-mixture", "ebm-fresh", "ddpm-guided", "edm-guided", "edm-fast", "edm-ddim", "edm-stochastic"}
OUTPUTS = ("data/", "models/", "samples/", "features/", "report/", "runs/", "metrics/", "plots/")  # of the pipeline


def written(name: str) -> str:
    """What people wrote of a page: without generated tables."""
    return GENERATED.sub("", (ROOT / name).read_text())


def sentences(text: str) -> list[str]:
    """The sentences of a page's prose: no code, tables or headings. Code in a line counts as one word."""
    text = re.sub(r"<!--.*?-->", "", FENCE.sub("\n\n", text), flags=re.DOTALL)
    text = LINK.sub(r"\1", CODE.sub("CODE", text))
    lines = ["" if re.match(r" *(\||#|!\[)", line) else line for line in text.splitlines()]
    lines = [re.sub(r"^ *([-*]|\d+\.) ", "\n", line) for line in lines]  # every item begins anew
    blocks = re.split(r"\n\s*\n", "\n".join(lines))
    found = []
    for block in blocks:
        words = re.sub(r"\b(et al|e\.g|i\.e|vs|eq)\.", r"\1", " ".join(block.split()).replace("**", ""))
        found += re.split(r"(?<=[.!?])[)\"]? +(?=[A-Z(\"\d])", words)
    return [sentence for sentence in found if sentence]


def exists(token: str) -> bool:
    """Whether a path as the pages write it is there: from the root, or a room's file from src/pofx."""
    return any((base / token).exists() for base in (ROOT, ROOT / "src/pofx"))


def test_the_splitter():
    text = "# A b c\n\nOne two. Three (`a b c`) et al. four\nfive.\n\n| x | y. z |\n\n- **Six**: [7](a.md).\n- eight\n"
    want = ["One two.", "Three (CODE) et al four five.", "Six: 7.", "eight"]
    assert sentences(text) == want


def test_all_pages_together_are_short():
    counts = {name: len(written(name).split()) for name in NAMES}
    assert sum(counts.values()) <= 13_000, counts
    assert counts["README.md"] <= 900


@pytest.mark.parametrize("name", NAMES)
def test_lines_are_short(name):
    prose = FENCE.sub("", written(name)).splitlines()
    long = [line for line in prose if len(line) > 120 and not line.lstrip().startswith("|")]
    assert not long, "\n".join(long)


@pytest.mark.parametrize("name", NAMES)
def test_sentences_are_short(name):
    long = [f"{len(s.split())}: {s}" for s in sentences(written(name)) if len(s.split()) > 25]
    assert not long, "\n".join(long)


@pytest.mark.parametrize("name", NAMES)
def test_words_are_those_of_the_field(name):
    assert not (found := OTHER_WORDS.findall(written(name))), found


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    text = FENCE.sub("", written(name))
    for _, target in LINK.findall(text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        page = (ROOT / name).parent / path if path else ROOT / name
        assert page.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
            slugs = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
            assert anchor in slugs, target


@pytest.mark.parametrize("name", NAMES)
def test_files_that_are_named_exist(name):
    """Paths in backticks: a file or folder must be there, or lie where the pipeline writes."""
    for token in re.findall(r"`([\w./-]+)`", FENCE.sub("", written(name))):
        is_path = token.endswith(SUFFIXES) or token.endswith("/") or token.startswith(("src/", "stages/", "tools/"))
        if is_path and "NAME" not in token and not token.startswith((".", "/")):
            assert exists(token) or token.startswith(OUTPUTS), f"{name} names {token}, which does not exist"


def commands(pattern: str) -> list[str]:
    return sorted({found for name in NAMES for found in re.findall(pattern, written(name))})


@pytest.mark.parametrize("words", commands(r"python -m tools\.compose(?: --flags)?((?: [\w.=-]+)*)"))
def test_compositions_of_the_pages_compose(words):
    compose.text(shlex.split(words))


@pytest.mark.parametrize("setting", commands(r"-S '?[+~]*([\w.]+=[\w.]+)"))
def test_settings_of_the_pages_are_accepted(setting):
    compose.text([setting])


def test_presets_that_are_named_exist():
    presets = {path.stem for path in (ROOT / "presets").glob("*.yaml")}
    named = set(commands(r"`((?:vae|ebm|ncsn|ddpm|edm)-[a-z0-9]+)`"))
    assert named - presets <= ROWS
    assert {preset for preset in presets if "-" in preset} <= named, "a preset that no page describes"


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in commands(r"(?m)(?:^|`)make (\w+)"):
        assert re.search(rf"(?m)^{target}\b[^=]*:", makefile), f"make {target}"


def test_make_lists_its_targets():
    targets = re.search(r"(?m)^\.PHONY: (.+)$", (ROOT / "Makefile").read_text())[1].split()
    shown = subprocess.check_output(["make", "--no-print-directory"], cwd=ROOT, text=True)
    assert re.findall(r"(?m)^make (\w+) +\S", shown) == targets


def test_tracked_pages_are_the_ones_tested():
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0:
        missed = set(listed.stdout.split()) - set(NAMES) - {"docs/results.md"}
        assert not {page for page in missed if not page.startswith("results/")}
