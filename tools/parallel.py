"""Bring the report up to date with several stages at the same time, which is `make repro`: `python -m tools.parallel`,
`--gpus 0,1` for a worker on each of these, `--workers 2`. Without either there is one for each GPU, or each core.

DVC runs one stage after the other, and two plain `dvc repro` block each other; single stages (`dvc repro -s`) of which
none reads what the other writes do not. So `dvc status` says once what has changed; every stage of which this is true,
and every one that rests on such a stage, is a job, and workers take jobs as soon as what these read is there. A single
worker has nothing to share out: that is `dvc repro` in the foreground, with its progress bars.

The report reads whole folders, for which `dvc repro report` would train every family that there is. So it is made by
itself (`-s`), last, once all that it tells of the families in `models` is there.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pofx.base import config
from pofx.base.errors import UserError
from stages import CORES, RUNS, run

DVC = [sys.executable, "-m", "dvc", "--wait-for-lock"]
LAST = "report"
MOST = 4  # workers on a CPU, if nobody says how many: a training holds about 0.5 GB
BUSY, TRIES = "is busy", 20  # what DVC says where another process writes what a stage reads; then it is tried again
CHATTER = re.compile(
    r"\s*$|Running stage |Updating lock |Use `dvc push`|To (track|enable) |\s+(git add|dvc config) |.*:   0%\|"
)
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
IGNORED = {number for number in SIGNALS if signal.getsignal(number) is signal.SIG_IGN}  # nohup, a script's background


def graph(dag: dict[str, Any]) -> dict[str, set[str]]:
    """Stage -> the stages whose outputs it reads, in an order in which they can run, from `stages` of dvc.yaml.

    Without the report, and without trainings that nothing else reads: of families that nobody asked for.
    """
    reads, makers = {}, {}
    for name, entry in dag.items():
        for item in _items(entry):
            stage = f"{name}@{item}" if item else name
            reads[stage] = _paths(entry, ("deps",), item)
            makers |= dict.fromkeys(_paths(entry, ("outs", "plots", "metrics"), item), stage)
    needs = {stage: {makers[path] for path in paths if path in makers} for stage, paths in reads.items()}
    del needs[LAST]
    needs = {stage: needs[stage] for stage in TopologicalSorter(needs).static_order()}
    for stage in reversed(list(needs)):
        if stage.startswith("train_") and not _readers(stage, needs):
            del needs[stage]
    return needs


def _items(entry: dict[str, Any]) -> tuple[str, ...]:
    """The models of a stage with a matrix, one empty name of any other."""
    return config.value(entry["matrix"]["model"].strip("${}"), tuple[str, ...]) if "matrix" in entry else ("",)


def _paths(entry: dict[str, Any], keys: tuple[str, ...], item: str) -> list[str]:
    """What stands under `keys`: paths, or mappings from one to its options."""
    listed = [path for key in keys for path in entry.get(key, ())]
    return [(path if isinstance(path, str) else next(iter(path))).replace("${item.model}", item) for path in listed]


def _readers(stage: str, needs: dict[str, set[str]]) -> list[str]:
    return [other for other in needs if stage in needs[other]]


def outdated(needs: dict[str, set[str]]) -> list[str]:
    """The stages that have changed, and all that rest on them; the report with these, or by itself.

    `dvc status`, because it asks once (two thirds of what a `dvc repro` that finds nothing to do takes); it knows only
    of what has changed already, not of what will.
    """
    told = subprocess.run([*DVC, "status", "--json"], stdout=subprocess.PIPE, text=True)
    if told.returncode:
        raise UserError("`dvc status` failed: see above")
    changed, found = json.loads(told.stdout), []
    for stage in needs:
        if stage in changed or needs[stage] & set(found):
            found.append(stage)
    return [*found, LAST] if found or LAST in changed else []


def ranked(needs: dict[str, set[str]]) -> list[str]:
    """Stages in the order in which workers should take them: those on which the longest chains rest go first."""
    rest = {}
    for stage in reversed(list(needs)):
        rest[stage] = 1 + max((rest[other] for other in _readers(stage, needs)), default=0)
    return sorted(needs, key=rest.__getitem__, reverse=True)


def workers(gpus: str | None, count: int | None) -> list[dict[str, str]]:
    """What is set in the environment of every worker: its GPU, if it has one of its own, and its share of the cores.

    Without `gpus` and `count` there is a worker for every GPU that PyTorch sees, or without a GPU for every core, up to
    MOST; where NPROC is set one alone, whose processes share all. OMP_NUM_THREADS holds PyTorch and NumPy's OpenBLAS;
    what the environment says already stays.

    Raises:
        UserError: a GPU is named twice or by no number, or there is no worker.
    """
    named = gpus.split(",") if gpus is not None else []
    if gpus is not None and not (all(gpu.isdecimal() for gpu in named) and len(set(named)) == len(named)):
        raise UserError(f"GPUS = {gpus!r} should be different numbers of GPUs, such as 0,1")
    if count is not None and count < 1:
        raise UserError(f"WORKERS = {count} should be 1 or more")
    if gpus is None and count is None:
        seen = _gpus()
        if os.environ.get("NPROC", "1") != "1" or len(seen) == 1:
            count = 1
        else:
            named, count = seen, min(CORES, MOST)
    count = len(named) or count
    share = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, CORES // count)))} if count > 1 else {}
    return [share | {"CUDA_VISIBLE_DEVICES": gpu} for gpu in named] or [share] * count


def _gpus() -> list[str]:
    """Names of the GPUs that PyTorch sees, as CUDA_VISIBLE_DEVICES has them: numbers, or UUIDs."""
    import torch  # late: its import takes longer than all else where nothing is to be done

    count = torch.cuda.device_count()
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    return allowed.split(",")[:count] if allowed else [str(i) for i in range(count)]


@dataclass
class Job:
    """One stage, and the other jobs that have to be done before."""

    needs: set[str]
    log: Path
    tries: int = 0
    began: float = 0.0
    worker: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen | None = None
    shown: int = 0  # bytes of the log


class Crew:
    """Workers, and what they have to do. What jobs print goes to their logs, and line by line to stdout.

    Attributes:
        done: how many stages are.
        failed: stage -> why, in one line.
        lost: stages that would need one that failed.
        stopping: how many times the end was asked for, by a signal.
    """

    def __init__(self, todo: dict[str, Job], workers: list[dict[str, str]]):
        self.todo, self.free = todo, list(workers)
        self.running: dict[str, Job] = {}
        self.failed: dict[str, str] = {}
        self.lost: list[str] = []
        self.stopping = self._stopped = 0
        self.done, self._all, self._width = 0, len(todo), max(map(len, todo), default=0)

    def work(self) -> None:
        """Until nothing is left to do."""
        while self.todo or self.running:
            if self.stopping > self._stopped:
                self._stop()
            for stage, job in list(self.todo.items()):
                if job.needs & {*self.failed, *self.lost}:
                    del self.todo[stage]
                    self.lost.append(stage)
                elif self.free and not job.needs & {*self.todo, *self.running}:
                    self._begin(stage, self.todo.pop(stage))
            for stage, job in list(self.running.items()):
                ended = job.process.poll() is not None  # asked first, so that its last words are read too
                self._show(stage, job, ended)
                if ended:
                    self._end(stage, self.running.pop(stage))
            time.sleep(0.1)

    def _stop(self) -> None:
        """Tell all jobs what Ctrl-C would, upon which trainings save their state, and begin no more."""
        self._stopped = self.stopping
        self.todo.clear()
        for job in self.running.values():
            _interrupt(job.process)

    def _begin(self, stage: str, job: Job) -> None:
        job.worker, job.tries, job.began = self.free.pop(0), job.tries + 1, time.monotonic()
        job.log.parent.mkdir(parents=True, exist_ok=True)
        gpu = job.worker.get("CUDA_VISIBLE_DEVICES")
        self._say(stage, f"begins{' again' * (job.tries > 1)}{f' on GPU {gpu}' if gpu else ''}")
        with open(job.log, "wb") as log:  # a file and no pipe: jobs outlive a crew that is killed
            job.process = _start("repro", "-s", stage, env=os.environ | job.worker, stdout=log, stderr=log)
        job.shown = 0
        self.running[stage] = job

    def _show(self, stage: str, job: Job, all_of_it: bool) -> None:
        """What is new in its log; without `all_of_it` not a line that may not be complete."""
        with open(job.log, "rb") as log:
            log.seek(job.shown)
            new = log.read()
        new = new if all_of_it else new[: new.rfind(b"\n") + 1]
        job.shown += len(new)
        for line in new.decode(errors="replace").splitlines():
            if not CHATTER.match(line):
                self._say(stage, line)

    def _end(self, stage: str, job: Job) -> None:
        self.free.append(job.worker)
        lines = job.log.read_text(errors="replace").splitlines()
        if job.process.returncode == 0:
            self.done += 1
            self._say(stage, f"done in {time.monotonic() - job.began:.0f} s, {self.done} of {self._all}")
        elif self.stopping:
            self._say(stage, "stopped")
        elif any(BUSY in line for line in lines) and job.tries < TRIES:
            self.todo[stage] = job
        else:
            said = [line for line in lines if line.startswith("error: ")]  # by the stage itself, see stages.run
            self.failed[stage] = f"{said[-1] if said else f'exit code {job.process.returncode}'}; see {job.log}"
            self._say(stage, f"failed: {self.failed[stage]}")

    def _say(self, stage: str, line: str) -> None:
        print(f"{stage:{self._width}} | {line}", flush=True)


def _start(*words: str, **how) -> subprocess.Popen:
    """DVC in a session of its own: signals reach it, and what it runs, by way of us alone, and so once."""
    return subprocess.Popen([*DVC, *words], start_new_session=True, **how)


def _interrupt(process: subprocess.Popen) -> None:
    """As Ctrl-C would: DVC waits for its command to end, and puts its locks away. SIGTERM would end it at once."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)


