"""The choice of C: one fit for each value and part, from the smallest C to the largest, scored on what was held out."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from joblib import Parallel, delayed

from precompute.heads.linear.model import probabilities
from precompute.heads.linear.objective import Objective
from precompute.heads.linear.solver import minimise

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from precompute.heads.linear.design import Design
    from precompute.heads.linear.solver import Fit

    Array = npt.NDArray[Any]

__all__ = ["Part", "best_of", "walk"]

RISING = 6  # values in a row with a higher log loss than the one before end the choice: it would only rise further
COARSE = 4  # with a time budget every fourth value comes first, and then those between


@dataclass
class Part:
    """One split: `weight` (n,) is 0 for the rows that are `held` (n,) out; `theta` is the latest fit."""

    weight: Array
    held: Array
    theta: Array | None = None


def walk(
    design: Design,
    label: Array,
    parts: Sequence[Part],
    values: Sequence[float],
    *,
    n_classes: int,
    tol: float,
    max_iter: int,
    n_jobs: int | None,
    time_budget: float | None,
    stop_rising: bool,
) -> tuple[list[dict[str, float]], bool]:
    """A trial for each value of C that was tried, in rising order, and whether time ran out before the last.

    stop_rising: end after RISING values of ever higher log loss; not with a time budget, whose order is another.

    Each fit starts from that of the C before. The parts are fitted at the same time, by `n_jobs` threads that share the
    features: the work is in products of matrices, which release the lock.
    """
    order = sorted(set(values))
    if time_budget is not None:
        order = order[::COARSE] + [C for number, C in enumerate(order) if number % COARSE]
    trials: list[dict[str, float]] = []
    began = time.monotonic()
    previous = np.inf
    with Parallel(n_jobs=n_jobs, require="sharedmem") as run:
        for C in order:
            start = time.monotonic()
            for part in parts:
                if previous > C:
                    part.theta = None
            previous = C
            results = run(delayed(_try)(design, label, part, n_classes, C, tol, max_iter) for part in parts)
            hits, loss, held = np.sum([sums for _, *sums in results], axis=0)
            trials.append(
                {
                    "C": C,
                    "accuracy": float(hits / held),
                    "log_loss": float(loss / held),
                    "n_iter": sum(fit.n_iter for fit, *_ in results),
                    "objective": float(np.mean([fit.value for fit, *_ in results])),
                    "seconds": time.monotonic() - start,
                }
            )
            if time_budget is not None and time.monotonic() - began > time_budget:
                return sorted(trials, key=lambda trial: trial["C"]), len(trials) < len(order)
            if stop_rising and _only_rises(trials):
                break
    return sorted(trials, key=lambda trial: trial["C"]), False


def _only_rises(trials: Sequence[dict[str, float]]) -> bool:
    """Whether each of the last RISING trials has a higher log loss than the one before it."""
    last = [trial["log_loss"] for trial in trials[-RISING - 1 :]]
    return len(last) > RISING and all(one < other for one, other in pairwise(last))


def best_of(trials: Sequence[dict[str, float]], by: str) -> float:
    """The C with the lowest log loss or the highest accuracy; of equal ones the smaller."""
    sign = 1 if by == "log_loss" else -1
    return min(trials, key=lambda trial: (sign * trial[by], trial["C"]))["C"]


def _try(
    design: Design, label: Array, part: Part, n_classes: int, C: float, tol: float, max_iter: int
) -> tuple[Fit, int, float, int]:
    """The fit, and over the rows held out: how many it gets right, the sum of their log losses, how many they are."""
    objective = Objective(design, label, part.weight, n_classes, C)
    fit = minimise(objective, part.theta, tol=tol, max_iter=max_iter)
    part.theta = fit.theta
    hits, loss = 0, 0.0
    for place, block in design.blocks(objective.outputs):
        rows = part.held[place]
        if not rows.any():
            continue
        truth = label[place][rows]
        proba = probabilities(block[rows] @ fit.theta[:-1] + fit.theta[-1])
        hits += int((proba.argmax(axis=1) == truth).sum())
        likelihood = proba[np.arange(len(truth)), truth].astype(np.float64)
        loss -= float(np.log(np.clip(likelihood, np.finfo(proba.dtype).eps, 1)).sum())
    return fit, hits, loss, int(part.held.sum())
