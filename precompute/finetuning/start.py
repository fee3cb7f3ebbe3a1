"""The first step of LP-FT: a linear head on what the frozen tail gives, and what it says before anything is tuned."""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from precompute.engines.torch import true_fp32
from precompute.errors import TrainingError, naming
from precompute.finetuning.activations import Activations, Rows
from precompute.finetuning.memory import reporting_pass_memory
from precompute.finetuning.network import OutputLayer, features_of
from precompute.heads import LogisticHead, MultilabelLogisticHead, RidgeRegressionHead, RowView
from precompute.heads.base.progress import report
from precompute.heads.base.rows import BLOCK_BYTES
from precompute.heads.base.splits import held_out
from precompute.heads.mlp.samples import MAX_TIMES_FRACTION, MIN_HELD_OUT
from precompute.system import write_at
from precompute.training.targets import CLASSES, LABELS, NUMBER, Target
from precompute.training.views import fit_rows

HELD_FRACTION = 0.15  # of the training samples, to stop on, as for an MLP
MOST_AT_ONCE = 256
LINEAR = "linear."
"""How the arrays of the linear head in a checkpoint begin."""


@dataclass(frozen=True)
class Samples:
    """fit: rows that are trained on · held: those that choose (C, the epoch), which are never trained on; none where
    there are too few to hold any out · source: "given", "held out", or why there are none."""

    fit: Rows
    held: Rows
    source: str

    @property
    def watched(self) -> Rows:
        """The rows whose loss is to fall."""
        return self.held if len(self.held) else self.fit


def choose_samples(parts: dict[str, Rows], target: Target, together: Rows, selection: str | None, seed: int) -> Samples:
    """selection: the split that chooses; None for an inner hold-out of the training part, by the rule of the MLP.

    together: (N,) the same number for what no hold-out parts.
    """
    train = parts["train"]
    if selection:
        return Samples(train, parts[selection], "given")
    out = held_out(target.strata(train, together[train]), groups=together[train], fraction=HELD_FRACTION, seed=seed)
    if not MIN_HELD_OUT <= out.sum() <= MAX_TIMES_FRACTION * HELD_FRACTION * len(train):
        return Samples(train, train[:0], "none: too few samples to hold out")
    return Samples(train[~out], train[out], "held out")


@dataclass(frozen=True)
class Frozen:
    """What the frozen tail gives: `features` (N, d), or (N, views, d), of which rows that are not used hold zeros."""

    features: Any
    views: int

    @property
    def plain(self) -> Any:
        """(N, d)."""
        return self.features[:, 0] if self.views > 1 else self.features


