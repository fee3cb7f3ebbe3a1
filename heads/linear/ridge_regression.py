"""Ridge regression of real-valued targets, such as an age or a count, on features."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import RegressorMixin

from precompute.heads.base.file_checks import check_arrays
from precompute.heads.base.inputs import check_pair, weighted_rows
from precompute.heads.base.numbers import check_numbers_of, check_two_samples
from precompute.heads.linear.ridge_base import RidgeBase
from precompute.heads.linear.spectrum import RealTargets

if TYPE_CHECKING:
    import numpy.typing as npt

    from precompute.heads.base.rows import Features

    Array = npt.NDArray[Any]

__all__ = ["RidgeRegressionHead"]


class RidgeRegressionHead(RegressorMixin, RidgeBase):  # type: ignore[misc]  # scikit-learn has no types
    """Ridge regression: scikit-learn's `Ridge`, in closed form on features read in blocks.

    Solved as `RidgeHead` is.

    Parameters
    ----------
    alpha : strength of the penalty, as in scikit-learn, or "auto", as in `RidgeHead`; one for all targets
    cv : None or a list of splits (train, test), as in `RidgeHead`

    Attributes
    ----------
    coef_ : (t, d) for t targets, 1 where y is (n,); float64 where `X` was, else float32
    intercept_ : (t,) float64: float32 could not distinguish targets that are large and differ by little
    alpha_, alpha_source_ : as in `RidgeHead`, but that the default is for samples that are all one group
    trials_ : list of {"alpha", "squared_error"}
    one_target_ : bool, whether y was (n,), so that `predict` gives (n,)
    n_features_in_ : int
    """

    _FITTED = ("alpha_", "alpha_source_", "trials_", "one_target_")

    def __init__(self, *, alpha: float | str = "auto", cv: Any = None) -> None:
        self.alpha = alpha
        self.cv = cv

    def fit(
        self,
        X: Features,
        y: npt.ArrayLike,
        sample_weight: npt.ArrayLike | None = None,
        *,
        validation: tuple[Features, npt.ArrayLike] | None = None,
        groups: npt.ArrayLike | None = None,
    ) -> RidgeRegressionHead:
        """Fit on features `X` (n, d), read in blocks, and real targets `y` (n,) or (n, t).

        `validation` is a pair (X, y) to choose alpha on. `groups` (n,) says which samples are left out together.
        `sample_weight` (n,), 0 or above, weighs squared errors as in `RidgeHead.fit`.

        Raises ValueError for NaN, infinity, a single sample, lengths that differ, a parameter out of range, weights
        that are negative or all zero, or a min(n, d) x min(n, d) matrix that memory does not hold.
        """
        self._check_parameters()
        view, given = check_numbers_of(self, X, y, reset=True)
        targets, self.one_target_ = given.reshape(len(given), -1), given.ndim == 1
        weighted = weighted_rows(view, sample_weight, groups)
        check_two_samples(self, weighted, len(view))
        targets = weighted.of(targets)
        middle = targets.mean(axis=0)  # what is left keeps its digits, however large the targets are
        held = None
        if validation is not None:
            chosen_on, held_targets = check_numbers_of(self, *check_pair(validation), reset=False)
            held_targets = held_targets.reshape(len(held_targets), -1)
            if held_targets.shape[1] != targets.shape[1]:
                raise ValueError(f"validation has {held_targets.shape[1]} targets, and y has {targets.shape[1]}.")
            held = (chosen_on, RealTargets(held_targets - middle))
        group = self._left_out_together(weighted, len(view))
        only_default = "all samples are one group" if group is not None and group.max() == 0 else None
        self._solve(weighted, RealTargets(targets - middle), 1.0, group, held, only_default)
        self.intercept_ = self.intercept_ + middle
        return self

    def predict(self, X: Features) -> npt.NDArray[np.float64]:
        """Predicted targets (n,) or (n, t), as y was, of features (n, d)."""
        predicted = self._linear(X).astype(np.float64, copy=False)
        return predicted[:, 0] if self.one_target_ else predicted

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def _restore_coefficients(self, arrays: dict[str, Array], outputs: int) -> None:
        n_features = arrays["coef"].shape[-1] if "coef" in arrays else 0
        either = ("float32", "float64")  # of each
        check_arrays(arrays, {"coef": ((outputs, n_features), either), "intercept": ((outputs,), either)})
        self.coef_, self.intercept_, self.n_features_in_ = arrays["coef"], arrays["intercept"], n_features

    def _restore(self, arrays: dict[str, Array], fitted: dict[str, Any]) -> None:
        width = len(arrays["intercept"]) if "intercept" in arrays else 0
        self._restore_linear(arrays, fitted, width, {"alpha", "squared_error"})
        if not isinstance(fitted["one_target"], bool) or (fitted["one_target"] and width != 1):
            raise ValueError("its one_target must be true or false, and true only for one target")
