"""metrics/, plots/ -> report/, plots/comparison/, metrics/summary.json.

Prints the table. `python -m stages.report [--table]`: with --table it prints what is there, and writes nothing.
"""

import sys
from pathlib import Path

from stages import run
from pofx.base import config, files
from pofx.report import metrics, page, tables


def main(*options: str) -> None:
    models = config.value("models", tuple[str, ...])
    tree = metrics.load(Path("metrics"))
    got = metrics.read(models, tree)
    if not options:
        sweeps, energies = (
            {f: metrics.part(tree, section, f) for f in config.value(f"{section}.models", tuple[str, ...])}
            for section in ("sweep", "energy")
        )
        material = page.Material(models, got, metrics.part(tree, "data"), sweeps, energies, Path("plots"))
        page.build(material, Path("report"), Path("plots/comparison"))
        files.write_json(Path("metrics/summary.json"), metrics.summary(models, got))
    print(f"\n{tables.brief(models, got)}\n\n{Path('report/index.html').resolve()}")


if __name__ == "__main__":
    if sys.argv[1:] not in ([], ["--table"]):
        sys.exit("usage: python -m stages.report [--table]")
    run(main, *sys.argv[1:])
