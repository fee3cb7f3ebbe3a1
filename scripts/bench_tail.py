"""A tail trained from cached activations beside the same training from pixels: losses step by step, seconds an epoch.

    python scripts/bench_tail.py SOURCE [-b resnet50] [--weights random:0] [--layer layer3] [--steps 50] [--threads 2]
                                 [--learning-rate 3e-6] [--control]

Extracts the activations of the layer in fp32 once, then trains twice with the same seed, batches, settings and linear
head: by `fine_tune` on the cache, and in plain PyTorch on the whole network, whose parameters before the cut are frozen
and whose images are decoded in every epoch by as many threads as the extraction has. Both have weights and maps in
channels_last. Prints the largest difference between the losses of a step, and the seconds of an epoch's steps.

On random weights a larger rate makes much of rounding. --control shows how much: it trains from pixels once more, in
the other layout, which changes the rounding and nothing else.
"""

from __future__ import annotations

import argparse
import copy
import math
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_rerun import cpu_model
from torch import nn

from precompute import extract, load_backbone, open_cache
from precompute.backbones.layers import final_classifier
from precompute.backbones.tail import tail_of
from precompute.finetuning.activations import CachedActivations
from precompute.finetuning.batches import batches_of, n_batches
from precompute.finetuning.fine_tune import fine_tune
from precompute.finetuning.network import OutputLayer, prepared
from precompute.finetuning.settings import TailSettings
from precompute.finetuning.start import Samples, choose_samples, fit_linear, frozen_features
from precompute.training.splits import digest_groups, parts_of, whole_rows
from precompute.training.targets import own_classes


class Pixels:
    """Batches of images, read and decoded anew each time."""

    def __init__(
        self, folder: Path, ids: Sequence[str], backbone: Any, threads: int, layout: torch.memory_format
    ) -> None:
        self.layout = layout
        self.folder, self.ids, self.preprocess = folder, ids, backbone.preprocess
        self.device = backbone.preprocess.device()
        self.pool = ThreadPoolExecutor(threads)

    def batch(self, rows: Sequence[int]) -> torch.Tensor:
        names = [self.ids[row] for row in rows]
        images = list(self.pool.map(lambda name: self.preprocess.host((self.folder / name).read_bytes(), 0)[0], names))
        prepared: torch.Tensor = self.device(torch.stack(images).float())
        return prepared.contiguous(memory_format=self.layout)


def linear_head(backbone: Any, layer: str, cache: Any, samples: Samples) -> OutputLayer:
    """The one that `fine_tune` begins with."""
    train = np.sort(np.concatenate([samples.fit, samples.held]))
    others = np.setdiff1d(np.arange(len(cache)), train)
    tail = prepared(tail_of(backbone, layer), "cpu")
    frozen = frozen_features(tail, CachedActivations(cache, layer), len(cache), [(train, 1), (others, 1)], None)
    return fit_linear(frozen, own_classes(cache), samples, digest_groups(cache), 0, "cpu").layer


