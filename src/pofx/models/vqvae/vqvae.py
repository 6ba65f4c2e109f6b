"""Vector-quantised autoencoder (van den Oord et al. 2017, arXiv 1711.00937): images as maps of discrete codes.

    loss = d / (2 s^2) [ mean (x - m(e))^2 + commitment * mean (z - sg[e])^2 ] + d log s,   e = the code nearest to z

Without its second term this is -log N(x; m(e), s^2 I) of the d pixels, s being one learned number for all, as in the
VAE, where the paper fixes it: so -log p(x) <= -log N - log p(codes) is honest. The second term moves along with s, to
keep the balance of the published means. The gradient passes from e to z as if they were equal (straight-through); the
codes follow the encoder by moving averages (pofx.models.vqvae.codebook). To the model by itself
all maps of codes are equally likely. How they are distributed is learned by the family vqprior.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Lt, MultipleOf
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from pofx.base import dist
from pofx.base.errors import UserError
from pofx.base.images import to_model
from pofx.base.rng import Noise
from pofx.models.family import Bounded, Coded, Sampled, Shape, Terms
from pofx.models.features import averaged
from pofx.models.pixels import gaussian
from pofx.models.vqvae.codebook import Codebook, perplexity
from pofx.models.vqvae.network import Decoder, Encoder

FACTOR = 4  # of the side of images to that of the map of codes
FIRST = 256  # training images whose vectors the codebook starts from
CHUNK = 500  # images at a time where many are encoded


@dataclass(frozen=True)
class Config:
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


class Model(Sampled, Coded, Bounded):
    layer = "output of the encoder before it is quantised, averaged to 2x2"

    def __init__(self, cfg: Config, shape: Shape):
        super().__init__(cfg, shape)
        if any(side % FACTOR for side in shape[1:]):
            raise UserError(
                f"the VQ-VAE divides the side by {FACTOR}, which images of {shape[1]}x{shape[2]} do not allow"
            )
        self.map = shape[1] // FACTOR, shape[2] // FACTOR  # of codes
        self.encoder = Encoder(shape[0], cfg.channels, cfg.blocks, cfg.dim)
        self.book = Codebook(cfg.codes, cfg.dim, cfg.decay, cfg.revive)
        self.net = Decoder(shape[0], cfg.channels, cfg.blocks, cfg.dim)
        self.width = nn.Parameter(gaussian.width(cfg.sigma))

    @property
    def length(self) -> int:
        """Codes of an image."""
        return self.map[0] * self.map[1]

    def prepare(self, images: UInt8[Tensor, "n c h w"], batch: int) -> dict[str, float]:
        """Start the codebook from the vectors of the first images, by k-means."""
        with torch.no_grad():
            z = self.encoder(to_model(images[:FIRST])).float()
        self.book.start(_vectors(z), batch * self.length)
        return {}

    def forward(self, x: Float[Tensor, "b c h w"]) -> Terms:
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
        used = perplexity(dist.total(self.book.count(nearest)))
        loss = self.cfg.commitment * precision * commitment - log_px
        terms = {"loss": loss, "log_px": log_px, "commitment": commitment, "perplexity": used}
        terms |= {"code_norm": vectors.norm(dim=1).mean(), "sigma": log_sigma.exp()}
        if not self.training:  # every map of codes as likely as any other
            nats = z[0, 0].numel() * math.log(self.cfg.codes)
            terms["bpd"] = (nats - log_px) / (x[0].numel() * math.log(2)) - math.log2(gaussian.BIN)
        return terms

    def encode(self, x: Float[Tensor, "b c h w"]) -> Int64[Tensor, "b n"]:
        """The map of codes of every image in raster order; in float32 throughout, so that an image has one map."""
        with torch.autocast(x.device.type, enabled=False):
            z = self.encoder(x)
        return self.book.nearest(_vectors(z)).view(len(x), -1)

    def quantised(self, codes: Int64[Tensor, "b n"]) -> Float[Tensor, "b dim h w"]:
        """What the decoder is given for a map of codes."""
        return self.book.codes[codes].transpose(1, 2).unflatten(2, self.map)

    def log_likelihood(self, x: Float[Tensor, "b c h w"], e: Float[Tensor, "b dim _ _"]) -> Float[Tensor, " b"]:
        """log N(x; m(e), sigma^2 I) in nats, summed over pixels and channels."""
        return gaussian.log_prob(x, self.net(e).float(), gaussian.log_sigma(self.width))

    def decode(self, codes: Int64[Tensor, "b n"]) -> Float[Tensor, "b c h w"]:
        """Decoder means."""
        return self.net(self.quantised(codes)).float()

    def preview(self, noise: Noise) -> Float[Tensor, "n c h w"]:
        return self.sample(noise, Sample())

    def sample(self, noise: Noise, cfg: Sample) -> Float[Tensor, "n c h w"]:
        """Decoder means of codes drawn evenly and independently: what vqprior has to improve on, no images."""
        codes = (noise.uniform(self.length) * self.cfg.codes).long()
        return self.decode(codes.clamp(max=self.cfg.codes - 1))  # rounding may reach the number itself

    def features(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        return averaged(self.encoder(x))

    def monitor(self, images: UInt8[Tensor, "n c h w"]) -> dict[str, Any]:
        """How the codebook is used over all images: its perplexity, the share of its codes that occur, and how often
        each one does, falling."""
        counts = sum(self.book.count(self.encode(to_model(part)).flatten()) for part in images.split(CHUNK))
        row = {"perplexity": perplexity(counts).item(), "codes_used": (counts > 0).float().mean().item()}
        return row | {"code_counts": counts.sort(descending=True).values.int().tolist()}


def _vectors(z: Float[Tensor, "b dim h w"]) -> Float[Tensor, "n dim"]:
    return z.permute(0, 2, 3, 1).flatten(0, 2)
