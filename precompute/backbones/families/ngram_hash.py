"""`ngram-hash`: the embedded backbone for texts, hashed n-grams; nothing is learned, nothing is downloaded.

All of it is in its preprocessing (`precompute.inputs.text.ngrams`); the network hands the numbers on. What it is good
for, and how good it is: docs/text.md.
"""

from __future__ import annotations

import torch
from torch import nn

from precompute.backbones.families.base import DEFAULT, Entry, Family, Loaded
from precompute.backbones.families.registry import NGRAM_HASH
from precompute.backbones.layers import OUTPUT
from precompute.errors import BackboneError, WeightsError
from precompute.inputs.kinds import TEXT
from precompute.inputs.text.ngrams import WIDTH, NgramPreprocess


class Unchanged(nn.Module):
    """What enters; a copy, since the tensor itself may be the memory of a batch."""

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        return numbers.clone()


class NgramHash(Family):
    """One name, whose feature is the output."""

    exact = True

    def names(self) -> list[str]:
        return [NGRAM_HASH]

    def check(self, name: str) -> None:
        """Its name is all there is."""

    def load(self, name: str, weights: str) -> Loaded:
        if weights != DEFAULT:
            raise WeightsError(f"{name} has no weights, so there are none to choose.", hint="Leave --weights out.")
        return Loaded(name, self.build(name, seed=None), {"kind": "embedded"}, NgramPreprocess())

    def build(self, name: str, *, seed: int | None) -> nn.Module:  # noqa: ARG002 - it has no parameters
        return Unchanged().eval()

    def describe(self, name: str, *, quick: bool = False) -> Entry:  # noqa: ARG002 - it is quick
        return Entry(name, WIDTH, None, 0, None, None, OUTPUT, (DEFAULT,), TEXT)

    def default_layer(self, name: str, model: nn.Module) -> tuple[str, str, tuple[str, ...]]:  # noqa: ARG002
        return OUTPUT, "none", ()

    def layer_names(self, model: nn.Module) -> list[str]:  # noqa: ARG002
        return [OUTPUT]

    def final_classifier(self, model: nn.Module) -> str:  # noqa: ARG002
        raise BackboneError("A backbone that hashes texts has no classifier.", hint="Use its output.")


FAMILY = NgramHash()
