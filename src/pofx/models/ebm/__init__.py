"""Energy-based models: one file an objective, and the network that they share."""
