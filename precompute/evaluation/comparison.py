"""Two heads, tails or whole networks on the same images: is one better, or is it chance?"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precompute.cache import Cache, open_cache
from precompute.errors import HeadMismatchError, TrainingError
from precompute.finetuning.device import device_of
from precompute.finetuning.labelled_images import activations_of, open_samples
from precompute.finetuning.opening import HeadFile, open_head
from precompute.finetuning.tail_file import OWN_TAIL
from precompute.heads import (
    Paired,
    PairedScores,
    RowView,
    SavedHead,
    paired,
    paired_labels,
    paired_numbers,
)
from precompute.sources.base import Source
from precompute.training.groups import group_names, join
from precompute.training.membership import PARTS, split_codes, trained_layer
from precompute.training.relabelling import Relabelling
from precompute.training.scoring import answer
from precompute.training.splits import HOLDOUT, digest_groups, whole_rows
from precompute.training.targets import CLASSES, LABELS, NUMBER, Target
from precompute.training.views import averaged, predicted

TRAIN = PARTS.index("train")
ORDER = ("test", "val", HOLDOUT)  # test first: it is what chose nothing
COMPUTED = ("fp32", "float32")  # precision and storage of features that images give again
SHOWN = 3  # ids that an error names
KINDS = {CLASSES: "classes", LABELS: "labels", NUMBER: "numbers"}


@dataclass(frozen=True)
class Side:
    """One head and its cache. codes: (N,) what it used each row for, a place in PARTS · whole: (N,) with features ·
    images: what its features are computed from, as an array (N, *shape), where the cache does not hold them."""

    name: str
    saved: SavedHead
    cache: Cache
    target: Target
    layer: str
    codes: NDArray[np.uint8]
    whole: NDArray[np.bool_]
    images: Any = None


@dataclass(frozen=True)
class Where:
    """How a tail finds what it is attached to, and where it runs. weights: where those of its backbone are now ·
    backbones, tails: code of the user's own that is trusted · source: of images, None for none."""

    weights: str | None
    backbones: Sequence[str]
    tails: Sequence[str]
    device: str
    source: Source | None


@dataclass(frozen=True)
class Comparison:
    """Two heads on the images of `split` that neither was trained on.

    task: what both predict; of classes the result counts which are right, of labels and numbers it is of one score ·
    left_out: images of it that are not scored, by the reason · groups: how many observations the images are, None
    where every picture is one · notes: what the reader should know · unit: what the samples are called ·
    words: the verdict.
    """

    heads: tuple[str, str]
    split: str
    result: Paired | PairedScores
    groups: int | None
    left_out: dict[str, int]
    notes: tuple[str, ...]
    task: str = CLASSES
    unit: str = "images"

    @property
    def words(self) -> str:
        found, (a, b) = self.result, self.heads
        if not found.difference:
            return "Both are right equally often." if self.task == CLASSES else "Both are equally good."
        higher = getattr(found, "higher_is_better", True)
        better = a if (found.difference > 0) == higher else b
        if found.distinct:
            return f"{better} is significantly better."
        return f"No significant difference on these {found.n:,} {self.unit}."

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
    source: str | os.PathLike[str] | Source | None = None,
    root: str | None = None,
    columns: Mapping[str, str] | None = None,
    weights_a: str | None = None,
    weights_b: str | None = None,
    backbones: Sequence[str] = (),
    tails: Sequence[str] = (),
    device: str = "auto",
) -> Comparison:
    """Compare two saved heads, tails or whole networks on the same images, matched by id: the rows of the first of
    test, val and hold-out that both were scored on.

    cache_a, cache_b: the caches that they were trained on, the same one where only one is given. Images that either
    head was trained on, or whose bytes it was trained on, are not scored. groups, groups_file: which images are one
    observation, as for train_head; identical files always are. seed: of the bootstrap.

    source: the images, for a network that was trained from them: its cache, which may be any of these images, says ids,
    labels and splits, and each image must have the SHA-256 that is there. root, columns: see `extract`.
    weights_a, weights_b: the current place of the weights of a tail's backbone. backbones, tails: names of the user's
    own code, as a confirmation. device: of tails.
    Raises HeadMismatchError for other features or images than those of the training, TrainingError where classes,
    labels or images contradict each other or no image is common, UsageError, HeadError, CacheError; of tails and images
    what `predict` raises.
    """
    images = None if source is None else open_samples(source, root, columns)
    with contextlib.ExitStack() as opened:
        given = (tuple(backbones), tuple(tails), device_of(device), images)
        a = side_of(head_a, cache_a, Where(weights_a, *given), opened)
        b = side_of(head_b, cache_a if cache_b is None else cache_b, Where(weights_b, *given), opened)
        return compared(a, b, groups, groups_file, seed)


