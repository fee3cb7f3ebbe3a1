"""A network for texts of several lengths, as language models are: token numbers, a mask, attention between them.

`make_attention` is a factory: `-b lengths:make_attention`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from precompute.errors import SampleError
from precompute.inputs.base import Preprocess

LENGTHS = (8, 16, 32)
WIDTH = 32


class Letters(Preprocess):
    """One token for each byte, padded to the next of LENGTHS and cut off behind the last."""

    modality = "text"

    def spec(self) -> dict[str, Any]:
        return {"tokens": "bytes", "lengths": list(LENGTHS)}

    def host(self, raw: bytes, view: int = 0) -> tuple[Tensor, ...]:
        if not raw.strip(b"\0"):
            raise SampleError("an empty text", reason="UNDECODABLE")
        tokens = raw[: LENGTHS[-1]]
        length = next(one for one in LENGTHS if len(tokens) <= one)
        ids, mask = torch.zeros((2, length), dtype=torch.int64)
        ids[: len(tokens)] = torch.tensor(list(tokens))
        mask[: len(tokens)] = 1
        return ids, mask

    def example(self) -> tuple[Tensor, ...]:
        return self.examples()[0]

    def examples(self) -> tuple[tuple[Tensor, ...], ...]:
        pairs = (torch.zeros((2, length), dtype=torch.int64) for length in LENGTHS)
        return tuple((ids, mask + 1) for ids, mask in pairs)

    def device(self) -> nn.Module:
        return Both()


class Both(nn.Module):
    """Nothing is left to do in front of the network."""

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return ids, mask


class Attention(nn.Module):
    """One layer of attention over real tokens, then their mean: (B, L) numbers and mask -> (B, WIDTH)."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(256, WIDTH)
        self.places = nn.Embedding(LENGTHS[-1], WIDTH)
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1]))
        scores = self.query(x) @ self.key(x).transpose(1, 2) / WIDTH**0.5
        weights = scores.masked_fill(mask[:, None, :] == 0, float("-inf")).softmax(-1)
        x = self.norm(x + weights @ self.value(x))
        real = mask[:, :, None].to(x.dtype)
        pooled: Tensor = (x * real).sum(1) / real.sum(1)
        return pooled


def make_attention() -> tuple[nn.Module, Preprocess]:
    """Random, but always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Attention(), Letters()


def text_of(number: int) -> str:
    """Texts of all three lengths, most of them short; no two alike."""
    words = f"{number:03} lorem ipsum dolor sit amet consetetur sadipscing"
    return words[: (6, 7, 12, 40)[number % 4]]
