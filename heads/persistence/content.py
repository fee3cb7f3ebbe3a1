"""What a head file says: a head taken apart into JSON and arrays, and put together again after checking every part.

Everything raises ValueError that says what is wrong; the caller adds the file's name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import is_classifier

from precompute.heads.base.file_checks import check_keys, check_shapes, list_of_objects
from precompute.heads.base.inputs import check_number
from precompute.heads.persistence.encoding import TooLargeError, read_json, write_json
from precompute.heads.persistence.kinds import KINDS, head_class, kind_of

if TYPE_CHECKING:
    import numpy.typing as npt

    from precompute.heads.linear.logistic import LogisticHead
    from precompute.heads.mlp.head import MLPHead

    Arrays = dict[str, npt.NDArray[Any]]

__all__ = ["put_together", "take_apart"]

# Of an array of class names, each of which takes as much as the longest.
MAX_CLASSES_BYTES = 1 << 29
# They describe the machine that trained the head, not the head: one trained on a GPU must predict on a laptop.
NOT_SAVED = {"device", "n_jobs"}
STRINGS = {"format", "version", "head", "params", "fitted", "classes", "metadata", "digest"}
INTEGER_DTYPES = {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
LOGISTIC_FITTED = ("C_", "C_source_", "trials_", "stopped_early_", "objective_", "n_iter_", "converged_")
MLP_FITTED = ("history_", "best_epoch_", "validation_source_", "n_iter_")
TRIAL = {"C", "accuracy", "log_loss", "n_iter", "objective", "seconds"}
EPOCH = {"epoch", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy"}


def take_apart(head: Any) -> tuple[Arrays, dict[str, str]]:
    """The arrays, and the strings `head`, `params`, `fitted` and `classes`."""
    kind = kind_of(head)
    if kind == "logistic":
        names = list(LOGISTIC_FITTED)
        arrays = {"coef": head.coef_, "intercept": head.intercept_}
    elif kind != "mlp":
        names, arrays = list(head._FITTED), head._arrays()
    else:
        names = list(MLP_FITTED)
        arrays = {"mean": head.mean_, "scale": head.scale_}
        for layer, (weight, bias) in enumerate(zip(head.weights_, head.biases_, strict=True)):
            arrays |= {f"weight_{layer}": weight, f"bias_{layer}": bias}
    params = {name: _plain(value) for name, value in head.get_params().items() if name not in NOT_SAVED}
    parts = {
        "params": params,
        "fitted": {name.removesuffix("_"): getattr(head, name) for name in names},
        "classes": _describe_classes(head.classes_) if is_classifier(head) else {},
    }
    return arrays, {"head": kind, **{name: write_json(part) for name, part in parts.items()}}


def put_together(arrays: Arrays, strings: dict[str, str]) -> tuple[Any, dict[str, Any]]:
    """The head, fitted, and the caller's metadata."""
    if set(strings) != STRINGS:
        raise ValueError(f"its metadata must have the keys {sorted(STRINGS)}, and has {sorted(strings)}")
    params, fitted, classes, metadata = (_json_object(strings, k) for k in ("params", "fitted", "classes", "metadata"))
    kind = strings["head"]
    if kind not in KINDS:
        raise ValueError(f"its kind of head, {kind!r}, is unknown")
    head = _with_params(head_class(kind)(), params)
    names: tuple[str, ...] = {"logistic": LOGISTIC_FITTED, "mlp": MLP_FITTED}.get(kind) or head._FITTED
    check_keys("fitted", fitted, {name.removesuffix("_") for name in names})
    if is_classifier(head):
        head.classes_ = _rebuild_classes(classes)
    else:
        check_keys("classes", classes, set())
    own: dict[str, Any] = {"logistic": _restore_logistic, "mlp": _restore_mlp}
    restore = own.get(kind) or type(head)._restore
    restore(head, arrays, fitted)
    for name, value in fitted.items():
        setattr(head, f"{name}_", value)
    return head, metadata


def _restore_logistic(head: LogisticHead, arrays: Arrays, fitted: dict[str, Any]) -> None:
    rows = 1 if len(head.classes_) == 2 else len(head.classes_)
    n_features = arrays["coef"].shape[-1] if "coef" in arrays else 0
    check_shapes(arrays, {"coef": (rows, n_features), "intercept": (rows,)})
    check_number("C", fitted["C"], low=0, open_low=True)
    check_number("n_iter", fitted["n_iter"], whole=True, low=0)
    check_number("objective", fitted["objective"], low=0)
    flags = (fitted["converged"], fitted["stopped_early"])
    if not isinstance(fitted["C_source"], str) or not all(isinstance(flag, bool) for flag in flags):
        raise ValueError("its C_source must be a string, its converged and stopped_early true or false")
    for trial in list_of_objects("trials", fitted["trials"], TRIAL):
        for name, value in trial.items():
            check_number(name, value, low=0)
    head.coef_, head.intercept_, head.n_features_in_ = arrays["coef"], arrays["intercept"], n_features


