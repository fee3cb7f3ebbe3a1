"""LP-FT in two steps: where the second begins, and the head that it ends with."""

from __future__ import annotations

import torch
from torch import nn

from precompute.finetuning.checkpoint import State
from precompute.finetuning.loop import criterion_of, entry_of, measure
from precompute.finetuning.network import TailNetwork
from precompute.finetuning.settings import TailSettings
from precompute.finetuning.start import Frozen, Linear, Samples, fit_linear, goals
from precompute.finetuning.tail_head import Fitted, TailHead
from precompute.heads import RowView
from precompute.training.targets import Rows, Target


def begin(
    frozen: Frozen, target: Target, samples: Samples, together: Rows, settings: TailSettings
) -> tuple[State, Linear]:
    """The state after the first step: the linear head is epoch 0.

    together: (N,) the same number for what no fold parts. Raises TrainingError where that head cannot be fitted.
    """
    linear = fit_linear(frozen, target, samples, together, settings.seed, settings.device)
    goal = goals(target, linear.names, linear.mean, linear.scale)
    criterion = criterion_of(target.task, len(linear.layer.bias), linear.scale, "cpu")
    start = linear_head(linear, target.task)

    def measured(rows: Rows) -> tuple[float, float]:
        outputs = torch.from_numpy(start.outputs(RowView(frozen.plain, rows)))
        return measure([(rows, outputs)], goal, criterion)

    trained = measured(samples.fit)
    held = measured(samples.held) if len(samples.held) else None
    record, arrays = linear.record()
    history = [entry_of(0, trained, held, criterion)]
    return State(history=history, best_loss=(held or trained)[0], linear=record, arrays=arrays), linear


def linear_head(linear: Linear, task: str) -> TailHead:
    """The linear head alone, on what the frozen tail gives."""
    network = TailNetwork(nn.Identity(), linear.layer)
    nothing = Fitted([], 0, "", linear.chosen, {}, linear.mean, linear.scale)
    return TailHead(network, linear.layer.weight.shape[1:], task, linear.names, nothing)


def tuned_head(
    network: TailNetwork,
    shape: tuple[int, ...],
    task: str,
    state: State,
    linear: Linear,
    samples: Samples,
    settings: TailSettings,
) -> TailHead:
    """The head that a training ended with. shape: of the activation of one sample."""
    fitted = Fitted(
        state.history,
        state.best_epoch,
        samples.source,
        linear.chosen,
        settings.record(),
        linear.mean,
        linear.scale,
    )
    return TailHead(network, shape, task, linear.names, fitted, settings.device)
