"""Stages: thin mains, the only code that knows a path. Each runs as `python -m stages.NAME` from the repository's root.

Importing this package puts the `src` of its own clone first on the path: DVC runs `--temp` and queued experiments in a
throw-away clone, and an installed package would make them import another clone's code.
"""

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Scratch: the parent repository's, also where DVC runs the stage in a throw-away clone.
RUNS = Path(os.environ.get("DVC_ROOT", ROOT)) / "runs"
FRESH = os.environ.get("FRESH") == "1"  # whether to make anew what is kept there: states of training, rows
sys.path.insert(0, str(ROOT / "src"))
# Cores that this process may use: a container or a batch system may grant fewer than there are. macOS cannot say.
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
# PyTorch's threads hold both of two cores: without threads of NumPy's own fid@ncsn took 15 s in place of 20. It must be
# set before NumPy is imported.
if CORES <= 2:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from pofx.base.errors import UserError


def run(main: Callable[..., None], *args, memory: str = "free some") -> None:
    """Call a stage's main; an error that the user can mend is one line on stderr and exit code 1.

    `memory` says what to do where there is not enough of it.
    """
    try:
        main(*args)
    except UserError as error:
        sys.exit(f"error: {error}")
    except FileNotFoundError as error:
        sys.exit(f"error: {error.filename or error} is missing: `dvc repro` makes what a stage needs")
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        sys.exit(f"error: out of memory ({str(error).strip().splitlines()[0]}): {memory}")
    except KeyboardInterrupt:
        print("interrupted: run the same command again", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EROFS):
            sys.exit(f"error: cannot write {error.filename}: permission denied or read-only")
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = error.filename or "the output"
            sys.exit(f"error: no space left for {where}: free some and run the same command again")
        raise


def _out_of_memory(error: Exception) -> bool:
    """NumPy and Python raise MemoryError, PyTorch OutOfMemoryError on a GPU and a plain RuntimeError on a CPU."""
    kind = type(error).__name__  # no import: most stages do without PyTorch
    return isinstance(error, MemoryError) or kind == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error)
