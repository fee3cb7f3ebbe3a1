"""The training of MLPs: one or many at once, over the same batches, with early stopping for each."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from precompute.errors import UsageError
from precompute.heads.base.memory import available_bytes
from precompute.heads.base.progress import report
from precompute.heads.mlp.network import Stack, logits_of
from precompute.heads.mlp.samples import Samples, moments

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from precompute.heads.mlp.criteria import Criterion

    Array = npt.NDArray[np.floating]

__all__ = ["MEASURED", "SEARCHED", "Run", "Settings", "fit_together", "rate_factor"]

SEARCHED = ("hidden", "dropout", "weight_decay", "learning_rate")
"""The settings in which heads that are fitted together may differ."""
# The training loss and accuracy of an epoch are measured on no more samples than this, which fixes the accuracy to
# 0.4% (95% interval) without reading all features once more.
MEASURED = 50_000
AT_ONCE_BYTES = 2**30  # of the arrays of heads that are trained at the same time; further heads are trained after them
ARRAYS_PER_PARAMETER = 6  # itself, its gradient, AdamW's two, the best so far, and what a step takes for a moment


@dataclass(frozen=True)
class Settings:
    """How one head is trained; every field is the parameter of MLPHead with the same name."""

    hidden: tuple[int, ...]
    dropout: float
    weight_decay: float
    learning_rate: float
    batch_norm: bool
    mixup: float
    batch_size: int
    max_epochs: int
    patience: int
    schedule: str
    random_state: int | None
    label_smoothing: float = 0.0


@dataclass
class Run:
    """The training of one head, and what came of it.

    mean, scale (d,): what features are standardised by · weights, biases: of the best epoch, (out, in) and (out,) for
    each layer · seconds: its share of the time · diverged: the loss was no longer finite.
    """

    settings: Settings
    mean: Array
    scale: Array
    weights: list[Array] = field(default_factory=list)
    biases: list[Array] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0
    best_loss: float = math.inf
    diverged: bool = False
    score: str = "accuracy"
    seconds: float = 0.0

    def record(self, epoch: int, measured: tuple[float, float], validated: tuple[float, float] | None) -> bool:
        """Add an epoch's (loss, score) to the history; whether it is the best so far."""
        names = [f"{of}_{what}" for of in ("train", "validation") for what in ("loss", self.score)]
        self.history.append(
            {"epoch": epoch, **dict(zip(names, (*measured, *(validated or (None, None))), strict=True))}
        )
        watched = measured[0] if validated is None else validated[0]
        self.diverged = not (math.isfinite(measured[0]) and math.isfinite(watched))
        if self.diverged or watched >= self.best_loss:
            return False
        self.best_epoch, self.best_loss = epoch, watched
        return True

    def keep(self, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor], number: int) -> None:
        """Copy the weights (H, out, in) and biases (H, 1, out) of the head with this number."""
        self.weights = [weight[number].cpu().numpy().copy() for weight in weights]
        self.biases = [bias[number, 0].cpu().numpy().copy() for bias in biases]

    @property
    def finished(self) -> bool:
        """Whether it has diverged, or its patience is at an end."""
        return self.diverged or len(self.history) - self.best_epoch >= self.settings.patience


def fit_together(
    heads: Sequence[Settings],
    train: Samples,
    held: Samples | None,
    criterion: Criterion,
    *,
    time_budget: float | None = None,
) -> tuple[list[Run], bool]:
    """Train heads whose settings differ in SEARCHED alone.

    criterion: of the device to train on, and of the dtype of `train`, which is trained in. Returns the run of each
    head, and whether the `time_budget` (seconds) ran out: each then has the best of the epochs it had, of
    which there is at least one, and heads that were not begun are left out.
    """
    began = time.monotonic()
    mean, scale = moments(train)
    train = train.held_by(criterion.device)
    if held is not None:
        shared = held.X is train.X and train.resident is not None
        held = replace(held, resident=train.resident) if shared else held.held_by(criterion.device)
    runs: list[Run] = []
    cut_short = False
    chunks = list(_chunks(heads, train.X.shape[1], criterion.outputs, criterion.dtype.itemsize))
    for number, chunk in enumerate(chunks):
        left = None if time_budget is None else time_budget - (time.monotonic() - began)
        if left is not None and left <= 0 and runs:
            return runs, True
        deadline = None if left is None else time.monotonic() + left / (len(chunks) - number)
        done, cut = _fit_at_once(chunk, train, held, criterion, (mean, scale), deadline)
        runs += done
        cut_short |= cut
    return runs, cut_short


def _check_memory(head: Settings, needed: int) -> None:
    """Raise UsageError where a network cannot fit: the system may kill a process that takes more than there is."""
    available = available_bytes()
    if available is not None and needed > available:
        raise UsageError(
            f"Training hidden layers of {', '.join(f'{width:,}' for width in head.hidden)} would take "
            f"{needed / 2**30:,.1f} GiB of memory, and {available / 2**30:,.1f} GiB are available.",
            hint="Use smaller widths: --hidden 512.",
        )


def _chunks(heads: Sequence[Settings], d: int, k: int, itemsize: int) -> Iterator[list[Settings]]:
    """The heads in their order, as many at a time as AT_ONCE_BYTES hold."""
    chunk: list[Settings] = []
    taken = 0
    for head in heads:
        sizes = [d, *head.hidden, k]
        needed = itemsize * ARRAYS_PER_PARAMETER * sum(n_in * n_out for n_in, n_out in pairwise(sizes))
        _check_memory(head, needed)
        if chunk and taken + needed > AT_ONCE_BYTES:
            yield chunk
            chunk, taken = [], 0
        chunk.append(head)
        taken += needed
    yield chunk


