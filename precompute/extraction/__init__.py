"""A source through a backbone into a file: `extract`, `run`, `matching`, `pipeline`, `rows`, `output`."""
