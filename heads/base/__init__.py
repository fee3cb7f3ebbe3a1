"""The base of every head: checks of `inputs`, `rows` of a mapped file, `splits`, `file_checks`."""
