"""The RefineNet of NCSN: v1 (Song & Ermon 2019, arXiv 1907.05600, A.1), which is given the noise level, and v2 (Song &
Ermon 2020, arXiv 2006.09011), which is not. Dilated residual stages, then RefineNet's fusion of their maps (Lin et al.
2017, arXiv 1611.06612), with ELU and InstanceNorm++.

In all layers `e` is the embedding of the noise level, (b, EMBEDDING), or None in v2. Nothing mixes images.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pofx.base.errors import UserError
from pofx.models.family import Images, Shape, outer
from pofx.models.unet import Fourier, embedder

EMBEDDING = 32  # width; the linear layers on it of v1's 71 norms are 5% of the parameters of the published network


class InstanceNormPlus(nn.Module):
    """InstanceNorm++ (arXiv 1907.05600, A.1): instance norm, with the means of the channels put back, standardised.

        gamma_k ((x_k - mu_k) / s_k + alpha_k (mu_k - m) / v) + beta_k

    mu_k and s_k are the mean and standard deviation of the map of channel k, m and v those of the mus over channels
    (with n - 1, as in the authors' code). Instance norm alone forgets the means, and with them the colour of the image.

    The authors keep gamma, alpha and beta of every noise level in a table, which allows no other (ermongroup/ncsn,
    issue 7). Here they are a shared start, as in v2, plus a linear function of the embedding of any noise level.
    """

    def __init__(self, channels: int, conditional: bool):
        super().__init__()
        self.channels = channels
        ones = 1 + 0.02 * torch.randn(2 * channels)
        self.start = nn.Parameter(torch.cat([ones, torch.zeros(channels)]))  # gamma, alpha, beta
        self.vary = nn.Linear(EMBEDDING, 3 * channels, bias=False) if conditional else None
        if conditional:  # as the table: gamma and alpha spread by about 0.02 over the levels, beta zero
            nn.init.normal_(self.vary.weight[: 2 * channels], std=0.06)
            nn.init.zeros_(self.vary.weight[2 * channels :])

    def forward(self, x: Images, e: Float[Tensor, "b d"] | None) -> Images:
        affine = self.start if self.vary is None else self.start + self.vary(e)
        gamma, alpha, beta = affine.view(-1, 3, self.channels, 1, 1).unbind(1)
        # Written out, not F.instance_norm, which leaves channels_last. Statistics in float32 also under autocast. The
        # eps keep flat maps finite: they become zero.
        mean = x.float().mean((2, 3), keepdim=True)
        centred = x.float() - mean
        scale = (centred.square().mean((2, 3), keepdim=True) + 1e-5).rsqrt()
        var, middle = torch.var_mean(mean, 1, keepdim=True)
        means = (mean - middle) * (var + 1e-5).rsqrt()
        return torch.addcmul(gamma * alpha * means + beta, gamma * scale, centred).to(x.dtype)


class Conv(nn.Module):
    """A norm, if one is given, then `then` (ELU, pooling or nothing), then a convolution."""

    def __init__(self, norm: InstanceNormPlus | None, then: nn.Module, conv: nn.Conv2d):
        super().__init__()
        self.norm, self.then, self.conv = norm, then, conv

    def forward(self, x: Tensor, e: Tensor | None) -> Tensor:
        return self.conv(self.then(x if self.norm is None else self.norm(x, e)))


def _conv(before: int, after: int, dilation: int = 1, bias: bool = True) -> nn.Conv2d:
    """A 3x3 convolution that keeps the side."""
    return nn.Conv2d(before, after, 3, padding=dilation, dilation=dilation, bias=bias)


def _norm(channels: int, conditional: bool) -> InstanceNormPlus | None:
    """The norm before layers that have one in v1 alone."""
    return InstanceNormPlus(channels, conditional) if conditional else None


class Residual(nn.Module):
    """Norm, ELU, conv, twice, with a skip connection.

    At the `turn` to a new stage the side halves by averaging, or stays if convolutions are dilated, which see twice as
    far instead. The skip connection is then a convolution.
    """

    def __init__(self, before: int, after: int, dilation: int, turn: bool, conditional: bool):
        super().__init__()
        self.conv1, self.conv2 = [
            Conv(InstanceNormPlus(before, conditional), nn.ELU(), _conv(before, width, dilation))
            for width in (before, after)
        ]
        self.shrink, self.skip = nn.Identity(), nn.Identity()
        if turn and dilation > 1:
            self.skip = _conv(before, after, dilation)
        elif turn:  # pooling before a 1x1 convolution equals pooling after it, at a quarter of the cost
            self.shrink = nn.AvgPool2d(2)
            self.skip = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(before, after, 1))

    def forward(self, x: Tensor, e: Tensor | None) -> Tensor:
        return self.skip(x) + self.shrink(self.conv2(self.conv1(x, e), e))


class Units(nn.Module):
    """RefineNet's residual convolution units: (norm,) ELU, conv, twice, with a skip connection. Only v1 has norms."""

    def __init__(self, channels: int, units: int, conditional: bool):
        super().__init__()
        self.units = nn.ModuleList(
            nn.ModuleList(
                Conv(_norm(channels, conditional), nn.ELU(), _conv(channels, channels, bias=False)) for _ in range(2)
            )
            for _ in range(units)
        )

    def forward(self, x: Tensor, e: Tensor | None) -> Tensor:
        for first, second in self.units:
            x = x + second(first(x, e), e)
        return x


class Refine(nn.Module):
    """RefineNet's block: units on every map, their sum at the side of the first map, chained residual pooling, units.

    Conditional, as in v1, it has a norm in every layer, and pools by averages; v2 pools by maxima.
    """

    def __init__(self, before: list[int], after: int, units: int, conditional: bool):
        super().__init__()
        self.adapt = nn.ModuleList(Units(width, 2, conditional) for width in before)
        fused = before if len(before) > 1 else []
        self.fuse = nn.ModuleList(
            Conv(_norm(width, conditional), nn.Identity(), _conv(width, after)) for width in fused
        )
        pool = nn.AvgPool2d if conditional else nn.MaxPool2d
        self.chain = nn.ModuleList(
            Conv(_norm(after, conditional), pool(5, 1, 2), _conv(after, after, bias=False)) for _ in range(2)
        )
        self.last = Units(after, units, conditional)

    def forward(self, maps: list[Tensor], e: Tensor | None) -> Tensor:
        size = maps[0].shape[2:]
        maps = [adapt(x, e) for adapt, x in zip(self.adapt, maps, strict=True)]
        if self.fuse:
            maps = [_grown(fuse(x, e), size) for fuse, x in zip(self.fuse, maps, strict=True)]
        h = path = F.elu(sum(maps))
        for step in self.chain:
            path = step(path, e)
            h = h + path
        return self.last(h, e)


def _grown(x: Tensor, size: torch.Size) -> Tensor:
    same = x.shape[2:] == size
    return x if same else F.interpolate(x, size=size, mode="bilinear", align_corners=True)


class RefineNet(nn.Module):
    """Image and noise level in, image out.

    Args:
        channels: width of the first stage; the other three have twice as many.
        conditional: v1, where every norm is given the noise level; false: v2, where none is.
        patch: fold patch x patch pixels into channels first: patch^2 times cheaper. 1 is the published network.
        shape: of an image.

    Raises:
        UserError: the image cannot be folded and halved.
    """

    def __init__(self, channels: int, conditional: bool, patch: int, shape: Shape):
        super().__init__()
        if any(side % (2 * patch) for side in shape[1:]):
            raise UserError(
                f"net.patch = {patch}: a RefineNet divides the side by {2 * patch}, "
                f"which images of {shape[1]}x{shape[2]} do not allow"
            )
        wide, folded = 2 * channels, shape[0] * patch**2
        self.embed = embedder(Fourier(EMBEDDING), EMBEDDING, 4 * EMBEDDING, EMBEDDING) if conditional else None
        self.fold, self.unfold = nn.PixelUnshuffle(patch), nn.PixelShuffle(patch)
        self.first = outer(nn.Conv2d(folded, channels, 3, padding=1))
        stages = [(channels, channels, 1), (channels, wide, 1), (wide, wide, 2), (wide, wide, 4)]
        self.stages = nn.ModuleList(
            nn.ModuleList([Residual(before, after, dilation, k > 0, conditional),
                           Residual(after, after, dilation, False, conditional)])
            for k, (before, after, dilation) in enumerate(stages)
        )  # fmt: skip
        self.blocks = nn.ModuleList([
            Refine([wide], wide, 1, conditional),
            Refine([wide, wide], wide, 1, conditional),
            Refine([wide, wide], channels, 1, conditional),
            Refine([channels, channels], channels, 3, conditional),
        ])  # fmt: skip
        self.last = Conv(InstanceNormPlus(channels, conditional), nn.ELU(), outer(_conv(channels, folded)))

    @property
    def deepest(self) -> nn.Module:
        """The layer that puts out the first fused map, of the most dilated stage."""
        return self.blocks[0]

    def forward(self, x: Images, t: Float[Tensor, " b"]) -> Images:
        """`t` names the noise level, as for `UNet`: any real number, of order one. Without effect in v2."""
        e = None if self.embed is None else self.embed(t)
        h, kept = self.first(self.fold(x)), []
        for first, second in self.stages:
            h = second(first(h, e), e)
            kept.append(h)
        h = self.blocks[0]([kept.pop()], e)
        for block in self.blocks[1:]:
            h = block([kept.pop(), h], e)
        return self.unfold(self.last(h, e))
