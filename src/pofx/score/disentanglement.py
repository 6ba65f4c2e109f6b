"""Does each unit of a Gaussian code stand for one true factor of variation? MIG and DCI, on a data set that has them.

All factors are taken as classes: whole numbers as they are, the others in equal bins. Some are angles (on sprites hue,
background and slope), which no code of one unit can follow without a jump: a model that spreads one over two units, as
sine and cosine, has learned well and scores lower.
"""

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import entropy
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import mutual_info_score

from pofx.base.images import Batches, Images
from pofx.models.family import Latent

# Not seen on discs and rings, and the same image three to five times in a turn of the others: no code gives it back.
HIDDEN = ("rotation",)
UNIT_BINS, FACTOR_BINS = 20, 10  # of equal width between the extremes
FEWEST = 200  # images; the bins of fewer hold too little
FORESTS = 2000  # images that the forests are grown from at most, and as many that they are tested on
LEAF = 10  # images: finer splits would lend importance to units without information


def classes(factors: Float[np.ndarray, "n f"], names: list[str]) -> Int[np.ndarray, "n g"]:
    """The true factors of images, those of `names` that can be seen, as classes."""
    columns = []
    for values, name in zip(factors.T, names, strict=True):
        if name not in HIDDEN:
            whole = np.all(values == np.round(values))
            columns.append(values.astype(int) if whole else _bins(values, FACTOR_BINS))
    return np.stack(columns, 1)


def evaluate(
    model: Latent, images: Images, factors: Int[np.ndarray, "n f"], batches: Batches, seed: int
) -> dict[str, float]:
    """MIG and DCI of the codes' means and the `classes` of factors: 1 at best, about 0 of a code without information.

    Empty for too few images.
    """
    if len(images) < FEWEST:
        return {}
    codes = batches.map(model.encode, images).numpy()
    return {"mig": mig(codes, factors), **dci(codes, factors, seed)}


def mig(codes: Float[np.ndarray, "n units"], classes: Int[np.ndarray, "n f"]) -> float:
    """Mutual information gap (Chen et al. 2018, arXiv 1802.04942, eq. 6): of each factor the gap between the two units
    with most information on it, over its entropy; mean over factors. A second unit that is missing has none."""
    units = np.stack([_bins(unit, UNIT_BINS) for unit in codes.T], 1)
    gaps = []
    for factor in classes.T:
        shared = sorted([0.0, *(mutual_info_score(unit, factor) for unit in units.T)])
        gaps.append((shared[-1] - shared[-2]) / entropy(np.bincount(factor)))
    return float(np.mean(gaps))


def dci(codes: Float[np.ndarray, "n units"], classes: Int[np.ndarray, "n f"], seed: int) -> dict[str, float]:
    """Eastwood & Williams (2018): a random forest predicts each factor, and its importances say what each unit is for.

    Returns:
        dci_disentanglement: 1 - entropy of a unit's importances over factors, units weighted by their sum.
        dci_completeness: 1 - entropy of a factor's importances over units.
        dci_informativeness: accuracy on other images, above chance.
    """
    half = min(FORESTS, len(codes) // 2)
    importance, skill = [], []
    for factor in classes.T:
        forest = RandomForestClassifier(50, min_samples_leaf=LEAF, max_features=None, random_state=seed, n_jobs=-1)
        forest.fit(codes[:half], factor[:half])
        importance.append(forest.feature_importances_)
        chance = 1 / len(np.unique(factor))
        skill.append((forest.score(codes[half : 2 * half], factor[half : 2 * half]) - chance) / (1 - chance))
    table = np.stack(importance, 1)  # (units, factors)
    weights = table.sum(1) / table.sum()
    return {
        "dci_disentanglement": float(weights @ _peaked(table)),
        "dci_completeness": float(_peaked(table.T).mean()),
        "dci_informativeness": float(np.mean(skill)),
    }


def _peaked(table: Float[np.ndarray, "rows columns"]) -> Float[np.ndarray, " rows"]:
    """1 for a row that has all in one column, 0 for an even one; and for an empty one."""
    share = (table + 1e-12) / (table + 1e-12).sum(1, keepdims=True)
    return 1 - entropy(share, base=max(2, table.shape[1]), axis=1)


def _bins(values: Float[np.ndarray, " n"], bins: int) -> Int[np.ndarray, " n"]:
    """Number of the bin, 0..bins-1."""
    return np.digitize(values, np.linspace(values.min(), values.max(), bins + 1)[1:-1])
