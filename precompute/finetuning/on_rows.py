"""A tail fitted on given rows, in memory: for anyone who fits many on draws of few labels and scores them himself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from precompute.engines.torch import true_fp32
from precompute.errors import TrainingError
from precompute.finetuning.activations import Activations
from precompute.finetuning.loop import Conduct, Trainer, criterion_of
from precompute.finetuning.lp_ft import begin, tuned_head
from precompute.finetuning.network import TailNetwork, prepared
from precompute.finetuning.settings import TailSettings
from precompute.finetuning.start import Frozen, Samples, choose_samples, frozen_features, goals
from precompute.finetuning.tail_head import TailHead
from precompute.training.targets import Rows, Target


@dataclass(frozen=True)
class Given:
    """What `fit_on_rows` trains on. together: (N,) the same number for what no hold-out parts · frozen: (N, d) what the
    tail gives before it is trained, None to compute it for the rows that are trained on."""

    activations: Activations
    target: Target
    together: Rows
    frozen: Any | None = None


def fit_on_rows(
    tail: nn.Module,
    given: Given,
    rows: Rows,
    settings: TailSettings,
    *,
    stop: Callable[[], int] | None = None,
) -> TailHead:
    """LP-FT as `fine_tune` does it, on `rows` alone: first the linear head, then `tail`, which is changed, with it.

    A sixth of the rows is held out to choose the epoch, where there are enough of them; else the loss on the rows
    themselves chooses it. Raises what `fine_tune` raises for the training.
    """
    settings.check()
    activations, target = given.activations, given.target
    samples = choose_samples({"train": rows}, target, given.together, None, settings.seed)
    samples = samples if _learns(target, samples.fit) else Samples(rows, rows[:0], "none: a class would be left out")
    module = prepared(tail, settings.device)
    frozen = Frozen(given.frozen, 1)
    if given.frozen is None:
        frozen = frozen_features(module, activations, len(target.known), [(rows, 1)], None)
    state, linear = begin(frozen, target, samples, given.together, settings)
    goal = goals(target, linear.names, linear.mean, linear.scale)
    criterion = criterion_of(target.task, len(linear.layer.bias), linear.scale, settings.device)
    network = TailNetwork(module, linear.layer)
    how = Conduct(stop=stop)
    Trainer(network, activations, goal, samples, activations.views, criterion, settings, state, how).run()
    return tuned_head(network, activations.shape, target.task, state, linear, samples, settings)


def calibrate(tail: nn.Module, activations: Activations, rows: Rows, *, batch_size: int, device: str) -> None:
    """Measure the means and variances of every normalisation layer on `rows`, as an untrained network needs it.

    Those of a network with random weights are 0 and 1, with which its activations fade to nothing layer by layer, and
    this project trains with them fixed. Raises TrainingError for a single row, which has no variance.
    """
    norms = [one for one in tail.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    if len(rows) < 2:
        raise TrainingError("One image has no variance to normalise by.", hint="Use more labels: --shots.")
    before = [(one, one.momentum) for one in norms]
    for one in norms:
        one.reset_running_stats()
        one.momentum = None  # the mean over all batches
        one.training = True
    sizes = max(1, len(rows) // batch_size)  # so that none is of one row
    try:
        with torch.inference_mode(), true_fp32(device):
            for part in range(sizes):
                chosen = rows[part::sizes]
                tail(activations.batch(chosen, chosen * 0).to(device))
    finally:
        for one, momentum in before:
            one.training, one.momentum = False, momentum


def _learns(target: Target, rows: Rows) -> bool:
    """Whether more than one class, label or number is left to learn from."""
    values = target.values[rows]
    return bool(len(rows)) and bool((values != values[0]).any())
