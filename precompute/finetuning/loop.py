"""The second step of LP-FT: tail and output layer are trained together, from where the linear head left them.

A. Kumar, A. Raghunathan, R. Jones, T. Ma and P. Liang, Fine-Tuning can Distort Pretrained Features and Underperform
Out-of-Distribution, ICLR 2022.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from precompute.engines.torch import true_fp32
from precompute.errors import Stopped, TrainingError
from precompute.finetuning.activations import Activations, Rows
from precompute.finetuning.batches import batches_of, dropout_of, in_order, n_batches
from precompute.finetuning.checkpoint import Checkpoint, State
from precompute.finetuning.memory import check_memory, reporting_memory
from precompute.finetuning.network import TailNetwork
from precompute.finetuning.settings import TailSettings
from precompute.finetuning.start import LINEAR, Samples
from precompute.heads.base.progress import report
from precompute.heads.mlp.criteria import Criterion, CrossEntropy, LabelEntropy, SquaredError
from precompute.training.targets import CLASSES, LABELS

NOW, FIRST, SECOND, BEST = "now.", "first.", "second.", "best."
"""Kinds of arrays in a checkpoint besides the linear head: parameters, AdamW's moments, the best parameters."""

Watch = Callable[[int, int, float], None]


@dataclass(frozen=True)
class Conduct:
    """How a training behaves, which changes no result.

    checkpoint: None to keep nothing · seconds: between two of them · stop: asked after each step; a signal's number
    ends the training, resumable · stepping: entered for the time in which `stop` is asked · watch: called with epoch,
    step and loss of each step.
    """

    checkpoint: Checkpoint | None = None
    seconds: float = 30.0
    stop: Callable[[], int] | None = None
    stepping: contextlib.AbstractContextManager[None] | None = None
    watch: Watch | None = None


def criterion_of(task: str, outputs: int, scale: float, device: str) -> Criterion:
    """The loss of a task, for `outputs` of the network. scale: of numbers, in which errors are shown."""
    place = torch.device(device)
    if task == CLASSES:
        return CrossEntropy(torch.ones(outputs, device=place))
    if task == LABELS:
        return LabelEntropy(torch.ones(2, outputs, device=place))
    return SquaredError(scale, place, torch.float32)


def measure(
    outputs: Iterable[tuple[Rows, torch.Tensor]], goal: NDArray[Any], criterion: Criterion
) -> tuple[float, float]:
    """Mean loss and score, without label smoothing, of outputs (B, K) of these rows; summed in float64."""
    loss = score = 0.0
    n = 0
    for rows, given in outputs:
        target = torch.from_numpy(goal[rows]).to(criterion.device)
        each = given.float()[None]
        loss += float(criterion.losses(each, target, 0.0).double().sum())
        score += float(criterion.scores(each, target).double().sum()) * criterion.unit
        n += len(rows)
    return loss / n, score / n


def entry_of(
    epoch: int, trained: tuple[float, float], held: tuple[float, float] | None, criterion: Criterion
) -> dict[str, Any]:
    """An epoch of a history."""
    names = [f"{of}_{what}" for of in ("train", "validation") for what in ("loss", criterion.score)]
    return {"epoch": epoch, **dict(zip(names, (*trained, *(held or (None, None))), strict=True))}