@torch.enable_grad()  # the caller may be inside no_grad
def _fit_at_once(
    heads: Sequence[Settings],
    train: Samples,
    held: Samples | None,
    criterion: Criterion,
    moments: tuple[Array, Array],
    deadline: float | None,
) -> tuple[list[Run], bool]:
    shared, device = heads[0], criterion.device
    seeds = np.random.SeedSequence(shared.random_state).generate_state(3, np.uint64).tolist()
    rng = np.random.default_rng(seeds[0])
    runs = [Run(head, *moments, score=criterion.score) for head in heads]
    groups: dict[tuple[int, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(run.settings.hidden, []).append(run)
    stacks = [
        Stack(
            [train.X.shape[1], *hidden, criterion.outputs],
            [(run.settings.learning_rate, run.settings.weight_decay, run.settings.dropout) for run in group],
            batch_norm=shared.batch_norm,
            start_seed=seeds[1],
            dropout_seed=seeds[2],
            device=device,
            dtype=criterion.dtype,
        )
        for hidden, group in groups.items()
    ]
    live = list(zip(stacks, groups.values(), strict=True))
    measured = train.at_most(MEASURED, rng)
    standard = [torch.from_numpy(array).to(device) for array in moments]
    for epoch in range(1, shared.max_epochs + 1):
        began = time.monotonic()
        factor = rate_factor(shared.schedule, epoch, shared.max_epochs)
        for x, label, weight in train.batches(shared.batch_size, rng, device):
            if shared.batch_norm and len(x) == 1:
                continue  # one sample has no variance; the next epoch's shuffle leaves out another
            order = torch.arange(len(x), device=device)
            mixed, first, second, share = _mixed((x - standard[0]) / standard[1], order, shared.mixup, rng)
            parts = [(label[of], weight[of], part) for of, part in ((first, share), (second, 1 - share)) if part > 0]
            for stack, _ in live:
                stack.step(_mixed_loss(stack, mixed, parts, criterion, shared.label_smoothing), factor)
        networks = [stack.folded() for stack, _ in live]
        on_train = _measure(networks, measured, standard, criterion)
        on_held = None if held is None else _measure(networks, held, standard, criterion)
        n_live = sum(len(group) for _, group in live)
        for number, (weights, biases) in enumerate(networks):
            for position, run in enumerate(live[number][1]):
                validated = None if on_held is None else on_held[number][position]
                if run.record(epoch, on_train[number][position], validated) or not run.best_epoch:
                    run.keep(weights, biases, position)
                run.seconds += (time.monotonic() - began) / n_live
        best = min(run.best_loss for run in runs)
        report("epochs", epoch, shared.max_epochs, f"lowest loss so far {best:.4f}" if math.isfinite(best) else "")
        live = [(stack, going) for stack, group in live if (going := _still_going(stack, group))]
        if not live or (deadline is not None and time.monotonic() >= deadline):
            break
    return runs, bool(live) and epoch < shared.max_epochs


def _still_going(stack: Stack, group: list[Run]) -> list[Run]:
    """The runs that are not finished; the stack continues with their heads."""
    going = [position for position, run in enumerate(group) if not run.finished]
    if 0 < len(going) < len(group):
        stack.keep(going)
    return [group[position] for position in going]


def rate_factor(kind: str, epoch: int, max_epochs: int) -> float:
    """What the learning rate is multiplied by in an epoch, counted from 1."""
    return 1.0 if kind == "constant" else (1 + math.cos(math.pi * (epoch - 1) / max_epochs)) / 2


def _mixed(
    x: torch.Tensor, label: torch.Tensor, alpha: float, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
    """Mixup (Zhang et al. 2018): each row mixed with another one; both labels, and the share of the first."""
    if not alpha:
        return x, label, label, 1.0
    share = float(rng.beta(alpha, alpha))
    partner = torch.from_numpy(rng.permutation(len(x))).to(x.device)
    return share * x + (1 - share) * x[partner], label, label[partner], share


def _mixed_loss(
    stack: Stack,
    x: torch.Tensor,
    parts: Sequence[tuple[torch.Tensor, torch.Tensor, float]],
    criterion: Criterion,
    smoothing: float,
) -> torch.Tensor:
    """What each head of the stack is trained to lower, (H,); `parts`: labels, weights, and their share of the loss."""
    logits = stack.training_logits(x)
    losses = [share * criterion.loss(logits, label, smoothing, weight) for label, weight, share in parts]
    return losses[0] if len(losses) == 1 else losses[0] + losses[1]


@torch.no_grad()
def _measure(
    networks: list[tuple[list[torch.Tensor], list[torch.Tensor]]],
    samples: Samples,
    standard: list[torch.Tensor],
    criterion: Criterion,
) -> list[list[tuple[float, float]]]:
    """For each network and each of its heads the loss, weighted by class and sample, and the score, weighted by
    sample.
    """
    losses = [np.zeros(len(weights[0])) for weights, _ in networks]
    scores = [np.zeros(len(weights[0])) for weights, _ in networks]
    whole, counted = 0.0, 0.0
    for x, label, weight in samples.in_order(criterion.device):
        total = float((criterion.weights(label) * weight).sum())
        whole += total
        counted += float(weight.sum())
        for number, (weights, biases) in enumerate(networks):
            logits = logits_of(weights, biases, (x - standard[0]) / standard[1])
            loss = criterion.loss(logits, label, 0.0, weight).cpu().numpy()
            losses[number] += loss.astype(np.float64) * total  # in NumPy: Apple's GPUs have no float64
            scores[number] += (criterion.scores(logits, label) * weight).sum(dim=1).cpu().numpy()
    return [
        list(zip((loss / whole).tolist(), (score * criterion.unit / counted).tolist(), strict=True))
        for loss, score in zip(losses, scores, strict=True)
    ]
