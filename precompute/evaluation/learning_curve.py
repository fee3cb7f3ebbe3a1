"""How accurate a head is after a few labelled images of each class: the few-shot curve of one cache or several."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from precompute.cache import Cache, open_cache
from precompute.errors import TrainingError, UsageError
from precompute.heads import RowView
from precompute.heads.base.progress import report
from precompute.training.kinds import HEADS
from precompute.training.relabelling import Relabelling
from precompute.training.splits import HOLDOUT, Rows, check_classes, digest_groups, parts_of, whole_rows
from precompute.training.views import check_views, fit_rows, mean_over, trained_features, view_notes

SHOTS = (1, 2, 5, 10, 20, 50)
DRAWS = 5


@dataclass(frozen=True)
class FewShotPoint:
    """One number of shots, `shots` images a class.

    accuracies: one for each draw · accuracy: their mean · interval: Student's 95% interval of that mean, over draws of
    training images; None for a single draw. The test images are the same in every draw, so how well these stand for
    others is not in it.
    """

    shots: int
    accuracies: tuple[float, ...]
    accuracy: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class FewShotCurve:
    """The curve of one cache. name: its file name without suffix · tested: images in split `split`."""

    name: str
    cache: str
    backbone: str
    layer: str
    head: str
    n_classes: int
    split: str
    tested: int
    points: tuple[FewShotPoint, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def few_shot(
    caches: Sequence[str | os.PathLike[str]],
    *,
    shots: Sequence[int] = SHOTS,
    draws: int = DRAWS,
    head: str = "logistic",
    layer: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
    plain_view: bool = False,
    average_views: bool = False,
    seed: int = 0,
    say: Callable[[str], None] | None = None,
) -> list[FewShotCurve]:
    """Fit `head` on `shots` images of each class, `draws` times, and score it on the same images each time.

    Images are drawn from split train and scored on test, or on val where there is no test; without either on a
    stratified hold-out of a fifth. Byte-identical images never stand on both sides, and count once among those drawn.
    Draw k of caches that hold the same images has the same images, and more shots add to fewer. A class with too few
    images gives all it has, which `notes` say. Features are divided by one number, their spread over the images drawn,
    so that a penalty means the same for every backbone. label_column, split_column, plain_view, average_views: see
    `train_head`. `say` gets a line
    before each cache.

    Raises UsageError for shots or draws that make no sense, TrainingError where no class has as many images, and what
    `train_head` raises.
    """
    if not caches:
        raise UsageError("few_shot needs one cache or more.", hint="Such as: precompute few-shot photos.h5")
    for name, value in (*(("shots", number) for number in shots), ("draws", draws)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UsageError(
                f"{name} must be whole numbers of at least 1. Got {value!r} instead.", hint=f"See --{name}."
            )
    if not shots:
        raise UsageError("shots must hold one number or more.", hint="Such as --shots 1,5,20.")
    if head not in HEADS:
        raise UsageError(f"head must be one of {', '.join(HEADS)}. Got {head!r} instead.", hint="See --head.")
    curves = []
    first: Cache | None = None
    for path in caches:
        if say is not None:
            say(f"{os.fspath(path)}: {len(set(shots))} numbers of shots, {draws} draws each")
        cache, relabelled = Relabelling(label_column, split_column).apply(open_cache(path))
        notes = (
            relabelled
            if first is None or _same_images(first, cache)
            else [*relabelled, f"holds other images than {first.path}"]
        )
        first = first or cache
        curves.append(
            _curve(
                cache, sorted(set(shots)), draws, head, layer, seed, notes, plain_view=plain_view, average=average_views
            )
        )
    return curves


def _same_images(one: Cache, other: Cache) -> bool:
    return one.classes == other.classes and all(
        np.array_equal(one.column(name), other.column(name)) for name in ("samples/id", "samples/digest")
    )


def _curve(
    cache: Cache,
    shots: list[int],
    draws: int,
    head: str,
    layer: str | None,
    seed: int,
    notes: list[str],
    *,
    plain_view: bool,
    average: bool,
) -> FewShotCurve:
    features, views = trained_features(cache, layer, plain=plain_view)
    check_views(cache, views, average=average, plain_only=False)
    layer = layer or cache.layers[0]
    parts, more = parts_of(cache, whole_rows(cache, layer), seed)
    check_classes(cache, parts)
    split = next(name for name in ("test", "val", HOLDOUT) if name in parts)
    labels, groups = cache.labels, digest_groups(cache)
    pool, leaked = pool_of(parts["train"], parts[split], labels, groups)
    check_classes(cache, {"train": pool, split: parts[split]})
    notes += [*view_notes(cache, views, average=average), *more]
    if leaked:
        notes.append(f"{leaked} training images are byte-identical to images of {split} and are never drawn")
    sizes = np.bincount(labels[pool], minlength=len(cache.classes))
    if max(shots) > sizes.max():
        raise TrainingError(
            f"{cache.path} has no class with {max(shots)} different training images; the largest has {sizes.max()}.",
            hint=f"Give fewer shots: --shots {','.join(str(n) for n in shots if n <= sizes.max()) or '1'}",
        )
    present = np.unique(labels[pool])
    if short := [f"{cache.classes[label]} ({sizes[label]})" for label in present if sizes[label] < max(shots)]:
        shown = ", ".join(short[:8]) + (", ..." if len(short) > 8 else "")
        notes.append(f"classes with fewer than {max(shots)} different images give all they have: {shown}")
    names = np.array(cache.classes, dtype=np.str_)
    tests = [RowView(cache.plain_features(layer), parts[split])]
    if average:
        tests = [RowView(cache.features(layer)[:, view], parts[split]) for view in range(cache.views)]
    orders = [shuffled(pool, labels, np.random.default_rng((seed, draw))) for draw in range(draws)]

    def accuracy(order: list[Rows], n: int) -> float:
        rows = np.sort(np.concatenate([of_class[:n] for of_class in order]))
        estimator = HEADS[head]()
        if "random_state" in estimator.get_params():
            estimator.set_params(random_state=seed)
        X = features[rows].astype(np.float32)
        scale = spread_of(X.reshape(len(rows) * views, -1))
        try:
            fit_rows(estimator, X / scale, views, np.arange(len(rows)), names[labels[rows]])
        except ValueError as error:
            raise TrainingError(
                f"The {head} head cannot be trained on {n} images a class of {cache.path}: {error}",
                hint="Check the cache: precompute info CACHE.",
            ) from error
        if average:
            proba = mean_over(lambda view: _of_blocks(estimator.predict_proba, tests[view], scale), len(tests))
            predicted = estimator.classes_[proba.argmax(axis=1)]
        else:
            predicted = _of_blocks(estimator.predict, tests[0], scale)
        return float((predicted == names[labels[parts[split]]]).mean())

    def point(number: int) -> FewShotPoint:
        accuracies = []
        for draw, order in enumerate(orders):
            report(f"fits on {cache.path}", number * draws + draw, len(shots) * draws)
            accuracies.append(accuracy(order, shots[number]))
        return point_of(shots[number], accuracies)

    points = tuple(map(point, range(len(shots))))
    report(f"fits on {cache.path}", len(shots) * draws, len(shots) * draws)
    return FewShotCurve(
        name=Path(cache.path).stem,
        cache=os.fspath(cache.path),
        backbone=str(cache.spec["backbone"]),
        layer=layer,
        head=head,
        n_classes=len(present),
        split=split,
        tested=len(parts[split]),
        points=points,
        notes=tuple(notes),
    )


def _of_blocks(predict: Callable[[NDArray[Any]], NDArray[Any]], rows: RowView, scale: np.float32) -> NDArray[Any]:
    """What `predict` says of all rows, each divided by `scale`."""
    return np.concatenate([predict(block / scale) for _, block in rows.blocks()])


def pool_of(train: Rows, test: Rows, labels: NDArray[np.integer[Any]], groups: NDArray[np.int64]) -> tuple[Rows, int]:
    """The rows to draw from: one of each picture and label, none that is also in `test`; and how many of those."""
    in_test = np.isin(groups[train], groups[test])
    rows = train[~in_test]
    first = np.unique(np.stack([groups[rows], labels[rows]]), axis=1, return_index=True)[1]
    return rows[np.sort(first)], int(in_test.sum())


def shuffled(pool: Rows, labels: NDArray[np.integer[Any]], rng: np.random.Generator) -> list[Rows]:
    """The rows of each class in a random order: its first n are what n shots draw."""
    return [rng.permutation(pool[labels[pool] == label]) for label in np.unique(labels[pool])]


def spread_of(X: NDArray[np.float32]) -> np.float32:
    """Root mean square of the features (n, d) around their means; 1 where nothing varies.

    The features of a deep network with random weights can be as small as 1e-9, and a penalised head would take them for
    nothing.
    """
    spread = np.sqrt(np.mean(np.var(X, axis=0, dtype=np.float64)))
    return np.float32(spread if np.float32(spread) > 0 else 1)


def point_of(shots: int, accuracies: Sequence[float]) -> FewShotPoint:
    """Mean and Student's 95% interval over draws, cut to what an accuracy can be."""
    n, mean = len(accuracies), float(np.mean(accuracies))
    interval = None
    if n > 1:
        half = float(stdtrit(n - 1, 0.975) * np.std(accuracies, ddof=1) / np.sqrt(n))
        interval = (max(0.0, mean - half), min(1.0, mean + half))
    return FewShotPoint(shots, tuple(accuracies), mean, interval)
