"""Tails that no training has made: their parameters are those of the backbone, moved a little, and an output layer of
random numbers. What they predict is computed by other means in the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from precompute import Backbone, Cache
from precompute.backbones.tail import tail_of
from precompute.cache import key_of
from precompute.finetuning.network import OutputLayer, TailNetwork
from precompute.finetuning.tail_file import save_tail
from precompute.finetuning.tail_head import Fitted, TailHead
from precompute.training.membership import split_record
from precompute.training.splits import parts_of, whole_rows
from precompute.training.targets import CLASSES, own_classes


def make_tail_head(
    backbone: Backbone, *, task: str = CLASSES, names: tuple[str, ...] = ("cats", "dogs"), seed: int = 0
) -> TailHead:
    """What lies behind the one layer that `backbone` is cut at, with a new output layer."""
    (tap,) = backbone.taps
    generator = torch.Generator().manual_seed(seed)
    tail = tail_of(backbone, tap.layer)
    with torch.no_grad():
        for parameter in tail.parameters():
            parameter.mul_(1 + 0.05 * torch.randn(parameter.shape, generator=generator))
    weight = torch.randn(max(1, len(names)), tail.width, generator=generator) / tail.width**0.5
    bias = torch.randn(max(1, len(names)), generator=generator)
    history = [{"epoch": number, "train_loss": 1.0} for number in range(3)]
    more: dict[str, Any] = {"target_mean": 3.0, "target_scale": 2.0} if task == "number" else {}
    if task == "labels":
        more = {"thresholds": [0.4] * len(names)}
    fitted = Fitted(history, 2, "held out", {"C": 1.0}, {"epochs": 2}, **more)
    network = TailNetwork(tail, OutputLayer(weight.numpy(), bias.numpy()))
    return TailHead(network, tap.shape, task, names, fitted)


def save_made_tail(
    path: Path, backbone: Backbone, cache: Cache, *, storage: str = "float32", **options: Any
) -> TailHead:
    """Write one as `fine-tune` does, as if it had been trained on the images of `cache` by their classes."""
    head = make_tail_head(backbone, **options)
    spec = backbone.spec(precision="fp32", storage=storage)
    target = own_classes(cache)
    parts, _ = parts_of(cache, whole_rows(cache, cache.layers[0]), 0, np.arange(len(cache)), target)
    metadata = {
        "spec": spec,
        "key": key_of(spec),
        "layer": backbone.taps[0].layer,
        "shape": list(backbone.taps[0].shape),
        "weights_source": backbone.source,
        "training": {
            "cache": Path(cache.path).name,
            "rows": {name: len(rows) for name, rows in parts.items()},
            "scores": {},
            "seed": 0,
            "split": split_record(cache, target, parts),
        },
    }
    save_tail(path, head, metadata=metadata, overwrite=True)
    return head
