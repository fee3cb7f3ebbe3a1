"""The k-NN probe for several labels a sample: the k most similar training images vote on each label."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from precompute.heads.base.inputs import check_features
from precompute.heads.base.labels import MultilabelHead
from precompute.heads.neighbours.knn_base import NeighboursBase, mean_of

if TYPE_CHECKING:
    import numpy.typing as npt

    from precompute.heads.base.rows import Features

    Array = npt.NDArray[Any]

__all__ = ["MultilabelKNNHead"]


class MultilabelKNNHead(MultilabelHead, NeighboursBase):
    """k nearest neighbours by cosine similarity; the probability of a label is its share of the votes.

    Neighbours and their votes are those of `KNNHead`. Nothing is trained and nothing is chosen.

    Parameters
    ----------
    k, temperature, device : as in `KNNHead`

    Attributes
    ----------
    labels_ : (L,), names as `fit` got them, or 0 to L - 1
    thresholds_ : (L,) float64, the share above which a label is predicted: 0.5, or what `set_thresholds` was given
    targets_ : (n, L) int32, the labels of the training rows, 0 and 1
    features_, sample_weight_, k_, n_features_in_ : as in `KNNHead`
    """

    _FITTED = ("k_", "thresholds_")

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
        label_names: npt.ArrayLike | None = None,
    ) -> MultilabelKNNHead:
        """Keep features `X` (n, d), floats as they are (others as float64), and labels `y` (n, L) of 0 and 1.

        `validation`, `groups` and `sample_weight` as in `KNNHead.fit`; `label_names` (L,) become `labels_`.

        Raises ValueError for NaN, infinity, a y that is not (n, L) of 0 and 1, labels that do not vary, lengths that
        differ, a parameter out of range, or weights that are negative or all zero; DeviceError if the machine lacks
        the device or the device lacks the dtype.
        """
        self._check_parameters()
        training = self._check_training(X, y, sample_weight, validation, groups, label_names)
        self._keep(training.given.view)
        self.targets_ = training.Y.astype(np.int32)
        self._weigh(None if sample_weight is None else training.given.weight)
        return self

    def predict_proba(self, X: Features) -> npt.NDArray[np.floating]:
        """Each label's share of the votes (n, L) of features (n, d), in the order of `labels_`.

        float64 where the training features or `X` are, and else float32. No calibrated probability: a label that no
        neighbour has is 0.
        """
        check_is_fitted(self)
        view = check_features(self, X)
        proba = np.empty((len(view), len(self.labels_)), self._dtype(view))
        for rows, nearest, vote in self._votes(view, len(self.labels_)):
            proba[rows] = np.clip(mean_of(self.targets_, nearest, vote), 0, 1)
        return proba

    def _arrays(self) -> dict[str, Array]:
        return self._arrays_with(targets=self.targets_)

    def _restore(self, arrays: dict[str, Array], fitted: dict[str, Any]) -> None:
        targets = self._restore_rows(arrays, fitted, "targets", (len(self.labels_),), "int32")
        if not ((targets == 0) | (targets == 1)).all():
            raise ValueError("its array targets must hold 0 and 1 only")
        self.targets_ = targets
        self._restore_thresholds(fitted)
