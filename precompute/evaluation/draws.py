"""Which images of a training part few labels are: drawn from different pictures that are not tested."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from precompute.errors import TrainingError
from precompute.training.targets import CLASSES, NUMBER, Rows, Target


def pool_of(train: Rows, test: Rows, labels: NDArray[np.integer[Any]], groups: NDArray[np.int64]) -> tuple[Rows, int]:
    """The rows to draw from: one of each picture and label, none that is also in `test`; and how many of those."""
    in_test = np.isin(groups[train], groups[test])
    rows = train[~in_test]
    first = np.unique(np.stack([groups[rows], labels[rows]]), axis=1, return_index=True)[1]
    return rows[np.sort(first)], int(in_test.sum())


def check_sizes(path: str, target: Target, pool: Rows, shots: list[int], unit: str = "images") -> list[str]:
    """Raise TrainingError where nothing has as many images; notes on what has fewer. unit: of the samples."""
    if target.task == NUMBER:
        names, sizes = [f"{path}"], np.array([len(pool)])
        lacks = f"{path} has only {len(pool)} different training {unit}, and {max(shots)} are requested."
    else:
        strata = _members(pool, target)
        names, sizes = list(strata), np.array([len(rows) for rows in strata.values()])
        lacks = (
            f"{path} has no {'class' if target.task == CLASSES else 'label'} with {max(shots)} different training "
            f"{unit}; the largest has {sizes.max()}."
        )
    if max(shots) > sizes.max():
        raise TrainingError(
            lacks,
            hint=f"Give fewer shots: --shots {','.join(str(n) for n in shots if n <= sizes.max()) or sizes.max()}",
        )
    if not (short := [f"{name} ({size})" for name, size in zip(names, sizes, strict=True) if size < max(shots)]):
        return []
    shown = ", ".join(short[:8]) + (", ..." if len(short) > 8 else "")
    what = "classes" if target.task == CLASSES else "labels"
    return [f"{what} with fewer than {max(shots)} different {unit} give all they have: {shown}"]


def drawn(pool: Rows, target: Target, rng: np.random.Generator) -> list[Rows]:
    """Rows in a random order, of each class or label or of all: the first n of each are what n shots draw."""
    parts = [pool] if target.task == NUMBER else _members(pool, target).values()
    return [rng.permutation(rows) for rows in parts]


def spread_of(X: NDArray[np.float32]) -> np.float32:
    """Root mean square of the features (n, d) around their means; 1 where nothing varies.

    The features of a deep network with random weights can be as small as 1e-9, and a penalised head would take them for
    nothing.
    """
    spread = np.sqrt(np.mean(np.var(X, axis=0, dtype=np.float64)))
    return np.float32(spread if np.float32(spread) > 0 else 1)


def _members(pool: Rows, target: Target) -> dict[str, Rows]:
    """The rows of each class, or of each label that any has, and of none, by its name."""
    if target.task == CLASSES:
        labels = target.values[pool]
        return {target.names[label]: pool[labels == label] for label in np.unique(labels).tolist()}
    values = target.values[pool] == 1
    found = {name: pool[values[:, place]] for place, name in enumerate(target.names)}
    return {name: rows for name, rows in {**found, "no label": pool[~values.any(axis=1)]}.items() if len(rows)}