def reference(
    pixels: Pixels,
    backbone: Any,
    layer: str,
    linear: OutputLayer,
    labels: torch.Tensor,
    samples: Samples,
    settings: TailSettings,
    steps: int,
) -> tuple[list[float], list[float]]:
    """Losses and moments of each step of the training from pixels."""
    network: nn.Module = copy.deepcopy(backbone.network).float().eval().to(memory_format=pixels.layout)
    name = final_classifier(network)
    output = nn.Linear(linear.weight.shape[1], len(linear.bias))
    output.load_state_dict({key: torch.from_numpy(value) for key, value in vars(linear).items()})
    parent, _, last = name.rpartition(".")
    setattr(network.get_submodule(parent) if parent else network, last, output)
    behind = {one for one, _ in tail_of(backbone, layer).named_parameters()}
    for one, parameter in network.named_parameters():
        parameter.requires_grad_(one in behind or one.startswith(f"{name}."))
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": [one for one in trained if one.ndim > 1], "weight_decay": settings.weight_decay},
            {"params": [one for one in trained if one.ndim < 2], "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
    )
    per_epoch = n_batches(len(samples.fit), settings.batch_size)
    warm, total = round(settings.warmup * per_epoch), settings.epochs * per_epoch
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda at: (at + 1) / warm if at < warm else (1 + math.cos(math.pi * (at - warm) / (total - warm))) / 2,
    )
    losses: list[float] = []
    moments = [time.monotonic()]
    epoch = 0
    while len(losses) < steps:
        epoch += 1
        for rows, _ in batches_of(samples.fit, 1, settings.batch_size, settings.seed, epoch):
            loss = nn.functional.cross_entropy(network(pixels.batch(rows.tolist())), labels[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            rate.step()
            losses.append(loss.item())
            moments.append(time.monotonic())
    return losses[:steps], moments[: steps + 1]


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("-b", "--backbone", default="resnet50")
    parser.add_argument("--weights", default="random:0")
    parser.add_argument("--layer", default="layer3")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--crop", type=int, help="also the shorter side that images are resized to")
    parser.add_argument("--learning-rate", type=float, default=3e-6)
    parser.add_argument("--control", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parsed(arguments)
    torch.set_num_threads(options.threads)
    transform = {"resize": options.crop, "crop": options.crop} if options.crop else None
    backbone = load_backbone(options.backbone, weights=options.weights, layer=options.layer, transform=transform)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "deep.h5")
        began = time.monotonic()
        extract(
            *(options.source, path),
            backbone=options.backbone,
            weights=options.weights,
            layer=options.layer,
            transform=transform,
            precision="fp32",
            engine="torch",
            dtype="float32",
            workers=options.threads,
        )
        extraction = time.monotonic() - began
        cache = open_cache(path)
        parts, _ = parts_of(cache, whole_rows(cache, options.layer), 0)
        samples = choose_samples(parts, own_classes(cache), digest_groups(cache), None, 0)
        per_epoch = n_batches(len(samples.fit), options.batch_size)
        settings = TailSettings(
            epochs=math.ceil(options.steps / per_epoch),
            batch_size=options.batch_size,
            learning_rate=options.learning_rate,
        )
        losses: list[float] = []
        spans: list[float] = []
        last: list[float] = []

        def watch(epoch: int, step: int, loss: float) -> None:
            del epoch
            now = time.monotonic()
            if step:  # the first of an epoch follows on what is measured between epochs
                spans.append(now - last[0])
            last[:] = [now]
            losses.append(loss)

        fine_tune(
            path,
            epochs=settings.epochs,
            patience=settings.epochs,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            watch=watch,
        )
        labels = torch.from_numpy(cache.labels.astype(np.int64))
        linear = linear_head(backbone, options.layer, cache, samples)
        given = (backbone, options.layer, linear, labels, samples, settings, options.steps)
        pixels = Pixels(options.source, cache.ids, backbone, options.threads, torch.channels_last)
        expected, moments = reference(pixels, *given)
        if options.control:
            pixels = Pixels(options.source, cache.ids, backbone, options.threads, torch.contiguous_format)
            noise = np.abs(np.array(reference(pixels, *given)[0]) - np.array(expected)).max()
            print(f"largest difference between two trainings from pixels, in two layouts: {noise:.1e}")
        size = path.stat().st_size / 1e6
    difference = np.abs(np.array(losses[: options.steps]) - np.array(expected))
    of_cache, of_pixels = np.mean(spans) * per_epoch, np.mean(np.diff(moments)) * per_epoch
    print(f"{cpu_model()}, {options.threads} threads, torch {torch.__version__}")
    size_of_epoch = f"{len(samples.fit)} images an epoch, batches of {options.batch_size}"
    print(f"{options.backbone} behind {options.layer}, {size_of_epoch}")
    print(f"losses of {options.steps} steps: {losses[0]:.4f} to {losses[options.steps - 1]:.4f}")
    print(f"largest difference to training from pixels: {difference.max():.1e} (step {difference.argmax() + 1})")
    print(f"{of_cache:.1f} s an epoch from the cache, {of_pixels:.1f} s from pixels: {of_pixels / of_cache:.1f} times")
    print(f"extraction, once: {extraction:.1f} s, {size:,.0f} MB")


if __name__ == "__main__":
    main()
