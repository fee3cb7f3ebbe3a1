"""What a scored split shares with the training images: the same bytes, the same group, nearly the same picture."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precompute.cache import Cache
from precompute.heads import RowView
from precompute.heads.base.unit import unit_rows

Rows = NDArray[np.int64]
Floats = NDArray[np.float32]

# Cosine between features, less the mean of the training features: all features of one backbone have a large part in
# common, which says nothing. Copies of flower photos at half their size, or with a twentieth cut off, reach it in 62 to
# 100 of 100 cases, and 0.3 to 5 in 100 photos without a copy do (docs/scores.md, by backbone): its pairs are suspects.
SIMILARITY = 0.9
# Scored images x training images x features that are compared unasked: half a minute of one core.
NEAR_MOST = 5 * 10**11
SHOWN = 8  # pictures that a note names; --json has all
BLOCK, BLOCK_BYTES = 2048, 64 * 2**20  # rows a side, whose products take 16 MB; fewer where rows are long


@dataclass(frozen=True)
class Near:
    """A scored image, the training image most like it, their similarity, and whether their classes agree."""

    id: str
    train_id: str
    similarity: float
    same_class: bool


@dataclass(frozen=True)
class Leaks:
    """What one scored split shares with the training images.

    identical: images with the bytes of a training image · grouped: images whose group has training images (where
    groups are given) · near: suspects among the others, most similar first · similarity: the one that makes a
    suspect · not_searched: why nobody looked for suspects, else None · clean: (n,) the images left, in the order
    of the split's rows.
    """

    identical: int
    grouped: int
    near: tuple[Near, ...]
    similarity: float
    not_searched: str | None
    clean: NDArray[np.bool_]

    @property
    def left(self) -> int:
        """How many images are left."""
        return int(self.clean.sum())

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**vars(self), "near": [vars(pair) for pair in self.near], "clean": self.left}


def find_leaks(
    cache: Cache,
    layer: str,
    parts: dict[str, Rows],
    digests: NDArray[np.int64],
    groups: NDArray[np.int64],
    similarity: float | None = None,
) -> dict[str, Leaks]:
    """Leaks of every scored split. similarity: None for SIMILARITY, and then only where the search is short."""
    features, train = cache.features(layer), parts["train"]
    found = {}
    for split, rows in parts.items():
        if split == "train":
            continue
        identical = np.isin(digests[rows], digests[train])
        grouped = np.isin(groups[rows], groups[train]) & ~identical
        work = len(rows) * len(train) * int(np.prod(features.shape[1:]))
        reason = None
        near: tuple[Near, ...] = ()
        clean = ~identical & ~grouped
        if similarity is None and work > NEAR_MOST:
            reason = f"comparing {len(rows):,} with {len(train):,} images would take long; --similarity does it"
        elif clean.any():
            bar = SIMILARITY if similarity is None else similarity
            best, which = nearest(RowView(features, rows[clean]), RowView(features, train))
            hit = np.flatnonzero(best >= bar)
            hit = hit[np.argsort(-best[hit], kind="stable")]
            near = tuple(_pair(cache, rows[clean][i], train[which[i]], float(best[i])) for i in hit.tolist())
            clean[np.flatnonzero(clean)[hit]] = False
        found[split] = Leaks(int(identical.sum()), int(grouped.sum()), near, similarity or SIMILARITY, reason, clean)
    return found


def _pair(cache: Cache, row: np.int64, train: np.int64, similarity: float) -> Near:
    names, labels = cache.column("samples/id"), cache.labels
    return Near(
        os.fsdecode(bytes(names[row])), os.fsdecode(bytes(names[train])), similarity, bool(labels[row] == labels[train])
    )


def nearest(scored: RowView, train: RowView) -> tuple[Floats, NDArray[np.intp]]:
    """For each scored row the highest cosine to a training row, (n,) float32, and that row's position (n,).

    Both are taken less the mean of the training rows. Read in blocks; features may be larger than memory.
    """
    mean, size = np.zeros(train.shape[1], np.float64), min(BLOCK, max(1, BLOCK_BYTES // (4 * train.shape[1])))
    for _, block in train.blocks(size):
        mean += block.sum(axis=0, dtype=np.float64)
    centre = (mean / len(train)).astype(np.float32)
    best = np.full(len(scored), -np.inf, np.float32)
    which = np.zeros(len(scored), np.intp)
    for place, block in scored.blocks(size):
        unit = unit_rows(block - centre)  # a row that is the mean itself stays zero, and is like nothing
        for start, other in train.blocks(size):
            cosine = unit @ unit_rows(other - centre).T
            top = cosine.argmax(axis=1)
            value = cosine[np.arange(len(top)), top]
            better = value > best[place]
            best[place] = np.where(better, value, best[place])
            which[place] = np.where(better, top + start.start, which[place])
    return best, which


def two_labels(cache: Cache, rows: Rows, digests: NDArray[np.int64]) -> list[list[str]]:
    """The ids of each picture that occurs under several classes, byte for byte, among `rows`."""
    pairs = np.unique(np.stack([digests[rows], cache.labels[rows]]), axis=1)
    doubtful, count = np.unique(pairs[0], return_counts=True)
    names = cache.column("samples/id")
    return [[os.fsdecode(bytes(names[row])) for row in rows[digests[rows] == digest]] for digest in doubtful[count > 1]]


def leak_notes(leaks: dict[str, Leaks], doubtful: list[list[str]]) -> list[str]:
    """Lines on what makes scores flatter or labels doubtful."""
    notes = []
    for split, found in leaks.items():
        if found.identical:
            notes.append(
                f"{found.identical} images of {split} are byte-identical to training images: its score flatters"
            )
        if found.grouped:
            notes.append(f"{found.grouped} images of {split} share a group with training images: its score flatters")
        if found.near:
            notes.append(
                f"{len(found.near)} images of {split} look nearly like a training image "
                f"(cosine {found.similarity:g} or more)"
            )
        if found.not_searched:
            notes.append(f"nobody looked for near-duplicates in {split}: {found.not_searched}")
    if doubtful:
        notes.append(
            f"{len(doubtful)} pictures occur under more than one class, byte for byte: "
            + "; ".join(" = ".join(ids) for ids in doubtful[:SHOWN])
            + ("; ..." if len(doubtful) > SHOWN else "")
        )
    return notes
