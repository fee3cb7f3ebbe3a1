"""Features that others made: `features` (a file of arrays into a cache)."""
