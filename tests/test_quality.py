"""Time to quality and the speedrun, with seconds in place of minutes and sprites in place of photographs."""

import dataclasses
import re
import time
from itertools import pairwise

import pytest
import torch
from conftest import slot

from benchmarks import page, quality, speedrun
from benchmarks.sides import How, Ours
from benchmarks.task import Task
from pofx.base import files, machine
from pofx.base.errors import UserError
from pofx.train.config import Train
from stages import ROOT

WORDS = [
    "sprites", "data.sprites.n_train=128", "data.sprites.n_test=8", "edm.net.channels=8", "edm.net.multipliers=[1]",
    "edm.train.images=64", "edm.train.batch=8", "fid.n_reference=32", "fid.kid_subset_size=8", "fid.kid_subsets=2",
    "sample.edm.steps=2",
]  # fmt: skip
SECOND = 1 / 60  # minutes


@pytest.fixture
def task(tmp_path) -> Task:
    return Task(WORDS, tmp_path)


@pytest.fixture
def pages(tmp_path, monkeypatch):
    """A page of its own, and folders for what is kept."""
    text = "".join(f"{begin}\n{page.END}\n" for begin in (quality.BEGIN, speedrun.BEGIN))
    (tmp_path / "page.md").write_text(text)
    monkeypatch.setattr(page, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(quality, "KEPT", tmp_path / "quality")
    monkeypatch.setattr(speedrun, "KEPT", tmp_path / "speedrun.csv")
    monkeypatch.setattr(speedrun, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(machine.signal, "signal", lambda *_: None)  # pytest keeps its own
    return tmp_path


def test_the_clock_of_a_slot_stands_still_in_a_pause(tmp_path):
    with slot(tmp_path) as kept:
        with kept.paused():
            time.sleep(0.2)
        assert kept.seconds < 0.1


def test_ours_trains_in_slices_to_the_end_of_its_plan(task):
    side, asked = Ours(task, 28), []
    side.go(lambda: True)
    assert side.seen == 8 and not side.done
    first = [p.detach().clone() for p in side.model.parameters()]
    side.go(lambda: bool(asked.append(1)))
    assert side.seen == 24 and side.done and len(asked) == 2, "a plan of 28 has three batches of 8"
    assert any((p != old).any() for p, old in zip(side.model.parameters(), first, strict=True))
    assert side.draw(3).shape == (3, 3, 32, 32)


def test_ours_draws_from_averaged_weights(task):
    side = Ours(task, 64)
    side.go(lambda: True)
    (path,) = task.scratch.glob("ours/*/state.pt")
    state = torch.load(path, weights_only=True)
    shown = next(p for p in side.model.parameters() if p.requires_grad)
    assert (shown == state["ema"]["shadow"][0]).all()
    assert side.model.training is False


class Steady(Ours):
    """A side with a clock that is made up: a step takes as long as it says."""

    def __init__(self, plan: int):
        self.seen, self.plan, self.batch, self.drawn = 0, plan, 2, []
        self.note, self.parameters, self.dtype = "steady", 1, "float32"

    def go(self, stop) -> None:
        while not self.done and not stop():
            self.seen += self.batch

    def draw(self, n: int) -> int:
        return n


class Clock:
    """A hundredth of a second passes from one look to the next."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 0.01
        return self.now


def test_marks_are_minutes_of_training_alone(task, monkeypatch):
    clock, kept = Clock(), []

    def score(_) -> dict[str, float]:
        clock.now += 1000
        return {"kid": 1.0, "kid_std": 0.0, "fd": 1.0}

    monkeypatch.setattr(quality.time, "monotonic", clock)
    monkeypatch.setattr(task, "features", lambda images: images)
    monkeypatch.setattr(task, "score", score)
    quality.curve(Steady, [1.0, 3.0], 5, task, lambda record: kept.append(dict(record, points=list(record["points"]))))
    assert [len(record["points"]) for record in kept] == [1, 2], "kept as soon as it is there"
    first, last = kept[-1]["points"]
    assert (first["mark"], last["mark"]) == (1.0, 3.0)
    assert (first["minutes"], last["minutes"]) == pytest.approx((1.0, 3.0), rel=0.01)
    assert (first["images"], last["images"]) == pytest.approx((12_000, 36_000), rel=0.01), "two images in 0.01 s"
    assert kept[-1]["planned"] == pytest.approx(36_000, rel=0.01)


def test_a_dry_run_keeps_ours_and_says_which_peer_is_missing(pages, monkeypatch, capsys):
    def absent(plan: int):
        raise UserError("cannot import rare: it needs a compiler")

    known = quality.sides
    monkeypatch.setattr(
        quality, "sides", lambda task, how: {"quality ours": known(task, how)["quality ours"], "quality rare": absent}
    )
    quality.main(WORDS, [], [SECOND, 2 * SECOND], 8, How())
    assert "quality rare: not measured: cannot import rare" in capsys.readouterr().out
    (path,) = pages.glob("quality/*.json")
    assert path.stem.endswith("-sprites") and path.with_suffix(".png").is_file()
    ((name, row),) = files.read_json(path)["rows"].items()
    assert name == "quality ours, 0.0333333 min" and len(row["points"]) in (1, 2)
    assert f"| `{name}` |" in page.PAGE.read_text()
    with pytest.raises(UserError, match="no row is called nobody"):
        quality.main(WORDS, ["nobody"], [SECOND], 8, How())
    with pytest.raises(UserError, match="should be rising"):
        quality.main(WORDS, [], [2.0, 1.0], 8, How())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["diffusers", "denoising_diffusion_pytorch"])
def test_a_peer_learns_and_draws(task, name):
    pytest.importorskip(name)
    build = quality.sides(task, How(evaluations=2))[f"quality {name.replace('_', '-')}"]
    side = build(48)
    before = [p.detach().clone() for p in weights(side)]
    stop = iter((False, False, True))
    side.go(lambda: next(stop))
    assert side.seen == 32, "the first step of diffusers has a rate of zero"
    assert any((p != old).any() for p, old in zip(weights(side), before, strict=True))
    images = side.draw(3)
    assert images.shape == (3, 3, 32, 32) and images.dtype == "uint8" and images.std() > 0


def weights(side):
    return list((side.recipe.net if hasattr(side, "recipe") else side.trainer.model).parameters())


def curve_of(*points: tuple[float, float]) -> dict:
    found = [{"mark": mark, "minutes": mark, "images": 10, "kid": kid} for mark, kid in points]
    return {"what": "a net", "parameters": 1000, "dtype": "float32", "points": found, "date": "2026", "load": [1, 1]}


def test_who_is_ahead_is_read_from_measured_points():
    rows = {"quality ours, 10 min": curve_of((2, 1.5), (10, 0.7)), "quality ours, 5 min": curve_of((5, 0.9))}
    rows |= {"quality a": curve_of((2, 2.0), (30, 0.9)), "quality b": curve_of((30, 0.5))}
    one, other = quality.overtakings(rows)
    assert one == "`quality a` ends at KID 0.900: ours has it after 5 minutes."
    assert other.endswith("ours has not reached it.")
    kept = {"data": "d", "machine": "m", "torch": "2", "key": "kid_x", "n": 1000, "reference": "r", "rows": rows}
    line = next(line for line in quality.table(kept).splitlines() if "ours, 5 min" in line)
    assert [cell.strip() for cell in line.split("|")[2:6]] == ["", "0.900", "", ""]


def test_the_grid_is_fixed_and_widens():
    cfg = Train(images=10_000, batch=10, rows=speedrun.ROWS)
    points = list(speedrun.grid(cfg))
    assert points[0] == 100 and points[-1] == 10_000 and points == sorted(set(points))
    assert all(b >= speedrun.GROWTH * a for a, b in pairwise(points[:-1]))
    assert all(point % (cfg.row_steps * cfg.batch) == 0 for point in points[:-1]), "only rows have a preview"


def test_a_run_records_each_target_once_and_goes_on(pages, capsys):
    rules = speedrun.Rules(targets=(50.0, 1e-6), n=16, first=8)
    words = [*WORDS, "fid.kid_subset_size=4"]
    speedrun.main(words, "edm", None, rules)
    assert "passed: [50.0], left: [1e-06]" in capsys.readouterr().out
    (row,) = speedrun.records(speedrun.KEPT)
    assert row["data"] == "sprites" and row["target"] == "50.0" and row["n"] == "16" and row["reference"] == "32"
    assert float(row["kid"]) <= 50 and int(row["images"]) == 8 and float(row["minutes"]) > 0
    assert "| sprites | 50.0 " in page.PAGE.read_text()
    speedrun.main(words, "edm", None, rules)
    assert len(speedrun.records(speedrun.KEPT)) == 1, "its state says what was passed"


def test_an_interrupted_run_goes_on(pages, capsys):
    rules = speedrun.Rules(targets=(50.0,), n=8, first=8)
    with pytest.raises(SystemExit) as ended:
        speedrun.main(WORDS, "edm", 0.0, rules)
    assert ended.value.code == 75 and "the same command goes on from there" in capsys.readouterr().err
    assert not speedrun.records(speedrun.KEPT)
    speedrun.main(WORDS, "edm", None, rules)
    assert "from 8 of 64 images" in capsys.readouterr().err
    assert [row["images"] for row in speedrun.records(speedrun.KEPT)] == ["16"]


def test_a_run_ends_when_nothing_is_left(pages, capsys):
    speedrun.main(WORDS, "edm", None, speedrun.Rules(targets=(50.0,), n=8, first=8))
    told = capsys.readouterr()
    assert "left: none" in told.out and "goes on from there" not in told.err
    assert told.out.count("KID") == 1, "the first point of the grid was the last"


def test_a_target_that_is_far_costs_few_images(task, monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(task, "draw", lambda model, n: drawn.append(n))
    monkeypatch.setattr(task, "features", lambda images: images)
    monkeypatch.setattr(task, "score", lambda features: {"kid": 2.5, "kid_std": 0.1, "fd": 1.0})
    with slot(tmp_path) as kept:
        race = speedrun.Race(task, None, kept, speedrun.Rules((1.0,), 50, 10), lambda: False, frozenset([8]))
        race.check(8)
        assert drawn == [10] and race.left == [1.0]
        race.rules = dataclasses.replace(race.rules, targets=(2.0,))
        race.check(8)
        assert drawn == [10, 10, 50] and race.left == [2.0]
        race.check(9)
        assert len(drawn) == 3, "not on the grid"


def test_the_documented_parts_are_those_of_the_kept_records():
    text = (ROOT / "docs/performance.md").read_text()
    for begin, wanted in (
        (quality.BEGIN, quality.block(quality.KEPT)),
        (speedrun.BEGIN, speedrun.block(speedrun.KEPT)),
    ):
        shown = re.search(f"{re.escape(begin)}(.*?){re.escape(page.END)}", text, re.DOTALL)[1]
        assert shown.strip() == wanted, f"{begin}: give it --page"
