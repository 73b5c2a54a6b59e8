"""CIFAR on the device: get it, verify it, and serve it in shuffled, augmented batches."""
