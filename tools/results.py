"""Results worth keeping, and the page that lists them.

    python -m tools.results save NAME     keeps params.yaml, metrics/ and plots/ of this run under results/NAME/
    python -m tools.results               writes docs/results.md and docs/results.html anew from all of results/: no
                                          number in them is typed

Models, samples and features stay with DVC: params.yaml and the revision in run.json bring them back.
"""

import re
import shutil
import sys
from pathlib import Path
from typing import Any

from pofx.base import files, provenance
from pofx.base.errors import UserError
from pofx.report import metrics, notices, tables, text
from stages import ROOT, run
from tools import runs

PLOTS = ("curves", "samples", "fid", "progress", "denoising", "energy", "comparison")
KEPT = ("params.yaml", "metrics", *(f"plots/{part}" for part in PLOTS))
MORE = {  # of what a family shows besides samples: folder -> picture -> what it is
    "fid": {"reconstructions": "test images, and below each what came back of it"},
    "energy": {
        "inpainting": "a part hidden, three draws, the original",
        "denoising": "noise and restored, twice; the original",
    },
}
USAGE = "usage: python -m tools.results [save NAME]"


def save(name: str, root: Path) -> Path:
    """Copy what a run in `root` came to into results/`name`/; an older one of that name is replaced as a whole.

    Raises:
        UserError: the name is no folder name; the run is not finished.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", name):
        raise UserError(f"{name!r} cannot name a result: use small letters, digits, dots and dashes")
    got, target = metrics.read(runs.models(root), root / "metrics"), root / "results" / name
    fresh = target.with_name(f".{name}.part")
    shutil.rmtree(fresh, ignore_errors=True)
    for part in KEPT:
        source = root / part
        if not source.exists():
            raise UserError(f"{part} is missing: run `dvc repro` first")
        (fresh / part).parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, fresh / part, ignore=shutil.ignore_patterns(".gitkeep"))
        else:
            shutil.copyfile(source, fresh / part)
    files.write_json(fresh / "run.json", run_card(got, root))
    shutil.rmtree(target, ignore_errors=True)
    fresh.rename(target)
    return target


def run_card(got: metrics.Metrics, root: Path) -> dict[str, Any]:
    """When, where and from which code the numbers come. Seconds: all training and drawing."""
    rows, told = got["protocol"], provenance.here(root)
    drawn = {row: rows[row]["n"] * rows[row].get("seeds", 1) for row in got["sample_seconds_per_1000"]}
    sampling = sum(s * drawn[row] / 1000 for row, s in got["sample_seconds_per_1000"].items())
    return {
        "date": told["date"],
        "device": sorted(set(got["device"].values())),
        "system": told["system"],
        "torch": told["torch"],
        "git": told["revision"] + (", with changes" if told["changed"] else ""),
        "seconds": round(sum(got["train_seconds"].values()) + sampling, 1),
    }


def page(folders: list[Path]) -> str:
    """docs/results.md for the runs in these folders."""
    head = (
        "# Results\n\n[All rows in one sortable table](results.html) (to be opened in a browser).\n\n"
        "Written by `python -m tools.results` from `results/`. A run is brought back by its\n"
        "`params.yaml`. Smaller is better for distances and bits/dim; ± after KID is the standard deviation over\n"
        "subsets, after bits/dim the standard error over test images."
    )
    return "\n\n".join([head, *map(_chapter, folders)]) + "\n"


def _chapter(folder: Path) -> str:
    names, card = runs.models(folder), files.read_json(folder / "run.json")
    got = metrics.read(names, folder / "metrics")
    data = files.read_json(folder / "metrics/data.json")
    counts = [f"{data['images'][split]:,} {words} images" for split, words in (("train", "training"), ("test", "test"))]
    fd, kid, _ = metrics.distance_keys(got)
    board = tables.leaderboard(names, got)
    owners, path = metrics.rows(names, got), f"../results/{folder.name}"
    order = [row for row in board.index if row in owners]
    board = board[
        ["model", fd, kid, "bits/dim", "training", "training img/s", "s per 1,000 samples", "NFE", "trained on"]
    ]
    revision = card["git"].replace(card["git"][12:40], "") or "unknown"  # and whether there were changes
    facts = [
        f"Data: {data['name']}, {' and '.join(counts)}. Parameters: `{runs.composed(folder)}`.",
        notices.protocol(got, names[0]),
        f"{card['date']}, {', '.join(card['device'])}; {card['system']}, torch {card['torch']}; revision {revision}; "
        f"training and drawing took {text.clock(card['seconds'])}.",
    ]
    grids = [f"**{row}**\n\n![images drawn by {row}]({path}/plots/samples/{owners[row]}/{row}.png)" for row in order]
    extras = [(f, part, name) for f in names for part, pictures in MORE.items() for name in pictures]
    grids += [
        f"**{f}: {MORE[part][name]}**\n\n![{f}: {MORE[part][name]}]({path}/plots/{part}/{f}/{name}.png)"
        for f, part, name in extras
        if (folder / f"plots/{part}/{f}/{name}.png").is_file()
    ]
    figures = [
        f"![{name} of the families]({path}/plots/comparison/{name}.png)" for name in ("overview", "distance", "cost")
    ]
    coded, further = tables.codes(order, got), tables.beyond(order, got)
    parts = [board.to_markdown(index=False), notices.notice(got)]
    parts += [tables.markdown(further), notices.beyond_notice(got)] if further else []
    told = "Codes, and test images as they come back from them; of pixels, of codes: parts of bits/dim."
    parts += [told, tables.markdown(coded)] if coded else []
    based = runs.params(folder).get("energy", {"models": []})["models"]  # older runs have none
    if energies := {f: files.read_json(folder / f"metrics/energy/{f}.json") for f in based}:
        parts += [notices.scores_notice(energies), tables.markdown(tables.scores(energies))]
    return "\n\n".join([f"## {folder.name}", *facts, *parts, *figures, *grids])


def main(*words: str) -> None:
    if words and (len(words) != 2 or words[0] != "save"):
        raise UserError(USAGE)
    if words:
        print(f"kept: {save(words[1], ROOT).relative_to(ROOT)}")
    folders = sorted(p.parent for p in (ROOT / "results").glob("*/run.json"))
    for name, content in (("results.md", page(folders)), ("results.html", runs.html(folders))):
        with files.atomic(ROOT / "docs" / name) as file:
            file.write(content.encode())
    print(f"written: docs/results.md, docs/results.html ({len(folders)} runs)")


if __name__ == "__main__":
    run(main, *sys.argv[1:])
