"""What is measured of a trained model itself, however its images are drawn: likelihood and code."""

import torch

from pofx.base import dist
from pofx.base.images import Images, Sheet, to_uint8
from pofx.models.family import Coded, Family
from pofx.score import codes, distances, likelihood
from pofx.score.measures import Metrics, Reference


def evaluate(
    model: Family, test: Images, reference: Reference, bits: likelihood.Likelihood
) -> tuple[Metrics, Metrics, dict[str, Sheet]]:
    """Likelihood, the metrics of `monitor` and, of a model with a code, how near its reconstructions are to `test`.

    Returns:
        Metric -> value; how they were measured; pictures. Several processes share the features, the rest is the first
        one's: the others get nothing.
    """
    batches, coded = reference.batches, isinstance(model, Coded)
    if coded:
        exact = codes.reconstruct(model, test, batches)
        again = to_uint8(torch.from_numpy(exact)).numpy()
        features = reference.features(again, "reconstructions")
    if not dist.first():
        return {}, {}, {}
    metrics: Metrics = likelihood.evaluate(model, test, batches, bits, reference.seed)
    with torch.no_grad():
        metrics |= model.monitor(torch.from_numpy(test).to(batches.device))
    protocol: Metrics = {"test_images": len(test), "bpd_images": min(bits.images, len(test))}
    if not coded:
        return metrics, protocol, {}
    metrics |= codes.evaluate(test, exact)
    metrics[f"recon_{reference.net.keys[0]}"] = distances.frechet(features, reference.train)
    pictures = codes.pictures(model, test, again, batches)
    if "traversals" in pictures:
        protocol["traversal"] = codes.VALUES
    return metrics, protocol, pictures
