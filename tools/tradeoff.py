"""Reconstruction against disentanglement over beta, from the experiments that DVC knows.

    dvc exp show --csv | python -m tools.tradeoff     writes plots/tradeoff.png

Every experiment, the workspace and every commit shown with a VAE on a data set with known factors is a point.
"""

import sys
from pathlib import Path
from typing import IO

import pandas as pd

from pofx.base.errors import UserError
from pofx.report import plots
from stages import ROOT, run

BETA, PSNR, MIG = "vae.beta", "recon_psnr.vae", "mig.vae"


def points(csv: IO[str]) -> pd.DataFrame:
    """One row for each beta with its metrics, beta rising; of equal ones the first shown, which is the newest.

    Args:
        csv: what `dvc exp show --csv` prints. It puts the file's name before a key that stands in two files.

    Raises:
        UserError: a column is missing, or no row has all three.
    """
    try:
        frame = pd.read_csv(csv)
    except pd.errors.EmptyDataError:
        raise UserError("nothing to read: `dvc exp show --csv | python -m tools.tradeoff`") from None
    if "State" in frame:  # what has not finished is shown with the metrics of the commit that it started from
        frame = frame[frame["State"].isna() | (frame["State"] == "Success")]
    found = {key: [c for c in frame.columns if c.rpartition(":")[2] == key] for key in (BETA, PSNR, MIG)}
    if lacking := [key for key, columns in found.items() if not columns]:
        raise UserError(f"no experiment shown has {', '.join(lacking)}: run some (docs/families/vae.md)")
    wanted = pd.DataFrame({key: pd.to_numeric(frame[c[0]], errors="coerce") for key, c in found.items()})
    wanted = wanted.dropna().drop_duplicates(BETA).sort_values(BETA)
    if wanted.empty:
        raise UserError(f"no experiment shown has all of {BETA}, {PSNR} and {MIG}: run some (docs/families/vae.md)")
    return wanted


def main(csv: IO[str], out: Path) -> None:
    got = points(csv)
    plots.tradeoff(got[BETA], got[PSNR], got[MIG], out)
    print(f"{len(got)} values of beta: {out}")


if __name__ == "__main__":
    if len(sys.argv) > 1 or sys.stdin.isatty():
        sys.exit("usage: dvc exp show --csv | python -m tools.tradeoff")
    run(main, sys.stdin, ROOT / "plots" / "tradeoff.png")
