"""The regularisation path that C is chosen on: fits from the smallest C to the largest, each from the one before."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from precompute.heads.base.progress import report
from precompute.heads.linear.metric import metrics_at_once
from precompute.heads.linear.model import probabilities
from precompute.heads.linear.objective import Objective, fits_at_once
from precompute.heads.linear.passes import Found, Pass, together
from precompute.heads.linear.solver import minimise
from precompute.heads.scoring.metrics import log_losses

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from precompute.heads.base.arrays import Array as OnDevice
    from precompute.heads.linear.design import Design
    from precompute.heads.linear.passes import Steps
    from precompute.heads.linear.solver import Fit

    Array = npt.NDArray[Any]

__all__ = ["Problem", "Split", "best_of", "in_step", "regularisation_path"]

RISING = 6  # values in a row with a higher log loss than the one before end the choice: it would only rise further
LOOSE = 1e-4  # of the objective, instead of `tol`, for values of C that turn out to be far from the best
FINE = 1e-6  # the same for values near it: what a fit gains after that moves no score
NEAR = 2e-3  # of the log loss, or of all samples held out: within that of the best, values are solved to FINE
FEW = 3  # samples held out: an accuracy within so many is near as well, since a loose fit may get another few right
SMALL = 10**7  # operations of a pass: below, a loose fit saves nothing, and a few samples more decide the choice
COARSE = 4  # with a time budget every fourth value comes first, and then those between


@dataclass(frozen=True)
class Split:
    """One split: `weight` (n,) is 0 for the rows that are `held_out` (n,).

    scored: (n,) what a row held out counts in the scores; None for equal counts.
    """

    weight: Array
    held_out: Array
    scored: Array | None = None


@dataclass(frozen=True)
class Problem:
    """What is fitted for one value of C: `label` (n,) of `n_classes` classes, on the rows that `split` leaves."""

    label: Array
    n_classes: int
    split: Split

    @property
    def outputs(self) -> int:
        """Columns of its coefficients."""
        return 1 if self.n_classes == 2 else self.n_classes


def in_step(design: Design, problems: Sequence[Problem], start: Callable[[int, int], Steps[Found]]) -> list[Found]:
    """What the fits of all `problems` return, as many of them in step as memory holds the logits of.

    start: takes a problem's number, and how many go on at the same time.
    """
    outputs = problems[0].outputs
    at_once = max(1, min(fits_at_once(design, outputs), metrics_at_once(design, outputs)))
    found: list[Found] = []
    for first in range(0, len(problems), at_once):
        chosen = range(first, min(first + at_once, len(problems)))
        found += together(design, [start(number, len(chosen)) for number in chosen])
    return found


def regularisation_path(
    design: Design,
    problems: Sequence[Problem],
    values: Sequence[float],
    *,
    n_splits: int,
    choose_by: str,
    tol: float,
    max_iter: int,
    time_budget: float | None,
    whole: bool,
    rising: int = RISING,
) -> tuple[list[dict[str, float]], bool]:
    """A trial for each value of C that was tried, in rising order, and whether time ran out before the last.

    Each fit starts from that of the C before (a warm start). The problems, one for each split (and label), are fitted
    in step, so that the features are read once for all of them, or for as many as memory holds the logits of. A trial's
    scores are over the rows that all of them hold out.

    whole: try every value, and solve each to the end. Without it the path ends after `rising` values that are worse and
    worse, where no later value can be expected to be chosen (`_only_worse`); and where a fit takes long, values are
    solved to LOOSE at first, and then those that are NEAR the best to FINE: the choice is between these.
    """
    order = sorted(set(values))
    if time_budget is not None:
        order = order[::COARSE] + [C for number, C in enumerate(order) if number % COARSE]
    trials: list[dict[str, float]] = []
    began = time.monotonic()
    previous = np.inf
    width = max(problems[0].n_classes, len(problems) // n_splits)
    loose = tol if whole or 4 * math.prod(design.shape) * width < SMALL else max(tol, LOOSE)
    margin = max(NEAR, FEW / sum(np.count_nonzero(problem.split.held_out) for problem in problems))
    near: dict[float, list[OnDevice]] = {}  # by C the fits that may have to be solved to the end

    def solve(C: float, starts: Sequence[OnDevice | None], tol: float) -> tuple[dict[str, float], list[OnDevice]]:
        began = time.monotonic()

        def fit(number: int, fits: int) -> Steps[tuple[Fit, float, float, float]]:
            one = problems[number]
            objective = Objective(design, one.label, one.split.weight, one.n_classes, C, fits=fits)
            return _fit_and_score(objective, one.split, starts[number], tol, max_iter)

        results = in_step(design, problems, fit)
        hits, loss, scored = np.sum([sums for _, *sums in results], axis=0)
        trial = {
            "C": C,
            "accuracy": float(hits / scored),
            "log_loss": float(loss / scored),
            "n_iter": sum(fit.n_iter for fit, *_ in results),
            "objective": sum(fit.value for fit, *_ in results) / n_splits,
            "seconds": time.monotonic() - began,
        }
        return trial, [fit.theta for fit, *_ in results]

    thetas: Sequence[OnDevice | None] = [None] * len(problems)
    for number, C in enumerate(order):
        report("values of C", number, len(order), _best_so_far(trials, choose_by))
        if previous > C:
            thetas = [None] * len(problems)
        previous = C
        trial, thetas = solve(C, thetas, loose)
        trials.append(trial)
        if time_budget is not None and time.monotonic() - began > time_budget:
            return sorted(trials, key=lambda trial: trial["C"]), len(trials) < len(order)
        if not whole:
            near[C] = thetas
            kept = [one["C"] for one in trials if _is_near(one, trials, choose_by, margin)]
            near = {C: near[C] for C in kept if C in near}
            if _only_worse(trials, choose_by, margin, rising):
                break
    exact: set[float] = set()
    while loose > tol and len(exact) < len(trials):
        # The best of those solved to the end is chosen once no other value comes near it: solved loosely, a value
        # may look better than it is, as a fit that stops early is held back by that as by a penalty.
        rivals = [trial for trial in trials if trial["C"] in exact] or trials
        rough = _best([trial for trial in trials if trial["C"] not in exact], choose_by)
        if not _is_near(rough, rivals, choose_by, margin):
            break
        C = rough["C"]
        report("values of C, solved finely", len(exact), len(trials), _best_so_far(rivals, choose_by))
        exact.add(C)
        again, _ = solve(C, near.get(C, [None] * len(problems)), max(tol, FINE))
        again["n_iter"] += rough["n_iter"]
        again["seconds"] += rough["seconds"]
        trials[trials.index(rough)] = again
    report("values of C", len(order), len(order), _best_so_far(trials, choose_by))
    return sorted(trials, key=lambda trial: trial["C"]), False


def _best_so_far(trials: Sequence[dict[str, float]], by: str) -> str:
    if not trials:
        return ""
    best = _best(trials, by)
    return f"best so far C = {best['C']:g}, {by.replace('_', ' ')} {best[by]:.4f}"


def _is_near(trial: dict[str, float], rivals: Sequence[dict[str, float]], by: str, margin: float) -> bool:
    """Whether `trial` is better than the best of `rivals`, or so near that an exact fit may be.

    margin: of an accuracy; that of a log loss is NEAR.
    """
    best = _best(rivals, by)[by]
    return trial[by] <= best * (1 + NEAR) if by == "log_loss" else trial[by] >= best - margin


def _only_worse(trials: Sequence[dict[str, float]], by: str, margin: float, rising: int) -> bool:
    """Whether each of the last `rising` trials has a higher log loss than the one before it, and a score that is not
    near the best."""
    last = trials[-rising - 1 :]
    rises = all(one["log_loss"] < other["log_loss"] for one, other in pairwise(last))
    near = any(_is_near(trial, trials, by, margin) for trial in last[1:])
    return len(last) > rising and rises and not near


def best_of(trials: Sequence[dict[str, float]], by: str) -> float:
    """The C with the lowest log loss or the highest accuracy; of equal ones the smaller."""
    return _best(trials, by)["C"]


def _best(trials: Sequence[dict[str, float]], by: str) -> dict[str, float]:
    sign = 1 if by == "log_loss" else -1
    return min(trials, key=lambda trial: (sign * trial[by], trial["C"]))


def _fit_and_score(
    objective: Objective, split: Split, start: OnDevice | None, tol: float, max_iter: int
) -> Steps[tuple[Fit, float, float, float]]:
    """The fit, and over the rows held out: how many it gets right, the sum of their log losses, how many they are.

    Each counts as `split.scored` says.
    """
    fit = yield from minimise(objective, start, tol=tol, max_iter=max_iter)
    label, fetch = objective.host_label, objective.design.arrays.fetch
    counted = split.held_out * (1.0 if split.scored is None else split.scored)
    hits, loss = 0.0, 0.0

    def score(rows: slice, _: OnDevice, logits: OnDevice) -> None:
        nonlocal hits, loss
        held_out = np.flatnonzero(split.held_out[rows])
        truth, counts = label[rows][held_out], counted[rows][held_out]
        proba = probabilities(fetch(logits).T[held_out])
        hits += float(counts @ (proba.argmax(axis=1) == truth))
        loss += float(counts @ log_losses(proba, truth))

    yield Pass(counted, score, fit.theta)
    return fit, hits, loss, float(counted.sum())
