"""Explain a network: its cost and its drawing. No torch."""
