"""Two heads on the same images: is one better, or is it chance?"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precompute.cache import Cache, open_cache
from precompute.errors import TrainingError
from precompute.heads import (
    Paired,
    PairedScores,
    SavedHead,
    load_head,
    paired,
    paired_labels,
    paired_numbers,
)
from precompute.training.groups import group_names, join
from precompute.training.kinds import task_of
from precompute.training.membership import PARTS, split_codes, trained_layer
from precompute.training.relabelling import Relabelling
from precompute.training.scoring import answer
from precompute.training.splits import HOLDOUT, digest_groups, whole_rows
from precompute.training.targets import CLASSES, LABELS, NUMBER, Target
from precompute.training.views import averaged, predicted

TRAIN = PARTS.index("train")
ORDER = ("test", "val", HOLDOUT)  # test first: it is what chose nothing
SHOWN = 3  # ids that an error names
KINDS = {CLASSES: "classes", LABELS: "labels", NUMBER: "numbers"}


@dataclass(frozen=True)
class Side:
    """One head and its cache. codes: (N,) what it used each row for, a place in PARTS · whole: (N,) with features."""

    name: str
    saved: SavedHead
    cache: Cache
    target: Target
    layer: str
    codes: NDArray[np.uint8]
    whole: NDArray[np.bool_]


@dataclass(frozen=True)
class Comparison:
    """Two heads on the images of `split` that neither was trained on.

    task: what both predict; of classes the result counts which are right, of labels and numbers it is of one score ·
    left_out: images of it that are not scored, by the reason · groups: how many observations the images are, None
    where every picture is one · notes: what the reader should know · words: the verdict.
    """

    heads: tuple[str, str]
    split: str
    result: Paired | PairedScores
    groups: int | None
    left_out: dict[str, int]
    notes: tuple[str, ...]
    task: str = CLASSES

    @property
    def words(self) -> str:
        found, (a, b) = self.result, self.heads
        if not found.difference:
            return "Both are right equally often." if self.task == CLASSES else "Both are equally good."
        higher = getattr(found, "higher_is_better", True)
        better = a if (found.difference > 0) == higher else b
        if found.distinct:
            return f"{better} is better, and the difference can be told from chance."
        return f"The difference cannot be told from chance on these {found.n:,} images."

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "heads": list(self.heads),
            "task": self.task,
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
    _check_alike(a, b)
    split = _common_split(a, b)
    (rows_a, rows_b), left_out = _common_rows(a, b, split)
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
    result = _paired(a, rows_a, b, rows_b, observed, seed)
    n_groups = None if names is None else len(np.unique(observed))
    return Comparison((a.name, b.name), split, result, n_groups, left_out, tuple(notes), a.target.task)


def _side(head: str | os.PathLike[str], path: str | os.PathLike[str]) -> Side:
    saved, name = load_head(head), os.fspath(head)
    cache, target, _ = Relabelling.of_head(saved.metadata, name, task_of(saved.head)).apply(open_cache(path))
    codes = split_codes(saved.metadata, cache, target, name)
    cache, layer = trained_layer(saved, cache, name)
    return Side(name, saved, cache, target, layer, codes, whole_rows(cache, layer))


def _check_alike(a: Side, b: Side) -> None:
    """Raise TrainingError where the heads predict different things."""
    if a.target.task != b.target.task:
        raise TrainingError(
            f"{a.name} predicts {KINDS[a.target.task]} and {b.name} {KINDS[b.target.task]}.",
            hint="Compare two heads of one task.",
        )
    names_a, names_b = (_names(side) for side in (a, b))
    if names_a != names_b:
        odd = sorted({*names_a} ^ {*names_b}) or names_a
        raise TrainingError(
            f"{a.name} and {b.name} know different {KINDS[a.target.task]}: {', '.join(odd[:8])}"
            f"{', ...' if len(odd) > 8 else ''}.",
            hint=f"Train both on caches with the same {KINDS[a.target.task]}, in one order.",
        )


def _names(side: Side) -> list[str]:
    head, task = side.saved.head, side.target.task
    return [] if task == NUMBER else [str(name) for name in (head.labels_ if task == LABELS else head.classes_)]


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
    _check_same(a, b, rows_a, rows_b)
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


def _check_same(one: Side, other: Side, rows_a: NDArray[np.int64], rows_b: NDArray[np.int64]) -> None:
    """Raise TrainingError where rows of the same id hold other bytes or another label."""
    a, b = one.cache, other.cache
    bytes_differ = (a.column("samples/digest")[rows_a] != b.column("samples/digest")[rows_b]).any(axis=1)
    of_a, of_b = one.target.of(rows_a), other.target.of(rows_b)
    differ_also = of_a != of_b
    if one.target.task == NUMBER:
        differ_also &= ~(np.isnan(of_a) & np.isnan(of_b))
    labels_differ = differ_also.any(axis=1) if differ_also.ndim > 1 else differ_also
    for what, differ in (("bytes", bytes_differ), ("labels", labels_differ)):
        if differ.any():
            odd = ", ".join(repr(os.fsdecode(bytes(n))) for n in a.column("samples/id")[rows_a[differ][:SHOWN]])
            raise TrainingError(
                f"{int(differ.sum())} images have other {what} in {b.path} than in {a.path}: {odd}"
                f"{', ...' if differ.sum() > SHOWN else ''}.",
                hint="Extract both caches from the same folder.",
            )


def _paired(
    a: Side, rows_a: NDArray[np.int64], b: Side, rows_b: NDArray[np.int64], groups: NDArray[np.int64], seed: int
) -> Paired | PairedScores:
    """By what is right of classes, by mean average precision of labels, by the mean absolute error of numbers."""
    task, true = a.target.task, a.target.of(rows_a)
    if task == CLASSES:
        right_a, right_b = (_said(side, rows) == true for side, rows in ((a, rows_a), (b, rows_b)))
        return paired(right_a, right_b, groups=groups, seed=seed)
    answers = (_said(a, rows_a), _said(b, rows_b))
    if task == LABELS:
        return paired_labels(true, *answers, groups=groups, seed=seed)
    return paired_numbers(true, *answers, groups=groups, seed=seed)


def _said(side: Side, rows: NDArray[np.int64]) -> NDArray[Any]:
    """Classes (n,), probabilities of labels (n, L) or numbers (n,)."""
    head, task, average = side.saved.head, side.target.task, bool(averaged(side.saved.metadata))
    if task == CLASSES and not average:
        return predicted(head.predict, side.cache, side.layer, rows)
    found = predicted(lambda X: answer(head, X, task), side.cache, side.layer, rows, average=average)
    said: NDArray[Any] = head.classes_[found.argmax(axis=1)] if task == CLASSES else found
    return said
