"""What heads accept, and one place that checks it: NumPy arrays, memmaps, torch tensors, lists, row views."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_n_features, assert_all_finite, check_array, column_or_1d, validate_data

from precompute.heads.base.rows import RowView

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = [
    "LARGEST_WEIGHT",
    "Weighted",
    "as_numpy",
    "check_class_weight",
    "check_classes_with_weight",
    "check_features",
    "check_groups",
    "check_number",
    "check_pair",
    "check_sample_weight",
    "check_training",
    "check_validation",
    "check_validation_and_groups",
    "class_weights",
    "positions",
    "weighted_rows",
]

# Features stay as they are stored (integers become float64, as in scikit-learn); blocks of float16 become float32.
# Values are checked block by block, not in one copy.
AS_STORED: dict[str, Any] = {"dtype": [np.float64, np.float32, np.float16], "ensure_all_finite": False}
LARGEST_WEIGHT = 1e30  # float32 holds it


def as_numpy(values: Any) -> Any:
    """`values` itself, or the NumPy view of a torch tensor (a copy where it lives on a device or is bfloat16)."""
    torch = sys.modules.get("torch")  # a tensor can only exist where torch has been imported
    if torch is not None and isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    return values


def check_features(head: Any, X: Any, *, reset: bool = False) -> RowView:
    """`X` (n, d) as a view of finite float16, float32 or float64; `reset` where a head is being fitted.

    Raises ValueError as scikit-learn's own classifiers do, also for another d than the head was fitted on. Values that
    float32 does not hold are refused in float64 too, so that no product of two features overflows.
    """
    if isinstance(X, RowView):
        if not len(X):
            raise ValueError(f"Found array with 0 sample(s) (shape={X.shape}) while a minimum of 1 is required.")
        _check_n_features(head, X, reset=reset)
        view = X
    else:
        with np.errstate(over="ignore"):  # too large for float64 becomes inf, which is refused with a better message
            view = RowView(validate_data(head, as_numpy(X), reset=reset, **AS_STORED))
    for _, block in view.every().blocks():
        with np.errstate(over="ignore"):
            narrow = block.astype(np.float32, copy=False)
        assert_all_finite(narrow, estimator_name=type(head).__name__, input_name="X")
    return view


def check_training(head: Any, X: Any, y: Any) -> tuple[RowView, npt.NDArray[np.intp], npt.NDArray[Any]]:
    """Features (n, d), label positions (n,) and classes (K,) in sorted order; sets `n_features_in_`.

    Raises ValueError as scikit-learn's own classifiers do.
    """
    if not isinstance(X, RowView):  # y is looked at together with X, for scikit-learn's own messages
        with np.errstate(over="ignore"):
            X, y = validate_data(head, as_numpy(X), as_numpy(y), **AS_STORED)
        X = RowView(X)
    features, labels = check_features(head, X, reset=True), column_or_1d(as_numpy(y), warn=True)
    if len(labels) != len(features):
        raise ValueError(
            f"Found input variables with inconsistent numbers of samples: [{len(features)}, {len(labels)}]"
        )
    check_classification_targets(np.tile(labels, 2))  # twice: it warns where most labels are different ones
    classes, label = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(
            f"{type(head).__name__} needs samples of at least 2 classes. Got 1 class, {classes.tolist()[0]!r}. "
            "Add images of another class."
        )
    return features, label, classes


def check_classes_with_weight(head: Any, label: npt.NDArray[np.intp], classes: npt.NDArray[Any]) -> None:
    """Raise ValueError unless rows of at least two classes have a weight; `label` (m,) is theirs."""
    present = classes[np.unique(label)]
    if len(present) < 2:
        raise ValueError(
            f"{type(head).__name__} needs samples of at least 2 classes with a weight above 0. Only "
            f"{present.tolist()[0]!r} has them. Give samples of another class a weight."
        )


def check_pair(validation: Any) -> tuple[Any, Any]:
    """The features and labels (or targets) of a validation set, as they were given."""
    if not isinstance(validation, tuple | list) or len(validation) != 2:
        raise ValueError(f"validation must be a pair (X, y). Got {type(validation).__name__} instead.")
    X, y = validation
    return X, y


def check_validation(head: Any, validation: Any, classes: npt.NDArray[Any]) -> tuple[RowView, npt.NDArray[np.intp]]:
    """Features (m, d) and label positions (m,) of a validation set given as a pair (X, y)."""
    X, labels = check_pair(validation)
    if not isinstance(X, RowView):
        with np.errstate(over="ignore"):
            X, labels = validate_data(head, as_numpy(X), as_numpy(labels), reset=False, **AS_STORED)
        X = RowView(X)
    features = check_features(head, X)
    if len(labels) != len(features):
        raise ValueError(f"The validation set has {len(features)} rows and {len(labels)} labels.")
    return features, positions(labels, classes, what="The validation set")


def check_validation_and_groups(head: Any, validation: Any, groups: Any, n_rows: int) -> None:
    """Raise ValueError for a validation set or groups that are wrong, where a head takes them and does not need them.

    So what is wrong is reported whichever head is trained. `head` has its `classes_`.
    """
    if validation is not None:
        check_validation(head, validation, head.classes_)
    check_groups(groups, n_rows)


def check_groups(groups: Any, n_rows: int) -> npt.NDArray[np.intp] | None:
    """Which group (0, 1, ...) each row belongs to, (n,), or None where every row stands for itself."""
    if groups is None:
        return None
    names = np.asarray(groups)
    if names.shape != (n_rows,):
        raise ValueError(f"groups must have one entry per sample, ({n_rows},). Got shape {names.shape} instead.")
    found, group = np.unique(names, return_inverse=True)
    return None if len(found) == n_rows else group


def positions(labels: npt.ArrayLike, classes: npt.NDArray[Any], *, what: str) -> npt.NDArray[np.intp]:
    """Where each label is in `classes`. Raises ValueError that names the labels that are not."""
    known = {label: position for position, label in enumerate(classes.tolist())}
    given = np.asarray(labels).tolist()
    unknown = sorted({str(label) for label in given if label not in known})
    if unknown:
        shown = ", ".join(map(repr, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
        raise ValueError(
            f"{what} has labels that the head does not know: {shown}. "
            "Remove those samples, or train on these classes too."
        )
    return np.array([known[label] for label in given], dtype=np.intp)


def check_sample_weight(value: Any, n_rows: int) -> npt.NDArray[np.float64]:
    """The weight of each row (n,), 1 for None and the same number for a scalar, as in scikit-learn. Not to be changed.

    The one place that checks weights. Raises ValueError for another shape, NaN, infinity, a negative weight, one that
    float32 does not hold, and where all are zero.
    """
    if value is None:
        return np.broadcast_to(np.float64(1), n_rows)  # takes no memory
    if isinstance(value, Real):
        value = np.full(n_rows, value)
    weight: npt.NDArray[np.float64] = check_array(
        as_numpy(value), ensure_2d=False, allow_nd=True, ensure_min_samples=0, dtype=np.float64,
        input_name="sample_weight",
    )  # fmt: skip
    if weight.shape != (n_rows,):
        raise ValueError(
            f"sample_weight must have one entry per sample, ({n_rows},). Got shape {weight.shape} instead."
        )
    if (weight < 0).any():
        raise ValueError(
            f"sample_weight must be 0 or above. Got {weight.min():g} for sample {weight.argmin()}. "
            "Give 0 to leave a sample out."
        )
    if (weight > LARGEST_WEIGHT).any():
        raise ValueError(f"sample_weight must be at most {LARGEST_WEIGHT:g}. Got {weight.max():g}. Divide all by it.")
    if not weight.any():
        raise ValueError("sample_weight is zero for every sample, so nothing is left to fit on.")
    return weight


@dataclass(frozen=True)
class Weighted:
    """The rows that a head is fitted on: those of a weight above 0.

    view: (m, d) · kept: (m,) which of the given rows they are, ascending, None for all · weight: (m,) float64, above 0
    · group: (m,) as `check_groups` numbers them, None where every row stands for itself.
    """

    view: RowView
    kept: npt.NDArray[np.intp] | None
    weight: npt.NDArray[np.float64]
    group: npt.NDArray[np.intp] | None

    @property
    def rows(self) -> npt.NDArray[np.intp]:
        """Which of the given rows they are, (m,)."""
        return np.arange(len(self.view)) if self.kept is None else self.kept

    def of(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """What `values` (n, ...) of the given rows are for these, (m, ...)."""
        return values if self.kept is None else values[self.kept]


def weighted_rows(view: RowView, sample_weight: Any, groups: Any) -> Weighted:
    """The rows of `view` (n, d) that have a weight; one of weight 0 is left out, as if it had not been given.

    Raises ValueError as `check_sample_weight` and `check_groups` do.
    """
    weight, group = check_sample_weight(sample_weight, len(view)), check_groups(groups, len(view))
    if weight.all():
        return Weighted(view, None, weight, group)
    kept = np.flatnonzero(weight)
    left = None if group is None else check_groups(group[kept], len(kept))
    return Weighted(view.take(kept), kept, weight[kept], left)


def class_weights(
    class_weight: Any,
    classes: npt.NDArray[Any],
    label: npt.NDArray[np.intp],
    sample_weight: npt.NDArray[np.float64] | None = None,
) -> npt.NDArray[np.float64]:
    """The weight of each class (K,): None for equal ones, "balanced", or a mapping from label to weight.

    "balanced" counts every row of `label` (n,) with its `sample_weight` (n,), and the classes that have a row: so a
    weight is the same as that many rows. A class without one has the weight 1, which nothing is multiplied by.
    """
    if isinstance(class_weight, str) and class_weight == "balanced":
        count = np.bincount(label, sample_weight, len(classes))
        present = count > 0
        balanced: npt.NDArray[np.float64] = np.ones(len(classes))
        balanced[present] = count.sum() / (present.sum() * count[present])
        return balanced
    weights: npt.NDArray[np.float64] = compute_class_weight(class_weight, classes=classes, y=classes[label])
    return weights


def check_number(
    name: str, value: Any, *, whole: bool = False, low: float, high: float = float("inf"), open_low: bool = False
) -> None:
    """Raise ValueError unless `value` is a finite number (whole where asked) with low <= value < high."""
    kind = Integral if whole else Real
    inside = isinstance(value, kind) and not isinstance(value, bool | np.bool_)
    if not inside or not (low < value if open_low else low <= value) or not value < high:
        bounds = f"{'above' if open_low else 'of at least'} {low:g}" + (f" and below {high:g}" if high < 1e308 else "")
        raise ValueError(f"{name} must be a {'whole' if whole else 'finite'} number {bounds}. Got {value!r} instead.")


def check_class_weight(value: Any) -> None:
    """Raise ValueError unless `value` is None, "balanced", or a mapping from label to a weight above 0."""
    if value is None or (isinstance(value, str) and value == "balanced"):
        return
    if not isinstance(value, Mapping):
        raise ValueError(f"class_weight must be None, 'balanced' or a dict. Got {value!r} instead.")
    for label, weight in value.items():
        # float32 must hold it. 0 is refused, as the loss of a batch with that class alone would be 0/0.
        check_number(f"class_weight[{label!r}]", weight, low=1e-30, high=1e30)
