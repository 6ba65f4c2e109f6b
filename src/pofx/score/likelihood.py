"""Test loss, and bits per dimension of families with a likelihood.

Bits per dimension are -log2 P(image) over the number of pixels times channels, for images of 256 grey levels: 8 for
uniform guessing. Each estimator is an upper bound in expectation: that of a `Bounded` family, a tighter one by
`weighted`, the `bound` of a chain such as DDPM's, and the `flow`, exact up to the steps of its integration. The last
three take images on the 256 grey levels, at most `batch` in an evaluation, and return the bits of every image. Noise is
an image's own, a function of the seed and its index.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge
from jaxtyping import Float, Float64, Int64, UInt8
from torch import Tensor

from pofx.base import rng
from pofx.base.errors import UserError
from pofx.base.images import Batches
from pofx.base.progress import Bar
from pofx.base.rng import Noise, fold
from pofx.models.denoiser import Denoiser
from pofx.models.family import Bounded, Family, ImportanceWeighted
from pofx.models.moments import SIGMA_DATA
from pofx.models.pixels.gaussian import BIN, dequantised

Images = UInt8[np.ndarray, "n 3 h w"]


@dataclass(frozen=True)
class Likelihood:
    """How bits per dimension are measured."""

    images: Annotated[int, Ge(2)] = 64  # the first test images, the same for all families; all, if there are fewer
    importance: Annotated[int, Ge(1)] = 100  # codes drawn for an image, of the importance-weighted bound
    terms: Annotated[int, Ge(1)] | None = 50  # of the variational bound, noise levels drawn for an image; None: all
    ode_steps: Annotated[int, Ge(1)] = 16  # of the probability flow, four evaluations each


@torch.no_grad()
def evaluate(model: Family, images: Images, batches: Batches, cfg: Likelihood, seed: int) -> dict[str, float]:
    """Test loss and bits per dimension of `images`; the model is put into eval mode, for the flow with frozen weights.

    Returns:
        test_loss: mean over the images, in the family's own unit.
        bpd: of a family with a likelihood, the mean of the first cfg.images images; and of the parts that it names.
        bpd_stderr: standard error of that mean, over images and their noise, not over trainings or steps of the flow.
        bpd_iw, bpd_iw_stderr: the same by the importance-weighted bound.

    Raises:
        UserError: the loss or the bits are not finite.
    """
    model.eval().to(batches.device)
    values = _forward(model, images, batches, fold(seed, "test loss"))
    loss = values.pop("loss").mean().item()
    if not math.isfinite(loss):
        raise UserError(
            "the loss on test images is not finite: the weights have diverged; lower the learning rate and train again"
        )
    x = torch.cat(list(batches.of(images[: cfg.images])))
    own = fold(seed, "bits")  # the same noise for all families with the same estimator
    if isinstance(model, Bounded):
        bits = {key: each[: cfg.images] for key, each in values.items()}
    elif isinstance(model, Denoiser) and model.likelihood == "bound":
        bits = {"bpd": bound(model, x, cfg.terms, batches.size, own)}
    elif isinstance(model, Denoiser) and model.likelihood == "flow":
        model.requires_grad_(False)  # the derivative is with respect to the image only
        bits = {"bpd": flow(model, x, cfg.ode_steps, batches.size, own)}
    else:
        return {"test_loss": loss}
    row = {"test_loss": loss, **_mean("bpd", bits.pop("bpd"))}
    if isinstance(model, ImportanceWeighted):
        row |= _mean("bpd_iw", weighted(model, x, cfg.importance, batches.size, own))
    if not math.isfinite(row["bpd"]):
        raise UserError("bits per dimension are not finite: the denoiser is too rough to follow; train it for longer")
    return row | {key: each.mean().item() for key, each in bits.items()}


def _forward(model: Family, images: Images, batches: Batches, seed: int) -> dict[str, Float64[Tensor, " n"]]:
    """What `forward` returns of every image: "loss", and "bpd" with its parts."""
    terms, start = defaultdict(list), 0
    for part in Bar(batches.of(images), total=-(-len(images) // batches.size), desc="test loss", unit="batch"):
        with rng.per_image(Noise(seed, start, start + len(part), batches.device)):
            returned = model(part)
        for key in returned:
            if key == "loss" or key.startswith("bpd"):
                terms[key].append(returned[key].double().cpu())
        start += len(part)
    return {key: torch.cat(parts) for key, parts in terms.items()}


def _mean(key: str, bpd: Tensor) -> dict[str, float]:
    return {key: bpd.mean().item(), f"{key}_stderr": (bpd.std() / math.sqrt(len(bpd))).item()}


# --- the importance-weighted bound


def weighted(
    model: ImportanceWeighted, x: Float[Tensor, "n *shape"], k: int, batch: int, seed: int
) -> Float64[Tensor, " n"]:
    """-log of the mean of k weights p(x, z) / q(z|x) in bits per dimension (Burda et al. 2016, arXiv 1509.00519).

    With k = 1 it is the bound itself; in expectation it falls towards -log p(x) with k. `batch` counts codes.
    """
    nats, size = [], max(1, batch // k)
    for start in Bar(range(0, len(x), size), desc="bits/dim, weighted", unit="batch"):
        part = x[start : start + size]
        with rng.per_image(Noise(seed, start, start + len(part), x.device)):
            nats.append(model.log_weights(part, k).double().logsumexp(0) - math.log(k))
    return -torch.cat(nats) / (x[0].numel() * math.log(2))


# --- the variational bound of a chain


def bound(
    model: Denoiser, x: Float[Tensor, "n *shape"], terms: int | None, batch: int, seed: int
) -> Float64[Tensor, " n"]:
    """The variational bound of DDPM in bits per dimension (Ho et al. 2020, arXiv 2006.11239, eq. 5).

        L = KL(q(x_T|x0) || N(m, I)) + sum over t = 2..T of KL_t - log p(x0|x_1)
        KL_t = 1/2 (1 / sigma_{t-1}^2 - 1 / sigma_t^2) |x0 - D(x0 + sigma_t z, sigma_t)|^2

    in the form of Kingma et al. (2021, arXiv 2107.00630); m is the data's mean in the chain's scale, published as 0.
    The model is what ancestral sampling draws from all its noise levels, with the variance of the posterior ("small"),
    D clipped to [-1, 1], and grey levels by `decoder` at the end.

    Args:
        model: with the levels sigma_T..sigma_1, falling; the chain's abar_t is 1 / (1 + sigma_t^2).
        terms: of the sum, drawn for every image (see `stratified`); None: all. The ends are always there.
    """
    variance, last = model.levels**2, len(model.levels) - 1
    factor = 0.5 * (1 / variance[1:] - 1 / variance[:-1])
    expected = factor / (1 / variance[:-1] + 1 / SIGMA_DATA**2)  # KL_t / d of Gaussian data: how often to look
    weights = stratified(expected / expected.sum(), Noise(fold(seed, "terms"), 0, len(x)), terms)
    weights = np.vstack([weights, np.ones(len(x))])
    own = [torch.Generator(x.device).manual_seed(fold(seed, "bound", i)) for i in range(len(x))]
    std, kept = math.sqrt(last_variance(model.levels)), 1 / (1 + variance[0])
    nats = 0.5 * (kept * ((x - model.mean).double().square() - 1) - math.log1p(-kept)).flatten(1).sum(1)
    with (
        torch.backends.cudnn.flags(enabled=True, benchmark=False),  # it would tune for every size of a group
        Bar(total=np.count_nonzero(weights), desc="bits/dim", unit="img") as bar,
    ):
        for level, rows in _groups(weights, batch):
            clean, sigma = x[rows], float(model.levels[level])
            z = torch.stack([torch.randn(x.shape[1:], generator=own[i], device=x.device) for i in rows])
            denoised = model.denoise(clean + sigma * z, sigma).clamp(-1, 1)
            if level == last:
                nats[rows] -= decoder(clean, denoised, std).flatten(1).sum(1)
            else:
                times = torch.from_numpy(factor[level] * weights[level, rows]).to(x.device)
                nats[rows] += times * (clean - denoised).double().square().flatten(1).sum(1)
            bar.update(len(rows))
    return nats / (x[0].numel() * math.log(2))


def _groups(weights: Float64[np.ndarray, "t n"], batch: int) -> Iterator[tuple[int, Int64[np.ndarray, " b"]]]:
    """Every level with the images that it is evaluated for, at most `batch` at a time."""
    for level, row in enumerate(weights):
        chosen = np.flatnonzero(row)
        yield from ((level, chosen[i : i + batch]) for i in range(0, len(chosen), batch))


def stratified(share: Float64[np.ndarray, " t"], noise: Noise, terms: int | None) -> Float64[np.ndarray, "t n"]:
    """Weights of expectation one for every level and image, nearly all of them zero: a sum with them is unbiased.

    The unit interval is divided between the levels as `share` says, and into `terms` strata of equal length. In each an
    image draws one point, and weighs the level it falls on by 1 / (terms * share). The nearer the shares are to the
    sizes of the terms, the less the sum varies.
    """
    if terms is None or terms >= len(share):
        return np.ones((len(share), len(noise)))
    ends = np.cumsum(share)
    points = (np.arange(terms) + noise.draw(torch.rand, terms, dtype=torch.float64).numpy()) / terms
    drawn = np.searchsorted(ends / ends[-1], points, side="right")
    weights = np.zeros((len(share), len(noise)))
    np.add.at(weights, (drawn, np.arange(len(noise))[:, None]), 1)
    return weights / (terms * share[:, None])


def last_variance(levels: Float64[np.ndarray, " t"]) -> float:
    """Variance of p(x0|x_1): beta~_2 (Ho et al. 2020, eq. 7), in place of beta~_1 = 0, as in the published code.

    beta~_2 = beta_2 (1 - abar_1) / (1 - abar_2) = sigma_1^2 (1 - sigma_1^2 / sigma_2^2) / (1 + sigma_1^2)
    """
    second, first = levels[-2:] ** 2  # they fall: sigma_1 is the last
    return float(first * (1 - first / second) / (1 + first))


def decoder(x: Float[Tensor, "n *shape"], mean: Float[Tensor, "n *shape"], std: float) -> Float64[Tensor, "n *shape"]:
    """log p(x0|x_1), in nats, of every grey level: N(mean, std^2) integrated over its bin, the outermost two open.

    (eq. 13.) Differences of log distribution functions are taken in the lower tail, where they are exact however far x
    lies from the mean.
    """
    grey = (127.5 * (x.double() + 1)).round()
    low = (((grey - 0.5) / 127.5 - 1 - mean) / std).where(grey > 0, -math.inf)
    high = (((grey + 0.5) / 127.5 - 1 - mean) / std).where(grey < 255, math.inf)
    above = low + high > 0
    low, high = (torch.special.log_ndtr(edge) for edge in (low.where(~above, -high), high.where(~above, -low)))
    return high + torch.log(-torch.expm1(low - high))


# --- the probability flow of a continuum of noise levels


def flow(model: Denoiser, x: Float[Tensor, "n *shape"], steps: int, batch: int, seed: int) -> Float64[Tensor, " n"]:
    """Bits per dimension under the probability flow (Song et al. 2021, arXiv 2011.13456, section 4.3).

    Images are dequantised uniformly. `steps` lead from the smallest noise level, whose density is the model's, to the
    largest, where it is N(m, sigma_max^2), at equal ratios; m is the data's mean.
    """
    with rng.per_image(Noise(seed, 0, len(x), x.device)):
        x = dequantised(x)
        probe = 2 * rng.batch(partial(torch.randint, 2), *x.shape, dtype=x.dtype) - 1
    sigmas = np.geomspace(*model.sigma_range, steps + 1).tolist()

    def centred(x: Tensor, sigma: float) -> Tensor:
        return model.denoise(model.mean + x, sigma) - model.mean

    parts = list(zip((x - model.mean).split(batch), probe.split(batch), strict=True))
    nats = torch.cat([log_density(centred, sigmas, *part) for part in Bar(parts, desc="bits/dim", unit="batch")])
    return -nats / (x[0].numel() * math.log(2)) - math.log2(BIN)


def log_density(
    denoise: Callable[[Tensor, float], Tensor],
    sigmas: Sequence[float],
    x: Float[Tensor, "n *shape"],
    probe: Float[Tensor, "n *shape"],
) -> Float64[Tensor, " n"]:
    """log p(x) in nats, p being what dx / dsigma = (x - D) / sigma makes of N(0, sigmas[-1]^2) on its way to sigmas[0].

    Along the flow log p changes by minus its divergence, whose trace is estimated with one probe v of random signs an
    image: E[v'Jv] = tr J (Hutchinson; Grathwohl et al. 2019, arXiv 1810.01367). Of Gaussian data of standard deviation
    0.5, x stays in proportion to s = sqrt(sigma^2 + 0.25). Hence y = x / s, with log sigma as time:

        dy / dlog sigma = (c x - D) / s,   c = 0.25 / s^2,   with the divergence c d - tr J,   J = dD / dx

    integrated by the classical Runge-Kutta method of fourth order. With 48 evaluations it is off by 0.005 bits where
    Heun's method on EDM's levels is off by 0.25.
    """

    def slope(y: Tensor, time: float) -> tuple[Tensor, Tensor]:
        sigma = math.exp(time)
        skip = (SIGMA_DATA / scale(sigma)) ** 2
        with torch.enable_grad():
            x = (scale(sigma) * y).requires_grad_()
            d = denoise(x, sigma)
            (back,) = torch.autograd.grad(d, x, probe)
        trace = (back * probe).flatten(1).sum(1, dtype=torch.float64)
        return (skip * x - d).detach() / scale(sigma), skip * dims - trace

    first, last, dims = sigmas[0], sigmas[-1], x[0].numel()
    y, volume = x / scale(first), dims * math.log(scale(last) / scale(first))
    for now, after in pairwise(math.log(s) for s in sigmas):
        h = after - now
        y1, v1 = slope(y, now)
        y2, v2 = slope(y + h / 2 * y1, now + h / 2)
        y3, v3 = slope(y + h / 2 * y2, now + h / 2)
        y4, v4 = slope(y + h * y3, after)
        y = y + h / 6 * (y1 + 2 * y2 + 2 * y3 + y4)
        volume = volume + h / 6 * (v1 + 2 * v2 + 2 * v3 + v4)
    z = (y.double() * scale(last) / last).flatten(1)
    return volume - 0.5 * z.square().sum(1) - dims * math.log(last * math.sqrt(2 * math.pi))


def scale(sigma: float) -> float:
    """Standard deviation of noisy images, about."""
    return math.hypot(sigma, SIGMA_DATA)
