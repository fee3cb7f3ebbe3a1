"""Bytes become tensors of a fixed shape: `base` (the contract), `images`."""
