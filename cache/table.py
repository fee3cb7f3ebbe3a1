"""The samples of a feature file as a pandas table."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from precompute.cache.status import SPLITS, UNKNOWN_SPLIT, status_name
from precompute.errors import CacheError

if TYPE_CHECKING:
    import pandas as pd

    from precompute.cache.reader import Cache


def to_pandas(cache: Cache) -> pd.DataFrame:
    """See `Cache.to_pandas`."""
    try:
        import pandas as pd
    except ImportError as error:
        raise CacheError(
            f"A table of samples needs pandas: {error}.", hint="Install it: pip install 'precompute[pandas]'"
        ) from error
    codes, outcomes = np.unique(cache.status, return_inverse=True)
    splits = np.minimum(cache.column("samples/split"), len(SPLITS))
    values: dict[str, Any] = {
        "id": np.array(cache.ids, dtype=object),
        "label": pd.Categorical.from_codes(cache.labels, list(cache.classes)),
        "split": pd.Categorical.from_codes(splits, [*SPLITS, UNKNOWN_SPLIT]),
        "status": pd.Categorical.from_codes(outcomes, [status_name(int(code)) for code in codes]),
    }
    for name in cache.columns:
        column = cache.column(f"columns/{name}")
        shown = f"columns/{name}" if name in ("id", "label", "split", "status") else name
        parts = {shown: column} if column.ndim == 1 else {f"{shown}[{k}]": part for k, part in enumerate(column.T)}
        values |= {part: _as_text(array) for part, array in parts.items()}
    return pd.DataFrame(values)


def _as_text(values: NDArray[Any]) -> NDArray[Any]:
    if values.dtype.kind != "S":
        return np.array(values)  # not a view of the file
    return np.array([os.fsdecode(value) for value in values.tolist()], dtype=object)
