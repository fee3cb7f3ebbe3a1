"""Images: `preprocess` (the whole), `decode`, `jpeg`, `jpeg2000`, `formats`, `transform`."""
