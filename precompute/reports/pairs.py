"""Samples that are the same picture twice: across train and a scored split, which is a leak, and inside the cache."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precompute.cache import Cache, Status
from precompute.extraction.matching import positions
from precompute.reports.places import Places
from precompute.reports.scored import ScoredHead
from precompute.training.splits import digest_groups
from precompute.training.targets import Rows, Target

MOST_PAIRS = 200
MOST_GROUPS, MOST_OF_GROUP = 100, 12


def leak_pairs(head: ScoredHead, split: str, places: Places) -> list[dict[str, Any]]:
    """Scored samples next to the training sample that they are, byte for byte, or nearly; MOST_PAIRS at most.

    The identical ones first, in the order of the file; then the others, the most similar first.
    """
    cache, target, leaks = head.side.cache, head.side.target, head.scored.leaks[split]
    pairs = []
    if leaks.identical:
        digests = digest_groups(cache)
        rows, train = head.parts[split], head.parts["train"]
        first = np.full(int(digests.max()) + 1, -1, np.int64)
        first[digests[train[::-1]]] = train[::-1]  # the first training row of each digest is written last
        twins = first[digests[rows]]
        hit = np.flatnonzero(twins >= 0)[:MOST_PAIRS]
        same = _same(target, rows[hit], twins[hit])
        for a, b, alike in zip(places.of(rows[hit]).tolist(), places.of(twins[hit]).tolist(), same, strict=True):
            pairs.append({"a": a, "b": b, "similarity": 1.0, "same_class": alike, "kind": "identical"})
    near = leaks.near[: MOST_PAIRS - len(pairs)]
    if near:
        ids = cache.column("samples/id")
        a, b = (_rows(ids, [getattr(pair, name) for pair in near]) for name in ("id", "train_id"))
        for pair, one, other in zip(near, places.of(a).tolist(), places.of(b).tolist(), strict=True):
            likeness = {"similarity": min(1.0, pair.similarity), "same_class": pair.same_class}
            pairs.append({"a": one, "b": other, **likeness, "kind": "near"})
    return pairs


def _rows(ids: NDArray[np.bytes_], names: list[str]) -> Rows:
    """The row of each id, all of which are there."""
    wanted = np.array([os.fsencode(name) for name in names], dtype=ids.dtype)
    return positions(ids, wanted)


def _same(target: Target, rows: Rows, others: Rows) -> list[bool]:
    codes = target.codes(np.concatenate([rows, others]))
    found: list[bool] = (codes[: len(rows)] == codes[len(rows) :]).tolist()
    return found


def duplicates_part(cache: Cache, target: Target, places: Places) -> dict[str, Any]:
    """Groups of byte-identical samples of a cache, and those of them whose targets differ; places, JSON-ready."""
    there = np.flatnonzero(cache.status == Status.OK)
    digests = digest_groups(cache)[there]
    order = np.argsort(digests, kind="stable")
    edges = np.flatnonzero(np.diff(digests[order])) + 1
    starts, stops = np.r_[0, edges], np.r_[edges, len(order)]
    several = np.flatnonzero(stops - starts > 1) if len(order) else np.zeros(0, np.int64)
    twice = (
        there[order[np.concatenate([np.arange(starts[i], stops[i]) for i in several])]] if len(several) else there[:0]
    )
    group = np.repeat(np.arange(len(several)), (stops - starts)[several])
    known = target.known[twice]
    pairs = (
        np.unique(np.stack([group[known], target.codes(twice[known])]), axis=1)
        if known.any()
        else np.zeros((2, 0), int)
    )
    doubtful = np.flatnonzero(np.bincount(pairs[0], minlength=len(several)) > 1)
    bounds = np.searchsorted(group, np.arange(len(several) + 1))

    def listed(groups: NDArray[Any]) -> list[list[int]]:
        found = []
        for number in groups[:MOST_GROUPS].tolist():
            rows = twice[bounds[number] : min(bounds[number + 1], bounds[number] + MOST_OF_GROUP)]
            found.append(places.of(rows).tolist())
        return found

    return {
        "two_labels": listed(doubtful),
        "identical": listed(np.setdiff1d(np.arange(len(several)), doubtful)),
        "n_two_labels": len(doubtful),
        "n_identical": len(several) - len(doubtful),
    }
