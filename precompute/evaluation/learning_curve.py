"""How good a head is after a few labelled images of each class or label: the few-shot curve of caches."""

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
from precompute.evaluation.draws import check_sizes, drawn, pool_of, spread_of
from precompute.heads import RowView
from precompute.heads.base.progress import report
from precompute.training.kinds import check_asked, fit_to_layer, head_of_task, make_head
from precompute.training.layers import JoinedCache, lengths_of, with_layers
from precompute.training.relabelling import Relabelling
from precompute.training.scoring import answer, score
from precompute.training.splits import HOLDOUT, digest_groups, parts_of, whole_rows
from precompute.training.targets import (
    AUTO,
    CLASSES,
    LABELS,
    NAMES,
    NUMBER,
    Rows,
    Target,
    check_target,
    same_target,
)
from precompute.training.views import check_views, fit_rows, mean_over, trained_features, view_notes

SHOTS = (1, 2, 5, 10, 20, 50)
NUMBER_SHOTS = (10, 20, 50, 100, 200)  # in all; two are needed for a slope
DRAWS = 5
METRICS = {CLASSES: "accuracy", LABELS: "mean_average_precision", NUMBER: "r2"}
EACH = {CLASSES: "a class", LABELS: "a label", NUMBER: "in all"}


@dataclass(frozen=True)
class FewShotPoint:
    """One number of shots: `shots` images of each class or label, or so many in all for numbers.

    scores: one for each draw, accuracies of classes (see `FewShotCurve.metric` for others) · score: their mean ·
    interval: Student's 95% interval of that mean, over draws of training images; None for a single draw. The test
    images are the same in every draw, so how well these stand for others is not in it.
    """

    shots: int
    scores: tuple[float, ...]
    score: float
    interval: tuple[float, float] | None

    @property
    def accuracies(self) -> tuple[float, ...]:
        return self.scores

    @property
    def accuracy(self) -> float:
        return self.score


