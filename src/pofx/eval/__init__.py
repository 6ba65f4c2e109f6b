"""eval: everything that only reported numbers depend on."""
