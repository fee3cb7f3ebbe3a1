"""What every head stands on: checks of `inputs`, `rows` of a mapped file, `splits`, `file_checks`."""
