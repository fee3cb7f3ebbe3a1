"""Sound: `preprocess` (the whole), `decode`, `formats`, `windows`, `mel`."""
