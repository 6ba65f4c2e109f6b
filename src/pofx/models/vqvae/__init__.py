"""Vector-quantised autoencoder."""
