"""Denoisers guided by a weaker version of themselves (Karras et al. 2024, arXiv 2406.02507)."""

import abc
import copy

from jaxtyping import Float
from torch import Tensor, nn

from pofx.base.errors import UserError
from pofx.base.rng import Noise
from pofx.models.family import PROBED, Family, inside
from pofx.sample import samplers


class Denoiser(Family):
    """A family that is a denoiser D(x, sigma).

    Args:
        net: its network.
        guide: share of the training after which a copy of the averaged network is kept to guide with; 0: none.
        images: budget of the training.
    """

    def __init__(self, net: nn.Module, guide: float, images: int):
        super().__init__()
        if not 0 <= guide < 1:
            raise UserError(f"guide = {guide} should lie in [0, 1): it is a share of the training")
        self.net = net
        self.guide = copy.deepcopy(net).requires_grad_(False) if guide else None
        self.keep_at = max(1, int(guide * images)) if guide else None

    @abc.abstractmethod
    def denoise(self, x: Float[Tensor, "b 3 h w"], sigma: float, net: nn.Module | None = None) -> Tensor:
        """D(x, sigma) at one level for all images; by `net` in place of the family's own network, if one is given."""

    @property
    def layer(self) -> str:
        return f"deepest map of the network at sigma {self._probed():.3g}, averaged to 2x2"

    def _probed(self) -> float:
        return min(max(PROBED, self.sigma_range[0]), self.sigma_range[1])

    def features(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Of images to which no noise is added, though the network is told that it was: nothing random is in them."""
        return inside(self.net.deepest, lambda: self.denoise(x, self._probed()))

    def keep(self) -> None:
        self.guide.load_state_dict(self.net.state_dict())

    def guides(self) -> list[nn.Module]:
        return [self.guide] if self.guide else []

    def guided(self, weight: float) -> samplers.Denoise:
        """The denoiser D1 + (weight - 1) (D1 - D0), D0 by the guide (the paper's equation 3).

        Where the two differ, the weaker one errs in the same direction and further: going on beyond D1 leads back to
        the data. Weight 1 is the denoiser itself.
        """
        if weight == 1:
            return self.denoise
        if self.guide is None:
            raise UserError("guidance needs a guide: train with a share above 0 under guide, or sample with guidance 1")
        return lambda x, sigma: self.denoise(x, sigma, self.guide).lerp(self.denoise(x, sigma), weight)

    def sample(self, noise: Noise, cfg: samplers.Sample) -> Float[Tensor, "n 3 32 32"]:
        return samplers.draw(self.guided(cfg.guidance), noise, cfg, self.sigma_range, self.ladder)
