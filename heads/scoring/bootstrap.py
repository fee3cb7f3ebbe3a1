"""The bootstrap: how far a score would move if other samples had been drawn (B. Efron, Annals of Statistics 7, 1979).

Whole groups are drawn, with replacement, so that files with the same bytes, or photos of one patient, count as the one
observation that they are (the cluster bootstrap: Davison and Hinkley, "Bootstrap Methods and their Application", 1997,
section 3.8). The draw is not stratified: how many images of each class a test set holds is chance as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from precompute.heads.base.progress import report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import numpy.typing as npt

    Values = npt.NDArray[np.float64]

__all__ = ["ENDS", "LARGE", "REPLICATES", "gathered", "group_numbers", "intervals", "percentiles", "resamplings"]

REPLICATES = 1000  # the ends of a 95% interval then move by about a twentieth of its width from seed to seed
LARGE = 20_000  # observations from which strata are drawn (`strata.py`): one by one, fewer take seconds
BLOCK = 1 << 20  # weights held at a time: 8 MB, which stays in a cache
ENDS = (0.025, 0.975)


def resamplings(
    n: int, groups: npt.ArrayLike | None, *, replicates: int = REPLICATES, seed: int | None = 0
) -> Iterator[Values]:
    """Blocks (n, b) of how often each sample was drawn, `replicates` columns in all."""
    rng = np.random.default_rng(seed)
    group = group_numbers(n, groups)
    n_groups = int(group.max()) + 1
    at_once = max(1, BLOCK // n)
    for start in range(0, replicates, at_once):
        report("draws of the bootstrap", start, replicates)
        size = min(at_once, replicates - start)
        drawn = rng.integers(0, n_groups, (size, n_groups)) + n_groups * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * n_groups).reshape(size, n_groups)
        yield np.ascontiguousarray(counts.T[group], dtype=np.float64)
    report("draws of the bootstrap", replicates, replicates)


def group_numbers(n: int, groups: npt.ArrayLike | None) -> npt.NDArray[np.intp]:
    """Which group (0, 1, ...) each sample belongs to, (n,); each sample is its own without `groups`."""
    group: npt.NDArray[np.intp] = (
        np.arange(n) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    )
    if group.shape != (n,):
        raise ValueError(f"groups must have one entry per sample, {(n,)}. Got shape {group.shape} instead.")
    return group


def intervals(
    score: Callable[[Values], dict[str, Values]], n: int, groups: npt.ArrayLike | None, **options: Any
) -> dict[str, tuple[float, float]]:
    """The 95% percentile interval of each score; `score` takes weights (n, b) and gives (b,) for each name.

    A score that a resampling leaves undefined (NaN) does not count there; one that none defines has no interval.
    """
    return percentiles(score(weights) for weights in resamplings(n, groups, **options))


def percentiles(replicates: Iterable[dict[str, Values]]) -> dict[str, tuple[float, float]]:
    """The 95% percentile interval of each score, from blocks (b,) of its replicates by name, without those of NaN."""
    found = {}
    for name, values in gathered(replicates).items():
        if len(values):
            low, high = np.quantile(values, ENDS)
            found[name] = float(low), float(high)
    return found


def gathered(replicates: Iterable[dict[str, Values]]) -> dict[str, Values]:
    """All replicates of each score, from blocks (b,) of them by name, without those of NaN."""
    parts = list(replicates)
    every = {name: np.concatenate([part[name] for part in parts]) for name in (parts[0] if parts else ())}
    return {name: values[~np.isnan(values)] for name, values in every.items()}
