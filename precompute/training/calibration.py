"""The temperature of a head, fitted on split val, and what it does to the probabilities."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precompute.heads import evaluate, temperature
from precompute.heads.scoring.temperature import as_logits, scale

Array = NDArray[Any]
FITTED_ON = "val"


@dataclass(frozen=True)
class Calibration:
    """Temperature scaling of one head (Guo et al., ICML 2017).

    temperature: what the logits are divided by, None where no temperature is best, with the reason · applied: whether
    the head's probabilities, and so its scores, are those after it · before, after: log loss and calibration error by
    split. On val itself, which chose the temperature, they are optimistic.
    """

    temperature: float | None
    reason: str | None
    applied: bool
    before: dict[str, dict[str, float]] = field(default_factory=dict)
    after: dict[str, dict[str, float]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**vars(self), "fitted_on": FITTED_ON}


def calibrate(labels: dict[str, Array], proba: dict[str, Array], classes: Array, *, apply: bool) -> Calibration:
    """Fit a temperature on split val, and measure it there and on test. labels (n,), proba (n, K): by split."""
    try:
        T = temperature(as_logits(proba[FITTED_ON]), np.searchsorted(classes, labels[FITTED_ON]))
    except ValueError as error:
        return Calibration(None, str(error), applied=False)
    measured: list[dict[str, dict[str, float]]] = [{}, {}]
    for split, p in proba.items():
        for record, values in zip(measured, (p, scale(p, T)), strict=True):
            scores = evaluate(labels[split], values, classes, replicates=0)
            record[split] = {"log_loss": scores.log_loss, "calibration_error": scores.calibration_error}
    return Calibration(T, None, apply, *measured)


def scaled(proba: Array, calibration: Calibration | None) -> Array:
    """The probabilities that the head gives: at its temperature where that is applied."""
    if calibration is None or not calibration.applied:
        return proba
    return scale(proba, calibration.temperature)
