"""What is measured of a trained model itself, however its images are drawn: likelihood, code, factors, features."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8

from pofx.base.images import to_uint8
from pofx.models.family import Coded, Family, Featured, Latent
from pofx.score import codes, disentanglement, distances, likelihood, probe, reconstruction
from pofx.score.measures import Metrics, Reference

Images = UInt8[np.ndarray, "n 3 h w"]


@dataclass(frozen=True)
class Returned:
    """What comes back of test images from a model's code, and its features."""

    exact: reconstruction.Exact
    images: Images
    features: Float[np.ndarray, "n d"]


def returned(model: Coded, test: Images, reference: Reference) -> Returned:
    """The images `test` as the model gives them back."""
    exact = reconstruction.reconstruct(model, test, reference.batches)
    images = to_uint8(torch.from_numpy(exact)).numpy()
    return Returned(exact, images, reference.features(images, "reconstructions"))


def evaluate(
    model: Family, test: Images, back: Returned | None, reference: Reference, bits: likelihood.Likelihood
) -> tuple[Metrics, Metrics, dict[str, codes.Sheet]]:
    """Likelihood, what `monitor` says and, of a model with a code, how near its reconstructions are to `test`.

    Args:
        back: what comes back of `test`, of a model with a code.

    Returns:
        Metric -> value; how they were measured; pictures.
    """
    metrics: Metrics = likelihood.evaluate(model, test, reference.batches, bits, reference.seed)
    protocol: Metrics = {"test_images": len(test), "bpd_images": min(bits.images, len(test))}
    pictures: dict[str, codes.Sheet] = {}
    with torch.no_grad():
        metrics |= model.monitor(torch.from_numpy(test).to(reference.net.device))
    if back is not None:
        metrics |= reconstruction.evaluate(test, back.exact)
        metrics[f"recon_{reference.net.keys[0]}"] = distances.frechet(back.features, reference.train)
        pictures = codes.pictures(model, test, back.images, reference.batches)
    if "traversals" in pictures:
        protocol["traversal"] = codes.VALUES
    return metrics, protocol, pictures


@dataclass(frozen=True)
class Labelled:
    """All images of training and of test, and their labels; see `data/labels.npz`."""

    train: Images
    test: UInt8[np.ndarray, "m 3 h w"]
    labels: dict[str, np.ndarray]


def understanding(
    model: Family, random: Family, data: Labelled, cfg: probe.Probe, reference: Reference
) -> tuple[dict[str, float], dict[str, Any]]:
    """Whether its code and its features know what the images show: the true factors of a data set that is drawn, and a
    linear probe for the class beside that of `random`, the same model before training.

    Returns:
        Metric -> value; how they were measured.
    """
    metrics, protocol = {}, {}
    if isinstance(model, Featured):
        task = probe.take(cfg, data.train, data.test, data.labels)
        metrics, protocol = probe.evaluate(model, random, task, reference.batches)
    if isinstance(model, Latent) and "factors_test" in data.labels:
        factors = disentanglement.Factors(data.labels["factors_test"], data.labels["factor_names"].tolist())
        separate = disentanglement.evaluate(model, data.test, factors, reference.batches, reference.seed)
        if separate:
            metrics, protocol = metrics | separate, protocol | {"factor_images": len(data.test)}
    return metrics, protocol