def frozen_features(
    tail: nn.Module, activations: Activations, n_rows: int, asked: Sequence[tuple[Rows, int]], folder: str | None
) -> Frozen:
    """What `tail` gives for some of the N rows, in a file without a name in `folder`, mapped.

    asked: rows and how many of their views, the most first. Raises OSError where the disk is full, TrainingError where
    memory runs out.
    """
    device = next((parameter.device for parameter in tail.parameters()), torch.device("cpu"))
    largest = max(1, min(MOST_AT_ONCE, BLOCK_BYTES // (4 * math.prod(activations.shape))))
    blocks = [
        (rows[start : start + size], views)
        for rows, views in asked
        for size in (max(1, largest // views),)
        for start in range(0, len(rows), size)
    ]
    plan = ((np.repeat(rows, views), np.tile(np.arange(views), len(rows))) for rows, views in blocks)
    most, done, width = asked[0][1], 0, 0
    with (
        tempfile.TemporaryFile(dir=folder) as file,  # which lives on in its mapping
        torch.inference_mode(),
        true_fp32(str(device)),
        naming(folder or tempfile.gettempdir()),
        reporting_pass_memory(min(largest, max(len(rows) * views for rows, views in blocks)), device),
        contextlib.closing(activations.batches(plan)) as batches,
    ):
        for (rows, views), activation in zip(blocks, batches, strict=True):
            values = features_of(tail, activation.to(device)).float().cpu().numpy()
            width = values.shape[1]
            for start, stop in _runs(rows, together=views == most):
                part = np.ascontiguousarray(values[start * views : stop * views], "<f4")
                write_at(file.fileno(), part.tobytes(), int(rows[start]) * most * width * 4)
            done += len(rows)
            report("samples through the frozen tail", done, sum(len(rows) for rows, _ in asked))
        os.truncate(file.fileno(), n_rows * most * width * 4)
        shape = (n_rows, width) if most == 1 else (n_rows, most, width)
        return Frozen(np.memmap(file, np.float32, mode="r", shape=shape), most)


def _runs(rows: Rows, *, together: bool) -> Iterator[tuple[int, int]]:
    """Where rows that follow each other in the file begin and end; each alone where these are not `together`."""
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1 if together else np.arange(1, len(rows))
    edges = [0, *breaks.tolist(), len(rows)]
    yield from pairwise(edges)


@dataclass(frozen=True)
class Linear:
    """A fitted linear head: its output layer, the names of its classes or labels, and what it chose.

    mean, scale: by which the layer's numbers are standardised.
    """

    layer: OutputLayer
    names: tuple[str, ...]
    chosen: dict[str, Any]
    mean: float
    scale: float

    def record(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """For a checkpoint: JSON-ready, and arrays."""
        said = {"chosen": self.chosen, "names": list(self.names), "mean": self.mean, "scale": self.scale}
        return said, {LINEAR + name: value for name, value in vars(self.layer).items()}

    @classmethod
    def of_record(cls, said: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Linear:
        """What `record` gave. Raises KeyError, TypeError and ValueError for anything else."""
        layer = OutputLayer(arrays[f"{LINEAR}weight"], arrays[f"{LINEAR}bias"])
        names, mean, scale = said["names"], float(said["mean"]), float(said["scale"])
        if (
            layer.weight.ndim != 2
            or layer.bias.shape != layer.weight.shape[:1]
            or len(names) not in (0, len(layer.bias))
        ):
            raise ValueError(f"its linear head has the shapes {layer.weight.shape} and {layer.bias.shape}")
        return cls(layer, tuple(map(str, names)), dict(said["chosen"]), mean, scale)


def standardisation(target: Target, rows: Rows) -> tuple[float, float]:
    """Mean and standard deviation of the numbers of `rows`; 0 and 1 of other targets."""
    if target.task != NUMBER:
        return 0.0, 1.0
    values = target.of(rows)
    mean, spread = float(values.mean()), float(values.std())
    # What rounding leaves of equal targets is no spread.
    return mean, spread if spread > np.finfo(np.float64).eps * abs(mean) else 1.0


def fit_linear(frozen: Frozen, target: Target, samples: Samples, together: Rows, seed: int, device: str) -> Linear:
    """The linear head on `samples.fit` alone, its strength chosen on `samples.held`, or by cross-validation.

    `train-head` fits on what has chosen C as well; here that is kept, to compare what comes after with.
    Raises TrainingError where it cannot be fitted.
    """
    rows, held = samples.fit, samples.held
    kinds: dict[str, Any] = {CLASSES: LogisticHead, LABELS: MultilabelLogisticHead, NUMBER: RidgeRegressionHead}
    logistic = {"random_state": seed, "device": device} if target.task != NUMBER else {}
    options: dict[str, Any] = {"label_names": target.names} if target.task == LABELS else {}

    def fitted(validation: Any, **settings: Any) -> Any:
        head = kinds[target.task](**logistic, **settings)
        fit_rows(
            *(head, frozen.features, frozen.views, rows, target.of(rows)),
            groups=together[rows],
            validation=validation,
            **options,
        )
        return head

    try:
        head = fitted((RowView(frozen.plain, held), target.of(held)) if len(held) else None)
        strength = "alpha" if target.task == NUMBER else "C"
        chosen = {"head": "ridge" if target.task == NUMBER else "logistic"}
        chosen |= {name: getattr(head, f"{name}_") for name in (strength, f"{strength}_source")}
        if len(held) and target.task != NUMBER:
            head = fitted(None, C=chosen["C"])
            chosen["C_source"] = "validation"
    except ValueError as error:
        raise TrainingError(
            f"The linear head cannot be trained on what the frozen tail gives: {error}",
            hint="Check the cache: precompute info CACHE. Where its float16 overflowed, extract with --dtype float32.",
        ) from error
    mean, scale = standardisation(target, rows)
    names = () if target.task == NUMBER else tuple(map(str, head.labels_ if target.task == LABELS else head.classes_))
    return Linear(OutputLayer.of_head(head, target.task, mean, scale), names, chosen, mean, scale)


def goals(target: Target, names: tuple[str, ...], mean: float, scale: float) -> NDArray[Any]:
    """What the network is trained to give, for every row of the cache; -1 or NaN where nothing is known.

    (N,) int64 positions among `names`, (N, L) float32 of 0 and 1, or (N,) float32 standardised numbers.
    """
    if target.task == NUMBER:
        return ((target.values - mean) / scale).astype(np.float32)
    if target.task == LABELS:
        return target.values.astype(np.float32)
    place = np.array([names.index(name) if name in names else -1 for name in target.names] + [-1], np.int64)
    found: NDArray[Any] = place[target.values]
    return found
