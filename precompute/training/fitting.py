"""A head is fitted on the training part, and what its split val may choose is chosen: C, when to stop, thresholds."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precompute.cache import Cache, Features
from precompute.errors import TrainingError
from precompute.heads import (
    LogisticHead,
    MLPSearch,
    MultilabelLogisticHead,
    RowView,
    SelectedHead,
    choose_thresholds,
)
from precompute.training.targets import LABELS, Rows, Target
from precompute.training.views import fit_rows, predicted

DEFAULT_THRESHOLDS = (
    "a label is predicted above the probability 0.5: thresholds are chosen on val where there is a test split too"
)


CHOSEN = {"selected": ("the fraction and C", "pair")}  # by kind, where it is not C alone


@dataclass(frozen=True)
class Fitted:
    """estimator: what is scored and saved · parts: without val where that was trained on · rows: see `Training`."""

    estimator: Any
    parts: dict[str, Rows]
    rows: dict[str, int]
    choices: dict[str, Any]
    used_validation: bool
    notes: list[str]
    seconds: float


@dataclass(frozen=True)
class Seen:
    """What a head sees of a cache. features, views: what it is fitted on · average: predict by the mean over views."""

    cache: Cache
    layer: str
    features: Features
    views: int
    average: bool


def fit_head(
    kind: str,
    estimator: Any,
    seen: Seen,
    target: Target,
    parts: dict[str, Rows],
    together: NDArray[np.int64],
    selection: str | None,
) -> Fitted:
    """Fit on train. selection: the split that chooses, None where nothing may.

    Raises TrainingError for settings or labels that the head cannot be fitted with.
    """
    trains_on_val = isinstance(estimator, LogisticHead | MultilabelLogisticHead | SelectedHead)
    # Thresholds are chosen on what was not trained on, so there C is chosen inside train.
    given = None if trains_on_val and target.task == LABELS else selection
    train, validation = parts["train"], None
    if given:
        validation = (RowView(seen.cache.plain_features(seen.layer), parts[given]), target.of(parts[given]))
    options: dict[str, Any] = {"label_names": target.names} if target.task == LABELS else {}
    began = time.monotonic()
    try:
        fit_rows(
            *(estimator, seen.features, seen.views, train, target.of(train)),
            groups=together[train],
            validation=validation,
            **options,
        )
    except ValueError as error:
        raise TrainingError(
            f"The {kind} head cannot be trained: {error}",
            hint="Check the settings and the cache: precompute info CACHE.",
        ) from error
    seconds = time.monotonic() - began
    rows, notes, left = {split: len(found) for split, found in parts.items()}, [], dict(parts)
    used_validation = estimator.used_validation()
    if target.task == LABELS:
        notes.append(_set_thresholds(estimator, seen, target, parts[selection]) if selection else DEFAULT_THRESHOLDS)
    choices = estimator.choices()
    if isinstance(estimator, MLPSearch):
        estimator = estimator.best_estimator_
    if used_validation and trains_on_val:
        left["train"] = np.union1d(left["train"], left.pop("val"))
        chose, trial = CHOSEN.get(kind, ("C", "C"))
        notes.append(
            f"val chose {chose} and was then trained on as well, so it has no score; choices hold that of each {trial}"
        )
    chosen = used_validation or (target.task == LABELS and selection is not None)
    return Fitted(estimator, left, rows, choices, chosen, notes, seconds)


def _set_thresholds(estimator: Any, seen: Seen, target: Target, rows: Rows) -> str:
    """Take those of the best F1 on these samples, and a note about it."""
    proba = predicted(estimator.predict_proba, seen.cache, seen.layer, rows, average=seen.average)
    estimator.set_thresholds(choose_thresholds(target.of(rows), proba))
    return "val chose the threshold of each label, by its F1"
