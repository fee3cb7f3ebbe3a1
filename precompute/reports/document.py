"""What a report shows, as one JSON-ready document; `render` makes a page of it.

Everything in it that is a name is somebody's input, and is text. Samples are listed once, where something refers to
them, and have a place in that list: see `Places`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precompute.cache import SPLITS, Cache, Status
from precompute.heads.base.labels import label_strata
from precompute.reports.comparison_part import comparison_part
from precompute.reports.curves import history_curves
from precompute.reports.feature_map import AUTO
from precompute.reports.head_part import head_part
from precompute.reports.made_by import made_by_part
from precompute.reports.map_part import map_part
from precompute.reports.media import BUDGET, in_turn, shared_out, shown_media
from precompute.reports.pairs import duplicates_part
from precompute.reports.places import Places, readable
from precompute.reports.scored import ScoredHead
from precompute.system import version_of
from precompute.system.samples import modality_of_spec
from precompute.training.membership import PARTS
from precompute.training.targets import CLASSES, LABELS, NUMBER, Rows, Target

VERSION = 1
SHOWN_SPLITS = [*PARTS[1:]]
"""train, val, test and the hold-out, as the document counts them."""
COUNTED_CLASSES = 5000  # beyond that the samples of each class are not counted in the document
WEIGHTS = {"mistakes": 4, "pairs": 2, "cells": 3, "map": 1}
"""How many each use of pictures gets in its turn."""
OF_SPLIT = 50  # mistakes of one scored split that come before those of others


@dataclass(frozen=True)
class Asked:
    """What a report is to hold; see `report`. given: its options as on a command line."""

    map: str = AUTO
    layer: str | None = None
    seed: int = 0
    thumbnails: int | None = None
    compare: bool = False
    source: Any = None
    root: Any = None
    columns: Any = None
    groups: str | None = None
    groups_file: Any = None
    curves: Sequence[dict[str, Any]] = field(default_factory=tuple)
    given: Sequence[tuple[str, Any]] = ()


def make_document(cache: Cache, target: Target, heads: Sequence[ScoredHead], asked: Asked) -> dict[str, Any]:
    """The document of a cache and heads that are scored on it.

    target: of the cache's rows, as the heads were trained on it. Raises SourceError where samples are to be read from
    a source that was named and cannot be read; TrainingError where heads that are to be compared have no samples in
    common.
    """
    places = Places(cache)
    names = heads[0].names if heads else list(target.names)
    labels, splits = _labels(target, names), _splits(cache, heads)
    parts = [head_part(head, places) for head in heads]
    comparison = None
    if asked.compare:
        grouping: dict[str, Any] = {"groups": asked.groups, "groups_file": asked.groups_file}
        comparison = comparison_part(heads, places, **grouping, seed=asked.seed)
    duplicates = duplicates_part(cache, target, places)
    layer = asked.layer or (heads[0].side.layer if heads else cache.layers[0])
    mapped = heads[0].side.cache if heads and layer == heads[0].side.layer and heads[0].side.images is None else cache
    if layer not in mapped.layers and mapped is cache:
        layer = cache.layers[0]
    drawn, map_rows = map_part(mapped, layer, target, labels, splits, heads, places, kind=asked.map, seed=asked.seed)
    modality = modality_of_spec(cache.spec)
    budget = BUDGET.get(modality, 0) if asked.thumbnails is None else asked.thumbnails
    rows = places.rows
    wanted = _wanted(parts, comparison, duplicates, rows, map_rows, labels, budget, asked.seed)
    media = shown_media(cache, wanted, asked.source, root=asked.root, columns=asked.columns)
    place_of = {row: place for place, row in enumerate(rows.tolist())} if media.of else {}
    words = cache.words
    return {
        "version": VERSION,
        "title": readable(os.path.basename(cache.path)),
        "precompute": version_of("precompute") or "",
        "made": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "task": target.task if heads or target.known.any() else None,
        "modality": modality,
        "unit": {"one": words.one, "plural": words.plural},
        "classes": [readable(name) for name in names],
        "notes": _notes(cache, target, heads, media.notes, drawn),
        "counts": _counts(cache, target, labels, splits, len(names)),
        "samples": {
            "id": places.ids(),
            "label": labels[rows].tolist(),
            "split": splits[rows].tolist(),
            "target": _targets(target, rows, names),
        },
        "splits": SHOWN_SPLITS,
        "media": {"kind": media.kind, "of": {str(place_of[row]): shown for row, shown in media.of.items()}},
        "heads": parts,
        "comparison": comparison,
        "duplicates": duplicates,
        "curves": [curve for head in heads for curve in history_curves(head)] + list(asked.curves),
        "map": drawn,
        "made_by": made_by_part(cache, heads, asked.given),
    }


def _labels(target: Target, names: Sequence[str]) -> NDArray[np.int32]:
    """(N,) the place of each row's class among `names`; of several labels that of the rarest; -1 for none."""
    n = len(target.known)
    if target.task == NUMBER:
        return np.full(n, -1, np.int32)
    place = {name: number for number, name in enumerate(names)}
    of_target = np.array([*(place.get(name, -1) for name in target.names), -1], np.int32)
    if target.task == CLASSES:
        found: NDArray[np.int32] = of_target[target.values]
        return found
    has = target.values == 1
    rarest = label_strata(has).astype(np.int64)
    places = np.where(has.any(axis=1) & target.known, np.minimum(rarest, len(target.names)), len(target.names))
    of_rarest: NDArray[np.int32] = of_target[places]
    return of_rarest


