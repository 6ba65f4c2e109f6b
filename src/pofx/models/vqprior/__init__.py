"""Prior of the codes of a VQ-VAE."""
