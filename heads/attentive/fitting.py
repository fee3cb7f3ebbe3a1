"""The training of an attentive probe: AdamW on batches read from where the features are, with early stopping."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.preprocessing import StandardScaler

from precompute.errors import UsageError
from precompute.heads.attentive.network import Grid, as_arrays, logits_of, pooled_by
from precompute.heads.base.memory import available_bytes
from precompute.heads.base.progress import report
from precompute.heads.mlp.fitting import MEASURED, Run, rate_factor
from precompute.heads.mlp.network import AdamW

if TYPE_CHECKING:
    import numpy.typing as npt

    from precompute.heads.mlp.criteria import Criterion
    from precompute.heads.mlp.fitting import Settings
    from precompute.heads.mlp.samples import Samples

    Array = npt.NDArray[Any]

__all__ = ["Fit", "channel_moments", "fit_attention"]

START = 0.02  # standard deviation of the queries at the start, as in efficient probing: attention begins nearly uniform
COPIES = 6  # of a batch's positions at once: as stored, standardised, and what a step keeps for its gradient


@dataclass
class Fit:
    """The run, and of its best epoch query (M, C), weight (K, M C) and bias (K,)."""

    run: Run
    query: Array
    weight: Array
    bias: Array


def channel_moments(samples: Samples, grid: Grid) -> tuple[Array, Array]:
    """Weighted mean and standard deviation (C,) of each channel over all positions, of the dtype that is worked in.

    Those of all views; 1 for a channel that is constant up to rounding.
    """
    scaler, dtype = StandardScaler(), samples.dtype
    for chosen, block in samples.X.take(samples.rows).every().blocks():
        rows = samples.rows[np.arange(chosen.start, chosen.stop) // samples.X.views]
        weight = None if samples.weight is None else np.repeat(samples.weight[rows], grid.tokens)
        scaler.partial_fit(grid.of(block).reshape(-1, grid.channels), sample_weight=weight)
    mean, scale = scaler.mean_, np.sqrt(scaler.var_)
    scale = np.where(scale <= np.finfo(dtype).eps * np.abs(mean), 1.0, scale).astype(dtype)
    return mean.astype(dtype), np.maximum(scale, np.finfo(dtype).tiny)


@torch.enable_grad()  # the caller may be inside no_grad
def fit_attention(
    settings: Settings, grid: Grid, queries: int, train: Samples, held: Samples | None, criterion: Criterion
) -> Fit:
    """Train; the run has diverged where the loss did not stay finite. Raises UsageError where memory is too small."""
    _check_memory(settings.batch_size, grid, criterion)
    device, dtype = criterion.device, criterion.dtype
    seeds = np.random.SeedSequence(settings.random_state).generate_state(3, np.uint64).tolist()
    rng, generator = np.random.default_rng(seeds[0]), torch.Generator(device).manual_seed(seeds[2])
    moments = channel_moments(train, grid)
    mean, scale = (torch.from_numpy(array).to(device) for array in moments)
    train = train.held_by(device)
    held = None if held is None else held.held_by(device)
    query, weight, bias = (
        tensor.to(device).requires_grad_()
        for tensor in _start(queries, grid.channels, criterion.outputs, dtype, seeds[1])
    )
    parameters = [weight, query, bias]  # the first decays
    rate, decay = (
        torch.tensor(value, dtype=dtype, device=device) for value in (settings.learning_rate, settings.weight_decay)
    )
    optimizer = AdamW(rate, decay, parameters)
    measured = train.at_most(MEASURED, rng)
    run = Run(settings, *moments, score=criterion.score)
    fit = Fit(run, *as_arrays(query, weight, bias))
    for epoch in range(1, settings.max_epochs + 1):
        factor = rate_factor(settings.schedule, epoch, settings.max_epochs)
        for x, label, counts in train.batches(settings.batch_size, rng, device):
            pooled = pooled_by(grid.standardised(x, mean, scale), query)
            if settings.dropout:
                drawn = torch.rand(pooled.shape, generator=generator, device=device, dtype=dtype)
                pooled = pooled * (drawn >= settings.dropout) / (1 - settings.dropout)
            loss = criterion.loss(logits_of(pooled, weight, bias)[None], label, settings.label_smoothing, counts)
            optimizer.step(parameters, torch.autograd.grad(loss.sum(), parameters), 1, factor)

        def logits(x: torch.Tensor) -> torch.Tensor:
            return logits_of(pooled_by(grid.standardised(x, mean, scale), query), weight, bias)

        on_train = _measure(logits, measured, criterion)
        if run.record(epoch, on_train, None if held is None else _measure(logits, held, criterion)):
            fit = Fit(run, *as_arrays(query, weight, bias))
        best = run.best_loss
        report("epochs", epoch, settings.max_epochs, f"lowest loss so far {best:.4f}" if math.isfinite(best) else "")
        if run.finished:
            break
    return fit


def _start(queries: int, channels: int, outputs: int, dtype: torch.dtype, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    width = queries * channels
    query = torch.empty((queries, channels), dtype=dtype, device="cpu").normal_(0, START, generator=generator)
    layer = [torch.empty(shape, dtype=dtype, device="cpu") for shape in ((outputs, width), (outputs,))]
    return [query, *(each.uniform_(-1 / math.sqrt(width), 1 / math.sqrt(width), generator=generator) for each in layer)]


def _check_memory(batch_size: int, grid: Grid, criterion: Criterion) -> None:
    needed = COPIES * criterion.dtype.itemsize * batch_size * grid.tokens * grid.channels
    available = available_bytes()
    if available is not None and needed > available:
        raise UsageError(
            f"Batches of {batch_size:,} samples of {grid.tokens:,} positions would take {needed / 2**30:,.1f} GiB of "
            f"memory, and {available / 2**30:,.1f} GiB are available.",
            hint="Use smaller batches: --batch-size 16.",
        )


@torch.no_grad()
def _measure(logits: Any, samples: Samples, criterion: Criterion) -> tuple[float, float]:
    """The loss, weighted by class and sample, and the score, weighted by sample."""
    loss, score, whole, counted = 0.0, 0.0, 0.0, 0.0
    for x, label, weight in samples.in_order(criterion.device):
        total = float((criterion.weights(label) * weight).sum())
        outputs = logits(x)[None]
        loss += float(criterion.loss(outputs, label, 0.0, weight)[0]) * total
        score += float((criterion.scores(outputs, label) * weight).sum())
        whole, counted = whole + total, counted + float(weight.sum())
    return loss / whole, score * criterion.unit / counted
