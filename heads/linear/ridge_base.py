"""What the ridge heads share: their parameters, how alpha is chosen, what a file holds of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from precompute.heads.base.file_checks import check_numbers
from precompute.heads.base.inputs import check_number
from precompute.heads.linear.model import LinearModel
from precompute.heads.linear.spectrum import (
    ALPHA_GRID,
    BLOCK_VALUES,
    ClassTargets,
    RealTargets,
    Spectrum,
    chunks_of_groups,
)

if TYPE_CHECKING:
    import numpy.typing as npt

    from precompute.heads.base.rows import RowView

    Array = npt.NDArray[Any]
    Held = tuple[RowView, ClassTargets | RealTargets]

__all__ = ["RidgeBase"]

DEFAULT_ALPHA = 1.0  # scikit-learn's, where nothing can be left out


class RidgeBase(LinearModel):
    """Parameters `alpha`; fitted `alpha_`, `alpha_source_`, `trials_`, `coef_`, `intercept_`."""

    _FITTED: tuple[str, ...] = ("alpha_", "alpha_source_", "trials_")
    alpha: float | str

    def _check_parameters(self) -> None:
        """Raise ValueError if a parameter has the wrong type or range; `load_head` asks too."""
        if not (isinstance(self.alpha, str) and self.alpha == "auto"):
            check_number("alpha", self.alpha, low=1e-12, high=1e30)

    def _solve(
        self,
        view: RowView,
        targets: ClassTargets | RealTargets,
        weight: npt.NDArray[np.float64],
        group: npt.NDArray[np.intp] | None,
        held: Held | None,
        only_default: str | None,
    ) -> Spectrum:
        """Fit, with alpha as given, chosen on `held`, or by leaving out each row (group).

        only_default: why that would say nothing, None where it would.
        """
        spectrum = Spectrum(view, targets, weight)
        self.trials_: list[dict[str, float]] = []
        if self.alpha != "auto":
            self.alpha_, self.alpha_source_ = float(self.alpha), "given"
        elif held is not None:
            self.trials_, self.alpha_source_ = _try_on(spectrum, *held), "validation"
        elif only_default is not None:
            self.alpha_, self.alpha_source_ = DEFAULT_ALPHA, f"default: {only_default}"
        else:
            self.alpha_source_ = "leave-one-out" if group is None else "leave-one-group-out"
            self.trials_ = _leave_out(spectrum, group)
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


def _leave_out(spectrum: Spectrum, group: npt.NDArray[np.intp] | None) -> list[dict[str, float]]:
    """A trial for each alpha of the grid, over all rows, each left out (with its group)."""
    tally = _Tally(spectrum.targets)
    n_rows = len(spectrum.view)
    for chunk, groups in chunks_of_groups(n_rows, group, _chunk(spectrum), alone=spectrum.most_inverted):
        for number, rows, predicted in spectrum.left_out(chunk, groups, ALPHA_GRID):
            tally.add(number, predicted, spectrum.targets, rows, spectrum.root[rows, None] ** 2)
    return tally.trials(n_rows)


def _try_on(spectrum: Spectrum, view: RowView, targets: ClassTargets | RealTargets) -> list[dict[str, float]]:
    """A trial for each alpha of the grid, on rows that were not fitted on."""
    tally = _Tally(targets)
    for number, alpha in enumerate(ALPHA_GRID):
        coef, intercept = spectrum.coefficients(alpha)
        for rows, block in view.blocks(_chunk(spectrum)):
            tally.add(number, block.astype(np.float64) @ coef.T + intercept, targets, rows, 1.0)
    return tally.trials(len(view))


def _chunk(spectrum: Spectrum) -> int:
    return max(1, BLOCK_VALUES // max(*spectrum.view.shape[1:], len(spectrum.values), spectrum.targets.width))


class _Tally:
    """Squared errors, and for classes also hits, for each alpha."""

    def __init__(self, targets: ClassTargets | RealTargets) -> None:
        self.width = targets.width
        self.errors = np.zeros(len(ALPHA_GRID))
        self.hits = np.zeros(len(ALPHA_GRID), np.int64) if isinstance(targets, ClassTargets) else None

    def add(
        self, number: int, predicted: Array, targets: ClassTargets | RealTargets, chosen: Any, weight: Array | float
    ) -> None:
        self.errors[number] += (weight * (targets.rows(chosen) - predicted) ** 2).sum()
        if self.hits is not None and isinstance(targets, ClassTargets):
            self.hits[number] += targets.hits(predicted, chosen)

    def trials(self, n_rows: int) -> list[dict[str, float]]:
        accuracy = [{} if self.hits is None else {"accuracy": float(hits / n_rows)} for hits in self._hits()]
        return [
            {"alpha": alpha, **right, "squared_error": float(error / (n_rows * self.width))}
            for alpha, right, error in zip(ALPHA_GRID, accuracy, self.errors, strict=True)
        ]

    def _hits(self) -> Array:
        return np.zeros(len(ALPHA_GRID)) if self.hits is None else self.hits