def _splits(cache: Cache, heads: Sequence[ScoredHead]) -> NDArray[np.int8]:
    """(N,) a place in SHOWN_SPLITS, -1 for none: as the first head used the rows, else as the cache has them."""
    if heads:
        return heads[0].side.codes.astype(np.int8) - 1
    codes = cache.column("samples/split").astype(np.int16) - 1
    return np.where(codes < len(SPLITS) - 1, codes, -1).astype(np.int8)


def _targets(target: Target, rows: Rows, names: Sequence[str]) -> list[Any] | None:
    """The number or the labels of each row, None where it has no target; of classes `label` says all."""
    if target.task == CLASSES:
        return None
    if target.task == NUMBER:
        return [
            value if known else None
            for value, known in zip(target.values[rows].tolist(), target.known[rows], strict=True)
        ]
    place = np.array([list(names).index(name) if name in names else -1 for name in target.names])
    found: list[list[int] | None] = []
    for row, known in zip(target.values[rows], target.known[rows], strict=True):
        has = place[np.flatnonzero(row)]
        found.append(has[has >= 0].tolist() if known else None)
    return found


def _counts(
    cache: Cache, target: Target, labels: NDArray[np.int32], splits: NDArray[np.int8], n_classes: int
) -> dict[str, Any]:
    columns = len(SHOWN_SPLITS) + 1
    per_class = None
    if target.task != NUMBER and 0 < n_classes <= COUNTED_CLASSES:
        if target.task == LABELS:
            per_class = [
                [int((target.values[splits == s, k] == 1).sum()) for s in (0, 1, 2, 3, -1)] for k in range(n_classes)
            ]
        else:
            known = labels >= 0
            split = np.where(splits < 0, columns - 1, splits).astype(np.int64)
            code = labels[known].astype(np.int64) * columns + split[known]
            per_class = np.bincount(code, minlength=n_classes * columns).reshape(n_classes, columns).tolist()
    failed = (cache.status != Status.OK) & (cache.status != Status.PENDING)
    return {
        "rows": len(cache),
        "with_features": int(cache.ok.sum()),
        "failed": int(failed.sum()),
        "unlabelled": int((~target.known).sum()),
        "per_class": per_class,
    }


def _wanted(
    parts: Sequence[dict[str, Any]],
    comparison: dict[str, Any] | None,
    duplicates: dict[str, Any],
    rows: Rows,
    map_rows: Rows,
    labels: NDArray[np.int32],
    budget: int,
    seed: int,
) -> list[int]:
    """Which rows are shown, `budget` at most: see WEIGHTS."""
    scored = [one for part in parts for one in part["scored"]]

    def of_items(one: dict[str, Any], items: Sequence[int]) -> list[int]:
        return [one["items"]["place"][item] for item in items]

    mistakes = [of_items(one, one["mistakes"][:OF_SPLIT]) for one in scored]
    if comparison is not None:
        mistakes.append([one["place"] for one in comparison["disagree"]])
    pairs = [[place for pair in one["leaks"]["pairs"] for place in (pair["a"], pair["b"])] for one in scored]
    pairs.append([place for group in (*duplicates["two_labels"], *duplicates["identical"]) for place in group])
    cells = []
    for one in scored:
        confusion = one["confusion"] or {"cells": {}}
        found = {**confusion["cells"], **{f"{i},{j}": items for i, j, _, items in confusion.get("largest", ())}}
        off = [items for cell, items in found.items() if len(set(cell.split(","))) > 1]
        cells += [of_items(one, items) for items in (*off, *(items for items in found.values() if items not in off))]
    rng = np.random.default_rng(seed)
    # Class by class in turn, at random inside each: every part of the map has some.
    order = rng.permutation(len(map_rows))
    turn = np.empty(len(order), np.int64)
    by_class = labels[map_rows[order]]
    for label in np.unique(by_class):
        turn[by_class == label] = np.arange((by_class == label).sum())
    on_map = map_rows[order[np.argsort(turn, kind="stable")]]

    def as_rows(lists: Sequence[Sequence[int]]) -> Any:
        return (int(rows[place]) for place in in_turn(lists))

    streams = [
        (WEIGHTS["mistakes"], as_rows(mistakes)),
        (WEIGHTS["pairs"], as_rows(pairs)),
        (WEIGHTS["cells"], as_rows(cells)),
        (WEIGHTS["map"], iter(on_map.tolist())),
    ]
    return shared_out(streams, budget)


def _notes(
    cache: Cache, target: Target, heads: Sequence[ScoredHead], media: Sequence[str], drawn: dict[str, Any] | None
) -> list[str]:
    notes = list(media)
    unit = cache.words.plural
    if not heads and target.task != CLASSES:
        notes.append("No head was given, so nothing is scored.")
    if missing := int((~cache.ok).sum()):
        notes.append(f"{missing:,} of {len(cache):,} {unit} have no features: precompute verify names them")
    if drawn is not None and drawn["left_out"]:
        notes.append(f"{drawn['left_out']:,} {unit} are not on the map: their features are no finite numbers")
    if len(heads) > 1 and any(not np.array_equal(heads[0].side.codes, head.side.codes) for head in heads[1:]):
        notes.append("The heads were trained on different samples; the splits shown are those of the first.")
    unscored = [readable(head.name) for head in heads if not head.answers]
    return [
        *notes,
        *(f"{name} has no samples left that it was not trained on, so it has no score" for name in unscored),
    ]