@dataclass(frozen=True)
class FewShotCurve:
    """The curve of one cache. name: its file name without suffix · tested: images in split `split` · n_classes: how
    many classes or labels, 0 for numbers · metric: accuracy, mean_average_precision or r2 · chance: the score of
    knowing nothing, None for that of `n_classes` classes that are equally frequent ·
    unit: what the samples are called."""

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
    task: str = CLASSES
    metric: str = METRICS[CLASSES]
    chance: float | None = None
    unit: str = "images"

    @property
    def by_chance(self) -> float:
        return 1 / self.n_classes if self.chance is None else self.chance

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready. The points of classes hold `accuracies` and `accuracy`, others `scores` and `score`."""
        names = {"scores": "accuracies", "score": "accuracy"} if self.task == CLASSES else {}
        points = [{names.get(key, key): value for key, value in asdict(point).items()} for point in self.points]
        return {**asdict(self), "points": points, "chance": self.by_chance}


def few_shot(
    caches: Sequence[str | os.PathLike[str]],
    *,
    shots: Sequence[int] | None = None,
    draws: int = DRAWS,
    head: str | None = None,
    layer: str | Sequence[str] | None = None,
    label_column: str | Sequence[str] | None = None,
    label_separator: str | None = None,
    split_column: str | None = None,
    task: str = AUTO,
    plain_view: bool = False,
    average_views: bool = False,
    seed: int = 0,
    say: Callable[[str], None] | None = None,
) -> list[FewShotCurve]:
    """Fit `head` on `shots` images of each class, `draws` times, and score it on the same images each time.

    Images are drawn from split train and scored on test, or on val where there is no test; without either on a
    stratified hold-out of a fifth. Byte-identical images are never on both sides, and count once among those drawn.
    Draw k of caches that hold the same images has the same images, and larger draws contain the smaller ones. A class
    with too few images contributes all it has, which `notes` report. Features are divided by one number, their spread
    over the images drawn, so that a penalty means the same for every backbone.

    With several labels, `shots` images of each label are drawn, and as many without any; an image with two labels may
    be drawn for either, so there are at least `shots` of each. With numbers, `shots` images are drawn in all. The score
    is accuracy, mean average precision or R2. shots: SHOTS by default, NUMBER_SHOTS for numbers. head: logistic by
    default, ridge for numbers. label_column, label_separator, split_column, task, plain_view, average_views: see
    `train_head`. `say` gets a line
    before each cache.

    Raises UsageError for shots or draws that make no sense, TrainingError where no class has as many images, and what
    `train_head` raises.
    """
    if not caches:
        raise UsageError("few_shot needs one cache or more.", hint="For example: precompute few-shot photos.h5")
    for name, value in (*(("shots", number) for number in shots or ()), ("draws", draws)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UsageError(
                f"{name} must be whole numbers of at least 1. Got {value!r} instead.", hint=f"See --{name}."
            )
    if shots is not None and not shots:
        raise UsageError("shots must hold one number or more.", hint="For example --shots 1,5,20.")
    check_asked(head, {}, search=False)
    relabelling = Relabelling.of(label_column, split_column, task=task, separator=label_separator)
    curves = []
    first: tuple[Cache, Target] | None = None
    for path in caches:
        cache, target, notes = relabelling.apply(open_cache(path))
        numbers = sorted(set(shots or (NUMBER_SHOTS if target.task == NUMBER else SHOTS)))
        if say is not None:
            say(f"{os.fspath(path)}: {len(numbers)} numbers of shots, {draws} draws each")
        if first is not None and not _same_images(first, (cache, target)):
            notes = [*notes, f"holds other {cache.words.plural} than {first[0].path}"]
        first = first or (cache, target)
        if target.task != first[1].task:
            raise UsageError(
                f"{first[0].path} predicts {NAMES[first[1].task]} and {cache.path} {NAMES[target.task]}, so their "
                "curves cannot be compared.",
                hint="Give caches of one task, or set it with --task.",
            )
        cache, own, pooled = with_layers(cache, layer)
        name = head_of_task(head, target.task, several=isinstance(cache, JoinedCache))
        notes = [*notes, *pooled]
        curves.append(
            _curve(
                *(cache, target, numbers, draws, name, own, seed, notes), plain_view=plain_view, average=average_views
            )
        )
    return curves


def _same_images(one: tuple[Cache, Target], other: tuple[Cache, Target]) -> bool:
    return same_target(one[1], other[1]) and all(
        np.array_equal(one[0].column(name), other[0].column(name)) for name in ("samples/id", "samples/digest")
    )


def _curve(
    cache: Cache,
    target: Target,
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
    parts, more = parts_of(cache, whole_rows(cache, layer), seed, target=target)
    notes = [*notes, *view_notes(cache, views, average=average), *more]
    notes += check_target(target, parts, cache.path, cache.words)
    unit = cache.words.plural
    split = next(name for name in ("test", "val", HOLDOUT) if name in parts)
    groups = digest_groups(cache)
    pool, leaked = pool_of(parts["train"], parts[split], target.codes(np.arange(len(cache))), groups)
    if not len(pool):
        raise TrainingError(
            f"All training {unit} of {cache.path} are byte-identical to {unit} of {split}.", hint="Add others."
        )
    check_target(target, {"train": pool, split: parts[split]}, cache.path, cache.words)
    if leaked:
        notes.append(f"{leaked} training {unit} are byte-identical to {unit} of {split} and are never drawn")
    notes += check_sizes(cache.path, target, pool, shots, unit)
    true = target.of(parts[split])
    tests = [RowView(cache.plain_features(layer), parts[split])]
    if average:
        tests = [RowView(cache.features(layer)[:, view], parts[split]) for view in range(cache.views)]
    orders = [drawn(pool, target, np.random.default_rng((seed, draw))) for draw in range(draws)]

    def of_draw(order: list[Rows], n: int) -> float:
        rows = np.unique(np.concatenate([of_class[:n] for of_class in order]))
        estimator = make_head(head, {}, seed=seed, task=target.task)
        fit_to_layer(estimator, cache, layer)
        X = features[rows].astype(np.float32)
        scale = _scale_of(cache, X.reshape(len(rows) * views, -1))
        options: dict[str, Any] = {"label_names": target.names} if target.task == LABELS else {}
        try:
            fit_rows(estimator, X / scale, views, np.arange(len(rows)), target.of(rows), **options)
        except ValueError as error:
            raise TrainingError(
                f"The {head} head cannot be trained on {n} {unit} {EACH[target.task]} of {cache.path}: {error}",
                hint="Check the cache: precompute info CACHE.",
            ) from error
        if target.task == CLASSES and not average:
            return float((_of_blocks(estimator.predict, tests[0], scale) == true).mean())
        answers = mean_over(
            lambda view: _of_blocks(lambda block: answer(estimator, block, target.task), tests[view], scale), len(tests)
        )
        if target.task == CLASSES:
            return float((estimator.classes_[answers.argmax(axis=1)] == true).mean())
        found = getattr(score(estimator, target.task, true, answers, None, replicates=0), METRICS[target.task])
        if found is None:
            raise TrainingError(
                f"The {METRICS[target.task]} of {split} in {cache.path} is not defined.", hint=f"Add {unit} to it."
            )
        return float(found)

    def point(number: int) -> FewShotPoint:
        scores = []
        for draw, order in enumerate(orders):
            report(f"fits on {cache.path}", number * draws + draw, len(shots) * draws)
            scores.append(of_draw(order, shots[number]))
        return point_of(shots[number], scores, least=-np.inf if target.task == NUMBER else 0.0)

    points = tuple(map(point, range(len(shots))))
    report(f"fits on {cache.path}", len(shots) * draws, len(shots) * draws)
    return FewShotCurve(
        name=Path(cache.path).stem,
        cache=os.fspath(cache.path),
        backbone=str(cache.spec["backbone"]),
        layer=layer,
        head=head,
        n_classes=len(np.unique(target.values[pool])) if target.task == CLASSES else len(target.names),
        split=split,
        tested=len(parts[split]),
        points=points,
        notes=tuple(notes),
        task=target.task,
        metric=METRICS[target.task],
        chance=_by_chance(target.task, true),
        unit=unit,
    )


def _by_chance(task: str, true: NDArray[Any]) -> float | None:
    """What knowing nothing scores: the mean share of the labels that stand among the tested; the mean for numbers."""
    if task == LABELS:
        shares = true.mean(axis=0)
        return float(shares[shares > 0].mean()) if shares.any() else 0.0
    return 0.0 if task == NUMBER else None


def _scale_of(cache: Cache, X: NDArray[np.float32]) -> Any:
    """What features (n, d) are divided by: their spread, a number; of several layers each layer's own, (d,)."""
    if not isinstance(cache, JoinedCache):
        return spread_of(X)
    widths = [one.width for one in cache.inputs]
    lengths = np.array(lengths_of(np.var(X, axis=0, dtype=np.float64), cache.inputs))
    return np.repeat(lengths * np.sqrt(len(widths) / sum(widths)), widths).astype(np.float32)


def _of_blocks(predict: Callable[[NDArray[Any]], NDArray[Any]], rows: RowView, scale: Any) -> NDArray[Any]:
    """What `predict` says of all rows, each divided by `scale`."""
    return np.concatenate([predict(block / scale) for _, block in rows.blocks()])


def point_of(shots: int, scores: Sequence[float], *, least: float = 0.0) -> FewShotPoint:
    """Mean and Student's 95% interval over draws, cut to what a score can be, `least` to 1."""
    n, mean = len(scores), float(np.mean(scores))
    interval = None
    if n > 1:
        half = float(stdtrit(n - 1, 0.975) * np.std(scores, ddof=1) / np.sqrt(n))
        interval = (max(least, mean - half), min(1.0, mean + half))
    return FewShotPoint(shots, tuple(scores), mean, interval)
