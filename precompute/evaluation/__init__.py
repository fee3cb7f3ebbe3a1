"""Heads compared: `comparison` (two heads, the same images), `learning_curve` (few-shot)."""
