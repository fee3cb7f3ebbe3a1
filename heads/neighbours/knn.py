"""The k-NN probe: the k most similar training images vote."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from precompute.heads.base.inputs import (
    check_class_weight,
    check_classes_with_weight,
    check_features,
    check_training,
    check_validation_and_groups,
    class_weights,
    weighted_rows,
)
from precompute.heads.neighbours.knn_base import NeighboursBase

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from precompute.heads.base.rows import Features, RowView

    Array = npt.NDArray[Any]

__all__ = ["KNNHead"]


class KNNHead(ClassifierMixin, NeighboursBase):  # type: ignore[misc]  # scikit-learn has no types
    """k nearest neighbours by cosine similarity, whose votes weigh exp(similarity / temperature).

    The protocol of DINO (Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021; its
    eval_knn.py), after Wu et al. ("Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR
    2018). Nothing is trained and nothing is chosen, so it is a quick measure of the features themselves.

    Features are scaled to length 1; a row of zeros has the similarity 0 to every other. Of training rows that are
    equally similar the first count. Rounding may part identical rows in the last bit, by where they are in a product:
    which of them has the k-th place can then depend on the rows that are predicted together. Training rows are read a
    block at a time for every 1024 rows to be classified (fewer where rows are wide or classes many), so a prediction
    costs n x d for each of them, and memory grows with neither n nor the number of rows to be classified.

    Another `device` than "cpu" holds the training rows for the time of a prediction, scaled, where half of its free
    memory has room for them; otherwise they are sent in blocks. In addition it takes at most 1 GiB for similarities,
    and on the host a prediction takes the same memory as with "cpu".

    Parameters
    ----------
    k : number of neighbours. Where there are fewer training rows, all of them vote: see `k_`.
    temperature : the smaller, the more the most similar neighbours count
    class_weight : None, "balanced", or a dict from label to weight, as in scikit-learn: what the votes for a class are
        multiplied by. Which rows vote does not depend on it.
    device : where to compute, as torch names it; not part of a saved head

    Attributes
    ----------
    classes_ : (K,), sorted
    features_ : RowView (n, d), the training features, float16, float32 or float64 as they came. Rows of a mapped file
        stay there, and the file must; everything else is copied. A saved head holds them all.
    labels_ : (n,) int32, positions in `classes_`
    sample_weight_ : (n,) float64, how many of the k places a row takes, above 0; None where `fit` got no sample_weight
    class_weight_ : (K,) float64
    k_ : int, min(k, n); with sample weights a float, at most their sum
    n_features_in_ : int
    """

    _ADDED = ("class_weight",)

    def __init__(
        self, *, k: int = 20, temperature: float = 0.07, class_weight: Any = None, device: str = "cpu"
    ) -> None:
        self.k = k
        self.temperature = temperature
        self.class_weight = class_weight
        self.device = device

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_class_weight(self.class_weight)

    def fit(
        self,
        X: Features,
        y: npt.ArrayLike,
        sample_weight: npt.ArrayLike | None = None,
        *,
        validation: tuple[Features, npt.ArrayLike] | None = None,
        groups: npt.ArrayLike | None = None,
    ) -> KNNHead:
        """Keep features `X` (n, d), floats as they are (others as float64), and labels `y` (n,).

        `validation` and `groups` are those of every head. They are checked, and nothing is chosen on them.
        `sample_weight` (n,), 0 or above: a row of weight 2 takes two of the k places and votes twice, as the row twice
        would; of the last row as much counts as there is place for; one of weight 0 is left out. The smaller the
        weights, the more rows it takes to fill k places, so weights of mean 1 keep the meaning of k.

        Raises ValueError for NaN, infinity, a single class, lengths that differ, a parameter out of range, or weights
        that are negative or all zero; DeviceError if the machine lacks the device or the device lacks the dtype.
        """
        self._check_parameters()
        view, label, self.classes_ = check_training(self, X, y)
        check_validation_and_groups(self, validation, groups, len(view))
        given = weighted_rows(view, sample_weight, None)
        view, label = given.view, given.of(label)
        check_classes_with_weight(self, label, self.classes_)
        self._keep(view)
        self.labels_ = label.astype(np.int32)
        self._weigh(None if sample_weight is None else given.weight)
        return self

    def _weigh(self, weights: Array | None) -> None:
        """Set what follows from the weights of the rows and of their classes."""
        super()._weigh(weights)
        self.class_weight_ = class_weights(self.class_weight, self.classes_, self.labels_.astype(np.intp), weights)

    def predict_proba(self, X: Features) -> npt.NDArray[np.floating]:
        """The share of the votes (n, K) for each class, in the order of `classes_`, of features (n, d).

        float64 where the training features or `X` are, and else float32.

        A share of the votes is not a calibrated probability: a class without a neighbour has 0.
        """
        check_is_fitted(self)
        view = check_features(self, X)
        proba = np.empty((len(view), len(self.classes_)), self._dtype(view))
        for rows, share in self._shares(view):
            proba[rows] = share
        return proba

    def predict_log_proba(self, X: Features) -> npt.NDArray[np.floating]:
        """The logarithms (n, K) of `predict_proba`: -inf for a class without a vote."""
        proba = self.predict_proba(X)
        with np.errstate(divide="ignore"):
            np.log(proba, out=proba)
        return proba

    def predict(self, X: Features) -> Array:
        """The label (n,) with the most votes for each row of features (n, d)."""
        check_is_fitted(self)
        view = check_features(self, X)
        best = np.empty(len(view), np.intp)
        for rows, share in self._shares(view):  # in its dtype, so that it is predict_proba's most probable one
            best[rows] = share.argmax(axis=1)
        predicted: Array = self.classes_[best]
        return predicted

    def _shares(self, view: RowView) -> Iterator[tuple[slice, npt.NDArray[np.floating]]]:
        """(positions, (q, K)) of a few rows at a time."""
        n_classes = len(self.classes_)
        for rows, nearest, vote in self._votes(view, n_classes):
            label = self.labels_[nearest]
            weighted = vote * self.class_weight_[label]
            weighted /= weighted.sum(axis=1, keepdims=True)
            slot = np.arange(len(vote))[:, None] * n_classes + label
            shares = np.bincount(slot.ravel(), weighted.ravel(), len(vote) * n_classes).astype(self._dtype(view))
            yield rows, shares.reshape(len(vote), n_classes)

    def _arrays(self) -> dict[str, Array]:
        return self._arrays_with(labels=self.labels_)

    def _restore(self, arrays: dict[str, Array], fitted: dict[str, Any]) -> None:
        # Before the rows are weighed, since the weights of the classes count them.
        labels, n_classes = arrays.get("labels"), len(self.classes_)
        if labels is not None and labels.dtype == np.int32 and labels.ndim == 1:
            inside = labels.min() >= 0 and labels.max() < n_classes
            # With weights, a class all of whose rows had the weight 0 has none.
            if not inside or not ("weights" in arrays or np.bincount(labels, minlength=n_classes).all()):
                raise ValueError(f"its array labels must hold every number from 0 to {n_classes - 1}, and no other")
            self.labels_ = labels
        self._restore_rows(arrays, fitted, "labels", (), "int32")
