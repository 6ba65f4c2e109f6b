"""The distribution of a VQ-VAE's codes, and with it the whole model (van den Oord et al. 2017, arXiv 1711.00937).

    loss = -sum over i of log p(c_i | c_1..c_{i-1}) nats,   c the codes of an image in raster order
    log p(x) >= log N(x; m(c), s^2 I) + log p(c)

p is a causal transformer, or a gated PixelCNN as in the paper. The autoencoder (family vqvae) is trained before and
frozen here; it is part of this model, which draws and scores images by itself.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Lt, MultipleOf
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from pofx.base.progress import Bar
from pofx.base.rng import Noise
from pofx.models.family import Bounded, Coded, Images, Sampled, Shape, Terms
from pofx.models.pixels import gaussian
from pofx.models.vqprior.causal import PixelCNN, Transformer

NEEDS = "vqvae"  # the family whose trained model this one is built on


@dataclass(frozen=True)
class Config:
    network: Literal["transformer", "pixelcnn"] = "transformer"
    width: Annotated[int, Ge(1)] = 96
    layers: Annotated[int, Ge(1)] = 3
    heads: Annotated[int, Ge(1)] = 4  # of the transformer
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"heads = {self.heads} should divide width = {self.width}")


@dataclass(frozen=True)
class Sample:
    batch: Annotated[int, Ge(64), MultipleOf(64)] = 256


class Model(Sampled, Coded, Bounded):
    layer = "output of the autoencoder's encoder before it is quantised, averaged to 2x2"

    def __init__(self, cfg: Config, shape: Shape, base: Coded):
        super().__init__(cfg, shape)
        self.base = base.requires_grad_(False).eval()
        size, length = base.cfg.codes, base.length
        if cfg.network == "transformer":
            self.net = Transformer(size, length, cfg)
        else:
            self.net = PixelCNN(size, base.map, cfg)

    def train(self, mode: bool = True) -> "Model":
        super().train(mode)
        self.base.eval()  # its codebook must not follow
        return self

    def forward(self, x: Images) -> Terms:
        with torch.no_grad():
            codes = self.encode(x)
        nll = self.code_length(codes)
        terms = {"loss": nll, "bits_per_code": nll / (codes.shape[1] * math.log(2))}
        if not self.training:
            x = gaussian.dequantised(x)
            unit = x[0].numel() * math.log(2)
            log_px = self.base.log_likelihood(x, self.base.quantised(codes))
            terms |= {"bpd_prior": nll / unit, "bpd_decoder": -log_px / unit - math.log2(gaussian.BIN)}
            terms["bpd"] = terms["bpd_prior"] + terms["bpd_decoder"]
        return terms

    def code_length(self, codes: Int64[Tensor, "b n"]) -> Float[Tensor, " b"]:
        """-log p(codes) in nats, summed over the map."""
        logits = self.net(codes[:, :-1]).float()
        return F.cross_entropy(logits.transpose(1, 2), codes, reduction="none").sum(1)

    def validate(self, x: Images) -> Float[Tensor, " b"]:
        """Without the decoder."""
        return self.code_length(self.encode(x))

    def draw(self, u: Float[Tensor, "b n"]) -> Int64[Tensor, "b n"]:
        """Codes drawn one after the other, each from one uniform number, by the inverse distribution function."""
        codes, cache = u.new_zeros(len(u), 0, dtype=torch.long), {}
        for i in Bar(range(u.shape[1]), desc="codes", leave=False):
            rising = self.net(codes, cache)[:, -1].float().softmax(1).cumsum(1)
            drawn = (rising < u[:, i, None] * rising[:, -1:]).sum(1, keepdim=True)
            codes = torch.cat([codes, drawn], 1)
        return codes

    def preview(self, noise: Noise) -> Float[Tensor, "n c h w"]:
        return self.sample(noise, Sample())

    def sample(self, noise: Noise, cfg: Sample) -> Float[Tensor, "n c h w"]:
        """Decoder means of codes drawn from the prior (without the decoder's own pixel noise)."""
        return self.decode(self.draw(noise.uniform(self.base.length)))

    # What follows is the autoencoder's.

    def encode(self, x: Images) -> Int64[Tensor, "b n"]:
        return self.base.encode(x)

    def decode(self, codes: Int64[Tensor, "b n"]) -> Images:
        return self.base.decode(codes)

    def features(self, x: Images) -> Float[Tensor, "b d"]:
        return self.base.features(x)

    def monitor(self, images: UInt8[Tensor, "n c h w"]) -> dict[str, Any]:
        return self.base.monitor(images)
