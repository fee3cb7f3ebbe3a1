"""Two heads on the same images: is one better, or is it chance?"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precompute.cache import Cache, open_cache
from precompute.errors import TrainingError
from precompute.heads import Paired, SavedHead, load_head, paired
from precompute.training.groups import group_names, join
from precompute.training.membership import PARTS, split_codes, trained_layer
from precompute.training.relabelling import Relabelling
from precompute.training.splits import HOLDOUT, digest_groups, whole_rows
from precompute.training.views import averaged, predicted

TRAIN = PARTS.index("train")
ORDER = ("test", "val", HOLDOUT)  # test first: it is what chose nothing
SHOWN = 3  # ids that an error names


@dataclass(frozen=True)
class Side:
    """One head and its cache. codes: (N,) what it used each row for, a place in PARTS · rows: (N,) with features."""

    name: str
    saved: SavedHead
    cache: Cache
    layer: str
    codes: NDArray[np.uint8]
    whole: NDArray[np.bool_]


@dataclass(frozen=True)
class Comparison:
    """Two heads on the images of `split` that neither was trained on.

    left_out: images of it that are not scored, by the reason · groups: how many observations the images are, None
    where every picture is one · notes: what the reader should know · words: the verdict.
    """

    heads: tuple[str, str]
    split: str
    result: Paired
    groups: int | None
    left_out: dict[str, int]
    notes: tuple[str, ...]

    @property
    def words(self) -> str:
        found, (a, b) = self.result, self.heads
        if not found.difference:
            return "Both are right equally often."
        better = a if found.difference > 0 else b
        if found.distinct:
            return f"{better} is better, and the difference can be told from chance."
        return f"The difference cannot be told from chance on these {found.n:,} images."

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "heads": list(self.heads),
            "split": self.split,
            **self.result.to_dict(),
            "groups": self.groups,
            "left_out": self.left_out,
            "notes": list(self.notes),
            "verdict": self.words,
        }


def compare(
    head_a: str | os.PathLike[str],
    head_b: str | os.PathLike[str],
    cache_a: str | os.PathLike[str],
    cache_b: str | os.PathLike[str] | None = None,
    *,
    groups: str | None = None,
    groups_file: str | os.PathLike[str] | None = None,
    seed: int = 0,
) -> Comparison:
    """Compare two saved heads on the same images, matched by id: the rows of the first of test, val and hold-out that
    both were scored on.

    cache_a, cache_b: the caches that they were trained on, the same one where only one is given. Images that either
    head was trained on, or whose bytes it was trained on, are not scored. groups, groups_file: which images are one
    observation, as for train_head; identical files always are. seed: of the bootstrap.
    Raises HeadMismatchError for other features or images than those of the training, TrainingError where classes,
    labels or images contradict each other or no image is common, UsageError, HeadError, CacheError.
    """
    a = _side(head_a, cache_a)
    b = _side(head_b, cache_a if cache_b is None else cache_b)
    if not np.array_equal(a.saved.head.classes_, b.saved.head.classes_):
        odd = sorted({*map(str, a.saved.head.classes_)} ^ {*map(str, b.saved.head.classes_)})
        raise TrainingError(
            f"{a.name} and {b.name} know different classes: {', '.join(odd[:8])}{', ...' if len(odd) > 8 else ''}.",
            hint="Train both on caches with the same classes.",
        )
    split = _common_split(a, b)
    (rows_a, rows_b), left_out = _common_rows(a, b, split)
    truth = _labels(a.cache, rows_a)
    right_a, right_b = _right(a, rows_a, truth), _right(b, rows_b, truth)
    notes = [
        f"{split} chose a setting of {side.name}, so its score flatters"
        for side in (a, b)
        if side.saved.metadata["training"].get("selected_on") == split
    ]
    observed = digest_groups(a.cache)[rows_a]
    names = group_names(a.cache, rows_a, pattern=groups, file=groups_file)
    if names is not None:
        observed = join(observed, names)
    elif any(side.saved.metadata["training"].get("groups") for side in (a, b)):
        notes.append("trained with groups, but compared image by image: give --groups or --groups-file here too")
    result = paired(right_a, right_b, groups=observed, seed=seed)
    n_groups = None if names is None else len(np.unique(observed))
    return Comparison((a.name, b.name), split, result, n_groups, left_out, tuple(notes))


def _side(head: str | os.PathLike[str], path: str | os.PathLike[str]) -> Side:
    saved, name = load_head(head), os.fspath(head)
    cache, _ = Relabelling.of_head(saved.metadata, name).apply(open_cache(path))
    codes = split_codes(saved.metadata, cache, name)
    layer = trained_layer(saved, cache, name)
    return Side(name, saved, cache, layer, codes, whole_rows(cache, layer))


def _common_split(a: Side, b: Side) -> str:
    for split in ORDER:
        code = PARTS.index(split)
        if (a.codes == code).any() and (b.codes == code).any():
            return split
    has = [", ".join(split for split in ORDER if (side.codes == PARTS.index(split)).any()) for side in (a, b)]
    raise TrainingError(
        f"{a.name} was scored on {has[0] or 'nothing'} and {b.name} on {has[1] or 'nothing'}: no split is common.",
        hint="Train both on caches with the same splits.",
    )


def _common_rows(a: Side, b: Side, split: str) -> tuple[tuple[NDArray[np.int64], NDArray[np.int64]], dict[str, int]]:
    """Matching rows of both caches, and how many of the split are left out, by the reason."""
    code = PARTS.index(split)
    ids = a.cache.column("samples/id")
    other = {name: row for row, name in enumerate(b.cache.column("samples/id").tolist())}
    of_split = np.flatnonzero((a.codes == code) & a.whole)
    match = np.array([other.get(name, -1) for name in ids[of_split].tolist()], dtype=np.int64)
    there = match >= 0
    left_out = {f"not in {b.cache.path}": int((~there).sum())}
    rows_a, rows_b = of_split[there], match[there]
    _check_same(a.cache, b.cache, rows_a, rows_b)
    # Both caches' pictures by their bytes: an image may have been trained on under another name.
    digest_a, digest_b = a.cache.column("samples/digest"), b.cache.column("samples/digest")
    trained = {bytes(d) for side, d in ((a, digest_a), (b, digest_b)) for d in d[side.codes == TRAIN]}
    seen = np.array([bytes(d) in trained for d in digest_a[rows_a]], dtype=bool)
    held = (b.codes[rows_b] == code) & b.whole[rows_b]
    left_out["trained on by one of them"] = int(seen.sum())
    left_out[f"not scored by {b.name}"] = int((~held & ~seen).sum())
    keep = held & ~seen
    if not keep.any():
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items() if count)
        raise TrainingError(
            f"No image of {split} was kept from both heads ({reasons}).",
            hint="Train both on caches of the same images, with the same --seed where images are held out.",
        )
    return (rows_a[keep], rows_b[keep]), {reason: count for reason, count in left_out.items() if count}


def _check_same(a: Cache, b: Cache, rows_a: NDArray[np.int64], rows_b: NDArray[np.int64]) -> None:
    """Raise TrainingError where rows of the same id hold other bytes or another label."""
    bytes_differ = (a.column("samples/digest")[rows_a] != b.column("samples/digest")[rows_b]).any(axis=1)
    for what, differ in (("bytes", bytes_differ), ("labels", _labels(a, rows_a) != _labels(b, rows_b))):
        if differ.any():
            odd = ", ".join(repr(os.fsdecode(bytes(n))) for n in a.column("samples/id")[rows_a[differ][:SHOWN]])
            raise TrainingError(
                f"{int(differ.sum())} images have other {what} in {b.path} than in {a.path}: {odd}"
                f"{', ...' if differ.sum() > SHOWN else ''}.",
                hint="Extract both caches from the same folder.",
            )


def _labels(cache: Cache, rows: NDArray[np.int64]) -> NDArray[np.str_]:
    """Class names; rows without a label have an empty one."""
    names: NDArray[np.str_] = np.array([*cache.classes, ""], dtype=np.str_)[cache.labels[rows]]
    return names


def _right(side: Side, rows: NDArray[np.int64], truth: NDArray[np.str_]) -> NDArray[np.bool_]:
    head, average = side.saved.head, bool(averaged(side.saved.metadata))
    if average:
        proba = predicted(head.predict_proba, side.cache, side.layer, rows, average=True)
        found: NDArray[Any] = head.classes_[proba.argmax(axis=1)]
    else:
        found = predicted(head.predict, side.cache, side.layer, rows)
    right: NDArray[np.bool_] = found == truth
    return right
