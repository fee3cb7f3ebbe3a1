"""Where samples come from: `base` (the contract), `folder`, `tree` (walking it), `labels`, `files`."""
