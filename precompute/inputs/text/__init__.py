"""Text as an input: UTF-8 bytes become tensors."""
