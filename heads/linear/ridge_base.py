"""What the ridge heads share: their parameters, how alpha is chosen, what a file holds of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from precompute.heads.base.file_checks import check_numbers
from precompute.heads.base.inputs import check_number
from precompute.heads.base.splits import check_cv, groups_of_splits
from precompute.heads.linear.model import LinearModel
from precompute.heads.linear.spectrum import (
    ALPHA_GRID,
    BLOCK_VALUES,
    ClassTargets,
    LabelTargets,
    RealTargets,
    Spectrum,
    chunks_of_groups,
)
from precompute.heads.scoring.temperature import MOST_SCORES

if TYPE_CHECKING:
    import numpy.typing as npt

    from precompute.heads.base.inputs import Weighted
    from precompute.heads.base.rows import RowView

    Array = npt.NDArray[Any]
    Held = tuple[RowView, ClassTargets | RealTargets]

__all__ = ["RidgeBase"]

DEFAULT_ALPHA = 1.0  # scikit-learn's, where nothing can be left out


class RidgeBase(LinearModel):
    """Parameters `alpha` and `cv`; fitted `alpha_`, `alpha_source_`, `trials_`, `coef_`, `intercept_`."""

    _FITTED: tuple[str, ...] = ("alpha_", "alpha_source_", "trials_")
    _ADDED: tuple[str, ...] = ("cv",)
    alpha: float | str
    cv: Any

    def _check_parameters(self) -> None:
        """Raise ValueError if a parameter has the wrong type or range; `load_head` asks too."""
        if not (isinstance(self.alpha, str) and self.alpha == "auto"):
            check_number("alpha", self.alpha, low=1e-12, high=1e30)
        check_cv(self.cv, default=None)

    def _left_out_together(self, given: Weighted, n_rows: int) -> npt.NDArray[np.intp] | None:
        """Which of the rows (m,) are left out together: those of a split of `cv`, or of a group; None for each alone.

        n_rows: as many as `fit` got.
        """
        return given.group if self.cv is None else groups_of_splits(self.cv, given.rows, n_rows)

    def _solve(
        self,
        given: Weighted,
        targets: ClassTargets | RealTargets,
        class_weight: npt.NDArray[np.float64] | float,
        group: npt.NDArray[np.intp] | None,
        held: Held | None,
        only_default: str | None,
    ) -> Spectrum:
        """Fit, with alpha as given, chosen on `held`, or by leaving out each row (group).

        class_weight: (m,), that of each row's class · only_default: why leaving out is not informative, None where it
        would.
        """
        view = given.view
        spectrum = Spectrum(view, targets, given.weight * class_weight)
        self.trials_: list[dict[str, float]] = []
        if self.alpha != "auto":
            self.alpha_, self.alpha_source_ = float(self.alpha), "given"
        elif held is not None:
            self.trials_, self.alpha_source_ = _try_on(spectrum, *held), "validation"
        elif only_default is not None:
            self.alpha_, self.alpha_source_ = DEFAULT_ALPHA, f"default: {only_default}"
        else:
            self.alpha_source_ = "leave-one-out" if group is None else "leave-one-group-out"
            if self.cv is not None:
                self.alpha_source_ = f"{len(self.cv)}-fold cross-validation"
            self.trials_ = _leave_out(spectrum, given.weight, group)
        if self.trials_:
            self.alpha_ = min(self.trials_, key=lambda trial: (trial["squared_error"], -trial["alpha"]))["alpha"]
        coef, intercept = spectrum.coefficients(self.alpha_)
        with np.errstate(over="ignore"):  # reported below
            self.coef_ = np.ascontiguousarray(coef, view.working_dtype)  # as a file gives it back, to the last bit
            self.intercept_ = intercept.astype(view.working_dtype)
        if not (np.isfinite(self.coef_).all() and np.isfinite(self.intercept_).all()):
            raise ValueError(
                f"The coefficients are beyond {view.working_dtype}. Scale the features (or targets), or raise alpha."
            )
        return spectrum

    def _left_out_scores(self, spectrum: Spectrum, group: Array | None) -> tuple[Array, Array]:
        """Scores (m, width) of rows by models that were fitted without them, and which rows (m,) these are.

        Of the rows of evenly spaced groups, so that the scores fit into memory.
        """
        n_rows, width = len(spectrum.view), spectrum.targets.width
        size = max(1, MOST_SCORES // max(spectrum.view.shape[1], len(spectrum.values), width))
        step = -(-n_rows * width // MOST_SCORES)
        scores, chosen = [], []
        for chunk, groups in chunks_of_groups(n_rows, group, size, alone=spectrum.most_inverted, step=step):
            thin = step if spectrum.is_large(groups) else 1
            for _, rows, predicted in spectrum.left_out(chunk, groups, (self.alpha_,)):
                scores.append(predicted[::thin])
                chosen.append(rows[::thin])
        return np.concatenate(scores), np.concatenate(chosen)

    def choices(self) -> dict[str, Any]:
        """What the fit decided, ready for JSON."""
        return {"alpha": self.alpha_, "alpha_source": self.alpha_source_, "trials": self.trials_}

    def summary(self) -> str:
        """The same as one line."""
        return f"alpha = {self.alpha_:g} ({self.alpha_source_})"

    def used_validation(self) -> bool:
        """Whether the validation set that `fit` was given has decided anything."""
        return self.alpha_source_ == "validation"

    def _restore_linear(self, arrays: dict[str, Array], fitted: dict[str, Any], width: int, trial: set[str]) -> None:
        self._restore_coefficients(arrays, width)
        check_number("alpha", fitted["alpha"], low=0, open_low=True)
        if not isinstance(fitted["alpha_source"], str):
            raise ValueError("its alpha_source must be a string")
        check_numbers("trials", fitted["trials"], trial)


def _leave_out(
    spectrum: Spectrum, weight: npt.NDArray[np.float64], group: npt.NDArray[np.intp] | None
) -> list[dict[str, float]]:
    """A trial for each alpha of the grid, over all rows, each left out (with its group) and of its weight (n,).

    Squared errors also have the weight of the class, as in scikit-learn's RidgeClassifierCV.
    """
    tally = _Tally(spectrum.targets)
    n_rows = len(spectrum.view)
    for chunk, groups in chunks_of_groups(n_rows, group, _chunk(spectrum), alone=spectrum.most_inverted):
        for number, rows, predicted in spectrum.left_out(chunk, groups, ALPHA_GRID):
            tally.add(number, predicted, spectrum.targets, rows, spectrum.root[rows] ** 2, weight[rows])
    return tally.trials(float(weight.sum()))


def _try_on(spectrum: Spectrum, view: RowView, targets: ClassTargets | RealTargets) -> list[dict[str, float]]:
    """A trial for each alpha of the grid, on rows that were not fitted on."""
    tally = _Tally(targets)
    for number, alpha in enumerate(ALPHA_GRID):
        coef, intercept = spectrum.coefficients(alpha)
        for rows, block in view.blocks(_chunk(spectrum)):
            one = np.ones(len(block))
            tally.add(number, block.astype(np.float64) @ coef.T + intercept, targets, rows, one, one)
    return tally.trials(float(len(view)))


def _chunk(spectrum: Spectrum) -> int:
    return max(1, BLOCK_VALUES // max(*spectrum.view.shape[1:], len(spectrum.values), spectrum.targets.width))


class _Tally:
    """Squared errors, and for classes and labels also hits, for each alpha."""

    def __init__(self, targets: ClassTargets | RealTargets) -> None:
        self.width = targets.width
        self.errors = np.zeros(len(ALPHA_GRID))
        self.hits = np.zeros(len(ALPHA_GRID)) if isinstance(targets, ClassTargets | LabelTargets) else None

    def add(
        self,
        number: int,
        predicted: Array,
        targets: ClassTargets | RealTargets,
        chosen: Any,
        error_weight: Array,
        hit_weight: Array,
    ) -> None:
        """Of the `chosen` rows (k,), with the weights (k,) of their squared errors and of their hits."""
        self.errors[number] += (error_weight[:, None] * (targets.rows(chosen) - predicted) ** 2).sum()
        if self.hits is not None and isinstance(targets, ClassTargets | LabelTargets):
            self.hits[number] += hit_weight @ targets.hits(predicted, chosen)

    def trials(self, total: float) -> list[dict[str, float]]:
        """`total`: the sum of the rows' weights."""
        accuracy = [{} if self.hits is None else {"accuracy": float(hits / total)} for hits in self._hits()]
        return [
            {"alpha": alpha, **right, "squared_error": float(error / (total * self.width))}
            for alpha, right, error in zip(ALPHA_GRID, accuracy, self.errors, strict=True)
        ]

    def _hits(self) -> Array:
        return np.zeros(len(ALPHA_GRID)) if self.hits is None else self.hits
