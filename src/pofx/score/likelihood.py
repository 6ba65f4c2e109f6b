"""What a family says about images it has not seen: its loss, and bits per dimension where it has a likelihood.

Bits per dimension are -log2 P(image) over the number of pixels times channels, for images of 256 grey levels: 8 for
uniform guessing. Each estimator is an upper bound in expectation: the VAE's own, by way of a density on dequantised
images or of grey levels themselves, and `weighted`, a tighter one; `bound`, of the probability that a chain such as
DDPM's gives to the grey levels; `flow`, by way of a density again, which is exact up to the steps of the integration.
"""

import math
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
from pofx.base.progress import Bar
from pofx.base.rng import Noise, fold
from pofx.models import schedules
from pofx.models.denoiser import Denoiser
from pofx.models.family import Family
from pofx.models.pixels.gaussian import BIN, dequantised
from pofx.sample.samplers import Denoise
from pofx.score.batches import Batches

Images = UInt8[np.ndarray, "n 3 h w"]

SIGMA_DATA = 0.5  # of natural images on [-1, 1]: it says where to look closely, and biases no answer


@dataclass(frozen=True)
class Likelihood:
    """How bits per dimension are measured."""

    images: Annotated[int, Ge(2)] = 64  # the first test images, the same for all families; all, if there are fewer
    importance: Annotated[int, Ge(1)] = 100  # codes drawn for an image, of the importance-weighted bound
    terms: Annotated[int, Ge(1)] | None = 50  # of the variational bound, noise levels drawn for an image; None: all
    ode_steps: Annotated[int, Ge(1)] = 16  # of the probability flow, four evaluations each


@torch.no_grad()
def evaluate(model: Family, images: Images, batches: Batches, cfg: Likelihood, seed: int) -> dict[str, float]:
    """Test loss and bits per dimension of `images`; the model is put into eval mode (and its weights frozen, for the
    flow).

    Every image has noise of its own, a function of `seed` and its index: the batch size decides nothing but rounding.

    Returns:
        test_loss: mean over the images, in the family's own unit. Where the family has an honest likelihood, also bpd:
        mean bits per dimension of the first cfg.images images, and bpd_stderr: standard error of that mean. It covers
        the choice of the images and all noise drawn for them, which is independent from image to image; neither the
        randomness of training nor the steps of the flow. With weights of importance also bpd_iw and bpd_iw_stderr, of
        the same images. And the means of the parts of bpd that the family names.

    Raises:
        UserError: the loss or the bits are not finite.
    """
    model.eval().to(batches.device)
    terms: dict[str, list[Tensor]] = {}
    start = 0
    with Bar(total=len(images), desc="test loss", unit="img") as bar:
        for part in batches.of(images):
            with rng.per_image(Noise(fold(seed, "test loss"), start, start + len(part), batches.device)):
                got = model(part)
            for key, value in got.items():
                if key == "loss" or key.startswith("bpd"):
                    terms.setdefault(key, []).append(value.double().cpu())
            start += len(part)
            bar.update(len(part))
    found = {key: torch.cat(rows) for key, rows in terms.items()}
    loss = found.pop("loss").mean().item()
    if not math.isfinite(loss):
        raise UserError(
            "the loss on test images is not finite: the weights have diverged; lower the learning rate and train again"
        )
    if model.likelihood is None:
        return {"test_loss": loss}

    x = torch.cat(list(batches.of(images[: cfg.images])))
    bits = fold(seed, "bits")  # the same noise for all families with the same estimator
    if model.likelihood == "bound":
        found = {"bpd": bound(model, x, cfg.terms, batches.size, bits)}
    elif model.likelihood == "flow":
        model.requires_grad_(False)  # the derivative is with respect to the image only
        found = {"bpd": flow(model, x, cfg.ode_steps, batches.size, bits)}
    row = {"test_loss": loss, **_mean("bpd", found.pop("bpd")[: cfg.images])}
    if model.likelihood == "importance":
        row |= _mean("bpd_iw", weighted(model.log_weights, x, cfg.importance, batches.size, bits))
    if not math.isfinite(row["bpd"]):
        raise UserError("bits per dimension are not finite: the denoiser is too rough to follow; train it for longer")
    return row | {key: values[: cfg.images].mean().item() for key, values in found.items()}


def _mean(key: str, bpd: Tensor) -> dict[str, float]:
    return {key: bpd.mean().item(), f"{key}_stderr": (bpd.std() / math.sqrt(len(bpd))).item()}


# --- the importance-weighted bound


