"""Where does transfer help, and where does it hurt? `tiny` trained on MNIST alone, then on Fashion-MNIST, and back.

    python scripts/check_transfer.py --data ../shared/data [--labels 10,100,1000] [--draws 5] [--epochs 6]

DATA holds MNIST/raw and FashionMNIST/raw. `tiny` is trained on one set alone, by the recipe of train_tiny_backbone.py,
and its weights are kept in --work, so that a second run begins with them. Then it is given so many labels of the other
set in all, the same number of each class, drawn anew in each draw; scored are the same images of that set's test half:

    raw pixels      a logistic head on the image itself
    head            a logistic head on the frozen features
    tail            LP-FT of what lies behind --layer
    everything      LP-FT of all layers
    from scratch    all layers from random weights, another seed in each draw: the usual loop of plain PyTorch, whose
                    BatchNorm learns its statistics, at a rate of its own
    random + head   a logistic head on the features of these random weights

All but "from scratch" by `extract`, `train_head` and `fine_tune` as they are. That one trains on the same inputs in at
least --scratch-steps steps; nothing chooses its epoch. Prints the accuracy with Student's 95% interval over
the draws, and the paired difference to "from scratch": above 0, with an interval above 0, transfer helps; below, it
hurts. The intervals stand for draws of labels, not for other images to score on. --json FILE keeps all accuracies.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from scipy.stats import t as student
from train_tiny_backbone import Recipe, Split, read, train

from precompute import Cache, extract, load_backbone, open_cache, train_head
from precompute.cache import RelabelledCache
from precompute.finetuning.fine_tune import fine_tune
from precompute.sources.images_array import images_of

SETS = ("MNIST", "FashionMNIST")
NONE, TRAIN, TEST = 0, 1, 3  # codes of splits, see cache/FORMAT.md
FEATURES = "embed.4"
BATCH = 32
SCRATCH = "from scratch"
METHODS = ("raw pixels", "head", "tail", "everything", SCRATCH, "random + head")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--work", type=Path, default=Path("transfer"), help="weights and feature files (%(default)s)")
    parser.add_argument("--epochs", type=int, default=6, help="of the pretraining, half a minute each (%(default)s)")
    parser.add_argument("--pretrain-images", type=int, default=60_000, help="of the set it is trained on (%(default)s)")
    parser.add_argument("--labels", default="10,100,1000", help="in all (%(default)s)")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--pool", type=int, default=10_000, help="images that labels are drawn from (%(default)s)")
    parser.add_argument("--tested", type=int, default=5_000, help="images that are scored (%(default)s)")
    parser.add_argument("--layer", default="body.3", help="behind which the tail lies (%(default)s)")
    parser.add_argument("--tune-epochs", type=int, default=30)
    parser.add_argument("--learning-rate", type=float, default=3e-4, help="of tail and everything (%(default)s)")
    parser.add_argument("--scratch-rate", type=float, default=2e-3, help="of what begins at random (%(default)s)")
    parser.add_argument("--scratch-steps", type=int, default=300, help="at least (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="keep all accuracies in this file")
    options = parser.parse_args(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    found = {}
    for learned, given in (SETS, SETS[::-1]):
        print(f"\n{learned} -> {given}", flush=True)
        accuracies, seconds = transfer(options, learned, given)
        found[f"{learned} -> {given}"] = accuracies
        print_table(accuracies, seconds)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1))
    return 0


def transfer(options: argparse.Namespace, learned: str, given: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """By method and number of labels: the accuracy of each draw, and the seconds of all of them."""
    weights = pretrained(options, learned)
    source = samples(options, given)
    trained = activations(options, source, f"{learned}-{given}", str(weights))
    accuracies: dict[str, Any] = {method: {} for method in METHODS}
    seconds: dict[str, Any] = {method: {} for method in METHODS}
    for count in (int(one) for one in options.labels.split(",")):
        for draw in range(options.draws):
            scratch = activations(options, source, f"{given}-random{draw}", f"random:{options.seed + draw}")
            for method in METHODS:
                cache = scratch if method in (SCRATCH, "random + head") else trained
                began = time.monotonic()
                accuracy = run(method, drawn(cache, count, options.seed + draw), options, str(weights))
                accuracies[method].setdefault(count, []).append(accuracy)
                seconds[method][count] = seconds[method].get(count, 0.0) + time.monotonic() - began
            scratch.close()
    return accuracies, seconds


def run(method: str, cache: Cache, options: argparse.Namespace, weights: str) -> float:
    """The accuracy on test of one way to use the labels of `cache`."""
    heads = {"raw pixels": "input", "head": FEATURES, "random + head": FEATURES}
    if method in heads:
        result: Any = train_head(cache, layer=heads[method], seed=options.seed)
    elif method == SCRATCH:
        return from_scratch(cache, options)
    else:
        layer = options.layer if method == "tail" else "input"
        result = fine_tune(
            cache,
            layer=layer,
            weights=weights,
            epochs=options.tune_epochs,
            learning_rate=options.learning_rate,
            seed=options.seed,
        )
    return float(result.scores["test"].accuracy)


def from_scratch(cache: Cache, options: argparse.Namespace) -> float:
    """AdamW with one cosine cycle on the weights that `cache` was made with, BatchNorm in training mode."""
    rows, tested = (np.flatnonzero(cache.split == split) for split in ("train", "test"))
    x, y = torch.from_numpy(np.array(cache.features("input")[rows])), torch.from_numpy(cache.labels[rows].astype(int))
    model: Any = load_backbone("tiny", weights=f"random:{cache.last_run['weights']['seed']}").network
    model.classifier = torch.nn.Linear(model.classifier.in_features, len(cache.classes))
    model.requires_grad_(True).train()
    batch = min(BATCH, len(rows))
    per_epoch = len(rows) // batch
    steps = max(options.scratch_steps, options.tune_epochs * per_epoch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.scratch_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(options.seed)
    for step in range(steps):
        if not step % per_epoch:
            order = torch.randperm(len(rows), generator=generator)
        chosen = order[(step % per_epoch) * batch :][:batch]
        optimizer.zero_grad()
        torch.autograd.backward(torch.nn.functional.cross_entropy(model(x[chosen]), y[chosen]))
        optimizer.step()
        schedule.step()
    model.eval()
    with torch.inference_mode():
        features = cache.features("input")
        said = [model(torch.from_numpy(np.array(features[part]))).argmax(1) for part in np.array_split(tested, 10)]
    return float((torch.cat(said).numpy() == cache.labels[tested]).mean())


def pretrained(options: argparse.Namespace, name: str) -> Path:
    """The weights of `tiny` that has seen nothing but the training half of one set."""
    path: Path = options.work / f"{name}-{options.epochs}x{options.pretrain_images}-{options.seed}.safetensors"
    if not path.exists():
        half = read(options.data, name, train=True)
        some = Split(half.images[: options.pretrain_images], half.labels[: options.pretrain_images])
        model = train(some, Recipe(epochs=options.epochs, seed=options.seed))
        save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)
    return path.resolve()


def samples(options: argparse.Namespace, name: str) -> Any:
    """Images of one set: the pool as split train, those that are scored as split test."""
    parts = [("train", options.pool, True), ("test", options.tested, False)]
    images, labels, splits, ids = [], [], [], []
    for split, count, half in parts:
        read_half = read(options.data, name, train=half)
        chosen = np.random.default_rng(options.seed).permutation(len(read_half.labels))[:count]
        images.append((read_half.images[torch.from_numpy(chosen)][:, 0] * 255).round().to(torch.uint8).numpy())
        labels += [str(label) for label in read_half.labels[torch.from_numpy(chosen)].tolist()]
        splits += [split] * len(chosen)
        ids += [f"{split}/{number:05}" for number in chosen.tolist()]
    return images_of(np.concatenate(images), ids=ids, labels=labels, splits=splits)


def activations(options: argparse.Namespace, source: Any, name: str, weights: str) -> Cache:
    """The network's input, the layer to cut at and what enters the classifier, of all images."""
    out = options.work / f"{name}-{options.pool}-{options.tested}-{options.epochs}-{options.seed}.h5"
    layers = ["input", options.layer, FEATURES]
    extract(source, out, backbone="tiny", weights=weights, layer=layers, precision="fp32", overwrite=True)
    return open_cache(out)


