"""The data set: data/raw/ in CIFAR-10's binary layout, from `data.url` or drawn. Scratch in runs/download/."""

from pathlib import Path

from stages import RUNS, run  # first: puts src on the path

from pofx.base import config
from pofx.data import download as fetch


def main() -> None:
    # A relative file:// URL starts from the user's repository, also where DVC runs this in a throw-away clone.
    fetch.build(config.section("data", fetch.Data), Path("data/raw"), RUNS / "download", RUNS.parent)


if __name__ == "__main__":
    run(main)
