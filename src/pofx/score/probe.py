"""A linear probe for the class of images in a family's features (Alain and Bengio 2016, arXiv 1610.01644).

Labels are used here alone, never in training. The floors are the same network with random weights, and the pixels.
"""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge
from jaxtyping import Float, Int64, UInt8

from pofx.base.errors import UserError
from pofx.base.images import Batches
from pofx.models.family import Featured

HELD_OUT = 10  # one image of so many chooses the strength of the penalty
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # scikit-learn's C: the larger, the weaker the penalty on the weights
STEPS = 500  # of L-BFGS, for each strength, from where the one before ended

Images = UInt8[np.ndarray, "_ 3 h w"]
Labels = Int64[np.ndarray, " _"]
Features = Float[np.ndarray, "_ d"]


@dataclass(frozen=True)
class Probe:
    train: Annotated[int, Ge(HELD_OUT)] = 1500  # training images, or all
    test: Annotated[int, Ge(1)] = 1000  # test images, or all


@dataclass(frozen=True)
class Task:
    images: tuple[Images, Images]  # of training and of test
    labels: tuple[Labels, Labels]  # their classes

    def protocol(self, layer: str, width: int) -> dict[str, Any]:
        """What was probed, of how many images, and the accuracy of naming the commonest class."""
        n, (_, test) = len(self.labels[0]), self.labels
        return {
            "probe_layer": layer,
            "probe_features": width,
            "probe_train": n - n // HELD_OUT,
            "probe_validation": n // HELD_OUT,
            "probe_test": len(test),
            "probe_chance": float(np.bincount(test).max() / len(test)),
        }


def take(cfg: Probe, train: Images, test: Images, labels: Mapping[str, np.ndarray]) -> Task:
    """The first of `train` and `test`, which are in random order, and of their `labels`.

    Raises:
        UserError: the training images are too few, or have but one class.
    """
    n = min(cfg.train, len(train))
    if n < HELD_OUT or len(np.unique(labels["train"][: n - n // HELD_OUT])) < 2:
        raise UserError(f"a linear probe needs {HELD_OUT} training images of two classes, got {n}: raise probe.train")
    return Task((train[:n], test[: cfg.test]), (labels["train"][:n], labels["test"][: cfg.test]))


def pixels(task: Task) -> tuple[dict[str, float], dict[str, Any]]:
    """The accuracy of the images' own values, and how it was measured."""
    features = [images.reshape(len(images), -1).astype(np.float32) for images in task.images]
    return accuracy(features, task.labels, "linear_probe"), task.protocol("pixels", features[0].shape[1])


def evaluate(
    model: Featured, random: Featured, task: Task, batches: Batches
) -> tuple[dict[str, float], dict[str, Any]]:
    """The accuracy of the model's features and of those of `random`, the model before training; and the protocol."""
    scores: dict[str, float] = {}
    for net, key in ((model, "linear_probe"), (random, "linear_probe_random")):
        features = [batches.map(net.features, images).numpy() for images in task.images]
        scores |= accuracy(features, task.labels, key)
    return scores, task.protocol(model.layer, features[0].shape[1])


def accuracy(features: list[Features], labels: tuple[Labels, Labels], key: str) -> dict[str, float]:
    """Test accuracy of logistic regression, under the name `key`, and its binomial standard error.

    Features are standardised by the training images, a tenth of which chooses the penalty and is not fitted.
    """
    # Late: slow to import, and stages.check reads this module.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    n = len(features[0])
    fitted = n - n // HELD_OUT
    mean, width = features[0][:fitted].mean(0), features[0][:fitted].std(0)
    width[width <= 1e-6 * np.abs(mean)] = np.inf  # constant up to rounding: without information
    train, test = ((part - mean) / width for part in features)
    probe, best = LogisticRegression(max_iter=STEPS, tol=1e-3, warm_start=True), (-1.0, 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # it stopped early, which the held-out images judge as well
        for strength in STRENGTHS:
            probe.set_params(C=strength).fit(train[:fitted], labels[0][:fitted])
            chosen = probe.score(train[fitted:], labels[0][fitted:])
            if chosen > best[0]:
                best = chosen, probe.score(test, labels[1])
    share = float(best[1])
    return {key: share, f"{key}_stderr": math.sqrt(share * (1 - share) / len(labels[1]))}
