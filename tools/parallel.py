"""Bring the report up to date with several stages at a time, which is `make repro`: `python -m tools.parallel`,
`--gpus 0,1` for a worker on each of these, `--workers 2`. Without either there is one for each GPU, or each core.

Two plain `dvc repro` block each other, but two processes may run one stage each. DVC locks what a stage reads and
writes, and its graph has an edge wherever two stages overlap. So stages in the order of the graph never want the same
lock; for the lock on DVC's own files a process waits. The report reads whole folders, so `dvc repro report` would train
every family; here it is one stage.
"""

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import suppress
from graphlib import TopologicalSorter

import networkx as nx
from dvc.exceptions import DvcException
from dvc.repo import Repo

from pofx.base.errors import UserError
from stages import CORES, RUNS, run

LAST = "report"
MOST = 4  # workers on a CPU, if nobody says how many: a training holds about 0.5 GB


def plan(graph: nx.DiGraph, changed: set[str]) -> dict[str, set[str]]:
    """Stage -> those to wait for, of all stages that have changed or rest on one that has: an edge of `graph` each.

    Without trainings that nothing but the report reads: of families outside `models`.
    """
    graph = graph.copy()
    while unasked := [s for s in graph if s.startswith("train_") and set(graph.predecessors(s)) <= {LAST}]:
        graph.remove_nodes_from(unasked)
    changed = changed & set(graph)
    stale = changed.union(*(nx.ancestors(graph, stage) for stage in changed))
    return {stage: stale.intersection(graph[stage]) for stage in graph if stage in stale}


def chains(needs: dict[str, set[str]]) -> dict[str, int]:
    """Stage -> the length of the longest chain of stages that begins with it."""
    length = dict.fromkeys(needs, 1)
    for stage in reversed(list(TopologicalSorter(needs).static_order())):
        for need in needs[stage]:
            length[need] = max(length[need], 1 + length[stage])
    return length


def workers(gpus: str | None, count: int | None) -> list[dict[str, str]]:
    """What is set in the environment of every worker: its GPU, if it has one of its own, and its share of the cores.

    Without `gpus` and `count`: one for every GPU that PyTorch sees, or else for every core, up to MOST. NPROC above 1
    means a single one, whose processes share all. OMP_NUM_THREADS limits PyTorch and OpenBLAS; where it is set it
    stays.

    Raises:
        UserError: a GPU is named twice or by no number, or there is no worker.
    """
    if count is not None and count < 1:
        raise UserError(f"WORKERS = {count} should be 1 or more")
    named = gpus.split(",") if gpus is not None else []
    if not all(map(str.isdecimal, named)) or len(set(named)) < len(named):
        raise UserError(f"GPUS = {gpus!r} should be different numbers of GPUs, such as 0,1")
    if gpus is None and count is None and os.environ.get("NPROC", "1") == "1":
        named, count = _gpus(), min(CORES, MOST)
    count = len(named) or count or 1
    share = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, CORES // count)))} if count > 1 else {}
    return [share | {"CUDA_VISIBLE_DEVICES": gpu} for gpu in named] or [share] * count


def _gpus() -> list[str]:
    """Names of the GPUs that PyTorch sees, as CUDA_VISIBLE_DEVICES has them: numbers, or UUIDs."""
    import torch  # late: its import takes longer than all else where nothing is to be done

    count = torch.cuda.device_count()
    return (os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))).split(",")[:count]


