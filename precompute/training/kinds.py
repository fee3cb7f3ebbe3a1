"""The heads that `train_head` knows by name, and making one from what was asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from precompute.errors import UsageError
from precompute.heads import (
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
)
from precompute.heads.base.inputs import check_number
from precompute.heads.mlp.search import MLP_GRID
from precompute.training.targets import CLASSES, LABELS, NUMBER

if TYPE_CHECKING:
    from collections.abc import Mapping

HEADS: Mapping[str, Any] = {
    "logistic": LogisticHead,
    "mlp": MLPHead,
    "knn": KNNHead,
    "ridge": RidgeHead,
    "centroid": CentroidHead,
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
            raise UsageError("A time budget limits a search, and none was asked for.", hint="Add --search.")


def head_of_task(head: str | None, task: str) -> str:
    """`head`, or the default of the task. Raises UsageError where the task has no such head, listing those it has."""
    name = DEFAULT_HEAD[task] if head is None else head
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
