"""A fitted head on images it has not seen: its scores, with and without what they share with the training images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from precompute.cache import Cache
from precompute.errors import TrainingError
from precompute.heads import (
    LabelScores,
    NumberScores,
    RowView,
    Scores,
    evaluate,
    evaluate_labels,
    evaluate_numbers,
)
from precompute.heads.scoring.bootstrap import REPLICATES
from precompute.training.calibration import FITTED_ON, Calibration, calibrate, scaled
from precompute.training.leaks import Leaks, find_leaks, leak_notes, two_labels
from precompute.training.splits import HOLDOUT
from precompute.training.targets import CLASSES, LABELS, NUMBER, Rows, Target
from precompute.training.views import predicted

AnyScores: TypeAlias = Scores | LabelScores | NumberScores
SCORED = ("val", "test", HOLDOUT)


@dataclass(frozen=True)
class Scored:
    """By split, as `Training` has them; notes: what the reader should know."""

    scores: dict[str, Any]
    leaks: dict[str, Leaks]
    without_leaks: dict[str, Any]
    two_labels: list[list[str]]
    calibration: Calibration | None
    notes: list[str]


def answer(estimator: Any, X: Any, task: str) -> NDArray[np.floating]:
    """What a head says of features (n, d): probabilities (n, K) of classes or (n, L) of labels, or numbers (n,)."""
    found: NDArray[np.floating] = estimator.predict(X) if task == NUMBER else estimator.predict_proba(X)
    return found


def score(
    estimator: Any,
    task: str,
    true: NDArray[Any],
    answers: NDArray[np.floating],
    groups: NDArray[np.int64] | None,
    *,
    replicates: int = REPLICATES,
) -> AnyScores:
    """The scores of `answers` to what is `true`, as `Target.of` and `answer` give them.

    groups: (n,) what is one observation · replicates: of the bootstrap, 0 for no intervals.
    Raises ValueError for answers that are no numbers.
    """
    if task == NUMBER:
        return evaluate_numbers(true, answers, groups=groups, replicates=replicates)
    if task == LABELS:
        names, thresholds = estimator.labels_, estimator.thresholds_
        return evaluate_labels(true, answers, names, thresholds=thresholds, groups=groups, replicates=replicates)
    return evaluate(true, answers, estimator.classes_, groups=groups, replicates=replicates)


def score_head(
    estimator: Any,
    cache: Cache,
    layer: str,
    target: Target,
    parts: dict[str, Rows],
    digests: NDArray[np.int64],
    together: NDArray[np.int64],
    *,
    calibrated: bool,
    similarity: float | None,
    average: bool = False,
) -> Scored:
    """Score a fitted head on every split of `parts` but train, all of which it was trained on.

    digests, together: (N,) the same number for identical files, and for what must stay together · similarity: see
    `find_leaks` · calibrated: score the probabilities at the temperature that fits val · average: over the views.
    Raises TrainingError for a head whose probabilities are no numbers.
    """

    def said(X: RowView) -> NDArray[np.floating]:
        return answer(estimator, X, target.task)

    splits = [split for split in SCORED if split in parts]
    raw = {split: predicted(said, cache, layer, parts[split], average=average) for split in splits}
    features = cache.plain_features(layer)
    return score_answers(
        *(estimator, raw, cache, features, target, parts, digests, together),
        calibrated=calibrated,
        similarity=similarity,
    )


def score_answers(
    estimator: Any,
    raw: dict[str, NDArray[np.floating]],
    cache: Cache,
    features: Any,
    target: Target,
    parts: dict[str, Rows],
    digests: NDArray[np.int64],
    together: NDArray[np.int64],
    *,
    calibrated: bool,
    similarity: float | None,
) -> Scored:
    """`score_head` for what a head has said already, by split: as `answer` gives it, for the rows of `parts`.

    features: (N, ...) by which near-duplicates are found.
    """
    notes: list[str] = []
    task = target.task
    splits = [split for split in SCORED if split in parts]
    true = {split: target.of(parts[split]) for split in splits}
    can_calibrate = task == CLASSES and FITTED_ON in splits
    calibration = calibrate(true, raw, estimator.classes_, apply=calibrated) if can_calibrate else None
    if calibrated and calibration:
        why = calibration.reason
        notes.append(
            f"not calibrated: {why}"
            if why
            else "val chose the temperature: its log loss and calibration are optimistic"
        )
    answers = {split: scaled(p, calibration) for split, p in raw.items()}
    leaks = find_leaks(cache, None, parts, digests, together, similarity, target, features)
    doubtful = two_labels(cache, target, np.concatenate(list(parts.values())), digests)
    notes += leak_notes(leaks, doubtful, task, cache.words)

    def scored(split: str, chosen: NDArray[np.bool_]) -> AnyScores:
        observed = together[parts[split]][chosen]
        try:
            return score(estimator, task, true[split][chosen], answers[split][chosen], observed)
        except ValueError as error:
            raise TrainingError(
                f"The {type(estimator).__name__} cannot be scored on {split}: {error}",
                hint="Train it with other settings.",
            ) from error

    return Scored(
        scores={split: scored(split, np.ones(len(parts[split]), bool)) for split in splits},
        leaks={split: leaks[split] for split in splits},
        without_leaks={
            split: scored(split, leaks[split].clean) for split in splits if 0 < leaks[split].left < len(parts[split])
        },
        two_labels=doubtful,
        calibration=calibration,
        notes=notes,
    )
