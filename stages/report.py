"""metrics/, plots/ -> report/, plots/comparison/, metrics/summary.json.

Prints the table. `python -m stages.report [--table]`: with --table it prints what is there, and writes nothing.
"""

import sys
from pathlib import Path

from stages import run
from pofx.base import config, files
from pofx.report import metrics, page, tables

PICTURES = ("strip", "ladder", "interpolation")


def main(*options: str) -> None:
    models = config.value("models", tuple[str, ...])
    got = metrics.read(models, metrics.load(Path("metrics")))
    if not options:
        swept = config.value("sweep.models", tuple[str, ...])
        based = config.value("energy.models", tuple[str, ...])
        progress = {f: Path(f"plots/progress/{f}.png") for f in models}
        owners = metrics.rows(models, got)
        material = page.Material(
            models=models,
            metrics=got,
            data=files.read_json(Path("metrics/data.json")),
            curves={f: Path(f"plots/curves/{f}.csv") for f in models},
            samples={"data": Path("plots/samples/data.png")}
            | {row: Path(f"plots/samples/{f}/{row}.png") for row, f in owners.items()},
            redrawn={row: redrawn(row, Path(f"plots/samples/{f}")) for row, f in owners.items()},
            exploration=sorted(Path("plots/data").glob("*.png")),
            sweeps={f: files.read_json(Path(f"metrics/sweep/{f}.json")) for f in swept},
            denoising={f: {name: Path(f"plots/denoising/{f}/{name}.png") for name in PICTURES} for f in swept},
            energies={f: files.read_json(Path(f"metrics/energy/{f}.json")) for f in based},
            uses={f: {path.stem: path for path in Path(f"plots/energy/{f}").glob("*.png")} for f in based},
            progress={f: path for f, path in progress.items() if path.is_file()},  # a family may show none
            pictures={f: {path.stem: path for path in Path(f"plots/fid/{f}").glob("*.png")} for f in models},
        )
        page.build(material, Path("report"), Path("plots/comparison"))
        files.write_json(Path("metrics/summary.json"), metrics.summary(models, got))
    print(f"\n{tables.brief(models, got)}\n\n{Path('report/index.html').resolve()}")


def redrawn(row: str, folder: Path) -> dict[int, Path]:
    """Sampling seed -> grid, of the seeds after the first: <row>.seed<k>.png."""
    return {int(path.stem.rpartition("seed")[2]): path for path in folder.glob(f"{row}.seed*.png")}


if __name__ == "__main__":
    if sys.argv[1:] not in ([], ["--table"]):
        sys.exit("usage: python -m stages.report [--table]")
    run(main, *sys.argv[1:])