def _on_signals(do: Callable[[], Any]) -> None:
    """To be said before anything is started: what we ignore a child would ignore too, but for what has a handler."""
    for number in SIGNALS:
        signal.signal(number, lambda number, _: None if number in IGNORED else do())


def _foreground(*words: str, **how) -> subprocess.Popen:
    """_start, with the signals that we get handed on."""
    started = []
    _on_signals(lambda: [_interrupt(process) for process in started])
    started.append(_start(*words, **how))
    return started[0]


def together(needs: dict[str, set[str]], environments: list[dict[str, str]]) -> None:
    """Run stages by several workers.

    Raises:
        UserError: some of it failed, or the end was asked for.
    """
    logs = RUNS / "parallel"
    crew = Crew({s: Job(needs[s] & set(needs), logs / f"{s}.log") for s in ranked(needs)}, environments)
    _on_signals(lambda: setattr(crew, "stopping", crew.stopping + 1))
    print(f"{len(needs)} stages, {len(environments)} at a time; `make repro WORKERS=1` runs one after the other")
    try:
        crew.work()
    finally:  # where it could not go on, such as for a closed terminal; else none is left
        for job in crew.running.values():
            _interrupt(job.process)
    if crew.failed:
        reasons = "; ".join(f"{stage} ({why})" for stage, why in crew.failed.items())
        lost = f"; {', '.join(crew.lost)} (for want of these)" if crew.lost else ""
        raise UserError(f"not finished: {reasons}{lost}. The others are done; the same command goes on")
    if crew.stopping:
        raise UserError(f"stopped with {crew.done} of {len(needs)} stages done: the same command goes on")


