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
    from ._paired import Paired, paired
    from ._rows import RowView
    from ._temperature import temperature
    from .centroid import CentroidHead
    from .export import to_sklearn
    from .knn import KNNHead
    from .logistic import LogisticHead
    from .mlp import MLPHead
    from .persist import SavedHead, load_head, save_head
    from .ridge import RidgeHead
    from .ridge_regression import RidgeRegressionHead
    from .scores import Scores, evaluate
    from .search import MLPSearch
    from .splits import folds, holdout

__all__ = [
    "CentroidHead",
    "KNNHead",
    "LogisticHead",
    "MLPHead",
    "MLPSearch",
    "Paired",
    "RidgeHead",
    "RidgeRegressionHead",
    "RowView",
    "SavedHead",
    "Scores",
    "evaluate",
    "folds",
    "holdout",
    "load_head",
    "paired",
    "save_head",
    "temperature",
    "to_sklearn",
]

_MODULE_OF = {
    "CentroidHead": "centroid",
    "KNNHead": "knn",
    "LogisticHead": "logistic",
    "MLPHead": "mlp",
    "RidgeHead": "ridge",
    "RidgeRegressionHead": "ridge_regression",
    "Paired": "_paired",
    "MLPSearch": "search",
    "RowView": "_rows",
    "SavedHead": "persist",
    "Scores": "scores",
    "evaluate": "scores",
    "folds": "splits",
    "holdout": "splits",
    "load_head": "persist",
    "paired": "_paired",
    "save_head": "persist",
    "to_sklearn": "export",
    "temperature": "_temperature",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
