"""`make speedrun`: minutes of training until KID passes 1.0, 0.5 and 0.25, for a table that others can join.

    python -m benchmarks.speedrun [PRESET ...] [key=value ...] [--family edm] [--minutes 150]
    python -m benchmarks.speedrun --page        writes the part of docs/performance.md anew, measures nothing

The project's own loop trains. At a fixed grid of images seen its clock stands still: samples are drawn from the
averaged weights and compared with training images; test images decide nothing. A target that is passed is a record in
benchmarks/results/speedrun.csv at once. The run is resumable: the same command goes on, FRESH=1 starts over.
"""

import argparse
import csv
import dataclasses
import hashlib
import io
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks import page
from benchmarks.race import short
from benchmarks.task import RESULTS, Task, size
from pofx.base import files, machine, provenance
from pofx.models.family import Family
from pofx.train import loop
from pofx.train.config import Train
from pofx.train.state import Slot
from stages import FRESH, ROOT, RUNS, run

BEGIN = "<!-- written by `python -m benchmarks.speedrun` -->"
KEPT = RESULTS / "speedrun.csv"
TARGETS = (1.0, 0.5, 0.25)  # KID
N, FIRST = 5000, 1000  # samples that decide, and those drawn first
ROWS, GROWTH = 100, 1.2  # of the budget; of the images from one point of the grid to the next
COLUMNS = ("data", "target", "minutes", "images", "kid", "kid_std", "n", "reference", "family", "parameters", "dtype",
           "machine", "torch", "revision", "date", "words")  # fmt: skip
Record = dict[str, Any]


@dataclass(frozen=True)
class Rules:
    """What counts as passed."""

    targets: tuple[float, ...] = TARGETS  # falling
    n: int = N
    first: int = FIRST  # so many samples alone, where their KID is above twice the target


def grid(cfg: Train) -> Iterator[int]:
    """Images seen at which KID is measured: ends of rows of the curve, each GROWTH times the one before or more."""
    last = 0
    for step in range(cfg.row_steps, cfg.steps, cfg.row_steps):
        if step * cfg.batch >= GROWTH * last:
            last = step * cfg.batch
            yield last
    yield cfg.steps * cfg.batch


@dataclass
class Race:
    """One run on the way to its targets; `passed` of them are in the folder of the run's state."""

    task: Task
    model: Family
    slot: Slot
    rules: Rules
    stop: machine.StopRequest
    points: frozenset[int]  # the grid
    passed: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        if FRESH:
            self._path.unlink(missing_ok=True)
        if self._path.exists():
            self.passed = files.read_json(self._path)

    @property
    def _path(self) -> Path:
        return self.slot.folder / "passed.json"

    @property
    def left(self) -> list[float]:
        return [target for target in self.rules.targets if target not in self.passed]

    def stops(self) -> bool:
        return not self.left or self.stop()

    def check(self, seen: int) -> None:
        """Compare samples of the averaged weights, which the model has now, with the next target."""
        if seen not in self.points or not self.left:
            return
        minutes = self.slot.seconds / 60
        with self.slot.paused():
            scores, n = self._scores()
            print(f"{minutes:.1f} min, {seen:,} images: KID {scores['kid']:.3f} (N = {n:,})", flush=True)
            for target in self.left if n == self.rules.n else []:
                if scores["kid"] <= target:
                    append(KEPT, self._record(scores) | {"target": target, "minutes": short(minutes), "images": seen})
                    self.passed.append(target)
            files.write_json(self._path, self.passed)

    def _scores(self) -> tuple[dict[str, float], int]:
        """Of `n` samples or, where `first` say that the target is far, of these; and how many they are."""
        for n in (self.rules.first, self.rules.n):
            scores = self.task.score(self.task.features(self.task.draw(self.model, n)))
            if scores["kid"] > 2 * self.left[0]:
                return scores, n
        return scores, n

    def _record(self, scores: dict[str, float]) -> Record:
        here, task = provenance.here(ROOT), self.task
        found = {"data": task.data} | {key: short(scores[key]) for key in ("kid", "kid_std")} | {"n": self.rules.n}
        found |= {"reference": len(task.reference.train), "family": task.family, "parameters": size(self.model)}
        found |= {"dtype": task.dtype, "machine": machine.name(task.device)}
        found |= {"torch": here["torch"], "date": here["date"]}
        return found | {"revision": here["revision"][:9] + "+" * bool(here["changed"]), "words": task.words}


def append(path: Path, record: Record) -> None:
    """Add a record to the table."""
    with files.atomic(path) as file:
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows([*records(path), record])
        file.write(text.getvalue().encode())


def records(path: Path) -> list[Record]:
    """All records of the table, as text."""
    if not path.is_file():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def block(path: Path) -> str:
    """The part of docs/performance.md: for every data set and target the records, the fastest first."""
    kept = sorted(records(path), key=lambda row: (row["data"], -float(row["target"]), float(row["minutes"])))
    if not kept:
        return "No record yet."
    lines = [
        "| data | KID at most | minutes | images | parameters, dtype | machine | torch, revision, date | made by |"
    ]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for (data, target), group in groupby(kept, lambda row: (row["data"], row["target"])):
        for i, row in enumerate(group):
            minutes = f"**{row['minutes']}**" if i == 0 else row["minutes"]
            lines.append(
                f"| {data} | {target} ({row['kid']}) | {minutes} | {int(row['images']):,} | {row['family']}, "
                f"{int(row['parameters']):,}, {row['dtype']} | {row['machine']} "
                f"| {row['torch']}, {row['revision']}, {row['date']} | `{row['words']}` |"
            )
    return "\n".join(lines)


def write() -> None:
    page.put(page.PAGE, BEGIN, block(KEPT))


def main(words: list[str], family: str, minutes: float | None, rules: Rules) -> None:
    stop = machine.StopRequest(minutes)
    with tempfile.TemporaryDirectory() as scratch:
        task = Task(words, Path(scratch), family)
        train = dataclasses.replace(task.train, rows=ROWS, preview_rows=1)
        pool = task.pool(train)
        model = task.model(pool, train)
        origin = [
            task.seed,
            hashlib.sha256(task.images).hexdigest(),
            provenance.code_hash("src", "stages", "benchmarks"),
        ]
        key = [asdict(task.cfg), train.deciding(), asdict(task.sample), asdict(task.fid), asdict(rules), origin]
        with Slot(RUNS, f"speedrun_{family}", key, train.precision, fresh=FRESH) as slot:
            race = Race(task, model, slot, rules, stop, frozenset(grid(train)))
            try:
                loop.train(model, pool, train, loop.Run(task.seed, slot, race.stops, race.check))
                race.check(train.steps * train.batch)  # the loop shows no preview at its end
            except loop.Stopped as stopped:
                if race.left:
                    print(f"{stopped}: the same command goes on from there", file=sys.stderr)
    if race.passed:
        write()
    print(f"passed: {race.passed or 'none'}, left: {race.left or 'none'}")
    if race.left and stop.code:
        sys.exit(stop.code)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="PRESET", help="as for tools.compose: data set, scale, key=value")
    parser.add_argument("--family", default="edm", help="a denoiser")
    parser.add_argument("--minutes", type=float, help="then the run is saved and ends with exit code 75")
    parser.add_argument("--page", action="store_true", help="write docs/performance.md anew from the records")
    given = parser.parse_args()
    if given.page:
        run(write)
    else:
        run(main, given.words, given.family, given.minutes, Rules())
