"""The regularisation path that C is chosen on: fits from the smallest C to the largest, each from the one before."""

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
from precompute.heads.scoring.metrics import log_losses

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from precompute.heads.linear.design import Design
    from precompute.heads.linear.solver import Fit

    Array = npt.NDArray[Any]

__all__ = ["Split", "best_of", "regularisation_path"]

RISING = 6  # values in a row with a higher log loss than the one before end the choice: it would only rise further
COARSE = 4  # with a time budget every fourth value comes first, and then those between


@dataclass
class Split:
    """One split: `weight` (n,) is 0 for the rows that are `held_out` (n,); `theta` is the latest fit.

    scored: (n,) what a row held out counts in the scores; None for equal counts.
    """

    weight: Array
    held_out: Array
    theta: Array | None = None
    scored: Array | None = None


def regularisation_path(
    design: Design,
    label: Array,
    splits: Sequence[Split],
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

    Each fit starts from that of the C before (a warm start). The splits are fitted at the same time, by `n_jobs`
    threads that share the features: the work is in products of matrices, which release the lock.
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
            for split in splits:
                if previous > C:
                    split.theta = None
            previous = C
            results = run(
                delayed(_fit_and_score)(design, label, split, n_classes, C, tol, max_iter) for split in splits
            )
            hits, loss, scored = np.sum([sums for _, *sums in results], axis=0)
            trials.append(
                {
                    "C": C,
                    "accuracy": float(hits / scored),
                    "log_loss": float(loss / scored),
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


def _fit_and_score(
    design: Design, label: Array, split: Split, n_classes: int, C: float, tol: float, max_iter: int
) -> tuple[Fit, float, float, float]:
    """The fit, and over the rows held out: how many it gets right, the sum of their log losses, how many they are.

    Each counts as `split.scored` says.
    """
    objective = Objective(design, label, split.weight, n_classes, C)
    fit = minimise(objective, split.theta, tol=tol, max_iter=max_iter)
    split.theta = fit.theta
    scored = np.ones(len(label)) if split.scored is None else split.scored
    hits, loss = 0.0, 0.0
    for rows, block in design.blocks(objective.outputs):
        held_out = split.held_out[rows]
        if not held_out.any():
            continue
        truth = label[rows][held_out]
        proba = probabilities(block[held_out] @ fit.theta[:-1] + fit.theta[-1])
        counted = scored[rows][held_out]
        hits += float(counted @ (proba.argmax(axis=1) == truth))
        loss += float(counted @ log_losses(proba, truth))
    return fit, hits, loss, float(scored[split.held_out].sum())
