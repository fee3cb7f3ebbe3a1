"""A map of a layer's features in two dimensions: principal components, then t-SNE.

t-SNE (L. van der Maaten, G. Hinton, JMLR 9, 2008) keeps neighbours together; distances between groups and their sizes
say little (M. Wattenberg et al., Distill, 2016). It starts from the first two components, as D. Kobak and P. Berens
advise (Nature Communications 10, 2019), so that the same features and seed give the same map. Features are read in
blocks: those of a sample are in memory, and of all rows no more than COMPONENTS numbers each.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precompute.errors import UsageError
from precompute.heads import RowView
from precompute.heads.base.progress import report
from precompute.system import cores
from precompute.training.targets import Rows

NONE, AUTO, ALL = "none", "auto", "all"
CHOICES = (AUTO, NONE, ALL)
SAMPLE = 3000
"""Rows of a map unless all are requested: seconds of one core, and as many points as a screen can tell apart."""
SAMPLE_BYTES = 256 * 2**20  # of float32 features from which the components are found
COMPONENTS = 50
PERPLEXITY = 30
ITERATIONS = 500  # of scikit-learn's, half of them with early exaggeration: twice as many take twice the time
MANY = 10_000  # rows from which on openTSNE has a thread for each core; with fewer they wait for each other
LEAST = 10  # rows; fewer make no map
INSTALL = "pip install 'precompute[map]'"
STEPS = 2**16 - 1


@dataclass(frozen=True)
class FeatureMap:
    """rows: (n,) of the cache, ascending · xy: (n, 2) float64 · method: in words · left_out: rows with features that
    are no finite numbers."""

    rows: Rows
    xy: NDArray[np.float64]
    method: str
    perplexity: float
    seconds: float
    left_out: int


def check_map(kind: str) -> None:
    """Raise UsageError for a kind that there is none of, and where openTSNE is needed and missing."""
    if kind not in CHOICES:
        raise UsageError(f"map must be one of {', '.join(CHOICES)}. Got {kind!r} instead.", hint="See --map.")
    if kind == ALL:
        try:
            import openTSNE  # noqa: F401
        except ImportError as error:
            raise UsageError(
                f"A map of all rows needs openTSNE: {error}.",
                hint=f"Install it: {INSTALL}. Or leave out --map {ALL}, for a map of a sample.",
            ) from error


def draw_map(
    features: Any, rows: Rows, strata: Callable[[Rows], NDArray[np.int64]], *, kind: str, seed: int
) -> FeatureMap | None:
    """The map of `rows` of `features` (N, ...), an array or what a `RowView` takes; None where there are
    too few, or all are alike.

    strata: numbers (n,) of some rows whose shares a sample keeps · kind: "auto" for a sample of SAMPLE rows, "all".
    """
    began = time.monotonic()
    width = max(1, int(np.prod(features.shape[1:])))
    affordable = max(LEAST, min(SAMPLE, SAMPLE_BYTES // (4 * width)))
    sample = rows[stratified(strata(rows), affordable, seed)]
    X = RowView(features, sample)[:].astype(np.float32)
    report("steps of the map", 1, 4)
    finite = np.isfinite(X).all(axis=1)
    left_out = len(sample) - int(finite.sum())
    X, sample = X[finite], sample[finite]
    if len(sample) < LEAST or not np.ptp(X, axis=0).any():
        return None
    components = _components(X, seed)
    if kind == ALL and len(sample) < len(rows):
        sample, low, left_out = _projected(features, rows, components)
    else:
        low = components.transform(X)
    del X
    report("steps of the map", 2, 4)
    perplexity = float(min(PERPLEXITY, (len(sample) - 1) / 3))
    start = low[:, :2] / max(float(low[:, 0].std()), 1e-12) * 1e-4
    if start.shape[1] < 2:
        start = np.column_stack([start, np.zeros(len(start))])
    n_found = low.shape[1]
    if kind == ALL:
        xy, by = _open_tsne(low, start, perplexity, seed), "openTSNE"
    else:
        xy, by = _tsne(low, start, perplexity, seed), "scikit-learn"
    report("steps of the map", 4, 4)
    method = f"t-SNE of {n_found} principal components ({by})"
    return FeatureMap(sample, xy, method, perplexity, time.monotonic() - began, left_out)


def stratified(strata: NDArray[np.int64], size: int, seed: int) -> Rows:
    """Positions, ascending, of `size` of these, at equal steps through them in the order of their strata."""
    n, rng = len(strata), np.random.default_rng(seed)
    if size >= n:
        return np.arange(n)
    order = np.lexsort((rng.random(n), strata))
    steps = ((np.arange(size) + rng.random()) * n / size).astype(np.int64)
    found: Rows = np.sort(order[np.minimum(steps, n - 1)])
    return found


def _components(X: NDArray[np.float32], seed: int) -> Any:
    from sklearn.decomposition import PCA

    return PCA(min(COMPONENTS, *X.shape), svd_solver="randomized", random_state=seed).fit(X)


def _projected(features: Any, rows: Rows, components: Any) -> tuple[Rows, NDArray[np.float32], int]:
    """Those of all rows whose features are finite, and their components."""
    view = RowView(features, rows)
    found = np.empty((len(rows), components.n_components_), np.float32)
    good = np.ones(len(rows), bool)
    for place, block in view.blocks():
        good[place] = np.isfinite(block).all(axis=1)
        found[place] = components.transform(np.where(good[place, None], block, 0))
        report("rows of the map", place.stop, len(rows))
    return rows[good], found[good], int((~good).sum())


def _tsne(low: NDArray[Any], start: NDArray[Any], perplexity: float, seed: int) -> NDArray[np.float64]:
    from sklearn.manifold import TSNE

    fit = TSNE(
        2, perplexity=perplexity, init=start.astype(np.float32), random_state=seed, n_jobs=1, max_iter=ITERATIONS
    )
    return np.asarray(fit.fit_transform(low.astype(np.float32)), np.float64)


def _open_tsne(low: NDArray[Any], start: NDArray[Any], perplexity: float, seed: int) -> NDArray[np.float64]:
    from openTSNE import TSNE

    fit = TSNE(
        2,
        perplexity=perplexity,
        initialization=start.astype(np.float64),
        random_state=seed,
        n_jobs=cores() if len(low) >= MANY else 1,
    )
    return np.asarray(fit.fit(low.astype(np.float64)), np.float64)


def packed(values: NDArray[Any], dtype: str) -> str:
    """Base64 of an array in this dtype, such as "<u2"."""
    return base64.b64encode(np.ascontiguousarray(values, dtype=dtype).tobytes()).decode("ascii")


def axes_of(xy: NDArray[np.float64]) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """Both coordinates from 0 to 65,535, at one scale, so that shapes stay what they are."""
    low, high = xy.min(axis=0), xy.max(axis=0)
    extent = max(float((high - low).max()), 1e-12)
    centred = (xy - (low + high) / 2) / extent + 0.5
    steps = np.rint(np.clip(centred, 0, 1) * STEPS).astype(np.uint16)
    return steps[:, 0], steps[:, 1]
