"""A network explained: what it costs, how it is drawn. No torch."""
