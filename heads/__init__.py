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
    from ._rows import RowView
    from .logistic import LogisticHead
    from .mlp import MLPHead
    from .persist import SavedHead, load_head, save_head
    from .scores import Scores, evaluate
    from .search import MLPSearch
    from .splits import folds, holdout

__all__ = [
    "LogisticHead",
    "MLPHead",
    "MLPSearch",
    "RowView",
    "SavedHead",
    "Scores",
    "evaluate",
    "folds",
    "holdout",
    "load_head",
    "save_head",
]

_MODULE_OF = {
    "LogisticHead": "logistic",
    "MLPHead": "mlp",
    "MLPSearch": "search",
    "RowView": "_rows",
    "SavedHead": "persist",
    "Scores": "scores",
    "evaluate": "scores",
    "folds": "splits",
    "holdout": "splits",
    "load_head": "persist",
    "save_head": "persist",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
