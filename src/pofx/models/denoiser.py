"""Denoisers D(x, sigma) = E[x0 | x = x0 + sigma z]: the chapter that DDPM, NCSN and EDM share.

Each of them is a distribution of noise levels, a weight of the loss and a network. Everything is written for
x = x0 + sigma z (variance exploding). A variance-preserving chain x_t = sqrt(a) x0 + sqrt(1 - a) z is the same thing at
another scale: sigma = sqrt((1 - a) / a), x_t = x / sqrt(1 + sigma^2).
"""

import abc
import copy
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Lt
from jaxtyping import Float, Float64, UInt8
from torch import Tensor, nn

from pofx.base.rng import Noise
from pofx.models.family import Featured, Images, Shape
from pofx.models.features import PROBED, inside
from pofx.models.moments import SIGMA_DATA, LowRank, Measured

Levels = Float64[np.ndarray, " _"]  # noise levels, images on [-1, 1]
Prediction = Literal["eps", "x0", "v", "score", "scaled_score"]


@dataclass(frozen=True)
class DenoiserConfig:
    """What every denoiser's Config inherits."""

    centre: bool = True  # the network sees images without the mean of the training images
    # Root mean square of the images about that mean, or about 0; None: of the training images.
    sigma_data: Annotated[float, Gt(0)] | None = None
    guide: Annotated[float, Ge(0), Lt(1)] = 0.125  # share of the training after which the guide is kept; 0: none
    gaussian: Annotated[int, Ge(0)] = 0  # principal components of the training images, to start drawing from; 0: none


class Denoiser(Featured, Measured):
    """A family that is a denoiser."""

    assumed = SIGMA_DATA  # sigma_data until images are seen
    sigma_range: tuple[float, float]  # smallest and largest noise level, images on [-1, 1]
    levels: Levels | None = None  # that it was trained on, falling; None: a continuum
    # How bits per dimension are measured: by the variational bound of a chain, or by the probability flow.
    likelihood: Literal["bound", "flow"] | None = None

    def __init__(self, cfg: DenoiserConfig, shape: Shape, net: nn.Module):
        super().__init__(cfg, shape)
        self.sigma_data.fill_(cfg.sigma_data or self.assumed)
        self.net = net
        self.gaussian = LowRank(cfg.gaussian, shape) if cfg.gaussian else None
        # For autoguidance: the network as it is after this share of the training.
        self.guide = copy.deepcopy(net).requires_grad_(False) if cfg.guide else None

    @abc.abstractmethod
    def denoise(self, x: Images, sigma: float, net: nn.Module | None = None) -> Images:
        """D(x, sigma) at one noise level for all images; by `net` in place of the family's own network, if given."""

    def prepare(self, images: UInt8[Tensor, "n c h w"], batch: int) -> dict[str, float]:
        """Measure the images (see `Measured`), and find their principal components if asked for."""
        if self.gaussian is not None:
            self.gaussian.fit(images)
        return self.measure(images, self.cfg.centre, self.cfg.sigma_data)

    def preview(self, noise: Noise) -> Float[Tensor, "n c h w"]:
        """By 16 Euler steps of dx/dsigma = (x - D) / sigma at EDM's levels; pofx.sample has better samplers."""
        smallest, largest = self.sigma_range
        sigmas = np.linspace(largest ** (1 / 7), smallest ** (1 / 7), 16) ** 7
        x = self.mean + sigmas[0] * noise.normal(*self.shape)
        for now, after in pairwise([*sigmas.tolist(), 0.0]):
            x = self.denoise(x, now).lerp(x, after / now)
        return x

    def keep(self) -> None:
        """Make the guide of the present weights."""
        self.guide.load_state_dict(self.net.state_dict())

    def networks(self) -> list[nn.Module]:
        return [self.net] if self.guide is None else [self.net, self.guide]

    @property
    def layer(self) -> str:
        return f"deepest map of the network at sigma {self._probed():.3g}, averaged to 2x2"

    def features(self, x: Images) -> Float[Tensor, "b d"]:
        """Of images without noise, though the network is given a small noise level: nothing random is in them."""
        return inside(self.net.deepest, lambda: self.denoise(x, self._probed()))

    def _probed(self) -> float:
        return min(max(PROBED, self.sigma_range[0]), self.sigma_range[1])


def precondition(
    net: nn.Module,
    x: Images,
    sigma: Float[Tensor, "b 1 1 1"] | float,
    sigma_data: Float[Tensor, ""] | float = SIGMA_DATA,
    prediction: Prediction | None = None,
) -> Images:
    """EDM's preconditioning (Karras et al. 2022, arXiv 2206.00364, equation 7 and table 1):

        D(x, sigma) = c_skip x + c_out F(c_in x, c_noise),   c_skip = sigma_data^2 / (sigma^2 + sigma_data^2),
        c_out = sigma sigma_data c_in,   c_in = 1 / sqrt(sigma^2 + sigma_data^2),   c_noise = log(sigma) / 4

    Input and target of F have variance about one at every noise level, if the data have mean zero. Data of another mean
    m are centred first: D = m + the above of x - m. With a `prediction` F is just that, without c_skip and c_out.
    """
    if not isinstance(sigma, Tensor):
        sigma = torch.full((len(x), 1, 1, 1), sigma, device=x.device)
    c_in = (sigma**2 + sigma_data**2).rsqrt()
    f = net(c_in * x, sigma.flatten().log() / 4).float()
    if prediction is not None:
        return to_denoised(prediction, f, x, sigma)
    return (sigma_data * c_in) ** 2 * x + sigma * sigma_data * c_in * f


def loss_weight(sigma: Float[Tensor, "b 1 1 1"], sigma_data: Float[Tensor, ""] | float) -> Float[Tensor, "b 1 1 1"]:
    """1 / c_out^2 of |D - x0|^2: what F has to learn weighs the same at every noise level (arXiv 2206.00364, eq. 8)."""
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


def to_denoised(kind: Prediction, value: Tensor, x: Tensor, sigma: Tensor | float) -> Tensor:
    """D(x, sigma) from a prediction; sigma is a number or broadcasts against x.

    eps is the noise z, x0 the image, score s = (D - x) / sigma^2, scaled_score sigma s, and v = (z - sigma x0) /
    sqrt(1 + sigma^2) (Salimans & Ho 2022, arXiv 2202.00512).
    """
    if kind == "eps":
        return x - sigma * value
    if kind == "score":
        return x + sigma**2 * value
    if kind == "scaled_score":
        return x + sigma * value
    if kind == "v":
        return x / (1 + sigma**2) - sigma / (1 + sigma**2) ** 0.5 * value
    return value


def from_denoised(kind: Prediction, denoised: Tensor, x: Tensor, sigma: Tensor | float) -> Tensor:
    """The inverse of `to_denoised`; with x0 in the place of D it gives the target of training."""
    if kind == "eps":
        return (x - denoised) / sigma
    if kind == "score":
        return (denoised - x) / sigma**2
    if kind == "scaled_score":
        return (denoised - x) / sigma
    if kind == "v":
        return (x / (1 + sigma**2) - denoised) * (1 + sigma**2) ** 0.5 / sigma
    return denoised