class Crew:
    """Workers that run stages in the order of their graph, those that begin the longest chains first.

    A stage is a process in a session of its own, so that a signal reaches it only through `stop`, and once.
    """

    def __init__(self, needs: dict[str, set[str]], environments: list[dict[str, str]]):
        self.needs, self.environments = needs, environments
        self.done: list[str] = []
        self.failed: dict[str, str] = {}  # stage -> why, in one line
        self.stopping = False
        self._processes: list[subprocess.Popen] = []
        self._lock = threading.RLock()  # no process begins that `stop` does not see
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # One that is ignored (nohup, a script's background) gets a handler too, or a child would ignore it as well.
            ignored = signal.getsignal(number) is signal.SIG_IGN
            signal.signal(number, (lambda *_: None) if ignored else self.stop)

    def stop(self, *_) -> None:
        """Send what Ctrl-C would: trainings save their state, DVC removes its locks. No further stage begins."""
        with self._lock:
            self.stopping = True
            for process in self._processes:
                with suppress(ProcessLookupError):
                    if process.poll() is None:
                        os.killpg(process.pid, signal.SIGINT)

    def work(self) -> None:
        """Run all stages whose dependencies end well."""
        order, length, free = TopologicalSorter(self.needs), chains(self.needs), list(self.environments)
        ready, running = [], {}
        order.prepare()
        with ThreadPoolExecutor(len(free)) as pool:
            while True:
                ready = sorted([*ready, *order.get_ready()], key=length.__getitem__, reverse=True)
                while ready and free:
                    stage, worker = ready.pop(0), free.pop(0)
                    running[pool.submit(self._run, stage, worker)] = stage, worker
                if not running:
                    return
                for ended in wait(running, return_when=FIRST_COMPLETED).done:
                    stage, worker = running.pop(ended)
                    free.append(worker)
                    if ended.result():
                        order.done(stage)

    def _run(self, stage: str, worker: dict[str, str]) -> bool:
        """Whether `stage` ended well. What it prints is passed on line by line; a single worker's as it comes."""
        began, error, log = time.monotonic(), "", RUNS / "parallel" / f"{stage}.log"
        command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "-s", stage]
        how = {"env": os.environ | worker, "start_new_session": True}
        if stage == LAST:
            how |= {"stdout": subprocess.DEVNULL}  # its table is printed at the end, also where it has not changed
        elif len(self.environments) > 1:
            command.append("-q")  # DVC's own words between those of several stages would confuse
            how |= {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
        with self._lock:
            if self.stopping:
                return False
            self._say(stage, " ".join(["begins", *(f"{name}={value}" for name, value in worker.items())]))
            process = subprocess.Popen(command, **how)
            self._processes.append(process)
        log.parent.mkdir(parents=True, exist_ok=True)
        with process, open(log, "w", buffering=1) as file:
            for line in process.stdout or ():
                file.write(line)
                if line.startswith("error: "):  # what the stage itself says is wrong, see stages.run
                    error = line.strip()
                if line.strip():
                    self._say(stage, line.rstrip())
        if process.returncode == 0:
            self.done.append(stage)
            self._say(stage, f"done in {time.monotonic() - began:.0f} s, {len(self.done)} of {len(self.needs)}")
        elif self.stopping:
            self._say(stage, "stopped")
        else:
            why = error or f"exit code {process.returncode} of `dvc repro -s {stage}`"
            self.failed[stage] = f"{why}; see {log if process.stdout else 'above'}"
            self._say(stage, f"failed: {self.failed[stage]}")
        return process.returncode == 0

    def _say(self, stage: str, line: str) -> None:
        print(f"{stage:{max(map(len, self.needs))}} | {line}\n", end="", flush=True)  # one write: lines do not mix


def main(gpus: str | None, count: int | None) -> None:
    environments = workers(gpus, count) if gpus is not None or count is not None else None  # refused before all else
    try:
        with Repo(_wait_for_lock=True) as repo:
            graph = nx.relabel_nodes(repo.index.graph, lambda stage: stage.addressing)
            needs = plan(graph, set(repo.status()))
    except DvcException as error:
        raise UserError(f"DVC cannot say what has changed: {' '.join(str(error).split())}") from None
    if needs:
        crew = Crew(needs, environments or workers(None, None))
        print(f"{len(needs)} stages, {len(crew.environments)} at a time; WORKERS=1 runs one after the other")
        crew.work()
        if crew.failed:
            reasons = "; ".join(f"{stage} ({why})" for stage, why in crew.failed.items())
            lost = ", ".join(stage for stage in needs if stage not in {*crew.done, *crew.failed}) or "no other"
            raise UserError(f"failed: {reasons}; and for want of these {lost}. The same command goes on")
        if crew.stopping:
            raise UserError(f"stopped with {len(crew.done)} of {len(needs)} stages done: the same command goes on")
    if subprocess.run([sys.executable, "-m", f"stages.{LAST}", "--table"]).returncode:
        raise UserError("the table cannot be printed: see above")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpus", help="numbers of GPUs, such as 0,1: a worker for each")
    parser.add_argument("--workers", type=int, help="without GPUs")
    arguments = parser.parse_args()
    run(main, arguments.gpus, arguments.workers)