def drawn(cache: Cache, count: int, seed: int) -> Cache:
    """With `count` of the training images left in split train, as many of each class as of any other."""
    splits: NDArray[np.uint8] = np.array(cache.column("samples/split"))
    pool, labels = np.flatnonzero(splits == TRAIN), cache.labels
    order = np.random.default_rng([seed, count]).permutation(pool)
    classes = np.unique(labels[pool])
    each, rest = divmod(count, len(classes))
    kept = [order[labels[order] == label][: each + (place < rest)] for place, label in enumerate(classes)]
    splits[pool] = NONE
    splits[np.concatenate(kept)] = TRAIN
    return RelabelledCache(cache, {"samples/split": splits})


def print_table(accuracies: dict[str, Any], seconds: dict[str, Any]) -> None:
    counts = list(accuracies[SCRATCH])
    print(f"{'labels in all':<16}" + "".join(f"{count:>24,}" for count in counts))
    for method, found in accuracies.items():
        print(f"{method:<16}" + "".join(f"{interval(found[count], percent):>24}" for count in counts))
    print(f"\nless {SCRATCH}, in points")
    for method, found in accuracies.items():
        if method == SCRATCH:
            continue
        more = [np.subtract(found[count], accuracies[SCRATCH][count]) for count in counts]
        print(f"{method:<16}" + "".join(f"{interval(one, points):>24}" for one in more))
    print("\nseconds a draw")
    for method, spent in seconds.items():
        each = [spent[count] / len(accuracies[method][count]) for count in counts]
        print(f"{method:<16}" + "".join(f"{one:>24.1f}" for one in each))
    sys.stdout.flush()


def interval(values: Any, words: Callable[[float], str]) -> str:
    """The mean and Student's 95% interval."""
    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return words(mean)
    half = float(student.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n))
    return f"{words(mean)} ({words(mean - half)} to {words(mean + half)})"


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def points(value: float) -> str:
    return f"{100 * value:+.1f}"


if __name__ == "__main__":
    sys.exit(main())
