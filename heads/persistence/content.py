"""What a head file says: a head as JSON and arrays, and restored from both after checking every part.

Everything raises ValueError that says what is wrong; the caller adds the file's name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import is_classifier

from precompute.heads.base.file_checks import check_keys
from precompute.heads.base.labels import MultilabelHead
from precompute.heads.persistence.encoding import TooLargeError, read_json, write_json
from precompute.heads.persistence.kinds import KINDS, head_class, kind_of

if TYPE_CHECKING:
    import numpy.typing as npt

    Arrays = dict[str, npt.NDArray[Any]]

__all__ = ["describe_names", "json_object", "rebuild_classes", "rebuild_names", "restore", "serialise"]

# Of an array of class names, each of which takes as much as the longest.
MAX_CLASSES_BYTES = 1 << 29
# It describes the machine that trained the head, not the head: one trained on a GPU must predict on a laptop.
NOT_SAVED = {"device"}
STRINGS = {"format", "version", "head", "params", "fitted", "classes", "metadata", "digest"}
INTEGER_DTYPES = {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}


def serialise(head: Any) -> tuple[Arrays, dict[str, str]]:
    """The arrays, and the strings `head`, `params`, `fitted` and `classes`."""
    kind = kind_of(head)
    params = {name: _plain(value) for name, value in head.get_params().items() if name not in NOT_SAVED}
    # Those that an earlier release does not know stand in the file where they are used: it reads all others.
    unused = {name: value for name, value in type(head)().get_params().items() if name in _added(head)}
    params = {name: value for name, value in params.items() if name not in unused or value != unused[name]}
    parts = {
        "params": params,
        "fitted": {name.removesuffix("_"): _listed(getattr(head, name)) for name in head._FITTED},
        "classes": _described_names(head),
    }
    return head._arrays(), {"head": kind, **{name: write_json(part) for name, part in parts.items()}}


def restore(arrays: Arrays, strings: dict[str, str]) -> tuple[Any, dict[str, Any]]:
    """The head, fitted, and the caller's metadata."""
    if set(strings) != STRINGS:
        raise ValueError(f"its metadata must have the keys {sorted(STRINGS)}, and has {sorted(strings)}")
    params, fitted, classes, metadata = (json_object(strings, k) for k in ("params", "fitted", "classes", "metadata"))
    kind = strings["head"]
    if kind not in KINDS:
        raise ValueError(f"its kind of head, {kind!r}, is unknown")
    head = _with_params(head_class(kind)(), params)
    fitted = {**dict.fromkeys(getattr(head, "_LATER", ())), **fitted}
    check_keys("fitted", fitted, {name.removesuffix("_") for name in head._FITTED})
    if isinstance(head, MultilabelHead):
        head.labels_ = rebuild_names(classes)
    elif is_classifier(head):
        head.classes_ = rebuild_classes(classes)
    else:
        check_keys("classes", classes, set())
    head._restore(arrays, fitted)
    for name, value in fitted.items():
        setattr(head, f"{name}_", value)
    return head, metadata


def _added(head: Any) -> tuple[str, ...]:
    """The parameters that files of earlier releases do not have; they stand for their defaults there."""
    added: tuple[str, ...] = getattr(head, "_ADDED", ())
    return added


def _listed(value: Any) -> Any:
    """A fitted attribute as JSON: an array becomes a list."""
    return value.tolist() if isinstance(value, np.ndarray) else value


def _plain(value: Any) -> Any:
    """A parameter as JSON: a dict of class weights becomes pairs, as JSON's keys are always strings."""
    if isinstance(value, dict):
        return [[_plain(label), _plain(weight)] for label, weight in value.items()]
    if isinstance(value, tuple | list | np.ndarray):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def _with_params(head: Any, params: dict[str, Any]) -> Any:
    known = set(head.get_params()) - NOT_SAVED
    check_keys("params", params, known - (set(_added(head)) - set(params)))
    params |= {name: tuple(params[name]) for name in ("hidden", "layers") if isinstance(params.get(name), list)}
    if isinstance(params.get("class_weight"), list):
        pairs = params["class_weight"]
        if not all(isinstance(p, list) and len(p) == 2 and isinstance(p[0], str | int) for p in pairs):
            raise ValueError("its class_weight must be pairs of a label and a weight")
        params["class_weight"] = dict(pairs)
    head.set_params(**params)
    head._check_parameters()
    return head


def _described_names(head: Any) -> dict[str, Any]:
    """Of the classes of a head, or of its labels; none where it predicts numbers."""
    if isinstance(head, MultilabelHead):
        return describe_names(head.labels_)
    return describe_names(head.classes_) if is_classifier(head) else {}


def describe_names(classes: npt.NDArray[Any]) -> dict[str, Any]:
    values = classes.tolist()
    if classes.dtype.name in INTEGER_DTYPES:
        return {"dtype": classes.dtype.name, "values": values}
    if classes.dtype.kind not in "UO" or not all(isinstance(value, str) for value in values):
        raise ValueError(f"its labels must be strings or integers, and have dtype {classes.dtype}")
    if classes.nbytes > MAX_CLASSES_BYTES:
        raise TooLargeError(f"its labels take {classes.nbytes} bytes, and at most {MAX_CLASSES_BYTES} are allowed")
    return {"dtype": "str" if classes.dtype.kind == "U" else "object", "values": list(map(str, values))}


def rebuild_classes(described: dict[str, Any]) -> npt.NDArray[Any]:
    classes = rebuild_names(described)
    values = described["values"]
    if len(values) < 2 or values != sorted(values):
        raise ValueError("its labels must be at least two, sorted, and all different")
    return classes


def rebuild_names(described: dict[str, Any]) -> npt.NDArray[Any]:
    """Names of classes or labels, which all differ, as an array of the dtype that they had."""
    check_keys("classes", described, {"dtype", "values"})
    dtype, values = described["dtype"], described["values"]
    kind = int if isinstance(dtype, str) and dtype in INTEGER_DTYPES else str
    if kind is str and dtype not in ("str", "object"):
        raise ValueError(f"its labels have the unknown dtype {dtype!r}")
    # `type`, not isinstance: true is no label.
    if not isinstance(values, list) or not all(type(value) is kind for value in values):
        raise ValueError(f"its labels must be a list of {kind.__name__}")
    if not values or len(set(values)) < len(values):
        raise ValueError("its labels must be at least one, and all different")
    if dtype == "str" and 4 * len(values) * max(map(len, values)) > MAX_CLASSES_BYTES:
        raise ValueError(f"its labels take more than {MAX_CLASSES_BYTES} bytes")
    try:
        classes = np.array(values, dtype=dtype)
    except OverflowError:
        raise ValueError(f"its labels do not fit {dtype}") from None
    if classes.tolist() != values:  # NumPy strips NULs at the end of a string
        raise ValueError(f"its labels do not fit {dtype}")
    return classes


def json_object(strings: dict[str, str], name: str) -> dict[str, Any]:
    value = read_json(strings[name])
    if not isinstance(value, dict):
        raise ValueError(f"its {name} must be a JSON object")
    return value
