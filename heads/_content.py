"""What a head file says: a head taken apart into JSON and arrays, and put together again after checking every part.

Everything raises ValueError that says what is wrong; the caller adds the file's name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ._headfile import read_json, write_json
from ._inputs import check_number

if TYPE_CHECKING:
    import numpy.typing as npt

    from .logistic import LogisticHead
    from .mlp import MLPHead

    Arrays = dict[str, npt.NDArray[np.float32]]

__all__ = ["put_together", "take_apart"]

# They describe the machine that trained the head, not the head: one trained on a GPU must predict on a laptop.
NOT_SAVED = {"device", "n_jobs"}
STRINGS = {"format", "version", "head", "params", "fitted", "classes", "metadata", "digest"}
INTEGER_DTYPES = {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
LOGISTIC_FITTED = ("C_", "C_source_", "trials_", "n_iter_", "converged_")
MLP_FITTED = ("history_", "best_epoch_", "validation_source_", "n_iter_")
TRIAL = {"C", "accuracy", "log_loss"}
EPOCH = {"epoch", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy"}


def take_apart(head: LogisticHead | MLPHead) -> tuple[Arrays, dict[str, str]]:
    """The arrays, and the strings `head`, `params`, `fitted` and `classes`."""
    from .logistic import LogisticHead

    if isinstance(head, LogisticHead):
        kind, names = "logistic", list(LOGISTIC_FITTED)
        arrays = {"coef": head.coef_, "intercept": head.intercept_}
    else:
        kind, names = "mlp", list(MLP_FITTED)
        arrays = {"mean": head.mean_, "scale": head.scale_}
        for layer, (weight, bias) in enumerate(zip(head.weights_, head.biases_, strict=True)):
            arrays |= {f"weight_{layer}": weight, f"bias_{layer}": bias}
    params = {name: _plain(value) for name, value in head.get_params().items() if name not in NOT_SAVED}
    parts = {
        "params": params,
        "fitted": {name.removesuffix("_"): getattr(head, name) for name in names},
        "classes": _describe_classes(head.classes_),
    }
    return arrays, {"head": kind, **{name: write_json(part) for name, part in parts.items()}}


def put_together(arrays: Arrays, strings: dict[str, str]) -> tuple[LogisticHead | MLPHead, dict[str, Any]]:
    """The head, fitted, and the caller's metadata."""
    if set(strings) != STRINGS:
        raise ValueError(f"its metadata must have the keys {sorted(STRINGS)}, and has {sorted(strings)}")
    params, fitted, classes, metadata = (_json_object(strings, k) for k in ("params", "fitted", "classes", "metadata"))
    if strings["head"] == "logistic":
        from .logistic import LogisticHead

        head: LogisticHead | MLPHead = _with_params(LogisticHead(), params)
        _check_keys("fitted", fitted, {name.removesuffix("_") for name in LOGISTIC_FITTED})
        head.classes_ = _rebuild_classes(classes)
        _restore_logistic(head, arrays, fitted)
    elif strings["head"] == "mlp":
        from .mlp import MLPHead

        head = _with_params(MLPHead(), params)
        _check_keys("fitted", fitted, {name.removesuffix("_") for name in MLP_FITTED})
        head.classes_ = _rebuild_classes(classes)
        _restore_mlp(head, arrays, fitted)
    else:
        raise ValueError(f"its kind of head, {strings['head']!r}, is unknown")
    for name, value in fitted.items():
        setattr(head, f"{name}_", value)
    return head, metadata


def _restore_logistic(head: LogisticHead, arrays: Arrays, fitted: dict[str, Any]) -> None:
    rows = 1 if len(head.classes_) == 2 else len(head.classes_)
    n_features = arrays["coef"].shape[-1] if "coef" in arrays else 0
    _check_shapes(arrays, {"coef": (rows, n_features), "intercept": (rows,)})
    check_number("C", fitted["C"], low=0, open_low=True)
    check_number("n_iter", fitted["n_iter"], whole=True, low=0)
    if not isinstance(fitted["C_source"], str) or not isinstance(fitted["converged"], bool):
        raise ValueError("its C_source must be a string and its converged true or false")
    for trial in _list_of_objects("trials", fitted["trials"], TRIAL):
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
    _check_shapes(arrays, expected)
    if not (arrays["scale"] > 0).all():
        raise ValueError("its array scale must be above 0")
    history = _list_of_objects("history", fitted["history"], EPOCH)
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
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def _with_params(head: Any, params: dict[str, Any]) -> Any:
    _check_keys("params", params, set(head.get_params()) - NOT_SAVED)
    if isinstance(params.get("hidden"), list):
        params["hidden"] = tuple(params["hidden"])
    if isinstance(params["class_weight"], list):
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
    return {"dtype": "str" if classes.dtype.kind == "U" else "object", "values": list(map(str, values))}


def _rebuild_classes(described: dict[str, Any]) -> npt.NDArray[Any]:
    _check_keys("classes", described, {"dtype", "values"})
    dtype, values = described["dtype"], described["values"]
    kind = int if isinstance(dtype, str) and dtype in INTEGER_DTYPES else str
    if kind is str and dtype not in ("str", "object"):
        raise ValueError(f"its labels have the unknown dtype {dtype!r}")
    # `type`, not isinstance: true is no label.
    if not isinstance(values, list) or not all(type(value) is kind for value in values):
        raise ValueError(f"its labels must be a list of {kind.__name__}")
    if len(values) < 2 or values != sorted(set(values)):
        raise ValueError("its labels must be at least two, sorted, and all different")
    try:
        classes = np.array(values, dtype=dtype)
    except OverflowError:
        raise ValueError(f"its labels do not fit {dtype}") from None
    if classes.tolist() != values:  # NumPy strips NULs at the end of a string
        raise ValueError(f"its labels do not fit {dtype}")
    return classes


def _check_shapes(arrays: Arrays, expected: dict[str, tuple[int, ...]]) -> None:
    shapes = {name: array.shape for name, array in arrays.items()}
    if shapes != expected:
        raise ValueError(f"its arrays must have the shapes {expected}, and have {shapes}")


def _check_keys(what: str, value: dict[str, Any], expected: set[str]) -> None:
    if set(value) != expected:
        raise ValueError(f"its {what} must have the keys {sorted(expected)}, and have {sorted(value)}")


def _json_object(strings: dict[str, str], name: str) -> dict[str, Any]:
    value = read_json(strings[name])
    if not isinstance(value, dict):
        raise ValueError(f"its {name} must be a JSON object")
    return value


def _list_of_objects(what: str, value: Any, keys: set[str]) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ValueError(f"its {what} must be a list of JSON objects")
    for item in value:
        _check_keys(f"entries of {what}", item, keys)
    return value
