"""Where numbers come from: which code, when, on what."""

import datetime
import hashlib
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[3]


def code_hash(*folders: str) -> str:
    """Hash of the source of every module in `folders`, by default src and stages, that the process has imported."""
    roots = [REPOSITORY / folder for folder in folders or ("src", "stages")]
    sources = {Path(f).resolve() for m in list(sys.modules.values()) if (f := getattr(m, "__file__", None))}
    h = hashlib.sha256()
    for path in sorted(path for path in sources if any(path.is_relative_to(root) for root in roots)):
        h.update(str(path.relative_to(REPOSITORY)).encode() + b"\0" + path.read_bytes() + b"\0")
    return h.hexdigest()


def revision(root: Path) -> tuple[str, bool | None]:
    """The commit that is checked out at `root`, and whether src/ or stages/ differ from it.

    ("unknown", None) without git, or in a copy that is not a clone (even one that lies inside another repository).
    """
    try:
        # The path of `root` within the repository, empty at its top, and the commit.
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
