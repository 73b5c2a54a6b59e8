"""Trained networks: read back, measured on their test set, exported."""
