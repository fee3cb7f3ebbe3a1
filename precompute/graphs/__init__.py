"""Heads with everything in front of them as one graph, for programs without precompute: ONNX and torch.export."""
