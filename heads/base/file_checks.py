"""Checks that a head makes of what a file says about it, before any of it is used.

Everything raises ValueError that says what is wrong; the caller adds the file's name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from precompute.heads.base.inputs import check_number

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy.typing as npt

    Arrays = dict[str, npt.NDArray[Any]]

__all__ = ["check_arrays", "check_keys", "check_numbers", "check_shapes", "list_of_objects"]


def check_shapes(arrays: Arrays, expected: dict[str, tuple[int, ...]]) -> None:
    """Raise unless `arrays` are exactly those of these names and shapes, all float32 or all float64."""
    dtype = "float64" if all(array.dtype == np.float64 for array in arrays.values()) else "float32"
    check_arrays(arrays, {name: (shape, [dtype]) for name, shape in expected.items()})


def check_arrays(arrays: Arrays, expected: Mapping[str, tuple[tuple[int, ...], Iterable[str]]]) -> None:
    """Raise unless `arrays` are exactly those of these names, each with its shape and one of its dtypes."""
    shapes = {name: array.shape for name, array in arrays.items()}
    wanted = {name: shape for name, (shape, _) in expected.items()}
    if shapes != wanted:
        raise ValueError(f"its arrays must have the shapes {wanted}, and have {shapes}")
    for name, (_, dtypes) in expected.items():
        if arrays[name].dtype not in [np.dtype(dtype) for dtype in dtypes]:
            raise ValueError(f"its array {name} must be {' or '.join(dtypes)}, and is {arrays[name].dtype}")


def check_keys(what: str, value: dict[str, Any], expected: set[str]) -> None:
    if set(value) != expected:
        raise ValueError(f"its {what} must have the keys {sorted(expected)}, and have {sorted(value)}")


def list_of_objects(what: str, value: Any, keys: set[str]) -> list[dict[str, Any]]:
    """`value`, once it is a list of JSON objects with exactly these keys."""
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ValueError(f"its {what} must be a list of JSON objects")
    for item in value:
        check_keys(f"entries of {what}", item, keys)
    return value


def check_numbers(what: str, value: Any, keys: set[str]) -> None:
    """Raise unless `value` is a list of JSON objects with exactly these keys and finite numbers of 0 or more."""
    for item in list_of_objects(what, value, keys):
        for name, number in item.items():
            check_number(name, number, low=0)
