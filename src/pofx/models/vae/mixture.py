"""Ex-post density of a code: a mixture of Gaussians fitted to the aggregated posterior (Ghosh et al. 2020, arXiv
1903.12436). A decoder has only seen codes of images; draws from N(0, I) may fall where there are none."""

import warnings

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pofx.base.rng import Noise

RIDGE = 1e-4  # added to every variance: a unit that is not in use has one of about 1


class Mixture(nn.Module):
    """Gaussians of full covariance for codes of `dim` units, in persistent buffers; until it is fitted, N(0, I)."""

    def __init__(self, components: int, dim: int):
        super().__init__()
        self.register_buffer("weights", torch.full((components,), 1 / components))
        self.register_buffer("means", torch.zeros(components, dim))
        self.register_buffer("scales", torch.eye(dim).repeat(components, 1, 1))  # Cholesky factors

    def fit(self, codes: Float[Tensor, "n dim"]) -> None:
        """By expectation maximisation, from k-means."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import GaussianMixture

        with warnings.catch_warnings():  # a fit that is nearly done is good enough to draw from
            warnings.simplefilter("ignore", ConvergenceWarning)
            mixture = GaussianMixture(len(self.weights), random_state=0, reg_covar=RIDGE)
            fitted = mixture.fit(codes.double().cpu().numpy())
        self.weights.copy_(torch.from_numpy(fitted.weights_))
        self.means.copy_(torch.from_numpy(fitted.means_))
        self.scales.copy_(torch.linalg.cholesky(torch.from_numpy(fitted.covariances_)))

    def draw(self, noise: Noise) -> Float[Tensor, "n dim"]:
        """len(noise) codes."""
        z, u = noise.normal(self.means.shape[1]), noise.uniform()
        which = torch.searchsorted(self.weights.cumsum(0), u).clamp(max=len(self.weights) - 1)
        return self.means[which] + (self.scales[which] * z[:, None]).sum(2)  # no product: autocast would round codes
