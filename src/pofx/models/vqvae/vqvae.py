"""Vector-quantised autoencoder (van den Oord et al. 2017, arXiv 1711.00937): images as maps of discrete codes.

    loss = d / (2 s^2) [ mean (x - m(e))^2 + commitment * mean (z - sg[e])^2 ] + d log s,   e = the code nearest to z

Without its second term this is -log N(x; m(e), s^2 I) of the d pixels, s being one learned number for all, as in the
VAE, where the paper fixes it: so -log p(x) <= -log N - log p(codes) is honest. The second term moves along with s, to
keep the balance of the published means. The gradient passes from e to z as if they were equal (straight-through), and
the codes follow the encoder (codebook.py). By itself the model takes all maps of codes to be equally likely: the family
vqprior learns their distribution.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Lt, MultipleOf
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from pofx.base import dist
from pofx.base.errors import UserError
from pofx.base.images import to_model
from pofx.base.rng import Noise
from pofx.models.family import Bounded, Coded, Images, Sampled, Shape, Terms, outer
from pofx.models.features import averaged
from pofx.models.layers import LayerNorm
from pofx.models.pixels import gaussian
from pofx.models.vqvae.codebook import Codebook, perplexity

FACTOR = 4  # of the side of images to that of the map of codes
FIRST = 256  # training images whose vectors the codebook starts from
CHUNK = 500  # images at a time where many are encoded


@dataclass(frozen=True)
class Config:
    # dense: 3x3 convolutions on folded pixels, with layer norm; conv: the published layers, with GroupNorm
    arch: Literal["dense", "conv"] = "dense"
    channels: Annotated[int, Ge(8)] = 64  # of the convolutions at a quarter of the side; half as many at its half
    blocks: Annotated[int, Ge(0)] = 2  # residual blocks of the encoder, and of the decoder
    codes: Annotated[int, Ge(2)] = 256  # K
    dim: Annotated[int, Ge(1)] = 32  # numbers of a code
    commitment: Annotated[float, Ge(0)] = 0.25
    decay: Annotated[float, Ge(0), Lt(1)] = 0.97  # of the averages that the codes are made of, a step
    revive: Annotated[float, Ge(0), Lt(1)] = 0.2  # a code used less than this share of an even one starts anew
    sigma: Annotated[float, Gt(gaussian.SMALLEST)] = 0.15  # of the decoder, on [-1, 1], where it starts


@dataclass(frozen=True)
class Sample:
    batch: Annotated[int, Ge(64), MultipleOf(64)] = 256


class Encoder(nn.Module):
    """(b, c, h, w) -> (b, dim, h / 4, w / 4).

    The published layers (two stride-2 convolutions, a 3x3 one, residual blocks of 3x3 and 1x1), with a norm before the
    activations: training may be short and fast. Dense: 2x2 pixels are folded into channels in place of the first
    stride, and every layer before the last is a 3x3 convolution on a norm and SiLU.
    """

    def __init__(self, colours: int, cfg: Config):
        super().__init__()
        full, half, norm = cfg.channels, cfg.channels // 2, NORMS[cfg.arch]
        if cfg.arch == "dense":
            down = [nn.PixelUnshuffle(2), outer(nn.Conv2d(4 * colours, half, 3, padding=1))]
            down += [norm(half), nn.SiLU(), nn.Conv2d(half, full, 3, 2, 1)]
        else:
            down = [outer(nn.Conv2d(colours, half, 4, 2, 1)), nn.SiLU()]
            down += [nn.Conv2d(half, full, 4, 2, 1), nn.SiLU(), nn.Conv2d(full, full, 3, padding=1)]
        blocks = [Block(full, norm) for _ in range(cfg.blocks)]
        self.layers = nn.Sequential(*down, *blocks, norm(full), nn.SiLU(), nn.Conv2d(full, cfg.dim, 1))

    def forward(self, x: Images) -> Float[Tensor, "b dim _ _"]:
        return self.layers(x)


class Decoder(nn.Module):
    """(b, dim, h / 4, w / 4) -> (b, c, h, w): the mean of the image, by the encoder's layers mirrored."""

    def __init__(self, colours: int, cfg: Config):
        super().__init__()
        full, half, norm = cfg.channels, cfg.channels // 2, NORMS[cfg.arch]
        blocks = [Block(full, norm) for _ in range(cfg.blocks)]
        if cfg.arch == "dense":
            up = [nn.Upsample(scale_factor=2), nn.Conv2d(full, half, 3, padding=1)]
            last = [outer(nn.Conv2d(half, 4 * colours, 3, padding=1)), nn.PixelShuffle(2)]
        else:
            up = [nn.ConvTranspose2d(full, half, 4, 2, 1)]
            last = [outer(nn.ConvTranspose2d(half, colours, 4, 2, 1))]
        self.layers = nn.Sequential(
            nn.Conv2d(cfg.dim, full, 3, padding=1), *blocks,
            norm(full), nn.SiLU(), *up,
            norm(half), nn.SiLU(), *last,
        )  # fmt: skip

    def forward(self, z: Float[Tensor, "b dim h w"]) -> Float[Tensor, "b c _ _"]:
        return self.layers(z)