def _restore_mlp(head: MLPHead, arrays: Arrays, fitted: dict[str, Any]) -> None:
    n_features = len(arrays["mean"]) if "mean" in arrays else 0
    sizes = [n_features, *head.hidden, len(head.classes_)]
    layers = range(len(sizes) - 1)
    expected: dict[str, tuple[int, ...]] = {"mean": (n_features,), "scale": (n_features,)}
    for layer in layers:
        expected |= {f"weight_{layer}": (sizes[layer + 1], sizes[layer]), f"bias_{layer}": (sizes[layer + 1],)}
    check_shapes(arrays, expected)
    if not (arrays["scale"] > 0).all():
        raise ValueError("its array scale must be above 0")
    history = list_of_objects("history", fitted["history"], EPOCH)
    for number, epoch in enumerate(history, start=1):
        if epoch["epoch"] != number:
            raise ValueError(f"its history must count epochs from 1, and has {epoch['epoch']!r} in place {number}")
        for name, value in epoch.items():
            if value is not None or not name.startswith("validation"):
                check_number(name, value, low=0)
    check_number("n_iter", fitted["n_iter"], whole=True, low=len(history), high=len(history) + 1)
    check_number("best_epoch", fitted["best_epoch"], whole=True, low=1, high=len(history) + 1)
    if not isinstance(fitted["validation_source"], str):
        raise ValueError("its validation_source must be a string")
    head.mean_, head.scale_, head.n_features_in_ = arrays["mean"], arrays["scale"], n_features
    head.weights_ = [arrays[f"weight_{layer}"] for layer in layers]
    head.biases_ = [arrays[f"bias_{layer}"] for layer in layers]


def _plain(value: Any) -> Any:
    """A parameter as JSON: a dict of class weights becomes pairs, as JSON's keys are always strings."""
    if isinstance(value, dict):
        return [[_plain(label), _plain(weight)] for label, weight in value.items()]
    if isinstance(value, tuple | list | np.ndarray):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def _with_params(head: Any, params: dict[str, Any]) -> Any:
    check_keys("params", params, set(head.get_params()) - NOT_SAVED)
    if isinstance(params.get("hidden"), list):
        params["hidden"] = tuple(params["hidden"])
    if isinstance(params.get("class_weight"), list):
        pairs = params["class_weight"]
        if not all(isinstance(p, list) and len(p) == 2 and isinstance(p[0], str | int) for p in pairs):
            raise ValueError("its class_weight must be pairs of a label and a weight")
        params["class_weight"] = dict(pairs)
    head.set_params(**params)
    head._check_parameters()
    return head


def _describe_classes(classes: npt.NDArray[Any]) -> dict[str, Any]:
    values = classes.tolist()
    if classes.dtype.name in INTEGER_DTYPES:
        return {"dtype": classes.dtype.name, "values": values}
    if classes.dtype.kind not in "UO" or not all(isinstance(value, str) for value in values):
        raise ValueError(f"its labels must be strings or integers, and have dtype {classes.dtype}")
    if classes.nbytes > MAX_CLASSES_BYTES:
        raise TooLargeError(f"its labels take {classes.nbytes} bytes, and at most {MAX_CLASSES_BYTES} are allowed")
    return {"dtype": "str" if classes.dtype.kind == "U" else "object", "values": list(map(str, values))}


def _rebuild_classes(described: dict[str, Any]) -> npt.NDArray[Any]:
    check_keys("classes", described, {"dtype", "values"})
    dtype, values = described["dtype"], described["values"]
    kind = int if isinstance(dtype, str) and dtype in INTEGER_DTYPES else str
    if kind is str and dtype not in ("str", "object"):
        raise ValueError(f"its labels have the unknown dtype {dtype!r}")
    # `type`, not isinstance: true is no label.
    if not isinstance(values, list) or not all(type(value) is kind for value in values):
        raise ValueError(f"its labels must be a list of {kind.__name__}")
    if len(values) < 2 or values != sorted(set(values)):
        raise ValueError("its labels must be at least two, sorted, and all different")
    if dtype == "str" and 4 * len(values) * max(map(len, values)) > MAX_CLASSES_BYTES:
        raise ValueError(f"its labels take more than {MAX_CLASSES_BYTES} bytes")
    try:
        classes = np.array(values, dtype=dtype)
    except OverflowError:
        raise ValueError(f"its labels do not fit {dtype}") from None
    if classes.tolist() != values:  # NumPy strips NULs at the end of a string
        raise ValueError(f"its labels do not fit {dtype}")
    return classes


def _json_object(strings: dict[str, str], name: str) -> dict[str, Any]:
    value = read_json(strings[name])
    if not isinstance(value, dict):
        raise ValueError(f"its {name} must be a JSON object")
    return value
