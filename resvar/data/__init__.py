"""Datasets: download, verify, and load in shuffled, augmented batches on the device."""
