"""The contract: what every family of generative models is.

A family is one file or folder of models/ with two names: `Config`, a frozen dataclass with defaults, and `Model`, built
as Model(cfg, shape). A denoiser inherits `Denoiser` (models/denoiser.py). Any other family inherits `Sampled`, and its
file has a third name: `Sample`, how to draw. What only some families can do is a class of its own, for `isinstance`.
"""

import abc
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from pofx.base.machine import Precision
from pofx.base.rng import Noise

Images = Float[Tensor, "b c h w"]  # in [-1, 1]
Shape = tuple[int, int, int]  # channels, height, width
Terms = dict[str, Tensor]  # "loss": (b,); others (b,) or (), for the curves; "alarm_..." and "warn_...": () bool


Layer = TypeVar("Layer", bound=nn.Module)


def outer(layer: Layer) -> Layer:
    """Mark a layer that reads images or noise levels, or puts out what the loss is made of: Muon leaves it to Adam."""
    layer.outer = True
    return layer


def stacked(layer: Layer, count: int) -> Layer:
    """Mark a layer whose output is that of `count` layers one after the other, as q, k and v: Muon takes each alone."""
    layer.stacked = count
    return layer


class Family(nn.Module, abc.ABC):
    """A generative model of images in [-1, 1].

    State that must survive a restart is a parameter or a persistent buffer. Random numbers of images come from
    pofx.base.rng, statistics of a batch go through pofx.base.dist: several processes may share it. A family touches no
    files (but in `fetch`), devices or autocast. It changes its buffers only in train mode and in `finish`.
    """

    net: nn.Module  # what may be compiled, and whose calls are counted as network evaluations
    precision: Precision = "fp32"  # in which to draw with these; set when a trained model is loaded
    second_order = False  # whether training takes second derivatives, which PyTorch does not compile
    # What it means, and what to do, when forward returns a true "alarm_<name>" in any step of a row of the curve (it
    # rolls the training back or ends it), or a true "warn_<name>" in more than half of them (it is printed once).
    alarms: Mapping[str, str] = {}
    warnings: Mapping[str, str] = {}

    def __init__(self, cfg: Any, shape: Shape):
        super().__init__()
        self.cfg, self.shape = cfg, shape

    @abc.abstractmethod
    def forward(self, x: Images) -> Terms:
        """The loss of every image, and whatever is worth a curve."""

    @abc.abstractmethod
    def preview(self, noise: Noise) -> Float[Tensor, "n c h w"]:
        """len(noise) images as training goes on, by a fixed rule."""

    def networks(self) -> list[nn.Module]:
        """`net`, and further networks whose calls are counted as evaluations too."""
        return [self.net]

    def validate(self, x: Images) -> Float[Tensor, " b"]:
        """The loss of held-out images, in eval mode under no_grad, without what else `forward` computes."""
        return self(x)["loss"]

    def fetch(self, cache: Path, base: Path) -> None:
        """Load what training alone needs, such as a frozen network of the loss: from the folder `cache`, which keeps
        what comes from a URL, or from a path relative to `base`."""
        return None

    def prepare(self, images: UInt8[Tensor, "n c h w"], batch: int) -> dict[str, float]:
        """A look at the training images before training, which takes `batch` at a time: returns metrics, may warn."""
        return {}

    def finish(self, images: UInt8[Tensor, "n c h w"]) -> None:
        """A look at the training images after training, in eval mode under no_grad, to set persistent buffers."""
        return None

    def monitor(self, images: UInt8[Tensor, "n c h w"]) -> dict[str, Any]:
        """A look at test images after training, in eval mode under no_grad: returns metrics (numbers and lists)."""
        return {}


class Sampled(Family):
    """A family with a sampler of its own."""

    @abc.abstractmethod
    def sample(self, noise: Noise, cfg: Any) -> Float[Tensor, "n c h w"]:
        """len(noise) images by `cfg`, a Sample, all randomness from `noise`. Under no_grad, never inference_mode."""


class Featured(Family):
    """A family with features of images, for a linear probe."""

    layer: str  # where they are taken, in words

    @abc.abstractmethod
    def features(self, x: Images) -> Float[Tensor, "b d"]:
        """Without randomness."""


class Coded(Featured):
    """A family that encodes images."""

    @abc.abstractmethod
    def encode(self, x: Images) -> Tensor:
        """The code of every image, without randomness."""

    @abc.abstractmethod
    def decode(self, code: Tensor) -> Images:
        """The images of codes."""

    def reconstruct(self, x: Images) -> Images:
        """Images as they come back from their codes."""
        return self.decode(self.encode(x))


class Latent(Coded):
    """A family whose code is Gaussian, q(z|x) = N(mean, diag exp(log_var)), with N(0, I) as its prior."""

    layer = "mean of the code"

    @abc.abstractmethod
    def posterior(self, x: Images) -> tuple[Float[Tensor, "b latent"], Float[Tensor, "b latent"]]:
        """Mean and log variance of q(z|x)."""

    def encode(self, x: Images) -> Float[Tensor, "b latent"]:
        """The mean of q(z|x)."""
        return self.posterior(x)[0]

    def features(self, x: Images) -> Float[Tensor, "b latent"]:
        return self.encode(x)


class Bounded(Family):
    """A family whose `forward` in eval mode returns "bpd" (b,), a bound on bits per dimension, and parts "bpd_..."."""


class ImportanceWeighted(Bounded):
    """A family with the importance-weighted bound, which is tighter (Burda et al. 2016, arXiv 1509.00519)."""

    @abc.abstractmethod
    def log_weights(self, x: Images, k: int) -> Float[Tensor, "k b"]:
        """log p(x, z) / q(z|x) in nats for k codes z ~ q(z|x) an image, p(x, z) a probability of grey levels."""


class EnergyBased(Sampled, Featured):
    """A family with an energy E(x), p(x) ~ exp(-E(x)), and MCMC chains. Its Sample has `chain`, their steps."""

    @abc.abstractmethod
    def energy(self, x: Images) -> Float[Tensor, " b"]:
        """Lower is likelier, up to a constant that is the same for all images."""

    @abc.abstractmethod
    def path(self, noise: Noise, cfg: Any) -> Iterator[Float[Tensor, "n c h w"]]:
        """Where the chains of `sample` start, their states on the way, and the samples."""

    @abc.abstractmethod
    def inpaint(self, x: Images, mask: Bool[Tensor, "b 1 h w"], noise: Noise, cfg: Any) -> Images:
        """Images with the pixels of x where `mask` is true, and the others drawn given these."""

    @abc.abstractmethod
    def restore(self, x: Images, sigma: float, noise: Noise, cfg: Any) -> Images:
        """What chains make of images with Gaussian noise of standard deviation `sigma`, from where they are."""
