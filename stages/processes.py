"""Stages that several processes can share: `NPROC=2 dvc repro train_ddpm`, `NPROC=2 python -m stages.train ddpm`.

The stage then starts itself NPROC times, on a GPU each or with the CPU's cores divided, and gives each copy its rank
by torchrun's variables; so `torchrun --nproc_per_node=2 -m stages.train ddpm` works as well. But torchrun turns every
exit code into 1, and a kill of it leaves its workers alive. The number of processes is no parameter: it decides nothing
but the time.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr

import stages
from pofx.base import dist
from pofx.base.errors import UserError

GRACE = 2.0  # seconds for the others to end by themselves once a process has failed, and then upon SIGTERM


def run(main: Callable[..., None], *args, **how) -> None:
    """As stages.run, in as many processes as the environment asks for."""
    stages.run(_joined if "RANK" in os.environ else _launched, main, *args, **how)


def _joined(main: Callable[..., None], *args) -> None:
    try:
        # All would print the same: the first does.
        with open(os.devnull, "w") as null, redirect_stderr(sys.stderr if dist.first() else null), dist.joined():
            main(*args)
    except Exception:
        # Mostly all fail alike, or the first has failed and the launcher ends this process: it waits for that. An error
        # that is its own is printed after the wait.
        if not dist.first():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(5 * GRACE)
        raise


def _launched(main: Callable[..., None], *args) -> None:
    asked = os.environ.get("NPROC", "1")
    if not asked.isdecimal() or int(asked) < 1:
        raise UserError(f"NPROC = {asked!r} should be a number of processes, 1 or more")
    if (count := int(asked)) == 1:
        return main(*args)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {"OMP_NUM_THREADS": str(max(1, stages.CORES // count))} | os.environ
    variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": asked, "LOCAL_WORLD_SIZE": asked}
    command = [sys.executable, *sys.orig_argv[1:]]
    copies = [subprocess.Popen(command, env=variables | {"RANK": str(i), "LOCAL_RANK": str(i)}) for i in range(count)]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches the copies by itself
    signal.signal(signal.SIGTERM, lambda *_: [copy.terminate() for copy in copies])
    sys.exit(_wait(copies))


def _wait(copies: list[subprocess.Popen]) -> int:
    """The exit code of the first that failed, after which the others are ended; 0 if none did."""
    while None in (codes := [copy.poll() for copy in copies]) and not any(codes):
        time.sleep(0.05)
    code = next(filter(None, codes), 0)
    for end in (lambda copy: None, subprocess.Popen.terminate, subprocess.Popen.kill):
        until = time.monotonic() + GRACE
        for copy in copies:
            end(copy)
        while time.monotonic() < until and any(copy.poll() is None for copy in copies):
            time.sleep(0.05)
    return code if code >= 0 else 128 - code
