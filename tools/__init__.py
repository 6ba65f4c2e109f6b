"""Tools for people, not for the pipeline. Each runs as `python -m tools.NAME` from the repository's root."""

import stages  # noqa: F401  (puts src on the path, before the imports of every tool)
