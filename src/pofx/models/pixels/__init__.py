"""Distributions of pixels, for families with a decoder."""
