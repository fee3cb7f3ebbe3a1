"""Texts as hashed n-grams: what the embedded backbone `ngram-hash` is made of.

Words, pairs of neighbouring words, and runs of 3 to 5 letters are counted. Each of them has a place among WIDTH numbers
and a sign, both from its hash, and is added there: "feature hashing" (Weinberger et al. 2009, arXiv:0902.2206), which
is a sparse random projection of the counts of all n-grams there could be. Nothing is learned, and no order of words is
known beyond pairs.

The result is the same to the last bit on every machine: hashes are of whole numbers, letters are distinguished by their
numbers alone (so only A to Z have small forms), and floating numbers are added in one order.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import nn

from precompute.inputs.base import Preprocess
from precompute.inputs.text.decode import text_of

WIDTH = 2048
LETTERS = (3, 4, 5)
FORM = 1
"""Part of the cache's key; its number goes up where the same text comes to have other numbers."""

SMALL = {letter: letter + 32 for letter in range(ord("A"), ord("Z") + 1)}
WORDS = re.compile(r"[a-z0-9_\x80-\U0010ffff]+|[!-/:-@\[-^`{-~]")
"""Runs of letters and digits, everything beyond ASCII counted as a letter; other printed marks stand alone."""

FIRST, LAST = "\1", "\2"  # neighbours of the first and of the last word
MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))  # of splitmix64
STEP = np.uint64(31)

Counts = tuple[NDArray[np.uint64], NDArray[np.int64]]
"""Hashes of different n-grams, and how often each is there."""


class NgramPreprocess(Preprocess):
    """`host` gives (WIDTH,) float32 of length 1."""

    modality = "text"

    def spec(self) -> dict[str, Any]:
        return {"ngrams": {"words": [1, 2], "letters": [*LETTERS]}, "width": WIDTH, "form": FORM}

    def host(self, raw: bytes, view: int = 0) -> tuple[torch.Tensor, ...]:
        del view
        return (torch.from_numpy(hashed(text_of(raw))),)

    def example(self) -> tuple[torch.Tensor, ...]:
        return (torch.zeros(WIDTH),)

    def device(self) -> nn.Module:
        return nn.Identity()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NgramPreprocess)

    def __hash__(self) -> int:
        return hash(NgramPreprocess)


def hashed(text: str) -> NDArray[np.float32]:
    """(WIDTH,) of length 1. Words, pairs and runs of letters have the same share in it, and each of them goes in by the
    square root of how often it is there."""
    words = WORDS.findall(text.translate(SMALL))
    pairs = zip((FIRST, *words), (*words, LAST), strict=True)
    total = np.zeros(WIDTH)
    for hashes, counts in (_of_strings(words), _of_strings(map(" ".join, pairs)), _of_letters(words)):
        if len(hashes):
            signs = np.where(hashes >> np.uint64(63), 1.0, -1.0)
            shares = np.sqrt(counts / counts.sum())
            total += np.bincount((hashes % np.uint64(WIDTH)).astype(np.int64), signs * shares, WIDTH)
    length = np.sqrt(np.cumsum(total * total)[-1])  # in one order, where a sum would take what the processor likes
    return (total / length if length else total).astype(np.float32)


def _of_strings(strings: Iterable[str]) -> Counts:
    counts = Counter(strings)
    hashes = [xxhash.xxh3_64_intdigest(one.encode("utf-8")) for one in counts]
    return np.array(hashes, np.uint64), np.array([*counts.values()], np.int64)


def _of_letters(words: list[str]) -> Counts:
    """Runs of letters, over the blanks between words too."""
    line = np.frombuffer(f" {' '.join(words)} ".encode("utf-32-le"), np.uint32).astype(np.uint64)
    run, found = _mixed(line), list[NDArray[np.uint64]]()
    for length in range(2, LETTERS[-1] + 1):
        run = _mixed(run[:-1] * STEP + line[length - 1 :])
        if not len(run):
            break
        if length in LETTERS:
            found.append(run)
    if not found:
        return np.zeros(0, np.uint64), np.zeros(0, np.int64)
    hashes, counts = np.unique(np.concatenate(found), return_counts=True)
    return hashes, counts


def _mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The last step of splitmix64, which makes neighbours unlike each other; one to one."""
    for shift, factor in zip((30, 27), MIX, strict=True):
        numbers = (numbers ^ (numbers >> np.uint64(shift))) * factor
    return numbers ^ (numbers >> np.uint64(31))
