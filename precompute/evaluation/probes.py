"""How much a small head learns from features, by cross-validation: answers for each sample from a head that never saw
it, its score with an interval, and whether two sets of features differ on the same samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from precompute.errors import TrainingError
from precompute.evaluation.draws import spread_of
from precompute.heads import (
    Paired,
    PairedScores,
    evaluate_labels,
    evaluate_numbers,
    folds,
    paired,
    paired_labels,
    paired_numbers,
)
from precompute.heads.scoring.bootstrap import intervals
from precompute.training.kinds import make_head
from precompute.training.scoring import answer
from precompute.training.targets import CLASSES, LABELS, NUMBER, Rows, Target

FOLDS = 5
INNER_FOLDS = 3  # that choose C within the training part of each fold
PROBE_C = (
    1e-4,
    1e-3,
    1e-2,
    1e-1,
    1.0,
)  # of features whose variances add up to their number; 45 values take ten times as long
KNN = "knn"
PROBE = {CLASSES: "logistic", LABELS: "logistic", NUMBER: "ridge"}
LEVEL = 0.05

Fold = tuple[NDArray[np.intp], NDArray[np.intp]]
Interval = tuple[float, float]


@dataclass(frozen=True, eq=False)
class Trial:
    """Samples that every set of features is tried on.

    target: of them, (n,) · groups: (n,) what no fold parts: identical files, and what the user says · splits: pairs
    (train, test) of positions, whose test parts together hold every sample once · seed: of heads and bootstrap.
    """

    target: Target
    groups: NDArray[np.int64]
    splits: list[Fold]
    seed: int

    @classmethod
    def of(cls, target: Target, groups: NDArray[np.int64], *, where: str, seed: int) -> Trial:
        """Raises TrainingError for samples that cannot be divided: where are they from?"""
        rows = np.arange(len(groups))
        splits = folds(target.strata(rows, groups), groups=groups, n_folds=FOLDS, seed=seed) if len(rows) else []
        if not splits:
            raise TrainingError(
                f"The sample of {where} cannot be divided for a cross-validation: it takes two classes with two "
                "different images (or groups) each.",
                hint="Use more images by -n, or add images.",
            )
        return cls(target, groups, splits, seed)

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def true(self) -> NDArray[Any]:
        """What is scored with: places in `target.names` (n,), 0 and 1 (n, L), or numbers (n,)."""
        return self.target.values

    def answers(self, features: NDArray[np.floating], kind: str) -> NDArray[Any]:
        """What heads of `kind` say of each sample that they were not fitted on.

        features: (n, *shape). Places in `target.names` (n,), probabilities (n, L) or numbers (n,), in the order of the
        samples. Features are divided by their spread over the training part. Raises TrainingError.
        """
        X = np.ascontiguousarray(features.reshape(len(self), -1), dtype=np.float32)
        found: NDArray[Any] = np.empty(self.true.shape, np.int64 if self.target.task == CLASSES else np.float64)
        for train, test in self.splits:
            found[test] = self._fold(X, train, test, kind)
        return found

    def _fold(self, X: NDArray[np.float32], train: Rows, test: Rows, kind: str) -> NDArray[Any]:
        task = self.target.task
        settings = {"C": PROBE_C, "cv": INNER_FOLDS} if kind == "logistic" else {}
        head = make_head(kind, settings, seed=self.seed, task=task)
        scale = spread_of(X[train])
        options: dict[str, Any] = {"label_names": self.target.names} if task == LABELS else {}
        try:
            head.fit(X[train] / scale, self.true[train], groups=self.groups[train], **options)
        except ValueError as error:
            raise TrainingError(
                f"A {kind} head cannot be fitted on {len(train)} samples: {error}", hint="Use more images by -n."
            ) from error
        said = X[test] / scale
        return np.asarray(head.predict(said) if task == CLASSES else answer(head, said, task))

    def score(self, answers: NDArray[Any]) -> tuple[float, Interval]:
        """Accuracy, mean average precision or R2 of `answers`, and its 95% interval over resamplings of the samples.

        Raises TrainingError where it is not defined.
        """
        options: dict[str, Any] = {"groups": self.groups, "seed": self.seed}
        if self.target.task == CLASSES:
            right = (answers == self.true).astype(np.float64)
            return float(right.mean()), intervals(
                lambda weights: {"": right @ weights / weights.sum(axis=0)}, len(self), **options
            )[""]
        if self.target.task == LABELS:
            names = np.array(self.target.names)
            half = np.full(len(names), 0.5)
            found: Any = evaluate_labels(self.true, answers, names, thresholds=half, groups=self.groups)
            value, name = found.mean_average_precision, "mean_average_precision"
        else:
            found = evaluate_numbers(self.true, answers, groups=self.groups)
            value, name = found.r2, "r2"
        ends = found.intervals.get(name)
        if value is None or ends is None:
            raise TrainingError(f"The {name} of the sample is not defined.", hint="Use more images by -n.")
        return float(value), ends

    def paired(self, one: NDArray[Any], other: NDArray[Any]) -> Paired | PairedScores:
        """Whether answers differ by more than chance: classes by McNemar's test, others by a paired bootstrap."""
        options: dict[str, Any] = {"groups": self.groups, "seed": self.seed}
        if self.target.task == CLASSES:
            return paired(one == self.true, other == self.true, **options)
        if self.target.task == LABELS:
            return paired_labels(self.true, one, other, **options)
        return paired_numbers(self.true, one, other, **options)


class Compared(Protocol):
    """A difference, and whether it is more than chance; `higher_is_better` is True where it is not said."""

    @property
    def difference(self) -> float: ...
    @property
    def p_value(self) -> float: ...
    @property
    def distinct(self) -> bool: ...


def separated(found: Sequence[Compared]) -> list[bool]:
    """Which of several comparisons with one leader, each `leader less other`, the leader wins by more than chance.

    Holm's procedure (Scandinavian Journal of Statistics 6, 1979): with many candidates one would else be below 0.05 by
    chance alone.
    """
    order = np.argsort([one.p_value for one in found], kind="stable").tolist()
    won = [False] * len(found)
    for rank, place in enumerate(order):
        one = found[place]
        if one.p_value > LEVEL / (len(found) - rank):
            break
        better = (one.difference > 0) == getattr(one, "higher_is_better", True)
        won[place] = one.distinct and better
    return won
