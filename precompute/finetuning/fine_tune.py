"""Fine-tune what lies behind a layer, from a cache of its activations, and score it on images it has not seen."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from precompute.backbones.load import Backbone
from precompute.cache import Cache
from precompute.finetuning.activations import Activations
from precompute.training.head import Training
from precompute.training.targets import AUTO


@dataclass(frozen=True)
class Data:
    """What a tail is trained on, whichever way it comes.

    cache: of the ids, labels, splits and digests, whose rows are those of the activations · backbone: with the cut layer
    as its only tap · layer: where it is cut · activations: of that layer · frozen: (N, d) what the frozen tail makes of
    the plain views where that is there already (the features of a cache's layer), None to compute it · spec, key,
    weights_source: of the activations, for the file · name: of the record · notes: what the reader should know.
    """

    cache: Cache
    backbone: Backbone
    layer: str
    activations: Activations
    spec: dict[str, Any]
    key: str
    weights_source: dict[str, Any]
    name: str
    frozen: Any | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tuning(Training):
    """As `Training`, and what fine-tuning changed.

    before: scores by split of the linear head that it began with · paired: by split, the tail compared with that head
    on the same images.
    """

    before: dict[str, Any]
    paired: dict[str, Any]


def fine_tune(
    source: Cache | str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    layer: str | None = None,
    backbone: str | None = None,
    weights: str | None = None,
    tail: str | None = None,
    epochs: int = 30,
    learning_rate: float = 1e-4,
    weight_decay: float = 1e-4,
    warmup: float = 1.0,
    batch_size: int = 32,
    patience: int = 8,
    dropout: float = 0.0,
    label_smoothing: float = 0.0,
    schedule: str = "cosine",
    seed: int = 0,
    device: str = "cpu",
    precision: str = "fp32",
    groups: str | None = None,
    groups_file: str | os.PathLike[str] | None = None,
    groups_column: str | None = None,
    label_column: str | Sequence[str] | None = None,
    label_separator: str | None = None,
    split_column: str | None = None,
    task: str = AUTO,
    labels: str | os.PathLike[str] | None = None,
    expect: int | None = None,
    similarity: float | None = None,
    plain_view: bool = False,
    average_views: bool = False,
    calibrated: bool = False,
    checkpoint_seconds: float = 30.0,
    overwrite: bool = False,
) -> Tuning:
    raise NotImplementedError
