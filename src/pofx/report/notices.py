"""What has to be said beside numbers: what they may be compared with, and how they were measured."""

from typing import Any

import pandas as pd

from pofx.report.metrics import LINES, Metrics, distance_keys
from pofx.score.distances import named

PROBES = (
    "Accuracy on test images of a logistic regression fitted to the features of training images and their labels; the "
    "labels are used here alone, no model has seen them in training. Untrained: the same network before training; "
    "pixels: the images themselves. Larger is better; ± is the standard error over test images."
)
SWEPT, CHAINED = "point of a model", "length of the chain"  # where noise is the same
PAPERS = pd.DataFrame(
    [
        ("NCSN", "25.32", "", "Song and Ermon 2019, arXiv:1907.05600"),
        ("NCSNv2", "10.87", "", "Song and Ermon 2020, arXiv:2006.09011"),
        ("IGEBM", "40.6", "", "Du and Mordatch 2019, arXiv:1903.08689"),
        ("DDPM", "3.17", "at most 3.75", "Ho et al. 2020, arXiv:2006.11239"),
        ("EDM", "1.97", "", "Karras et al. 2022, arXiv:2206.00364"),
        ("VQ-VAE", "", "4.67", "van den Oord et al. 2017, arXiv:1711.00937"),
        ("NVAE", "", "2.91", "Vahdat and Kautz 2020, arXiv:2007.03898"),
        ("full-covariance Gaussian", "", "4.64", "no paper: fitted to all training images, measured on all of test"),
    ],
    columns=["model", "Inception-FID", "bits/dim", "source"],
)


def notice(metrics: Metrics) -> str:
    """What the numbers may be compared with, in one or two sentences."""
    fd, n = distance_keys(metrics)[0], metrics["protocol"]["floor"]["n"]
    same = (
        f"A Frechet distance falls as more images are taken: compare rows of equal N, and with the floor (N = {n:,})."
    )
    if fd == "fid":
        return f"{same} Published FIDs are of 50,000 samples against the whole training set."
    return f"{same} {fd} lives in another network's features: it is not comparable with published Inception FIDs."


def beyond_notice(metrics: Metrics) -> str:
    """How the columns of `beyond` were measured, and how they are to be read."""
    fd, kid, _ = distance_keys(metrics)
    p = next((p for f, p in metrics["protocol"].items() if "n_manifold" in p and f not in ("floor", *LINES)), None)
    if p is None:
        return ""
    halves = metrics["protocol"].get("halves", {"n": 0})["n"]
    return (
        f"{named(fd, 'inf')}: {fd} extrapolated to infinitely many samples, by a line in 1/N through sizes from N/2 to "
        "N (± standard error of the fit); blank where N is less than twice the length of a feature vector: there is no "
        f"such line. {named(fd, 'test')}, {named(kid, 'test')}: against {p['n_test']:,} test images; the floor of both "
        f"is the row of {halves:,} training images, whose own {fd} is to as many other training images. Precision, "
        f"recall (k = 3), density, coverage (k = 5): {p['n_manifold']:,} images a side, in the features of {fd}, not "
        "those of the papers; larger is better. nearest_ratio: median distance to the nearest of "
        f"{p['n_reference']:,} training images, over that of test images. copied: share of samples that lie nearer to "
        "one of these than 99% of test images do; a copy of any other training image goes unseen. duplicates: share "
        "nearer to another sample than 99% of test images to another test image. Both are 1% by chance. What is near "
        "in these features need not look alike: images without structure lie in their middle, near to all others, so "
        "see the rows of the Gaussians, and recall, before believing a high precision, density or copied. "
        "colour_shift: mean red, green and blue less those of training images, in standard errors; within ±2 by "
        "chance, and the larger N, the more the same shift counts. saturated: share of values at 0 or 255."
    )


def scores_notice(energies: dict[str, dict[str, Any]]) -> str:
    """How the AUROCs are to be read."""
    if not energies:
        return ""
    p = next(iter(energies.values()))["protocol"]
    return (
        f"AUROC of the energy, {p['test_images']:,} test images against as many others: the share of pairs in which "
        "the other image has the higher energy. 1: all told apart; 0.5: chance; below 0.5: the model finds the others "
        f"likelier than the data. Training images should score 0.5, within ± {p['chance']:.3f} (one standard "
        "deviation, by chance alone); clearly less would be learning by heart."
    )


def points_notice(found: dict[str, dict[str, Any]], where: str) -> str:
    """What the distances of few images a point, drawn from the same noise `where`, may be compared with."""
    if not found:
        return ""
    tree = next(iter(found.values()))
    (fd, kid, _), p = tree["keys"], tree["protocol"]
    return (
        f"{tree['n']:,} images a point, from the same noise at every {where}. A Frechet distance of so few images is "
        f"far above its value for many: {fd} of these rows must not be set beside the leaderboard, its floor or a "
        f"paper. {kid} is unbiased, and may; ± is its standard deviation over {p['kid_subsets']} subsets of "
        f"{p['kid_subset_size']:,}. Reference: {p['reference']}."
    )


def protocol(metrics: Metrics, model: str) -> str:
    """How the numbers of `model` were measured, in one line."""
    p = metrics["protocol"][model]
    return (
        f"N = {p['n']:,}; reference: {p['reference']}; features: {p['extractor']}; KID: mean ± standard deviation over "
        f"{p['kid_subsets']} subsets of {p['kid_subset_size']:,}."
    )
