"""Gaussian codes q(z|x) = N(mean, diag exp(log_var)) of images, beside the prior N(0, I)."""

from jaxtyping import Bool, Float
from torch import Tensor

ACTIVE = 0.01  # variance over images of a unit's posterior mean, above which it is in use (Burda et al. 2016)


def kl(mean: Float[Tensor, "b latent"], log_var: Float[Tensor, "b latent"]) -> Float[Tensor, "b latent"]:
    """KL( q(z|x) || N(0, I) ) of every unit, in nats."""
    return 0.5 * (mean.square() + log_var.exp() - log_var - 1)


def active(mean: Float[Tensor, "n latent"]) -> Bool[Tensor, " latent"]:
    """The units that are in use over these images."""
    return mean.var(0, correction=0) > ACTIVE
