"""What is measured of a trained model itself, however its images are drawn: likelihood, code, factors, features."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8

from pofx.base.images import to_uint8
from pofx.models.family import Family
from pofx.score import codes, disentanglement, distances, likelihood, probe, reconstruction
from pofx.score.extractor import Extractor

Images = UInt8[np.ndarray, "n 3 h w"]
Measured = tuple[dict[str, Any], dict[str, Any], dict[str, codes.Sheet]]


@dataclass(frozen=True)
class Returned:
    """What comes back of test images from a model's code, and its features."""

    exact: Float[np.ndarray, "n 3 h w"]  # images on [-1, 1]
    images: Images
    features: Float[np.ndarray, "n d"]


def returned(model: Family, test: Images, net: Extractor, batch: int) -> Returned | None:
    """The images `test` as the model gives them back; None: it has no code."""
    exact = reconstruction.reconstruct(model, test, batch, net.device)
    if exact is None:
        return None
    images = to_uint8(torch.from_numpy(exact)).numpy()
    return Returned(exact, images, net.features(images, batch, "reconstructions"))


def evaluate(
    model: Family,
    test: Images,
    back: Returned | None,
    net: Extractor,
    reference: distances.Target,
    bits: likelihood.Likelihood,
    batch: int,
    seed: int,
) -> Measured:
    """Likelihood, what `monitor` says and, of a model with a code, how near `back` is to the test images.

    Returns:
        Metric -> value; how they were measured; pictures.
    """
    found: dict[str, Any] = likelihood.evaluate(model, test, batch, net.device, seed, bits)
    told: dict[str, Any] = {"test_images": len(test), "bpd_images": min(bits.images, len(test))}
    pictures: dict[str, codes.Sheet] = {}
    with torch.no_grad():
        found |= model.monitor(torch.from_numpy(test).to(net.device))
    if back is not None:
        found |= reconstruction.evaluate(test, back.exact)
        found |= {f"recon_{net.keys[0]}": distances.frechet(back.features, reference)}
        pictures = codes.pictures(model, test, back.images, batch, net.device)
    if "traversals" in pictures:
        told["traversal"] = codes.VALUES
    return found, told, pictures


def understanding(
    model: Family,
    random: Family,
    images: tuple[probe.Images, probe.Images],
    labels: dict[str, np.ndarray],
    cfg: probe.Probe,
    batch: int,
    device: torch.device,
    seed: int,
) -> tuple[dict[str, float], dict[str, Any]]:
    """Whether its code and its features know what the images show: the true factors of a data set that is drawn, and a
    linear probe for the class beside that of `random`, the same model before training.

    Args:
        images: all of training and of test.
        labels: of all of them; see `data/labels.npz`.

    Returns:
        Metric -> value; how they were measured.
    """
    found, told = probe.evaluate(model, random, probe.take(cfg, *images, labels), batch, device)
    if "factors_test" in labels:
        truth = labels["factors_test"], labels["factor_names"].tolist()
        found |= (known := disentanglement.evaluate(model, images[1], *truth, batch, device, seed))
        told |= {"factor_images": len(images[1])} if known else {}
    return found, told