class Block(nn.Module):
    """norm, SiLU, 3x3 conv to half the width, norm, SiLU, 1x1 conv, added to the input."""

    def __init__(self, channels: int, norm: Callable[[int], nn.Module]):
        super().__init__()
        self.norm1, self.conv1 = norm(channels), nn.Conv2d(channels, channels // 2, 3, padding=1)
        self.norm2, self.conv2 = norm(channels // 2), nn.Conv2d(channels // 2, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


NORMS: dict[str, Callable[[int], nn.Module]] = {  # by the number of channels
    "dense": lambda _: LayerNorm(),
    "conv": lambda channels: nn.GroupNorm(min(8, channels // 4), channels),
}


class Model(Sampled, Coded, Bounded):
    layer = "output of the encoder before it is quantised, averaged to 2x2"

    def __init__(self, cfg: Config, shape: Shape):
        super().__init__(cfg, shape)
        colours, height, width = shape
        if height % FACTOR or width % FACTOR:
            raise UserError(f"the VQ-VAE divides the side by {FACTOR}, which images of {height}x{width} do not allow")
        self.map = height // FACTOR, width // FACTOR  # of codes
        self.length = self.map[0] * self.map[1]
        self.encoder = Encoder(colours, cfg)
        self.book = Codebook(cfg.codes, cfg.dim, cfg.decay, cfg.revive)
        self.net = Decoder(colours, cfg)
        self.width = nn.Parameter(gaussian.width(cfg.sigma))

    def prepare(self, images: UInt8[Tensor, "n c h w"], batch: int) -> dict[str, float]:
        """Start the codebook from the vectors of the first images, by k-means."""
        with torch.no_grad():
            z = self.encoder(to_model(images[:FIRST])).float()
        self.book.start(_vectors(z), batch * self.length)
        return {}

    def forward(self, x: Images) -> Terms:
        z = self.encoder(x).float()
        vectors = _vectors(z)
        nearest = self.book.nearest(vectors.detach())
        e = self.book.codes[nearest].unflatten(0, (len(z), *z.shape[2:])).permute(0, 3, 1, 2)
        if self.training:
            self.book.follow(vectors.detach(), nearest)
        else:
            x = gaussian.dequantised(x)
        log_px, log_sigma = self.log_likelihood(x, z + (e - z).detach()), gaussian.log_sigma(self.width)
        commitment = (z - e).square().flatten(1).mean(1)
        precision = 0.5 * x[0].numel() * (-2 * log_sigma.detach()).exp()
        terms = {
            "loss": self.cfg.commitment * precision * commitment - log_px,
            "log_px": log_px,
            "commitment": commitment,
            "perplexity": perplexity(dist.total(self.book.count(nearest))),
            "code_norm": vectors.norm(dim=1).mean(),
            "sigma": log_sigma.exp(),
        }
        if not self.training:  # every map of codes as likely as any other
            nats = z[0, 0].numel() * math.log(self.cfg.codes)
            terms["bpd"] = (nats - log_px) / (x[0].numel() * math.log(2)) - math.log2(gaussian.BIN)
        return terms

    def encode(self, x: Images) -> Int64[Tensor, "b n"]:
        """The map of codes of every image in raster order; in float32 throughout, so that an image has one map."""
        with torch.autocast(x.device.type, enabled=False):
            z = self.encoder(x)
        return self.book.nearest(_vectors(z)).view(len(x), -1)

    def quantised(self, codes: Int64[Tensor, "b n"]) -> Float[Tensor, "b dim h w"]:
        """What the decoder is given for a map of codes."""
        return self.book.codes[codes].transpose(1, 2).unflatten(2, self.map)

    def log_likelihood(self, x: Images, e: Float[Tensor, "b dim _ _"]) -> Float[Tensor, " b"]:
        """log N(x; m(e), sigma^2 I) in nats, summed over pixels and channels."""
        return gaussian.log_prob(x, self.net(e).float(), gaussian.log_sigma(self.width))

    def decode(self, codes: Int64[Tensor, "b n"]) -> Images:
        return self.net(self.quantised(codes)).float()

    def preview(self, noise: Noise) -> Float[Tensor, "n c h w"]:
        return self.sample(noise, Sample())

    def sample(self, noise: Noise, cfg: Sample) -> Float[Tensor, "n c h w"]:
        """Decoder means of codes drawn evenly and independently: what vqprior has to improve on, no images."""
        codes = (noise.uniform(self.length) * self.cfg.codes).long()
        return self.decode(codes.clamp(max=self.cfg.codes - 1))  # rounding may reach the number itself

    def features(self, x: Images) -> Float[Tensor, "b d"]:
        return averaged(self.encoder(x))

    def monitor(self, images: UInt8[Tensor, "n c h w"]) -> dict[str, Any]:
        """How the codebook is used over all images: its perplexity, the share of its codes that occur, and how often
        each one does, falling."""
        counts = sum(self.book.count(self.encode(to_model(part)).flatten()) for part in images.split(CHUNK))
        return {
            "perplexity": perplexity(counts).item(),
            "codes_used": (counts > 0).float().mean().item(),
            "code_counts": counts.sort(descending=True).values.int().tolist(),
        }


def _vectors(z: Float[Tensor, "b dim h w"]) -> Float[Tensor, "n dim"]:
    return z.permute(0, 2, 3, 1).flatten(0, 2)
