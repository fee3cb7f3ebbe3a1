"""Every kind of head by the name that its file and the command line give it; a head's module loads on first use.

A head that says of itself what its file holds has `_arrays()`, the names `_FITTED` of the attributes that are JSON,
and `_restore(arrays, fitted)`, which checks both and sets what is not in `_FITTED`. Such heads are all but the first
two, whose parts stand in `_content`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from .centroid import CentroidHead
    from .knn import KNNHead
    from .logistic import LogisticHead
    from .mlp import MLPHead
    from .ridge import RidgeHead
    from .ridge_regression import RidgeRegressionHead

    Classifier: TypeAlias = LogisticHead | MLPHead | KNNHead | RidgeHead | CentroidHead
    Head: TypeAlias = Classifier | RidgeRegressionHead

__all__ = ["KINDS", "head_class", "kind_of"]

KINDS = {
    "logistic": ("logistic", "LogisticHead"),
    "mlp": ("mlp", "MLPHead"),
    "knn": ("knn", "KNNHead"),
    "ridge": ("ridge", "RidgeHead"),
    "centroid": ("centroid", "CentroidHead"),
    "ridge-regression": ("ridge_regression", "RidgeRegressionHead"),
}


def head_class(kind: str) -> Any:
    """The class of a kind. Raises KeyError for one that is unknown."""
    module, name = KINDS[kind]
    return getattr(import_module(f".{module}", __package__), name)


def kind_of(head: Any) -> str:
    """The kind of a head. Raises ValueError for anything else."""
    for kind, place in KINDS.items():
        if place == (type(head).__module__.rpartition(".")[2], type(head).__name__):
            return kind
    raise ValueError(f"a {type(head).__name__} is no head of precompute")
