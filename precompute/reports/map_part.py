"""The map of features in the document of a report: where each point lies, its class and split, who is right on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precompute.cache import Cache
from precompute.reports.feature_map import ALL, NONE, axes_of, draw_map, packed
from precompute.reports.outcomes import outcomes_of
from precompute.reports.places import Places, readable
from precompute.reports.scored import ScoredHead
from precompute.training.layers import pooled_features
from precompute.training.targets import CLASSES, LABELS, NUMBER, Rows, Target


def map_part(
    cache: Cache,
    layer: str,
    target: Target,
    labels: NDArray[np.int32],
    splits: NDArray[np.int8],
    heads: Sequence[ScoredHead],
    places: Places,
    *,
    kind: str,
    seed: int,
) -> tuple[dict[str, Any] | None, Rows]:
    """JSON-ready, and its rows. labels, splits: (N,) as the document has them, -1 for none · kind: see `draw_map`."""
    rows = np.flatnonzero(cache.ok)
    if kind == NONE or not len(rows):
        return None, rows[:0]

    def strata(chosen: Rows) -> NDArray[np.int64]:
        return labels[chosen].astype(np.int64) * 16 + splits[chosen]

    found = draw_map(pooled_features(cache, layer), rows, strata, kind=kind, seed=seed)
    if found is None:
        return None, rows[:0]
    x, y = axes_of(found.xy)
    wide = "int16" if len(target.names) < 2**15 else "int32"
    described: dict[str, Any] = {
        "method": found.method,
        "rows": len(found.rows),
        "of": len(rows),
        "drawn": "all rows" if kind == ALL or len(found.rows) == len(rows) else "a stratified sample",
        "left_out": found.left_out,
        "layer": readable(layer),
        "seed": seed,
        "perplexity": found.perplexity,
        "seconds": round(found.seconds, 2),
        "x": packed(x, "<u2"),
        "y": packed(y, "<u2"),
        "place": packed(places.of(found.rows), "<u4"),
        "split": packed(splits[found.rows], "i1"),
        "right": _right(found.rows, heads, len(cache)),
        "ids": "samples",
    }
    if target.task == NUMBER:
        described["value"] = packed(target.values[found.rows], "<f4")
    else:
        described |= {"label_type": wide, "label": packed(labels[found.rows], "<i2" if wide == "int16" else "<i4")}
    return described, found.rows


def _right(rows: Rows, heads: Sequence[ScoredHead], n: int) -> dict[str, str]:
    """Of each head 1 where it is right, 0 where it is not, -1 where it was not scored; nothing of numbers."""
    found = {}
    for head in heads:
        if head.task not in (CLASSES, LABELS):
            continue
        right = np.full(n, -1, np.int8)
        for split in head.splits:
            outcomes = outcomes_of(head, split)
            right[outcomes.rows] = outcomes.right
        found[readable(head.name)] = packed(right[rows], "i1")
    return found
