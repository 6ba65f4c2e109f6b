"""nn: networks: tensors in, tensors out, no losses."""
