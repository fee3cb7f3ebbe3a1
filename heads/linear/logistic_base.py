"""What the logistic heads share: their parameters, how C is chosen, what a file holds of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from precompute.heads.base.arrays import arrays_on
from precompute.heads.base.file_checks import check_numbers
from precompute.heads.base.inputs import check_class_weight, check_number
from precompute.heads.base.splits import check_cv, folds, given_splits
from precompute.heads.linear.model import LinearModel
from precompute.heads.linear.path import best_of, regularisation_path

if TYPE_CHECKING:
    import numpy.typing as npt

    from precompute.heads.base.arrays import Arrays
    from precompute.heads.base.inputs import Weighted
    from precompute.heads.linear.design import Design
    from precompute.heads.linear.path import Problem

    Array = npt.NDArray[Any]
    Parts = list[tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]]

__all__ = ["C_GRID", "DEFAULT_C", "LogisticBase", "among"]

# What DINOv2 (Oquab et al., 2023) and SimCLR (Chen et al., 2020) search for linear probes on frozen features.
C_GRID = tuple(float(C) for C in np.logspace(-6, 5, 45))
TRIAL = {"C", "accuracy", "log_loss", "n_iter", "objective", "seconds"}  # keys of `trials_`
DEFAULT_C = 1.0  # scikit-learn's, for training sets too small to choose on
TOO_FEW = "default: too few samples for cross-validation"


class LogisticBase(LinearModel):
    """Parameters of both heads; fitted `C_`, `C_source_`, `trials_` and what the solver reports."""

    C_source_: str
    _FITTED: tuple[str, ...] = (
        *("C_", "C_source_", "trials_", "stopped_early_", "objective_", "gap_", "n_iter_", "converged_"),
    )
    _LATER: tuple[str, ...] = ("gap",)

    def __init__(
        self,
        *,
        C: float | str | Sequence[float] = "auto",
        choose_by: str = "log_loss",
        cv: int | Sequence[Any] = 5,
        max_iter: int = 1000,
        tol: float = 1e-7,
        class_weight: Any = None,
        random_state: int | None = 0,
        time_budget: float | None = None,
        device: str = "cpu",
    ) -> None:
        self.C = C
        self.choose_by = choose_by
        self.cv = cv
        self.max_iter = max_iter
        self.tol = tol
        self.class_weight = class_weight
        self.random_state = random_state
        self.time_budget = time_budget
        self.device = device

    def _check_parameters(self) -> None:
        """Raise ValueError if a parameter has the wrong type or range; `load_head` asks too."""
        self._grid()
        if self.choose_by not in ("log_loss", "accuracy"):
            raise ValueError(f"choose_by must be 'log_loss' or 'accuracy'. Got {self.choose_by!r} instead.")
        check_cv(self.cv, default=5)
        check_number("max_iter", self.max_iter, whole=True, low=1)
        check_number("tol", self.tol, low=0, open_low=True)
        check_class_weight(self.class_weight)
        if self.random_state is not None:
            check_number("random_state", self.random_state, whole=True, low=0, high=2**32)
        if self.time_budget is not None:
            check_number("time_budget", self.time_budget, low=0)

    def _grid(self) -> tuple[float, ...]:
        """The values to choose from; none where C is given."""
        if isinstance(self.C, str) and self.C == "auto":
            return C_GRID
        if isinstance(self.C, str) or not isinstance(self.C, Sequence | np.ndarray):
            check_number("C", self.C, low=0, open_low=True)
            return ()
        if not len(self.C):
            raise ValueError("C must have at least one value to choose from. Got none.")
        for value in self.C:
            check_number("every C", value, low=0, open_low=True)
        return tuple(float(value) for value in self.C)

    def _parts(self, strata: Array, given: Weighted, n_rows: int) -> tuple[Parts, str]:
        """The splits to choose C on, and their name.

        strata: (m,), what to stratify by, of the rows that are `given` of `n_rows`, and then of a validation set.
        """
        n_train = len(given.view)
        if len(strata) > n_train:
            return [(np.arange(n_train), np.arange(n_train, len(strata)))], "validation, then fitted on both"
        parts = (
            given_splits(self.cv, given.rows, n_rows)
            if isinstance(self.cv, Sequence)
            else folds(strata, groups=given.group, n_folds=self.cv, seed=self.random_state)
        )
        return parts, f"{len(parts)}-fold cross-validation" if parts else TOO_FEW

    def _choose(self, design: Design, problems: Sequence[Problem], grid: Sequence[float], n_splits: int) -> None:
        """Set `C_`: the one that was given, or that has the best score on the `problems` of `n_splits` splits."""
        self.trials_: list[dict[str, float]] = []
        self.stopped_early_ = False
        if not problems:
            self.C_ = DEFAULT_C if grid else float(self.C)  # type: ignore[arg-type]  # one number where no grid
            return
        self.trials_, self.stopped_early_ = regularisation_path(
            design,
            problems,
            grid,
            n_splits=n_splits,
            time_budget=self.time_budget,
            choose_by=self.choose_by,
            whole=grid is not C_GRID or self.time_budget is not None,
            tol=self.tol,
            max_iter=self.max_iter,
        )
        self.C_ = best_of(self.trials_, self.choose_by)

    def _wide(self, arrays: Arrays) -> Arrays:
        """Where to compute in float64: on the device, or on the CPU where that has none."""
        return arrays_on("cpu" if arrays.wide != arrays.xp.float64 else self.device, np.dtype(np.float64), "")

    def choices(self) -> dict[str, Any]:
        """What the fit decided, ready for JSON."""
        chosen = {"C": self.C_, "C_source": self.C_source_, "converged": self.converged_}
        solved = {
            "objective": self.objective_,
            "gap": self.gap_,
            "stopped_early": self.stopped_early_,
            "trials": self.trials_,
        }
        return {**chosen, "iterations": self.n_iter_, **solved}

    def summary(self) -> str:
        """The same as one line."""
        late = "" if self.converged_ else "; the solver stopped before it converged"
        return f"C = {self.C_:g} ({self.C_source_}{late})"

    def used_validation(self) -> bool:
        """Whether the validation set that `fit` was given has decided anything."""
        return self.C_source_.startswith("validation")

    def _restore_solution(self, fitted: dict[str, Any]) -> None:
        check_number("C", fitted["C"], low=0, open_low=True)
        check_number("n_iter", fitted["n_iter"], whole=True, low=0)
        check_number("objective", fitted["objective"], low=0)
        if fitted["gap"] is not None:
            check_number("gap", fitted["gap"], low=0)
        flags = (fitted["converged"], fitted["stopped_early"])
        if not isinstance(fitted["C_source"], str) or not all(isinstance(flag, bool) for flag in flags):
            raise ValueError("its C_source must be a string, its converged and stopped_early true or false")
        check_numbers("trials", fitted["trials"], TRIAL)


def among(positions: Array, n: int) -> npt.NDArray[np.bool_]:
    """Whether each of 0 to n - 1 is one of `positions`, (n,)."""
    mask = np.zeros(n, bool)
    mask[positions] = True
    return mask
