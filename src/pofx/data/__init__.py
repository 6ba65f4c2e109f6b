"""data: where the images come from."""
