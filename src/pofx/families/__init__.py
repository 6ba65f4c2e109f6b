"""One file, one family: objective, Config, Sample, Model."""
