"""Noise-conditional score networks, with the published RefineNet."""
