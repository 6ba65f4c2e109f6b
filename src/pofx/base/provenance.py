"""Where numbers come from: which code, when, on what."""

import datetime
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any


def revision(root: Path) -> tuple[str, bool | None]:
    """The commit that is checked out at `root`, and whether src/ or stages/ differ from it.

    ("unknown", None) without git, or in a copy that is not a clone (even one that lies inside another repository).
    """
    try:
        # A line for the way down from the top of the repository, blank at the top itself, and one for the commit.
        prefix, commit = _git(root, "rev-parse", "--show-prefix", "HEAD").split("\n")[:2]
        changes = _git(root, "status", "--porcelain", "--", "src", "stages")
    except (OSError, subprocess.CalledProcessError):
        return "unknown", None
    return ("unknown", None) if prefix else (commit, bool(changes))


def here(root: Path) -> dict[str, Any]:
    """Date, revision of the clone at `root` (and whether it was changed), system and versions; no host name."""
    commit, changed = revision(root)
    return {
        "date": datetime.date.today().isoformat(),
        "revision": commit,
        "changed": changed,
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "torch": version("torch"),
    }


def _git(root: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True).stdout
