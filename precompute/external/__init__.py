"""Imported features: `features` (a file of arrays into a cache)."""
