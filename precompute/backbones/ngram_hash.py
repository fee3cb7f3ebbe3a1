"""The embedded backbone for texts, `-b ngram-hash`: hashed n-grams, nothing learned, no download.

All of it is in its preprocessing (`precompute.inputs.text.ngrams`); the network hands the numbers on. What it is good
for, and how good it is: docs/text.md.
"""

from __future__ import annotations

import torch
from torch import nn

NGRAM_HASH = "ngram-hash"


class Unchanged(nn.Module):
    """What enters; a copy, since the tensor itself may be the memory of a batch."""

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        return numbers.clone()
