"""A tqdm bar on a terminal; one line every 15 s elsewhere (a log, a CI run, a DVC queue)."""

import sys

from tqdm import tqdm


class Bar(tqdm):
    """tqdm, with one line per interval where there is no terminal. Takes tqdm's arguments."""

    def __init__(self, *args, **kwargs):
        self._tty = sys.stderr.isatty()
        every = 0.5 if self._tty else 15.0
        if not self._tty and not kwargs.get("leave", True):
            kwargs["disable"] = True  # nested bar: a log shows the outer one only
        how = {"mininterval": every, "dynamic_ncols": True, "smoothing": 0.1, "miniters": 1}
        super().__init__(*args, **how | kwargs)

    def display(self, msg=None, pos=None):
        if self._tty:
            return super().display(msg, pos)
        if self.n > self.initial or msg is not None:  # a line that says 0% says nothing
            print(msg if msg is not None else str(self), file=sys.stderr, flush=True)
        return True

    @classmethod
    def note(cls, text: str) -> None:
        """Print a line without breaking the bar that is open."""
        if sys.stderr.isatty():
            cls.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)
