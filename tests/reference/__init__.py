"""Oracles that share no code with ``src/``: a float64 forward pass and builders of random models."""
