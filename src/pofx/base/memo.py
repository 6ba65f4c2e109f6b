"""Results of a stage, kept by what they depend on: a row added to a stage computes that row alone.

DVC deletes a stage's outputs before it runs it; `persist: true` would take the stage out of the run cache. A stage for
every row would need the names of all rows in one matrix. So results are kept in scratch as well, one file each, named
by a hash of all that decides them, code included.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pofx.base import dist
from pofx.base.files import atomic, digest

KEEP = 16  # results that stay in a folder: those of the last few runs
Entry = tuple[dict[str, np.ndarray], dict[str, Any]]  # arrays, and facts as JSON has them


class Memo:
    """The results in `folder`, one folder for every stage and family.

    All depend on `shared`: JSON-able values, dataclasses, and paths of files for their content. With `fresh` everything
    is computed again.
    """

    def __init__(self, folder: Path, *shared: Any, fresh: bool = False):
        self.folder, self.shared, self.fresh = folder, shared, fresh
        self.used: set[Path] = set()

    def __call__(self, compute: Callable[[], Entry], *parts: Any) -> Entry:
        """The result of `compute()`, which depends on `parts`, such as may be shared, and on what is shared.

        All processes of a stage call this alike: where one of them has no result all compute, and the first one's is
        kept.
        """
        text = json.dumps([self.shared, parts], sort_keys=True, default=_content)
        path = self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.npz"
        self.used.add(path)
        kept = None if self.fresh else _read(path)
        (missing,) = dist.most(int(kept is None))
        if not missing:
            return kept
        arrays, facts = compute()
        if dist.first():
            with atomic(path) as file:
                np.savez(file, **arrays, facts=json.dumps(facts))
        return arrays, facts

    def prune(self) -> None:
        """At the end of a run: delete the results that were not used for longest, but none of this run."""
        others = sorted(set(self.folder.glob("*.npz")) - self.used, key=os.path.getmtime, reverse=True)
        for path in others[max(0, KEEP - len(self.used)) :]:
            path.unlink(missing_ok=True)


def _content(part: Any) -> Any:
    return digest(part) if isinstance(part, Path) else dataclasses.asdict(part)


def _read(path: Path) -> Entry | None:
    try:
        with np.load(path) as file:
            arrays = dict(file)
        os.utime(path)
    except FileNotFoundError:
        return None
    return arrays, json.loads(str(arrays.pop("facts")))
