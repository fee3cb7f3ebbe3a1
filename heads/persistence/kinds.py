"""Every kind of head by the name that its file and the command line give it; a head's module loads on first use.

Every head says of itself what its file holds: the names `_FITTED` of the attributes that are JSON, `_arrays()`, and
`_restore(arrays, fitted)`, which checks both, raises ValueError, and sets the attributes that are not in `_FITTED`.
`_ADDED` names the parameters that earlier releases do not know, `_LATER` what is None in the files that they wrote.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from precompute.heads.linear.logistic import LogisticHead
    from precompute.heads.linear.ridge import RidgeHead
    from precompute.heads.linear.ridge_regression import RidgeRegressionHead
    from precompute.heads.mlp.head import MLPHead
    from precompute.heads.neighbours.centroid import CentroidHead
    from precompute.heads.neighbours.knn import KNNHead

    Classifier: TypeAlias = LogisticHead | MLPHead | KNNHead | RidgeHead | CentroidHead
    Head: TypeAlias = Classifier | RidgeRegressionHead

__all__ = ["KINDS", "head_class", "kind_of"]

KINDS = {
    "logistic": ("precompute.heads.linear.logistic", "LogisticHead"),
    "mlp": ("precompute.heads.mlp.head", "MLPHead"),
    "knn": ("precompute.heads.neighbours.knn", "KNNHead"),
    "ridge": ("precompute.heads.linear.ridge", "RidgeHead"),
    "centroid": ("precompute.heads.neighbours.centroid", "CentroidHead"),
    "ridge-regression": ("precompute.heads.linear.ridge_regression", "RidgeRegressionHead"),
}


def head_class(kind: str) -> Any:
    """The class of a kind. Raises KeyError for one that is unknown."""
    module, name = KINDS[kind]
    return getattr(import_module(module), name)


def kind_of(head: Any) -> str:
    """The kind of a head. Raises ValueError for anything else."""
    for kind, module_and_name in KINDS.items():
        if module_and_name == (type(head).__module__, type(head).__name__):
            return kind
    raise ValueError(f"a {type(head).__name__} is no head of precompute")
