"""How heads see samples of several views: which rows of which matrix they are fitted on, and what they predict from.

A sample counts once, however many views it has. An MLP draws one of its views in each epoch. Every other head takes all
of them as samples of one group, which no fold and no hold-out parts, with weights that add up to one: so `C`, `alpha`
and `k` mean what they mean without views. Predictions are made from the plain view, or are the mean over all views.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precompute.cache import Cache, Features
from precompute.errors import HeadMismatchError, UsageError
from precompute.heads import RowView, ViewRows

Array = NDArray[Any]
Rows = NDArray[np.int64]

AVERAGED = "average_views"
"""In a head's metadata: how many views its predictions are the mean of."""


def fit_rows(
    estimator: Any,
    features: Features,
    views: int,
    rows: Rows,
    y: Array,
    *,
    groups: NDArray[np.int64] | None = None,
    validation: tuple[Any, Array] | None = None,
    **options: Any,
) -> None:
    """Fit a head on `rows` of `features`, (N, *shape), or (N, views, *shape) where there are several.

    y (n,) or (n, ...), groups (n,): of the rows · validation: as heads take it, each sample once · options: of its
    `fit`.
    Raises what the head's `fit` raises.
    """
    more = options if validation is None else {**options, "validation": validation}
    if views == 1:
        estimator.fit(RowView(features, rows), y, groups=groups, **more)
    elif getattr(estimator, "draws_views", False):
        estimator.fit(ViewRows(features, rows), y, groups=groups, **more)
    else:
        every = ViewRows(features, rows).every()
        group = np.arange(len(rows)) if groups is None else groups
        weight = np.full(len(every), 1 / views)
        estimator.fit(every, np.repeat(y, views, axis=0), weight, groups=np.repeat(group, views), **more)


def trained_features(cache: Cache, layer: str | None, *, plain: bool) -> tuple[Features, int]:
    """The features that a head is fitted on, and how many views they hold: with `plain` the plain one alone."""
    return (cache.plain_features(layer), 1) if plain else (cache.features(layer), cache.views)


def predicted(
    predict: Callable[[RowView], Array], cache: Cache, layer: str, rows: Rows, *, average: bool = False
) -> Array:
    """What `predict` says of `rows`, (n, ...): of their plain view, or the mean of what it says of each view.

    The mean is that of probabilities, or of numbers, and not of features: so it is the same for every kind of head, and
    a head that is not linear sees features such as it was trained on.
    """
    if not average or cache.views == 1:
        return predict(RowView(cache.plain_features(layer), rows))
    features = cache.features(layer)
    return mean_over(lambda view: predict(RowView(features[:, view], rows)), cache.views)


def mean_over(predict: Callable[[int], Array], views: int) -> Array:
    """The mean of what `predict` gives for each view, summed in float64, in its dtype."""
    first = predict(0)
    total = first.astype(np.float64)
    for view in range(1, views):
        total += predict(view)
    mean: Array = (total / views).astype(first.dtype)
    return mean


def view_notes(cache: Cache, trained: int, *, average: bool) -> list[str]:
    """What the reader of the scores should know; trained: how many views the head is fitted on."""
    if cache.views == 1:
        return []
    if cache.windows:
        each = f"the mean of each clip's windows and up to {cache.windows} of them"
        on = f"on {each}, in which a clip counts once" if trained > 1 else "on the mean of each clip's windows alone"
        by = "the mean over these" if average and trained > 1 else f"the mean over {each}" if average else "that mean"
        return [f"trained {on}; scored by {by}"]
    on = "on the plain view alone"
    if trained > 1:
        on = f"on {trained} views of each {cache.words.one}, in which it counts once"
    by = f"the mean over {cache.views} views" if average else "the plain view"
    return [f"trained {on}; scored by {by}"]


def averaged(metadata: dict[str, Any]) -> int:
    """How many views a saved head averages over; 0 for one that predicts from the plain view."""
    views = metadata.get(AVERAGED, 0)
    return views if isinstance(views, int) and not isinstance(views, bool) else 0


def check_views(cache: Cache, trained: int, *, average: bool, plain_only: bool) -> None:
    """Raise UsageError where there is nothing to average over, or more than the plain view where only that may be.

    trained: how many views the head is fitted on · plain_only: a published protocol is followed.
    """
    if plain_only and (trained > 1 or average):
        raise UsageError(
            f"A published protocol trains on plain {cache.words.things} and scores them.",
            hint="Add --plain-view, and leave --average-views out.",
        )
    if average and cache.views == 1:
        raise UsageError(
            f"{cache.path} holds one view of each sample, so there is nothing to average over.",
            hint="Extract with --views and --augment (clips with --windows keep), or leave --average-views out.",
        )


def check_averaged(metadata: dict[str, Any], cache: Cache, head: str) -> None:
    """Raise HeadMismatchError where a head averages over more views than `cache` holds."""
    if (views := averaged(metadata)) and views != cache.views:
        raise HeadMismatchError(
            f"The head {head} averages over {views} views, and {cache.path} holds {cache.views}.",
            hint="Give it a cache of the same views, or train a head without --average-views.",
        )
