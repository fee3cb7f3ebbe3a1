"""A fitted head on images it has not seen: its scores, with and without what they share with the training images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precompute.cache import Cache
from precompute.errors import TrainingError
from precompute.heads import Scores, evaluate
from precompute.training.calibration import FITTED_ON, Calibration, calibrate, scaled
from precompute.training.leaks import Leaks, find_leaks, leak_notes, two_labels
from precompute.training.splits import HOLDOUT, Rows
from precompute.training.views import predicted


@dataclass(frozen=True)
class Scored:
    """By split, as `Training` tells them; notes: what the reader should know."""

    scores: dict[str, Scores]
    leaks: dict[str, Leaks]
    without_leaks: dict[str, Scores]
    two_labels: list[list[str]]
    calibration: Calibration | None
    notes: list[str]


def score_head(
    estimator: Any,
    cache: Cache,
    layer: str,
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
    notes: list[str] = []
    names, labels = np.array(cache.classes, dtype=np.str_), cache.labels
    splits = [split for split in ("val", "test", HOLDOUT) if split in parts]
    true = {split: names[labels[parts[split]]] for split in splits}
    raw = {split: predicted(estimator.predict_proba, cache, layer, parts[split], average=average) for split in splits}
    calibration = calibrate(true, raw, estimator.classes_, apply=calibrated) if FITTED_ON in splits else None
    if calibrated and calibration:
        why = calibration.reason
        notes.append(
            f"not calibrated: {why}" if why else "val chose the temperature: its log loss and calibration flatter"
        )
    proba = {split: scaled(p, calibration) for split, p in raw.items()}
    leaks = find_leaks(cache, layer, parts, digests, together, similarity)
    doubtful = two_labels(cache, np.concatenate(list(parts.values())), digests)
    notes += leak_notes(leaks, doubtful)

    def score(split: str, chosen: NDArray[np.bool_]) -> Scores:
        observed = together[parts[split]][chosen]
        try:
            return evaluate(true[split][chosen], proba[split][chosen], estimator.classes_, groups=observed)
        except ValueError as error:
            raise TrainingError(
                f"The {type(estimator).__name__} cannot be scored on {split}: {error}",
                hint="Train it with other settings.",
            ) from error

    return Scored(
        scores={split: score(split, np.ones(len(parts[split]), bool)) for split in splits},
        leaks={split: leaks[split] for split in splits},
        without_leaks={
            split: score(split, leaks[split].clean) for split in splits if 0 < leaks[split].left < len(parts[split])
        },
        two_labels=doubtful,
        calibration=calibration,
        notes=notes,
    )
