"""Oracles that share no code with ``src/``: a float64 forward pass, random models, a peer."""
