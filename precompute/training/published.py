"""Published protocols of linear probes, so that a score can be compared with a paper.

simclr: T. Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020, appendix B.8
(after S. Kornblith et al., "Do Better ImageNet Models Transfer Better?", CVPR 2019): L2-regularised multinomial
logistic regression by L-BFGS on features of images without augmentation; the strength of the penalty is the best of 45
values, evenly spaced on a logarithmic scale between 1e-6 and 1e5, on the validation split; the model is fitted again on
train and validation together, and scored once on test, by the metric that the paper of the dataset uses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precompute.errors import TrainingError, UsageError
from precompute.heads import Scores, holdout
from precompute.training.splits import HOLDOUT_FRACTION, Rows

PROTOCOLS = ("simclr",)
ACCURACY, MEAN_PER_CLASS = "accuracy", "mean per-class accuracy"
METRICS = {  # table 8 of Kornblith et al.; Pascal VOC 2007 (11-point mAP, several labels an image) has no place here
    **dict.fromkeys(("food101", "cifar10", "cifar100", "birdsnap", "sun397", "cars", "dtd"), ACCURACY),
    **dict.fromkeys(("aircraft", "pets", "caltech101", "flowers102"), MEAN_PER_CLASS),
}
DECIDED = ("C", "choose_by", "class_weight", "time_budget")  # what the protocol leaves nobody to choose


@dataclass(frozen=True)
class Protocol:
    """name: one of PROTOCOLS · dataset: a key of METRICS, None for any other · metric: what it is scored by."""

    name: str
    dataset: str | None
    metric: str

    def settings(self, head: str, given: Mapping[str, Any], *, calibrated: bool) -> dict[str, Any]:
        """Parameters of the head. Raises UsageError for what the protocol does not allow."""
        if head != "logistic":
            raise UsageError(
                f"The protocol {self.name} is one of the logistic head. Got {head!r} instead.", hint="Leave out --head."
            )
        if foreign := [name for name in DECIDED if name in given]:
            raise UsageError(
                f"The protocol {self.name} decides {foreign[0]} itself.", hint=f"Leave out {foreign[0]}, or --protocol."
            )
        if calibrated:
            raise UsageError(
                f"The protocol {self.name} trains on val, on which a temperature would be fitted.",
                hint="Leave out --calibrate, or --protocol.",
            )
        return {**given, "choose_by": "accuracy"}

    def parts(
        self,
        parts: dict[str, Rows],
        labels: NDArray[np.int32],
        together: NDArray[np.int64],
        seed: int,
        unit: str = "images",
    ) -> tuple[dict[str, Rows], list[str]]:
        """The splits it needs, and notes; without val, a part of train takes its place. unit: of the samples.

        Raises TrainingError without a test split.
        """
        if "test" not in parts:
            raise TrainingError(
                f"The protocol {self.name} scores on a split test, and there is none.",
                hint=f"Put the {unit} below train/, val/ and test/ (or train/ and test/) and extract again.",
            )
        if "val" in parts:
            return parts, []
        pool = parts["train"]
        try:
            train, held = holdout(labels[pool], groups=together[pool], fraction=HOLDOUT_FRACTION, seed=seed)
        except ValueError as error:
            raise TrainingError(
                f"There is no split val, and train has too few {unit} to hold any out.", hint=f"Add {unit} to train."
            ) from error
        note = f"no split val: C is chosen on {HOLDOUT_FRACTION:.0%} of train (seed {seed})"
        return {**parts, "train": pool[train], "val": pool[held]}, [note]

    def result(self, scores: Scores) -> dict[str, Any]:
        """The score to compare with a paper, JSON-ready, from the scores of split test."""
        if self.metric == ACCURACY:
            value, interval = scores.accuracy, scores.accuracy_interval
        else:
            value, interval = scores.balanced_accuracy, scores.intervals["balanced_accuracy"]
        summary = {"name": self.name, "dataset": self.dataset, "metric": self.metric, "value": value}
        return {**summary, "interval": None if interval is None else list(interval)}


def find_protocol(text: str) -> Protocol:
    """The protocol of `name` or `name:dataset`. Raises UsageError for one that is not known."""
    name, _, dataset = text.partition(":")
    if name not in PROTOCOLS:
        raise UsageError(
            f"protocol must be one of {', '.join(PROTOCOLS)}. Got {name!r} instead.", hint="See --protocol."
        )
    if dataset and dataset not in METRICS:
        raise UsageError(
            f"{dataset!r} is not a dataset of the protocol {name}, which knows {', '.join(METRICS)}.",
            hint=f"--protocol {name} without a dataset scores accuracy.",
        )
    return Protocol(name, dataset or None, METRICS.get(dataset, ACCURACY))
