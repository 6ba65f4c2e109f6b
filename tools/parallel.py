"""Train several families at the same time: `python -m tools.parallel --gpus 0,1`, or `--workers 2` on a CPU.

DVC runs one stage after the other, and two plain `dvc repro` block each other; single stages (`dvc repro -s`) of
different families do not. So what all share is made first, then every worker takes one family after the other and runs
its stages, and last the report is made. A family that rests on another's training waits for it.

The report reads whole folders, for which `dvc repro report` would train every family that there is. So it is made by
itself (`-s`) once all that it tells of the families in `models` is there. `--list` prints what makes that, for
`dvc repro`: nothing where it is everything.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pofx.core import config
from pofx.core.errors import UserError
from stages import RUNS, run

REPRO = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro"]
SHARED, LAST = ("explore", "reference"), "report"  # stages that go before the families, with all they need; and after
BUSY, TRIES = "is busy", 20  # what DVC says where another process writes what a stage reads; then it is tried again
SHOWN = 5  # last lines of a log that failed


@dataclass
class Job:
    """One family: its stages, in an order in which they can run, and the families before it."""

    stages: list[str]
    needs: set[str]
    log: Path
    tries: int = 0
    began: float = field(default_factory=time.monotonic)
    process: subprocess.Popen | None = None
    worker: dict[str, str] = field(default_factory=dict)


def jobs(dag: dict[str, Any], models: tuple[str, ...], logs: Path) -> dict[str, Job]:
    """What there is to do for every family of `models`, and the trainings that these need.

    Args:
        dag: `stages` of dvc.yaml, written in an order in which they can run.
        logs: the folder for what the families' stages print.
    """
    found: dict[str, Job] = {}
    for name in models:
        deps = dag[f"train_{name}"]["deps"]
        needs = {dep.removeprefix("models/") for dep in deps if dep.startswith("models/")}
        for other in sorted(needs - set(models)):
            found[other] = Job([f"train_{other}"], set(), logs / f"{other}.log")
        own = [stage for stage, entry in dag.items() if "matrix" in entry and name in _items(entry)]
        found[name] = Job([f"train_{name}", *(f"{stage}@{name}" for stage in own)], needs, logs / f"{name}.log")
    return found


def targets(dag: dict[str, Any], models: tuple[str, ...]) -> list[str]:
    """The stages that, with all that they need, make what the report tells of the families of `models`; none where
    these are all families, and so all stages. Ends of the graph alone: DVC looks at everything once for each."""
    if len(jobs(dag, models, Path())) == sum(stage.startswith("train_") for stage in dag):
        return []
    matrices = {stage: entry for stage, entry in dag.items() if "matrix" in entry}
    read = {dep for entry in matrices.values() for dep in entry["deps"]}
    ends = [stage for stage, entry in matrices.items() if not read & set(map(str, entry["outs"]))]
    return ["explore", *(f"{stage}@{name}" for stage in ends for name in _items(matrices[stage]))]


def _items(stage: dict[str, Any]) -> tuple[str, ...]:
    return config.value(stage["matrix"]["model"].removeprefix("${").removesuffix("}"), tuple[str, ...])


def workers(gpus: str | None, count: int) -> list[dict[str, str]]:
    """What is set in the environment of every worker: its GPU, if they have any, and its share of the CPU's cores.

    Raises:
        UserError: a GPU is named twice or by no number, or there is no worker.
    """
    named = gpus.split(",") if gpus is not None else []
    if gpus is not None and not (all(gpu.isdecimal() for gpu in named) and len(set(named)) == len(named)):
        raise UserError(f"GPUS = {gpus!r} should be different numbers of GPUs, such as 0,1")
    if count < 1:
        raise UserError(f"WORKERS = {count} should be 1 or more")
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // (len(named) or count)))}
    return [threads | {"CUDA_VISIBLE_DEVICES": gpu} for gpu in named] or [threads] * count


class Crew:
    """Workers, and what they have to do.

    Attributes:
        failed: family -> why, in one line.
        stopping: to be set where the work is to be ended.
    """

    def __init__(self, todo: dict[str, Job], workers: list[dict[str, str]]):
        self.todo, self.free = todo, list(workers)
        self.running: dict[str, Job] = {}
        self.failed: dict[str, str] = {}
        self.stopping = self.stopped = False

    def work(self) -> None:
        """Until nothing is left to do."""
        while self.todo or self.running:
            if self.stopping and not self.stopped:
                self._stop()
            for name, job in list(self.todo.items()):
                if lost := job.needs & set(self.failed):
                    del self.todo[name]
                    self.failed[name] = f"{', '.join(sorted(lost))}, which it needs, failed"
                elif self.free and not job.needs & (set(self.todo) | set(self.running)):
                    self._begin(name, self.todo.pop(name))
            for name, job in list(self.running.items()):
                if job.process.poll() is not None:
                    self._end(name, self.running.pop(name))
            time.sleep(0.1)

    def _stop(self) -> None:
        """End all jobs, whose trainings save their state, and begin no more."""
        self.stopped = True
        self.failed |= dict.fromkeys(self.todo, "stopped before it began")
        self.todo.clear()
        for job in self.running.values():
            job.tries = TRIES
            os.killpg(job.process.pid, signal.SIGTERM)

    def _begin(self, name: str, job: Job) -> None:
        job.worker, job.tries = self.free.pop(0), job.tries + 1
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with open(job.log, "wb") as log:
            how = {
                "env": os.environ | job.worker,
                "stdout": log,
                "stderr": subprocess.STDOUT,
                "start_new_session": True,
            }
            job.process = subprocess.Popen([*REPRO, "-s", *job.stages], **how)
        gpu = job.worker.get("CUDA_VISIBLE_DEVICES")
        print(f"{name}: {', '.join(job.stages)}{f' on GPU {gpu}' if gpu else ''} (tail -f {job.log})", flush=True)
        self.running[name] = job

    def _end(self, name: str, job: Job) -> None:
        self.free.append(job.worker)
        text = job.log.read_text(errors="replace")
        if job.process.returncode == 0:
            print(f"{name}: done in {(time.monotonic() - job.began) / 60:.1f} minutes", flush=True)
        elif BUSY in text and job.tries < TRIES:
            self.todo[name] = job
        else:
            self.failed[name] = f"exit code {job.process.returncode}, see {job.log}"
            print("\n".join([f"{name}: failed", *(f"  {line}" for line in text.splitlines()[-SHOWN:])]), flush=True)


def main(gpus: str | None, count: int, listing: bool) -> None:
    environments, models = workers(gpus, count), config.value("models", tuple[str, ...])
    dag = YAML(typ="safe").load(Path("dvc.yaml").read_text())["stages"]
    if listing:
        print(*targets(dag, models))
        return
    crew = Crew(jobs(dag, models, RUNS / "parallel"), environments)
    if subprocess.run([*REPRO, *SHARED]).returncode:
        raise UserError(f"`dvc repro {' '.join(SHARED)}` failed, which all families need: see above")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: setattr(crew, "stopping", True))
    crew.work()
    if crew.failed:
        reasons = "; ".join(f"{name} ({why})" for name, why in crew.failed.items())
        raise UserError(f"not finished: {reasons}. The others are; the same command goes on")
    if subprocess.run([*REPRO, "-s", LAST]).returncode:
        raise UserError(f"`dvc repro -s {LAST}` failed: see above")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpus", help="numbers of GPUs, such as 0,1: a worker for each")
    parser.add_argument("--workers", type=int, default=2, help="without GPUs")
    parser.add_argument("--list", action="store_true", help="print the stages that the report needs, and run nothing")
    arguments = parser.parse_args()
    run(main, arguments.gpus, arguments.workers, arguments.list)
