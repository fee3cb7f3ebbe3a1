"""Heads: light classifiers that train on cached features, their scores, and their files.

Import it as `precompute.heads`. The names below load on first use, so that importing this package (a command line's
`--help`, a program that only reads scores) waits for neither torch nor scikit-learn.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if __name__ != "precompute.heads":
    raise ImportError(f"This package is named precompute.heads, not {__name__}. Use `import precompute.heads`.")

if TYPE_CHECKING:
    from precompute.heads.attentive.head import AttentiveHead
    from precompute.heads.base.labels import label_strata
    from precompute.heads.base.progress import Progress, listening
    from precompute.heads.base.rows import RowView, ViewRows
    from precompute.heads.base.splits import folds, holdout
    from precompute.heads.linear.logistic import LogisticHead
    from precompute.heads.linear.multilabel_logistic import MultilabelLogisticHead
    from precompute.heads.linear.multilabel_ridge import MultilabelRidgeHead
    from precompute.heads.linear.ridge import RidgeHead
    from precompute.heads.linear.ridge_regression import RidgeRegressionHead
    from precompute.heads.linear.selected import SelectedHead
    from precompute.heads.mlp.head import MLPHead
    from precompute.heads.mlp.multilabel import MultilabelMLPHead
    from precompute.heads.mlp.regression import MLPRegressionHead
    from precompute.heads.mlp.search import MLPSearch
    from precompute.heads.neighbours.centroid import CentroidHead
    from precompute.heads.neighbours.knn import KNNHead
    from precompute.heads.neighbours.knn_regression import KNNRegressionHead
    from precompute.heads.neighbours.multilabel_knn import MultilabelKNNHead
    from precompute.heads.persistence.export import to_sklearn
    from precompute.heads.persistence.head_file import SavedHead, load_head, save_head
    from precompute.heads.scoring.label_scores import LabelScores, evaluate_labels
    from precompute.heads.scoring.number_scores import NumberScores, evaluate_numbers
    from precompute.heads.scoring.paired import Paired, paired
    from precompute.heads.scoring.paired_scores import PairedScores, paired_labels, paired_numbers
    from precompute.heads.scoring.scores import Scores, evaluate
    from precompute.heads.scoring.temperature import temperature
    from precompute.heads.scoring.thresholds import choose_thresholds

__all__ = [
    "AttentiveHead",
    "CentroidHead",
    "KNNHead",
    "KNNRegressionHead",
    "LabelScores",
    "LogisticHead",
    "MLPHead",
    "MLPRegressionHead",
    "MLPSearch",
    "MultilabelKNNHead",
    "MultilabelLogisticHead",
    "MultilabelMLPHead",
    "MultilabelRidgeHead",
    "NumberScores",
    "Paired",
    "PairedScores",
    "Progress",
    "RidgeHead",
    "RidgeRegressionHead",
    "RowView",
    "SavedHead",
    "Scores",
    "SelectedHead",
    "ViewRows",
    "choose_thresholds",
    "evaluate",
    "evaluate_labels",
    "evaluate_numbers",
    "folds",
    "holdout",
    "label_strata",
    "listening",
    "load_head",
    "paired",
    "paired_labels",
    "paired_numbers",
    "save_head",
    "temperature",
    "to_sklearn",
]

_HOMES = {
    "attentive.head": ("AttentiveHead",),
    "base.progress": ("Progress", "listening"),
    "base.rows": ("RowView", "ViewRows"),
    "base.labels": ("label_strata",),
    "base.splits": ("folds", "holdout"),
    "linear.logistic": ("LogisticHead",),
    "linear.multilabel_logistic": ("MultilabelLogisticHead",),
    "linear.multilabel_ridge": ("MultilabelRidgeHead",),
    "linear.ridge": ("RidgeHead",),
    "linear.ridge_regression": ("RidgeRegressionHead",),
    "linear.selected": ("SelectedHead",),
    "mlp.head": ("MLPHead",),
    "mlp.multilabel": ("MultilabelMLPHead",),
    "mlp.regression": ("MLPRegressionHead",),
    "mlp.search": ("MLPSearch",),
    "neighbours.centroid": ("CentroidHead",),
    "neighbours.knn": ("KNNHead",),
    "neighbours.knn_regression": ("KNNRegressionHead",),
    "neighbours.multilabel_knn": ("MultilabelKNNHead",),
    "persistence.export": ("to_sklearn",),
    "persistence.head_file": ("SavedHead", "load_head", "save_head"),
    "scoring.label_scores": ("LabelScores", "evaluate_labels"),
    "scoring.number_scores": ("NumberScores", "evaluate_numbers"),
    "scoring.paired": ("Paired", "paired"),
    "scoring.paired_scores": ("PairedScores", "paired_labels", "paired_numbers"),
    "scoring.scores": ("Scores", "evaluate"),
    "scoring.temperature": ("temperature",),
    "scoring.thresholds": ("choose_thresholds",),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
