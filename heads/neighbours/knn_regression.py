"""k-NN regression of a number: the mean of the k most similar training images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.utils.validation import check_is_fitted

from precompute.heads.base.inputs import check_features
from precompute.heads.base.numbers import check_held_number, check_number_training
from precompute.heads.neighbours.knn_base import NeighboursBase, mean_of

if TYPE_CHECKING:
    import numpy.typing as npt

    from precompute.heads.base.rows import Features

    Array = npt.NDArray[Any]

__all__ = ["KNNRegressionHead"]


class KNNRegressionHead(RegressorMixin, NeighboursBase):  # type: ignore[misc]  # scikit-learn has no types
    """k nearest neighbours by cosine similarity; the prediction is the mean of their targets, weighted by their votes.

    Neighbours and their votes are those of `KNNHead`. Nothing is trained and nothing is chosen, and no prediction lies
    beyond the targets of the training set.

    Parameters
    ----------
    k, temperature, device : as in `KNNHead`

    Attributes
    ----------
    targets_ : (n,) float64, of the training rows
    features_, sample_weight_, k_, n_features_in_ : as in `KNNHead`
    """

    def __init__(self, *, k: int = 20, temperature: float = 0.07, device: str = "cpu") -> None:
        self.k = k
        self.temperature = temperature
        self.device = device

    def fit(
        self,
        X: Features,
        y: npt.ArrayLike,
        sample_weight: npt.ArrayLike | None = None,
        *,
        validation: tuple[Features, npt.ArrayLike] | None = None,
        groups: npt.ArrayLike | None = None,
    ) -> KNNRegressionHead:
        """Keep features `X` (n, d), floats as they are (others as float64), and real targets `y` (n,).

        `validation` and `groups` are checked, and nothing is chosen on them. `sample_weight` as in `KNNHead.fit`.

        Raises ValueError for NaN, infinity, a single sample, lengths that differ, a parameter out of range, or weights
        that are negative or all zero; DeviceError if the machine lacks the device or the device lacks the dtype.
        """
        self._check_parameters()
        given, targets = check_number_training(self, X, y, sample_weight, groups)
        if validation is not None:
            check_held_number(self, validation)
        self._keep(given.view)
        self.targets_ = targets
        self._weigh(None if sample_weight is None else given.weight)
        return self

    def predict(self, X: Features) -> npt.NDArray[np.float64]:
        """Predicted targets (n,) of features (n, d)."""
        check_is_fitted(self)
        view = check_features(self, X)
        predicted = np.empty(len(view))
        for rows, nearest, vote in self._votes(view, 1):
            predicted[rows] = mean_of(self.targets_[:, None], nearest, vote)[:, 0]
        return predicted

    def _arrays(self) -> dict[str, Array]:
        return self._arrays_with(targets=self.targets_)

    def _restore(self, arrays: dict[str, Array], fitted: dict[str, Any]) -> None:
        self.targets_ = self._restore_rows(arrays, fitted, "targets", (), "float64")
