"""Several labels a sample: what `Y` (n, L) of 0 and 1 is checked for, and what every head of such labels is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_array

from precompute.heads.base.inputs import Weighted, as_numpy, check_features, check_number, check_pair, weighted_rows

if TYPE_CHECKING:
    from typing import Self

    import numpy.typing as npt

    from precompute.heads.base.rows import Features, RowView

    Array = npt.NDArray[Any]
    Indicators = npt.NDArray[np.bool_]

__all__ = [
    "INITIAL_THRESHOLD",
    "SURE",
    "LabelTraining",
    "MultilabelHead",
    "check_balanced",
    "check_indicators",
    "check_label_names",
    "check_thresholds",
    "label_strata",
]

INITIAL_THRESHOLD = 0.5
SURE = 100.0  # logit of a label that all training samples have, less it where none has: float32 has 1 for it, or 4e-44


def check_indicators(Y: Any, n_rows: int, *, what: str = "Y") -> Indicators:
    """`Y` (n, L) as bool: whether each of `n_rows` samples has each label.

    Raises ValueError for another shape, NaN, and numbers that are neither 0 nor 1; TypeError for a sparse matrix.
    """
    given = check_array(as_numpy(Y), dtype="numeric", ensure_2d=False, allow_nd=True, input_name=what)
    if given.ndim != 2:
        raise ValueError(
            f"{what} must have shape (n, L), 0 or 1 for each of n samples and L labels. Got shape {given.shape} "
            f"instead. For a single label give {what}[:, None]."
        )
    if len(given) != n_rows:
        raise ValueError(f"Found input variables with inconsistent numbers of samples: [{n_rows}, {len(given)}]")
    indicators: Indicators = given == 1
    wrong = ~indicators & (given != 0)
    if wrong.any():
        row, column = np.argwhere(wrong)[0].tolist()
        raise ValueError(
            f"{what} must hold 0 and 1 only. Got {given[row, column]} for sample {row} and label {column}. "
            "Give 1 where a sample has a label and 0 where it has not."
        )
    return indicators


def check_label_names(names: Any, n_labels: int) -> Array:
    """The names of the labels (L,), strings or integers; 0 to L - 1 for None. Raises ValueError unless all differ."""
    if names is None:
        return np.arange(n_labels)
    found = np.asarray(as_numpy(names))
    if found.shape != (n_labels,):
        raise ValueError(f"label_names must have one name per label, ({n_labels},). Got shape {found.shape} instead.")
    if not (found.dtype.kind in "iuU" or all(isinstance(name, str) for name in found.tolist())):
        raise ValueError(f"label_names must be strings or integers. Got {found.dtype} instead.")
    values, count = np.unique(found, return_counts=True)
    if (count > 1).any():
        raise ValueError(f"label_names must all differ. Got {values[count > 1].tolist()[0]!r} twice.")
    return found


def varying(Y: Indicators) -> Indicators:
    """(L,) which labels some samples of `Y` (n, L) have and others lack."""
    return np.asarray(Y.any(axis=0) & ~Y.all(axis=0))


def label_strata(Y: Indicators) -> npt.NDArray[np.intp]:
    """One number (n,) for each sample of `Y` (n, L), to stratify by: its rarest label, L for a sample without any.

    Folds and hold-outs that are stratified by it have samples of rare labels on both sides, as far as there are two.
    A label of a single sample does not count, and samples that would be alone in their stratum are in L: where each has
    its own label, as tags often are, nothing could be held out otherwise.
    """
    count, rest = Y.sum(axis=0), Y.shape[1]
    by_frequency = np.argsort(count, kind="stable")
    by_frequency = by_frequency[count[by_frequency] > 1]
    if not len(by_frequency):
        return np.full(len(Y), rest)
    ordered = Y[:, by_frequency]
    strata: npt.NDArray[np.intp] = np.where(ordered.any(axis=1), by_frequency[ordered.argmax(axis=1)], rest)
    strata[np.bincount(strata)[strata] == 1] = rest
    return strata


@dataclass(frozen=True)
class LabelTraining:
    """What a head of several labels is fitted on.

    given: the rows of a weight above 0 · Y: (m, L) bool, theirs · varied: (L,) bool, which labels have samples with and
    without them among these · n_rows: as many as `fit` got · held: features and labels of the validation set, None
    without one.
    """

    given: Weighted
    Y: Indicators
    varied: npt.NDArray[np.bool_]
    n_rows: int
    held: tuple[RowView, Indicators] | None


class MultilabelHead(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Fitted `labels_` (L,), names, `thresholds_` (L,) float64 and `n_features_in_`; probabilities by each kind.

    A label that every training sample has, or none, is predicted as it was: there is nothing to learn.
    """

    labels_: Array
    thresholds_: npt.NDArray[np.float64]

    @property
    def classes_(self) -> list[Array]:
        """What each of the L labels may be, 0 or 1: scikit-learn's meaning for indicators. Names are in `labels_`."""
        if not hasattr(self, "labels_"):
            raise AttributeError(f"{type(self).__name__} has no classes_ before it is fitted.")
        return [np.arange(2)] * len(self.labels_)

    def _check_training(
        self, X: Any, y: Any, sample_weight: Any, validation: Any, groups: Any, label_names: Any
    ) -> LabelTraining:
        """What `fit` is given, checked; sets `n_features_in_`, `labels_` and `thresholds_`."""
        name = type(self).__name__
        if y is None:
            raise ValueError(f"{name} requires y to be passed, but the target y is None.")
        view = check_features(self, X, reset=True)
        indicators = check_indicators(y, len(view), what="y")
        self.labels_ = check_label_names(label_names, indicators.shape[1])
        self.thresholds_ = np.full(len(self.labels_), INITIAL_THRESHOLD)
        given = weighted_rows(view, sample_weight, groups)
        kept: Indicators = given.of(indicators)
        varied = varying(kept)
        if not varied.any():
            counted = "1 sample" if len(kept) == 1 else f"{len(kept)} samples"
            weighted = "" if given.kept is None else " with a weight above 0"
            raise ValueError(
                f"{name} needs a label that some samples have and others lack: samples of 2 classes. Got "
                f"{counted}{weighted} that all have the same labels (1 class). Add samples with other labels."
            )
        held = None
        if validation is not None:
            Xv, Yv = check_pair(validation)
            chosen_on = check_features(self, Xv)
            held = chosen_on, check_indicators(Yv, len(chosen_on), what="The validation set's y")
            if held[1].shape[1] != len(self.labels_):
                raise ValueError(f"validation has {held[1].shape[1]} labels, and y has {len(self.labels_)}.")
        return LabelTraining(given, kept, varied, len(view), held)

    def predict_proba(self, X: Features) -> npt.NDArray[np.floating]:
        """Each label's own probability (n, L) of features (n, d)."""
        raise NotImplementedError

    def predict(self, X: Features) -> npt.NDArray[np.intp]:
        """Which labels (n, L) each row of features (n, d) has: 1 where its probability is above `thresholds_`."""
        predicted: npt.NDArray[np.intp] = (self.predict_proba(X) > self.thresholds_).astype(np.intp)
        return predicted

    def choices(self) -> dict[str, Any]:
        """What the fit decided, and the thresholds, ready for JSON."""
        return {**super().choices(), "thresholds": self.thresholds_.tolist()}

    def set_thresholds(self, thresholds: npt.ArrayLike) -> Self:
        """Predict a label where its probability is above its threshold: (L,) from 0 to 1. Kept in a saved head.

        `choose_thresholds` chooses them on samples that the head was not fitted on. Raises ValueError for another
        shape, and for values beyond 0 and 1.
        """
        self.thresholds_ = check_thresholds(thresholds, len(self.labels_))
        return self

    def _restore_thresholds(self, fitted: dict[str, Any]) -> None:
        """Make what a file says of them an array. Raises ValueError where it is no list of numbers from 0 to 1."""
        values = fitted["thresholds"]
        if not isinstance(values, list):
            raise ValueError("its thresholds must be a list")
        for value in values:
            check_number("every threshold", value, low=0, high=1 + 1e-12)
        fitted["thresholds"] = check_thresholds(values, len(self.labels_))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        tags.classifier_tags.multi_class = False
        tags.target_tags.multi_output = True
        tags.target_tags.single_output = False
        tags.target_tags.two_d_labels = True
        return tags


def check_balanced(class_weight: Any) -> None:
    """Raise ValueError unless it is None, or "balanced": no mapping says which label a class belongs to."""
    if class_weight not in (None, "balanced"):
        raise ValueError(f"class_weight must be None or 'balanced'. Got {class_weight!r} instead.")


def check_thresholds(thresholds: Any, n_labels: int) -> npt.NDArray[np.float64]:
    """`thresholds` as (L,) float64 of its own. Raises ValueError for another shape, and for what is not from 0 to 1."""
    found = np.array(as_numpy(thresholds), dtype=np.float64)
    if found.shape != (n_labels,):
        raise ValueError(f"thresholds must have one number per label, ({n_labels},). Got shape {found.shape} instead.")
    beyond = ~((found >= 0) & (found <= 1))
    if beyond.any():
        raise ValueError(
            f"thresholds must be numbers from 0 to 1. Got {found[beyond][0]:g} for label {beyond.argmax()}."
        )
    return found