def weighted(
    log_weights: Callable[[Tensor, int], Tensor], x: Float[Tensor, "n *shape"], k: int, batch: int, seed: int
) -> Float64[Tensor, " n"]:
    """-log of the mean of k weights p(x, z) / q(z|x) in bits per dimension, every image (Burda et al. 2016, arXiv
    1509.00519): with k = 1 the bound itself, in expectation never above it and falling towards -log p(x) with k.

    Args:
        log_weights: (images on the grey levels, k) -> (k, images) in nats.
        x: images on the 256 grey levels.
        batch: images and codes in an evaluation, about: at least one image.
        seed: of the noise, every image's own.
    """
    nats, size = [], max(1, batch // k)
    for start in Bar(range(0, len(x), size), desc="bits/dim, weighted", unit="batch"):
        part = x[start : start + size]
        with rng.per_image(Noise(seed, start, start + len(part), x.device)):
            nats.append(log_weights(part, k).double().logsumexp(0) - math.log(k))
    return -torch.cat(nats) / (x[0].numel() * math.log(2))


# --- the variational bound of a chain


def bound(
    model: Denoiser, x: Float[Tensor, "n *shape"], terms: int | None, batch: int, seed: int
) -> Float64[Tensor, " n"]:
    """The variational bound of DDPM in bits per dimension (Ho et al. 2020, arXiv 2006.11239, eq. 5), every image.

        L = KL(q(x_T|x0) || N(0, I)) + sum over t = 2..T of KL_t - log p(x0|x_1)
        KL_t = 1/2 (1 / sigma_{t-1}^2 - 1 / sigma_t^2) |x0 - D(x0 + sigma_t z, sigma_t)|^2

    in the form of Kingma et al. (2021, arXiv 2107.00630): 1 / sigma^2 is the signal-to-noise ratio. The model is what
    ancestral sampling draws from all its noise levels, with the variance of the posterior ("small"), D clipped to
    [-1, 1], which brings it nearer to any x0, and grey levels by `decoder` at the end. The posterior of the last step
    has no variance; as in the published code that of the step before it stands in (`last_variance`).

    Args:
        model: with the levels sigma_T..sigma_1, falling; the chain's abar_t is 1 / (1 + sigma_t^2).
        x: images on the 256 grey levels, not dequantised.
        terms: of the sum, drawn for every image by itself (see `stratified`); None: all. The ends are always there.
        batch: largest number of images in an evaluation.
        seed: of the noise, every image's own.
    """
    variance = model.ladder**2
    factor = 0.5 * (1 / variance[1:] - 1 / variance[:-1])
    expected = factor / (1 / variance[:-1] + 1 / SIGMA_DATA**2)  # KL_t / d of Gaussian data: how often to look
    weights = stratified(expected / expected.sum(), Noise(fold(seed, "terms"), 0, len(x)), terms)
    own = [torch.Generator(x.device).manual_seed(fold(seed, "bound", i)) for i in range(len(x))]
    kept = 1 / (1 + variance[0])
    nats = 0.5 * (kept * (x.double().square() - 1) - math.log1p(-kept)).flatten(1).sum(1)

    def denoised(chosen: Int64[np.ndarray, " b"], sigma: float) -> tuple[Int64[Tensor, " b"], Tensor, Tensor]:
        """Indices of the images, they themselves, and what the model makes of them with noise."""
        rows = torch.from_numpy(chosen).to(x.device)
        noise = torch.stack([torch.randn(x.shape[1:], generator=own[i], device=x.device) for i in chosen])
        bar.update(len(rows))
        return rows, x[rows], model.denoise(x[rows] + sigma * noise, sigma).clamp(-1, 1)

    with (
        torch.backends.cudnn.flags(enabled=True, benchmark=False),  # it would tune for every size of a group
        Bar(total=np.count_nonzero(weights) + len(x), desc="bits/dim", unit="img") as bar,
    ):
        for level in np.flatnonzero(weights.any(1)):
            for chosen in _split(np.flatnonzero(weights[level]), batch):
                rows, clean, again = denoised(chosen, float(model.ladder[level]))
                times = torch.from_numpy(factor[level] * weights[level, chosen]).to(x.device)
                nats[rows] += times * (clean - again).double().square().flatten(1).sum(1)
        std = math.sqrt(last_variance(model.ladder))
        for chosen in _split(np.arange(len(x)), batch):
            rows, clean, again = denoised(chosen, float(model.ladder[-1]))
            nats[rows] -= decoder(clean, again, std).flatten(1).sum(1)
    return nats / (x[0].numel() * math.log(2))


def _split(rows: Int64[np.ndarray, " n"], size: int) -> Iterator[Int64[np.ndarray, " b"]]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


def stratified(share: Float64[np.ndarray, " t"], noise: Noise, terms: int | None) -> Float64[np.ndarray, "t n"]:
    """Weights of expectation one for every level and image, nearly all of them zero: a sum with them is unbiased.

    The unit interval is divided between the levels as `share` says, and into `terms` strata of equal length. In each an
    image draws one point, and weighs the level it falls on by 1 / (terms * share). With shares near to the sizes of the
    terms that are summed the sum hardly varies, and images stay independent of each other.
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
    """Variance of p(x0|x_1): beta~_2 (Ho et al. 2020, eq. 7), in place of beta~_1 = 0.

        beta~_2 = beta_2 (1 - abar_1) / (1 - abar_2) = sigma_1^2 (1 - sigma_1^2 / sigma_2^2) / (1 + sigma_1^2)

    This is `posterior_log_variance_clipped` of the published code and of those that follow it, such as
    openai/guided-diffusion. Levels fall: sigma_1 is the last.
    """
    second, first = levels[-2:] ** 2
    return float(first * (1 - first / second) / (1 + first))


def decoder(x: Float[Tensor, "n *shape"], mean: Float[Tensor, "n *shape"], std: float) -> Float64[Tensor, "n *shape"]:
    """log p(x0|x_1), in nats, of every grey level under N(mean, std^2).

    The Gaussian is integrated over each grey level's bin, the outermost two being open (eq. 13). Differences of log
    distribution functions are taken in the lower tail, where they are exact however far x lies from the mean.
    """
    grey = (127.5 * (x.double() + 1)).round()
    low = (((grey - 0.5) / 127.5 - 1 - mean) / std).where(grey > 0, -math.inf)
    high = (((grey + 0.5) / 127.5 - 1 - mean) / std).where(grey < 255, math.inf)
    above = low + high > 0
    low, high = (torch.special.log_ndtr(edge) for edge in (low.where(~above, -high), high.where(~above, -low)))
    return high + torch.log(-torch.expm1(low - high))


# --- the probability flow of a continuum of noise levels


def flow(model: Denoiser, x: Float[Tensor, "n *shape"], steps: int, batch: int, seed: int) -> Float64[Tensor, " n"]:
    """Bits per dimension under the probability flow, every image (Song et al. 2021, arXiv 2011.13456, section 4.3).

    Images are dequantised: moved within their grey level, uniformly. The density at the smallest noise level is the
    model's, without a last denoising step, and begins as the samplers do, with N(0, sigma_max^2).

    Args:
        model: with the smallest and the largest noise level as `sigma_range`.
        x: images on the 256 grey levels.
        steps: from the one to the other, at equal ratios.
        batch: images in an evaluation.
        seed: of the noise, every image's own.
    """
    with rng.per_image(Noise(seed, 0, len(x), x.device)):
        x = dequantised(x)
        probe = 2 * rng.batch(partial(torch.randint, 2), *x.shape, dtype=x.dtype) - 1
    sigmas = schedules.geometric(*model.sigma_range, steps + 1).tolist()
    parts = list(zip(x.split(batch), probe.split(batch), strict=True))
    nats = torch.cat([log_density(model.denoise, sigmas, *part) for part in Bar(parts, desc="bits/dim", unit="batch")])
    return -nats / (x[0].numel() * math.log(2)) - math.log2(BIN)


def log_density(
    denoise: Denoise, sigmas: Sequence[float], x: Float[Tensor, "n *shape"], probe: Float[Tensor, "n *shape"]
) -> Float64[Tensor, " n"]:
    """log p(x) in nats, p being what dx / dsigma = (x - D) / sigma makes of N(0, sigmas[-1]^2) on its way to sigmas[0].

    Along the flow log p changes by minus its divergence, whose trace is estimated with one probe v of random signs an
    image: E[v'Jv] = tr J (Hutchinson; Grathwohl et al. 2019, arXiv 1810.01367). For a Gaussian of standard deviation
    0.5 the solution is known: x stays in proportion to s = sqrt(sigma^2 + 0.25). Hence y = x / s and log sigma as time:

        dy / dlog sigma = (c x - D) / s,   c = 0.25 / s^2,   with the divergence c d - tr J,   J = dD / dx

    where only what is left over is integrated, by the classical Runge-Kutta method of fourth order. Heun's method on
    EDM's levels, good enough for samples, flattered a small network by a quarter of a bit with 48 evaluations, this
    one by 0.005.
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
