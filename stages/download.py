"""The data set: data/raw/ in CIFAR-10's binary layout, drawn or from `data.url`, kept in runs/download/."""

from pathlib import Path

from stages import RUNS, run  # first: puts src on the path

from pofx.base import config
from pofx.data import download


def main() -> None:
    # A relative file:// URL starts from the user's repository, also where DVC runs this in a throw-away clone.
    download.build(config.section("data", download.Data), Path("data/raw"), RUNS / "download", RUNS.parent)


if __name__ == "__main__":
    run(main)
