"""Training runs: checkpoints, records, progress, curves."""
