"""File formats: readers and writers that trust nothing they read."""
