"""Read trained networks, evaluate them on their test set, export them."""