def compared(
    a: Side,
    b: Side,
    groups: str | None,
    groups_file: str | os.PathLike[str] | None,
    seed: int,
    *,
    groups_column: str | None = None,
) -> Comparison:
    """What `compare` gives, of heads that are open. Raises TrainingError and UsageError as it does.

    groups_column: a further column of a's cache, instead of groups and groups_file.
    """
    check_alike(a, b)
    split = _common_split(a, b)
    (rows_a, rows_b), left_out = _common_rows(a, b, split)
    notes = [
        f"{split} chose a setting of {side.name}, so its score is optimistic"
        for side in (a, b)
        if side.saved.metadata["training"].get("selected_on") == split
    ]
    observed = digest_groups(a.cache)[rows_a]
    names = group_names(a.cache, rows_a, pattern=groups, file=groups_file, column=groups_column)
    if names is not None:
        observed = join(observed, names)
    elif any(side.saved.metadata["training"].get("groups") for side in (a, b)):
        one = a.cache.words.one
        notes.append(f"trained with groups, but compared {one} by {one}: give --groups or --groups-file here too")
    result = _paired(a, rows_a, b, rows_b, observed, seed)
    n_groups = None if names is None else len(np.unique(observed))
    task, unit = a.target.task, a.cache.words.plural
    return Comparison((a.name, b.name), split, result, n_groups, left_out, tuple(notes), task, unit)


def side_of(
    head: str | os.PathLike[str],
    path: str | os.PathLike[str],
    where: Where,
    opened: contextlib.ExitStack,
    *,
    labels: str | os.PathLike[str] | None = None,
    labels_option: str | None = None,
) -> Side:
    """A head and the cache at `path`, with what it used each row for; every row is compared with its checksum.

    opened: closes what computes features from images · labels: the table that the head was trained on, where it was ·
    labels_option: what the user gives it by, if anything.
    Raises HeadMismatchError for a cache that it was not trained on, and what `compare` raises.
    """
    file = open_head(head)
    relabelling = Relabelling.of_head(file.metadata, file.path, file.task, table=labels, option=labels_option)
    cache, target, _ = relabelling.apply(open_cache(path))
    codes = split_codes(file.metadata, cache, target, file.path)
    is_missing = file.layers[0] not in cache.layers
    if is_missing and where.source is not None:
        return _side_of_images(file, cache, target, codes, where, opened)
    if is_missing and file.is_tail:
        raise HeadMismatchError(
            f"{file.origin.file} takes the layer {file.layers[0]}; {cache.path} holds {', '.join(cache.layers)}.",
            hint="Give the cache that it was trained on, or, if it was trained from images, --source IMAGES.",
        )
    trusted = _trusted(file, where)
    saved = file.alone(backbone=trusted, tail=_tail(file, where), weights=where.weights, device=where.device)
    cache, layer = trained_layer(saved, cache, file.path)
    return Side(file.path, saved, cache, target, layer, codes, whole_rows(cache, layer))


def _side_of_images(
    file: HeadFile,
    cache: Cache,
    target: Target,
    codes: NDArray[np.uint8],
    where: Where,
    opened: contextlib.ExitStack,
) -> Side:
    """Of a network whose features are computed from the images of `where.source`."""
    spec = file.metadata.get("spec")
    kept_as = [spec.get(name) for name in ("precision", "storage")] if isinstance(spec, dict) else []
    if kept_as != list(COMPUTED) or file.averages or len(file.layers) > 1:
        raise HeadMismatchError(
            f"{file.origin.file} was trained on stored features of {file.layers[0]} that cannot be computed again here "
            "to the last bit.",
            hint="Extract that layer as it was, and give that file as its cache.",
        )
    assert where.source is not None  # that is why it is called
    model = file.backbone(backbone=_trusted(file, where), weights=where.weights)
    activations = activations_of(cache, where.source, model, device=where.device)
    opened.callback(activations.close)
    saved = file.attach(model, tail=_tail(file, where), device=where.device)
    whole = whole_rows(cache, cache.layers[0])
    return Side(file.path, saved, cache, target, file.layers[0], codes, whole, activations.plain)


def _trusted(file: HeadFile, where: Where) -> str | None:
    spec = file.metadata.get("spec")
    name = spec.get("backbone") if isinstance(spec, dict) else None
    return name if name in where.backbones else None


def _tail(file: HeadFile, where: Where) -> str | None:
    factory = file.metadata.get(OWN_TAIL)
    return factory if factory in where.tails else None


def check_alike(a: Side, b: Side) -> None:
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
        unit = a.cache.words.plural
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items() if count)
        raise TrainingError(
            f"No {a.cache.words.one} of {split} was held out from both heads ({reasons}).",
            hint=f"Train both on caches of the same {unit}, with the same --seed where {unit} are held out.",
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
                f"{int(differ.sum())} {a.words.plural} have other {what} in {b.path} than in {a.path}: {odd}"
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
    if side.images is not None:
        X = RowView(side.images, rows)
        return head.predict(X) if task == CLASSES else answer(head, X, task)
    if task == CLASSES and not average:
        return predicted(head.predict, side.cache, side.layer, rows)
    found = predicted(lambda X: answer(head, X, task), side.cache, side.layer, rows, average=average)
    said: NDArray[Any] = head.classes_[found.argmax(axis=1)] if task == CLASSES else found
    return said
