"""Targets that are numbers, such as an age or a count: what they are checked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.utils.validation import check_array, column_or_1d

from precompute.heads.base.inputs import Weighted, as_numpy, check_features, check_pair, weighted_rows

if TYPE_CHECKING:
    import numpy.typing as npt

    from precompute.heads.base.rows import RowView

    Float = npt.NDArray[np.float64]

__all__ = ["check_held_number", "check_number_training", "check_numbers_of", "check_two_samples"]

LARGEST_TARGET = 1e38  # float32 holds it, and float64 its square


def check_numbers_of(head: Any, X: Any, y: Any, *, reset: bool) -> tuple[RowView, Float]:
    """Features (n, d) and finite targets (n,) or (n, t), as they are; `reset` where `head` is being fitted."""
    if y is None:
        raise ValueError(f"{type(head).__name__} requires y to be passed, but the target y is None.")
    view = check_features(head, X, reset=reset)
    targets = check_array(as_numpy(y), ensure_2d=False, dtype=np.float64, input_name="y")
    if targets.ndim not in (1, 2) or len(targets) != len(view):
        raise ValueError(
            f"Found input variables with inconsistent numbers of samples: {[len(view), len(targets)]}; "
            f"y must be (n,) or (n, t), and is {targets.shape}"
        )
    return view, targets


def check_number_training(head: Any, X: Any, y: Any, sample_weight: Any, groups: Any) -> tuple[Weighted, Float]:
    """The rows of a weight above 0, and their targets (m,); sets `n_features_in_`.

    Raises ValueError where fewer than two rows have a weight, and as `check_numbers_of` and `weighted_rows` do.
    """
    view, targets = check_numbers_of(head, X, y, reset=True)
    given = weighted_rows(view, sample_weight, groups)
    check_two_samples(head, given, len(view))
    return given, given.of(_one_number(targets))


def check_two_samples(head: Any, given: Weighted, n_rows: int) -> None:
    """Raise ValueError where one of `n_rows` alone has a weight."""
    if len(given.view) < 2:
        counted = "1 sample" if n_rows < 2 else "1 sample with a weight above 0"
        raise ValueError(f"{type(head).__name__} needs at least 2 samples. Got {counted}. Add images.")


def check_held_number(head: Any, validation: Any) -> tuple[RowView, Float]:
    """Features (m, d) and targets (m,) of a validation set given as a pair (X, y)."""
    view, targets = check_numbers_of(head, *check_pair(validation), reset=False)
    return view, _one_number(targets)


def _one_number(targets: Float) -> Float:
    """(n,), of (n,) or (n, 1). Raises ValueError for others, and for numbers that float32 does not hold."""
    y: Float = column_or_1d(targets, warn=True)
    if abs(y).max() > LARGEST_TARGET:
        raise ValueError(f"y must hold numbers of at most {LARGEST_TARGET:g}. Got {y[abs(y).argmax()]:g}. Scale it.")
    return y
