"""core: everything that training numbers depend on."""
