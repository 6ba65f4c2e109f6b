"""The machine a run is on: which device, how it is set up, what it is called; and when it is asked to stop."""

import ctypes
import os
import platform
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any, Literal

import torch

from pofx.base import dist
from pofx.base.errors import UserError

Precision = Literal["fp32", "bf16"]  # of networks; all else is in fp32

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
CPUINFO = "/proc/cpuinfo"
BF16 = {"amx_bf16", "avx512_bf16"}  # flags of processors that multiply bf16 faster than fp32
# What ONEDNN_MAX_CPU_ISA may hold oneDNN to that is below them: a bigger machine then acts as a smaller one.
BELOW_BF16 = {"sse41", "avx", "avx2", "avx2_vnni", "avx2_vnni_2", "avx512_core", "avx512_core_vnni"}


def device() -> torch.device:
    """The device to compute on, set up for speed: the first GPU if there is one; of several processes each has its own.

    Raises:
        UserError: there are fewer GPUs than processes.
    """
    if torch.cuda.is_available():
        local, count = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
        if (wanted := int(os.environ.get("LOCAL_WORLD_SIZE", 1))) > count:
            raise UserError(f"{wanted} processes want a GPU each and there are {count}: lower NPROC")
        torch.cuda.set_device(local)
        torch.set_float32_matmul_precision("high")  # TF32 for what is not bf16
        torch.backends.cudnn.benchmark = True  # shapes are fixed
        return torch.device("cuda", local)
    torch.set_flush_denormal(True)  # tiny activations would otherwise take the CPU's slow path
    _keep_memory()
    return torch.device("cpu")


def _keep_memory() -> None:
    """Have malloc keep what is freed. By default glibc hands large blocks back to the kernel, which clears every page
    of them anew for the next tensor: up to half the time of drawing (docs/performance.md)."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def precision(asked: Precision | Literal["auto"], device: torch.device) -> Precision:
    """What `auto` is on this machine: bf16 where the device multiplies it fast, else fp32.

    Decided by what the device says it can do, never by a timing: one machine always decides alike.
    """
    if asked != "auto":
        return asked
    fast = torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else _cpu_has_bf16()
    return "bf16" if fast else "fp32"


def _cpu_has_bf16() -> bool:
    """Whether the processor has a flag of BF16, and neither oneDNN nor PyTorch is held below it."""
    onednn = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", ""))
    if onednn.lower() in BELOW_BF16 or os.environ.get("ATEN_CPU_CAPABILITY") in ("default", "avx2"):
        return False
    return not BF16.isdisjoint((_entry(CPUINFO, "flags") or "").split())


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """A context in which networks compute in `precision`; their weights stay in fp32."""
    return torch.autocast(device.type, torch.bfloat16, enabled={"fp32": False, "bf16": True}[precision])


def name(device: torch.device) -> str:
    """What to print beside a timing: the GPU's name, or the processor's and the number of threads; and of processes."""
    if device.type == "cuda":
        found = torch.cuda.get_device_name(device)
    else:
        threads = torch.get_num_threads()
        cpu = _entry(CPUINFO, "model name") or platform.processor() or platform.machine()
        found = f"{cpu}, {threads} thread{'s' if threads > 1 else ''}"
    return f"{dist.world()} processes, each on {found}" if dist.world() > 1 else found


def _entry(path: str, key: str) -> str | None:
    """The first entry `key` of a file of Linux's /proc; None: there is none."""
    lines = Path(path).read_text().splitlines() if Path(path).exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), None)


def arithmetic(device: torch.device, precision: Precision) -> dict[str, Any]:
    """What the last digits of a result depend on besides code, data and seed: sums in another order round otherwise."""
    return {
        "device": "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "processes": dist.world(),
        "dtype": {"fp32": "float32", "bf16": "bfloat16"}[precision],
    }


def peak_mib(device: torch.device) -> float:
    """The most memory that this process has held, in MiB: of a GPU what PyTorch's tensors took; without one the
    resident set of the process, with Python and its libraries."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if peak := _entry("/proc/self/status", "VmHWM"):  # in kB; getrusage counts on Linux a parent's peak as well
        return int(peak.split()[0]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


class StopRequest:
    """True once SIGTERM or Ctrl-C arrived, the minutes are over, or the launcher of several processes has ended. A
    second Ctrl-C ends the process at once.

    The exit code `code` says why: 75 (try again) for the time limit, else 128 + the signal's number.
    """

    def __init__(self, minutes: float | None = None):
        self.code = 0
        self._parent = os.getppid() if dist.world() > 1 else None  # alone, a run may outlive its shell
        self._deadline = time.monotonic() + 60 * minutes if minutes is not None else float("inf")
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def __call__(self) -> bool:
        if time.monotonic() > self._deadline:
            self.code = 75
        if self._parent is not None and os.getppid() != self._parent:
            self.code = 128 + signal.SIGTERM
        return self.code != 0

    def _on_signal(self, number: int, frame) -> None:
        self.code = 128 + number
        signal.signal(number, signal.SIG_DFL)
