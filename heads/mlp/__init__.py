"""The multi-layer perceptron: `head`, its `fitting`, the `search` over settings."""
