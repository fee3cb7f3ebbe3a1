"""The heads that `train_head` knows by name, and making one from what was asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from precompute.errors import UsageError
from precompute.heads import CentroidHead, KNNHead, LogisticHead, MLPHead, MLPSearch, RidgeHead
from precompute.heads.base.inputs import check_number
from precompute.heads.mlp.search import MLP_GRID

if TYPE_CHECKING:
    from collections.abc import Mapping

HEADS: Mapping[str, Any] = {
    "logistic": LogisticHead,
    "mlp": MLPHead,
    "knn": KNNHead,
    "ridge": RidgeHead,
    "centroid": CentroidHead,
}


def make_head(head: str, settings: Mapping[str, Any], *, seed: int, search: bool = False) -> Any:
    """The estimator, not fitted. search: an MLPSearch over MLP_GRID, less what `settings` names.

    `settings` are parameters of the head's class, and for a search `time_budget` in seconds.
    Raises UsageError for what no head of that name takes.
    """
    if head not in HEADS:
        raise UsageError(f"head must be one of {', '.join(HEADS)}. Got {head!r} instead.", hint="See --head.")
    if search and head != "mlp":
        raise UsageError(f"search is for the mlp head. Got {head!r} instead.", hint="Leave out --search.")
    estimator, given = HEADS[head](), dict(settings)
    if given.get("time_budget") is not None:
        try:
            check_number("time_budget", given["time_budget"], low=0, open_low=True)
        except ValueError as error:
            raise UsageError(str(error), hint="Give seconds, or leave it out for no limit.") from error
    time_budget = given.pop("time_budget", None) if head == "mlp" else None
    if time_budget is not None and not search:
        raise UsageError("A time budget limits a search, and none was asked for.", hint="Add --search.")
    known = estimator.get_params()
    if unknown := given.keys() - known.keys():
        raise UsageError(f"{min(unknown)} is no parameter of the {head} head.", hint=f"It has {', '.join(known)}.")
    estimator.set_params(**given)
    if "random_state" in known:
        estimator.set_params(random_state=seed)
    if not search:
        return estimator
    grid = {name: values for name, values in MLP_GRID.items() if name not in given}
    if not grid:
        raise UsageError(f"{', '.join(MLP_GRID)} are all given: nothing is left to search.", hint="Leave out --search.")
    return MLPSearch(estimator, param_grid=grid, time_budget=time_budget)
