"""Every kind of head by the name that its file and the command line give it; a head's module loads on first use.

Every head says of itself what its file holds: the names `_FITTED` of the attributes that are JSON, `_arrays()`, and
`_restore(arrays, fitted)`, which checks both, raises ValueError, and sets the attributes that are not in `_FITTED`; in
`fitted` it puts arrays where these are lists in the file.
`_ADDED` names the parameters that earlier releases do not know, `_LATER` what is None in the files that they wrote.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from precompute.heads.attentive.head import AttentiveHead
    from precompute.heads.linear.logistic import LogisticHead
    from precompute.heads.linear.multilabel_logistic import MultilabelLogisticHead
    from precompute.heads.linear.multilabel_ridge import MultilabelRidgeHead
    from precompute.heads.linear.ridge import RidgeHead
    from precompute.heads.linear.ridge_regression import RidgeRegressionHead
    from precompute.heads.linear.selected import SelectedHead
    from precompute.heads.mlp.head import MLPHead
    from precompute.heads.mlp.multilabel import MultilabelMLPHead
    from precompute.heads.mlp.regression import MLPRegressionHead
    from precompute.heads.neighbours.centroid import CentroidHead
    from precompute.heads.neighbours.knn import KNNHead
    from precompute.heads.neighbours.knn_regression import KNNRegressionHead
    from precompute.heads.neighbours.multilabel_knn import MultilabelKNNHead

    Classifier: TypeAlias = LogisticHead | MLPHead | KNNHead | RidgeHead | CentroidHead | SelectedHead | AttentiveHead
    Multilabel: TypeAlias = MultilabelLogisticHead | MultilabelRidgeHead | MultilabelKNNHead | MultilabelMLPHead
    Regressor: TypeAlias = RidgeRegressionHead | KNNRegressionHead | MLPRegressionHead
    Head: TypeAlias = Classifier | Multilabel | Regressor

__all__ = ["KINDS", "head_class", "kind_of"]

KINDS = {
    "logistic": ("precompute.heads.linear.logistic", "LogisticHead"),
    "mlp": ("precompute.heads.mlp.head", "MLPHead"),
    "knn": ("precompute.heads.neighbours.knn", "KNNHead"),
    "ridge": ("precompute.heads.linear.ridge", "RidgeHead"),
    "centroid": ("precompute.heads.neighbours.centroid", "CentroidHead"),
    "selected": ("precompute.heads.linear.selected", "SelectedHead"),
    "attentive": ("precompute.heads.attentive.head", "AttentiveHead"),
    "multilabel-logistic": ("precompute.heads.linear.multilabel_logistic", "MultilabelLogisticHead"),
    "multilabel-ridge": ("precompute.heads.linear.multilabel_ridge", "MultilabelRidgeHead"),
    "multilabel-knn": ("precompute.heads.neighbours.multilabel_knn", "MultilabelKNNHead"),
    "multilabel-mlp": ("precompute.heads.mlp.multilabel", "MultilabelMLPHead"),
    "ridge-regression": ("precompute.heads.linear.ridge_regression", "RidgeRegressionHead"),
    "knn-regression": ("precompute.heads.neighbours.knn_regression", "KNNRegressionHead"),
    "mlp-regression": ("precompute.heads.mlp.regression", "MLPRegressionHead"),
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
    raise ValueError(f"a {type(head).__name__} is not a head of precompute")
