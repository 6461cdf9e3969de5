"""Passes over tensor graphs; :mod:`.inference` is the table of contents."""
