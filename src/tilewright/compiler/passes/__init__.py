"""Passes over tensor graphs."""
