"""Execution: buffers, launches from Python, programs as launch tables."""
