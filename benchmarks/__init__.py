"""Ratios of speed, measured in one run: never a timed test."""

import stages  # noqa: F401  (puts src on the path)
