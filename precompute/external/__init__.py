"""Features that others made: `arrays` (reading files of arrays), `features` (such a file into a cache)."""