def alone(ends: list[str], environment: dict[str, str]) -> None:
    """Run stages, with all that they need, one after the other in the foreground.

    Raises:
        UserError: DVC failed.
    """
    if _foreground("repro", *ends, env=os.environ | environment).wait():
        raise UserError("`dvc repro` failed, see above: the same command goes on")


def report() -> None:
    """Make it, and see to it that the table is printed: by the stage, or where DVC did not need to run that, here.

    Raises:
        UserError: DVC failed.
    """
    ran = False
    with _foreground("repro", "-s", LAST, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            ran |= line.startswith("Running stage")
    if process.returncode:
        raise UserError(f"`dvc repro -s {LAST}` failed: see above")
    if not ran:
        table()


def table() -> None:
    if subprocess.run([sys.executable, "-m", f"stages.{LAST}", "--table"]).returncode:
        raise UserError("the table cannot be printed: see above")


def main(gpus: str | None, count: int | None) -> None:
    asked = gpus is not None or count is not None
    environments = workers(gpus, count) if asked else []  # what was asked for wrongly is told first
    needs = graph(YAML(typ="safe").load(Path("dvc.yaml").read_text())["stages"])
    stale = outdated(needs)
    todo = {stage: needs[stage] & set(stale) for stage in stale if stage in needs}
    if todo:
        environments = environments or workers(None, None)
        if len(environments) > 1:
            together(todo, environments)
        else:
            alone([stage for stage in todo if not _readers(stage, needs)], environments[0])
    report() if stale else table()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpus", help="numbers of GPUs, such as 0,1: a worker for each")
    parser.add_argument("--workers", type=int, help="without GPUs")
    arguments = parser.parse_args()
    run(main, arguments.gpus, arguments.workers)
