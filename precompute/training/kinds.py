"""The heads that `train_head` knows by name, and making one from what was requested."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from precompute.cache.key import spec_layers
from precompute.errors import UsageError
from precompute.heads import (
    AttentiveHead,
    CentroidHead,
    KNNHead,
    KNNRegressionHead,
    LogisticHead,
    MLPHead,
    MLPRegressionHead,
    MLPSearch,
    MultilabelKNNHead,
    MultilabelLogisticHead,
    MultilabelMLPHead,
    MultilabelRidgeHead,
    RidgeHead,
    RidgeRegressionHead,
    SelectedHead,
)
from precompute.heads.base.inputs import check_number
from precompute.heads.mlp.search import MLP_GRID
from precompute.training.layers import JoinedCache
from precompute.training.targets import CLASSES, LABELS, NUMBER

if TYPE_CHECKING:
    from collections.abc import Mapping

    from precompute.cache import Cache

HEADS: Mapping[str, Any] = {
    "logistic": LogisticHead,
    "mlp": MLPHead,
    "knn": KNNHead,
    "ridge": RidgeHead,
    "centroid": CentroidHead,
    "selected": SelectedHead,
    "attentive": AttentiveHead,
}


LABEL_HEADS: Mapping[str, Any] = {
    "logistic": MultilabelLogisticHead,
    "mlp": MultilabelMLPHead,
    "knn": MultilabelKNNHead,
    "ridge": MultilabelRidgeHead,
}
NUMBER_HEADS: Mapping[str, Any] = {"ridge": RidgeRegressionHead, "mlp": MLPRegressionHead, "knn": KNNRegressionHead}
HEADS_OF: Mapping[str, Mapping[str, Any]] = {CLASSES: HEADS, LABELS: LABEL_HEADS, NUMBER: NUMBER_HEADS}
DEFAULT_HEAD: Mapping[str, str] = {CLASSES: "logistic", LABELS: "logistic", NUMBER: "ridge"}
SEVERAL_LAYERS: Mapping[str, str] = {**DEFAULT_HEAD, CLASSES: "selected"}
"""The default where the features of several layers stand side by side."""


def check_asked(head: str | None, settings: Mapping[str, Any], *, search: bool) -> None:
    """Raise UsageError for what no head of any task takes: before a cache is opened."""
    if head is not None and head not in HEADS:
        raise UsageError(f"head must be one of {', '.join(HEADS)}. Got {head!r} instead.", hint="See --head.")
    if search and head != "mlp":
        raise UsageError(
            f"search is for the mlp head. Got {head or DEFAULT_HEAD[CLASSES]!r} instead.", hint="Leave out --search."
        )
    if settings.get("time_budget") is not None:
        try:
            check_number("time_budget", settings["time_budget"], low=0, open_low=True)
        except ValueError as error:
            raise UsageError(str(error), hint="Give seconds, or leave it out for no limit.") from error
        if head == "mlp" and not search:
            raise UsageError("A time budget limits a search, and none was requested.", hint="Add --search.")


def head_of_task(head: str | None, task: str, *, several: bool = False) -> str:
    """`head`, or the default of the task. Raises UsageError where the task has no such head, listing those it has.

    several: whether features are those of several layers.
    """
    name = (SEVERAL_LAYERS if several else DEFAULT_HEAD)[task] if head is None else head
    if name not in HEADS_OF[task]:
        raise UsageError(
            f"There is no {name} head for --task {task}. It has {', '.join(HEADS_OF[task])}.",
            hint="Choose one of these by --head, or another --task.",
        )
    return name


def task_of(head: Any) -> str:
    """What a fitted head predicts: one of TASKS. Heads of other packages, such as tails, say it themselves."""
    said: str | None = getattr(head, "task", None)
    return said or next((task for task, heads in HEADS_OF.items() if type(head) in heads.values()), CLASSES)


def make_head(head: str, settings: Mapping[str, Any], *, seed: int, search: bool = False, task: str = CLASSES) -> Any:
    """The estimator, not fitted. search: an MLPSearch over MLP_GRID, less what `settings` names.

    `settings` are parameters of the head's class, and for a search `time_budget` in seconds.
    Raises UsageError for what no head of that name takes.
    """
    check_asked(head, settings, search=search)
    head = head_of_task(head, task)
    if search and task != CLASSES:
        raise UsageError(f"A search is for --task {CLASSES}, not for {task}.", hint="Leave out --search.")
    estimator, given = HEADS_OF[task][head](), dict(settings)
    time_budget = given.pop("time_budget", None) if head == "mlp" else None
    known = estimator.get_params()
    if unknown := given.keys() - known.keys():
        raise UsageError(f"{min(unknown)} is not a parameter of the {head} head.", hint=f"It has {', '.join(known)}.")
    estimator.set_params(**given)
    if "random_state" in known:
        estimator.set_params(random_state=seed)
    if not search:
        return estimator
    grid = {name: values for name, values in MLP_GRID.items() if name not in given}
    if not grid:
        raise UsageError(f"{', '.join(MLP_GRID)} are all given: nothing is left to search.", hint="Leave out --search.")
    return MLPSearch(estimator, param_grid=grid, time_budget=time_budget)


def fit_to_layer(estimator: Any, cache: Cache, layer: str) -> None:
    """Tell a head, or the one that a search is over, how the features of `layer` are made up, where it asks.

    Raises UsageError for a head that chooses among several layers and is given one, and for one that weighs positions
    and is given a layer without.
    """
    if isinstance(estimator, SelectedHead):
        if not isinstance(cache, JoinedCache):
            raise UsageError(
                f"The selected head chooses from the features of several layers, and was given one, {layer}.",
                hint="Give --layer all, or --layer A --layer B, of a file that holds several.",
            )
        estimator.set_params(layers=tuple(one.width for one in cache.inputs))
    elif isinstance(estimator, AttentiveHead):
        if isinstance(cache, JoinedCache):
            raise UsageError("The attentive head weighs the positions of one layer.", hint="Name one by --layer.")
        tokens, channels_first = _positions_of(cache, layer)
        estimator.set_params(tokens=tokens, channels_first=channels_first)


def _positions_of(cache: Cache, layer: str) -> tuple[int, bool]:
    """How many positions the features of `layer` have, and whether their channels come first."""
    shape = cache.plain_features(layer).shape[1:]
    axes = spec_layers(cache.spec)[layer][0][-len(shape) :] if shape else ()
    places = [place for place, axis in enumerate(axes) if axis == "channel"]
    if len(shape) < 2 or places not in ([0], [len(shape) - 1]):
        raise UsageError(
            f"The attentive head weighs positions, and {layer} of {cache.path} has none: "
            f"{' x '.join(map(str, shape))} values a sample ({', '.join(axes)}).",
            hint="Extract a layer with its positions: precompute extract SOURCE -o OUT.h5 --pooling none, and --layer "
            "encoder of a ViT, or the last of its blocks that all-blocks names.",
        )
    return math.prod(shape) // shape[places[0]], places == [0]
