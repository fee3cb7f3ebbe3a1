"""One safetensors file for a head: `head_file` (save, load), `encoding`, `content`, `export`."""