class Trainer:
    """Trains `network`, whose parameters are those of the linear head and of the pretraining, in place.

    goal: what it is to give for each row, see `start.goals` · state: where to begin; its `arrays` hold the linear head,
    and all others where it is taken from a checkpoint. After `run` the network has the parameters of the best epoch.
    """

    def __init__(
        self,
        network: TailNetwork,
        activations: Activations,
        goal: NDArray[Any],
        samples: Samples,
        views: int,
        criterion: Criterion,
        settings: TailSettings,
        state: State,
        conduct: Conduct,
    ) -> None:
        self.network, self.activations, self.goal, self.samples = (
            network.to(settings.device),
            activations,
            goal,
            samples,
        )
        self.views, self.criterion, self.settings, self.state, self.conduct = views, criterion, settings, state, conduct
        self.steps = n_batches(len(samples.fit), settings.batch_size)
        self.named = dict(network.named_parameters())
        for parameter in self.named.values():
            parameter.requires_grad_(True)
        self.optimizer = optimizer_of(network, settings)
        self.best = {name: value.detach().cpu().clone() for name, value in self.named.items()}
        self.start = {name: array for name, array in state.arrays.items() if name.startswith(LINEAR)}
        if len(state.arrays) > len(self.start):
            self._restore()
        self.saved_at = time.monotonic()

    def run(self) -> None:
        """Train until the end or until patience is.

        Raises TrainingError for a loss that is not finite (the checkpoint is then removed) and where memory runs out;
        Stopped where `conduct.stop` returns true.
        """
        state, settings = self.state, self.settings
        began_finished = self.finished
        stepping = self.conduct.stepping or contextlib.nullcontext()
        memory = reporting_memory(settings.batch_size, settings.device)
        with memory, torch.enable_grad(), true_fp32(settings.device), stepping:
            if not began_finished:
                check_memory(self.network, self.activations.shape, settings)
            while not self.finished:
                self._epoch()
                report("epochs", state.epoch - 1, settings.epochs, f"lowest loss so far {state.best_loss:.4f}")
        if self.conduct.checkpoint is not None and not began_finished:
            self.save()  # scoring follows, and may take long
        self._put({name: value.numpy() for name, value in self.best.items()})

    @property
    def finished(self) -> bool:
        """Whether all epochs are trained, or the patience is at an end."""
        trained = self.state.epoch - 1
        return trained >= self.settings.epochs or trained - self.state.best_epoch >= self.settings.patience

    def _epoch(self) -> None:
        state, settings = self.state, self.settings
        plan = batches_of(self.samples.fit, self.views, settings.batch_size, settings.seed, state.epoch)[state.step :]
        with contextlib.closing(self.activations.batches(plan)) as batches:
            for (rows, _), activation in zip(plan, batches, strict=True):
                self._step(rows, activation)
                self._between()
                report("steps", state.step, self.steps)
        held = self._measured(self.samples.held) if len(self.samples.held) else None
        # Without a selection set the training part decides, measured as the linear head was.
        trained = (state.sums[0] / state.sums[2], state.sums[1] / state.sums[2])
        trained = trained if held else self._measured(self.samples.fit)
        watched = (held or trained)[0]
        self._check_finite(watched)
        state.history.append(entry_of(state.epoch, trained, held, self.criterion))
        if watched < state.best_loss:
            state.best_epoch, state.best_loss = state.epoch, watched
            self.best = {name: value.detach().cpu().clone() for name, value in self.named.items()}
        state.epoch, state.step, state.sums = state.epoch + 1, 0, [0.0, 0.0, 0.0]
        self._between()

    def _step(self, rows: Rows, activation: torch.Tensor) -> None:
        state, settings = self.state, self.settings
        target = torch.from_numpy(self.goal[rows]).to(self.criterion.device)
        width = self.network.output.in_features
        dropped = dropout_of((len(rows), width), settings.dropout, settings.seed, state.epoch, state.step)
        with self._mixed():
            outputs = self.network(
                activation.to(settings.device), None if dropped is None else dropped.to(settings.device)
            )
        outputs = outputs.float()[None]
        loss = self.criterion.loss(outputs, target, settings.label_smoothing)[0]
        self._check_finite(loss.item())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        factor = settings.factor((state.epoch - 1) * self.steps + state.step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * factor
        self.optimizer.step()
        with torch.no_grad():
            state.sums[0] += float(self.criterion.losses(outputs, target, 0.0).double().sum())
            state.sums[1] += float(self.criterion.scores(outputs, target).double().sum()) * self.criterion.unit
        state.sums[2] += len(rows)
        if self.conduct.watch is not None:
            self.conduct.watch(state.epoch, state.step, loss.item())
        state.step += 1

    def _mixed(self) -> contextlib.AbstractContextManager[Any]:
        if self.settings.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(torch.device(self.settings.device).type, torch.bfloat16)

    def _measured(self, rows: Rows) -> tuple[float, float]:
        """Loss and score of the plain views of `rows`, in fp32."""
        size = self.settings.batch_size
        plan = list(in_order(rows, size))
        with torch.no_grad(), contextlib.closing(self.activations.batches(plan)) as batches:
            outputs = (
                (part, self.network(activation.to(self.settings.device)))
                for (part, _), activation in zip(plan, batches, strict=True)
            )
            return measure(outputs, self.goal, self.criterion)

    def _check_finite(self, loss: float) -> None:
        if math.isfinite(loss):
            return
        state = self.state
        if self.conduct.checkpoint is not None:
            self.conduct.checkpoint.remove()
        raise TrainingError(
            f"The loss was not finite in epoch {state.epoch}, step {min(state.step + 1, self.steps)} of {self.steps} "
            f"(learning rate {self.settings.learning_rate:g}).",
            hint=f"Try a smaller --learning-rate, such as {self.settings.learning_rate / 10:g}. The checkpoint of this "
            "training is removed, so that the next one starts anew.",
        )

    def _between(self) -> None:
        """Between two steps: save what is due, and stop where that is requested."""
        checkpoint, signum = self.conduct.checkpoint, self.conduct.stop() if self.conduct.stop else 0
        if checkpoint is not None and (signum or time.monotonic() - self.saved_at >= self.conduct.seconds):
            self.save()
        if signum:
            kept = "Run the same command again to resume." if checkpoint else "Without an output nothing is kept."
            raise Stopped(f"Stopped in epoch {self.state.epoch}, step {self.state.step}.", signum=signum, hint=kept)

    def save(self) -> None:
        """Write the checkpoint."""
        checkpoint = self.conduct.checkpoint
        assert checkpoint is not None  # its callers have looked
        arrays = self.start | {BEST + name: value.numpy() for name, value in self.best.items()}
        for name, parameter in self.named.items():
            arrays[NOW + name] = parameter.detach().cpu().numpy()
            moments = self.optimizer.state.get(parameter)
            if moments:
                arrays[FIRST + name] = moments["exp_avg"].cpu().numpy()
                arrays[SECOND + name] = moments["exp_avg_sq"].cpu().numpy()
        self.state.arrays = arrays
        try:
            checkpoint.save(self.state)
        except ValueError:  # the step has made parameters that are not finite; the next loss would not be either
            self._check_finite(math.nan)
        self.state.arrays = self.start
        self.saved_at = time.monotonic()

    def _restore(self) -> None:
        """Use the arrays of a checkpoint; `Checkpoint.load` has compared what it belongs to."""
        arrays, taken = self.state.arrays, (self.state.epoch - 1) * self.steps + self.state.step
        self._put({name: arrays[NOW + name] for name in self.named})
        self.best = {name: torch.from_numpy(arrays[BEST + name].copy()) for name in self.named}
        for name, parameter in self.named.items():
            if FIRST + name not in arrays:
                continue
            self.optimizer.state[parameter] = {
                "step": torch.tensor(float(taken), dtype=torch.float32),
                "exp_avg": torch.zeros_like(parameter).copy_(torch.from_numpy(arrays[FIRST + name])),
                "exp_avg_sq": torch.zeros_like(parameter).copy_(torch.from_numpy(arrays[SECOND + name])),
            }
        self.state.arrays = self.start

    def _put(self, values: dict[str, NDArray[np.float32]]) -> None:
        with torch.no_grad():
            for name, parameter in self.named.items():
                parameter.copy_(torch.from_numpy(values[name]))


def optimizer_of(network: nn.Module, settings: TailSettings) -> torch.optim.AdamW:
    """AdamW that decays weights, and neither biases nor the scales of norms: what has fewer than two dimensions."""
    parameters = list(network.parameters())
    return torch.optim.AdamW(
        [
            {"params": [one for one in parameters if one.ndim > 1], "weight_decay": settings.weight_decay},
            {"params": [one for one in parameters if one.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
    )


def check_arrays(network: nn.Module, arrays: dict[str, NDArray[Any]]) -> None:
    """Raise ValueError unless the arrays of a checkpoint are those of `network`."""
    shapes = {name: tuple(value.shape) for name, value in network.named_parameters()}
    for name, array in arrays.items():
        kind, dot, parameter = name.partition(".")
        of_linear = kind + dot == LINEAR
        shape = shapes.get(f"output.{parameter}" if of_linear else parameter)
        if kind + dot not in (LINEAR, NOW, FIRST, SECOND, BEST) or shape != array.shape:
            raise ValueError(f"its array {name} of shape {array.shape} is none of this training")
    for name in shapes:
        both = (FIRST + name in arrays) == (SECOND + name in arrays)
        if NOW + name not in arrays or BEST + name not in arrays or not both:
            raise ValueError(f"it does not hold all of {name}")
