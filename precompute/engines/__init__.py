"""The forward pass: `base` (the contract), `torch`, `openvino`, `choice`, `guard`, `audit`."""
