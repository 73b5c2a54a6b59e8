"""The networks: an ordering, a residual unit, a network."""
