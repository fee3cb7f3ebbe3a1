"""Train the embedded backbone (`-b tiny`) and write precompute/backbones/tiny.safetensors.

MNIST and Fashion-MNIST, 20 classes at once, with images that are deformed, re-inked and often shown at 6 to 16 pixels
a side. scikit-learn's digits take no part in training or in any choice: they are scored once, at the end.

    pip install -e .
    python scripts/train_tiny_backbone.py --data ../shared/data
"""

from __future__ import annotations

import argparse
import copy
import gzip
import io
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save as to_safetensors
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from torch import Tensor, nn
from torchvision.transforms import functional as pil_transforms

from precompute.backbones import tiny

ROOT = Path(__file__).resolve().parents[1]
DRAWS = 20
SETS = ("MNIST", "FashionMNIST")
Array = NDArray[np.generic]


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, beside the data. `docs/tiny.md` explains the numbers."""

    epochs: int = 12
    seed: int = 0
    batch: int = 256
    learning_rate: float = 4e-3
    weight_decay: float = 0.05
    ema_decay: float = 0.998
    # shares of the batch that are drawn as a low-resolution bitmap, cropped to the ink, bent
    low_resolution: float = 0.7
    crop_to_ink: float = 0.6
    re_ink: float = 0.5


@dataclass(frozen=True)
class Split:
    """Grey images (N, 1, 28, 28) in 0..1, float32, and labels (N,), int64."""

    images: Tensor
    labels: Tensor


def read(data: Path, name: str, *, train: bool) -> Split:
    """One half of MNIST or Fashion-MNIST, straight from the raw idx .gz files (http://yann.lecun.com/exdb/mnist).

    Not through torchvision.datasets, which unpacks beside the originals, and they may be read-only.
    """
    content = {}
    for kind in ("images-idx3", "labels-idx1"):
        path = data / name / "raw" / f"{'train' if train else 't10k'}-{kind}-ubyte.gz"
        if not path.is_file():
            sys.exit(f"{path} is missing.\nSay with --data where the folders MNIST/raw and FashionMNIST/raw are.")
        content[kind] = gzip.decompress(path.read_bytes())
    images = np.frombuffer(content["images-idx3"], np.uint8, offset=16).reshape(-1, 1, 28, 28)
    labels = np.frombuffer(content["labels-idx1"], np.uint8, offset=8)
    return Split(torch.from_numpy(images / np.float32(255)), torch.from_numpy(labels.astype(np.int64)))


# --- augmentation: whole batches of (N, 1, 28, 28) to (N, 1, 32, 32), values 0..1, background 0 ------------------


def ink_box(images: Tensor) -> tuple[Tensor, Tensor]:
    """Centre (N, 2) and half size (N, 2) as (x, y) of what is brighter than a fifth, in affine_grid's -1..1."""
    ink = (images > 0.2).squeeze(1)
    bounds = []
    for across in (1, 2):  # over rows gives x, over columns gives y
        line = ink.any(dim=across).float()
        length = line.shape[1]
        first = line.argmax(dim=1)
        last = length - line.flip(1).argmax(dim=1)
        bounds.append(torch.stack([first, last], dim=1) * 2 / length - 1)
    low, high = torch.stack(bounds, dim=2).unbind(dim=1)
    return (low + high) / 2, (high - low) / 2


def uniform(generator: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    """Random numbers in low..high; all randomness of the training comes from one seeded generator."""
    return torch.empty(*shape).uniform_(low, high, generator=generator)


def deform(images: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Random framing, rotation, shear, stretch, shift and a smooth bend, in one resampling to 32x32."""
    count = len(images)
    centre, half = ink_box(images)
    tight = uniform(generator, 0, 1, count) < recipe.crop_to_ink
    # the longer side of the ink fills the frame; sometimes each side does
    both = uniform(generator, 0, 1, count, 1) < 0.2
    half = torch.where(both, half, half.amax(dim=1, keepdim=True)).clamp(min=0.1)
    scale = torch.where(tight[:, None], half * uniform(generator, 0.92, 1.15, count, 1), torch.ones(count, 2))
    scale = scale * uniform(generator, 0.9, 1.12, count, 2)
    shift = torch.where(tight[:, None], centre, torch.zeros(count, 2)) + uniform(generator, -0.06, 0.06, count, 2)
    angle = uniform(generator, -0.26, 0.26, count)
    shear = uniform(generator, -0.3, 0.3, count)
    cos, sin = angle.cos(), angle.sin()
    # output to input: stretch, then shear along x, then rotate
    rows = torch.stack([cos, cos * shear - sin, sin, sin * shear + cos], dim=1).view(count, 2, 2) * scale[:, None, :]
    grid = F.affine_grid(
        torch.cat([rows, shift[:, :, None]], dim=2), [count, 1, tiny.SIZE, tiny.SIZE], align_corners=False
    )
    bend = torch.empty(count, 2, 5, 5).normal_(generator=generator) * uniform(generator, 0, 0.07, count, 1, 1, 1)
    bend = F.interpolate(bend, size=(tiny.SIZE, tiny.SIZE), mode="bicubic", align_corners=True)
    return F.grid_sample(images, grid + bend.permute(0, 2, 3, 1), mode="bilinear", align_corners=False)


def re_ink(images: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Another pen for some: blurred, then cut at a random level, which makes strokes thin or thick and edges hard."""
    count = len(images)
    soft = F.avg_pool2d(F.pad(images, (1, 1, 1, 1)), 3, stride=1)
    soft = torch.lerp(images, soft, uniform(generator, 0, 1, count, 1, 1, 1))
    level = uniform(generator, 0.12, 0.55, count, 1, 1, 1)
    hardness = uniform(generator, 2, 12, count, 1, 1, 1)
    inked = ((soft - level) * hardness + 0.5).clamp(0, 1)
    chosen = uniform(generator, 0, 1, count, 1, 1, 1) < recipe.re_ink
    return torch.where(chosen, inked, images)


def lower_resolution(images: Tensor, size: int) -> Tensor:
    """Blocks averaged to `size` x `size`, then enlarged as the preprocessing enlarges a small image."""
    small = F.adaptive_avg_pool2d(images, size)
    return F.interpolate(small, size=(tiny.SIZE, tiny.SIZE), mode="bilinear", align_corners=False)


def augment(images: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Deformed, some drawn with another pen, some at low resolution, all at a random contrast."""
    images = re_ink(deform(images, recipe, generator), recipe, generator)
    low = round(len(images) * recipe.low_resolution)
    parts = [
        lower_resolution(part, int(torch.randint(6, 17, (), generator=generator)))
        for part in torch.split(images[:low], math.ceil(low / 4))  # four resolutions a batch
    ]
    images = torch.cat([*parts, images[low:]])  # in the order they came, which is the labels' order
    return (images * uniform(generator, 0.6, 1.1, len(images), 1, 1, 1)).clamp(0, 1)


def normalise(images: Tensor) -> Tensor:
    """What the transform does after scaling to 0..1; one channel will do, since all have one mean."""
    return (images - tiny.MEAN[0]) / tiny.STD[0]


# --- training ----------------------------------------------------------------------------------------------------


def batches(total: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Row numbers of one epoch, shuffled, `size` at a time; the incomplete last batch is left out."""
    order = torch.randperm(total, generator=generator)
    return (order[start : start + size] for start in range(0, total - size + 1, size))


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Exponential moving average of the weights and of batch normalisation's statistics."""
    for kept, new in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if kept.is_floating_point():
            kept.lerp_(new, 1 - decay)
        else:
            kept.copy_(new)


def train(split: Split, recipe: Recipe) -> tiny.TinyBackbone:
    """AdamW with one cosine cycle; what is kept is the exponential moving average of the weights."""
    generator = torch.Generator().manual_seed(recipe.seed)
    torch.manual_seed(recipe.seed)
    model = tiny.TinyBackbone().to(memory_format=torch.channels_last)
    average = copy.deepcopy(model)
    decayed = [p for p in model.parameters() if p.ndim > 1]  # weights, not the scales and shifts of normalisation
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=recipe.learning_rate,
    )
    steps = recipe.epochs * (len(split.images) // recipe.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=steps, pct_start=0.15, cycle_momentum=False
    )
    for epoch in range(recipe.epochs):
        begin, total, count = time.perf_counter(), 0.0, 0
        for rows in batches(len(split.images), recipe.batch, generator):
            images = normalise(augment(split.images[rows], recipe, generator)).contiguous(
                memory_format=torch.channels_last
            )
            with torch.autocast("cpu", dtype=torch.bfloat16):
                scores = model.classifier(model.features(images))
            loss = F.cross_entropy(scores.float(), split.labels[rows])
            optimizer.zero_grad()
            torch.autograd.backward(loss)  # Tensor.backward, but typed
            optimizer.step()
            schedule.step()
            follow(average, model, recipe.ema_decay)
            total, count = total + loss.item(), count + 1
        print(
            f"epoch {epoch + 1}/{recipe.epochs}: loss {total / count:.4f}, {time.perf_counter() - begin:.0f} s",
            flush=True,
        )
    return average.eval()


# --- scores ------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def accuracy(model: tiny.TinyBackbone, split: Split, offset: int) -> float:
    """Share of right answers among all 20 classes, on clean images enlarged from 28x28 to 32x32."""
    right = 0
    for images, labels in zip(torch.split(split.images, 1000), torch.split(split.labels, 1000), strict=True):
        enlarged = F.interpolate(images, size=(tiny.SIZE, tiny.SIZE), mode="bilinear", align_corners=False)
        right += int((model(normalise(enlarged).expand(-1, 3, -1, -1)).argmax(1) == labels + offset).sum())
    return right / len(split.labels)


def through_png(bitmaps: Array) -> Tensor:
    """The image pipeline: (N, H, W) uint8 to PNG, to RGB, resized to 32, cropped, normalised: (N, 3, 32, 32)."""
    tensors = []
    for bitmap in bitmaps:
        buffer = io.BytesIO()
        Image.fromarray(bitmap).save(buffer, "PNG")
        image = Image.open(buffer).convert("RGB")
        image = pil_transforms.resize(image, tiny.SIZE)  # bilinear is its default
        image = pil_transforms.center_crop(image, tiny.SIZE)
        tensors.append(pil_transforms.normalize(pil_transforms.to_tensor(image), tiny.MEAN, tiny.STD))
    return torch.stack(tensors)


@torch.inference_mode()
def extract(model: tiny.TinyBackbone, bitmaps: Array) -> Array:
    """Features (N, 128) of grey bitmaps, whose three channels are the same."""
    grey = through_png(bitmaps)[:, :1]
    return torch.cat([model.features(part) for part in torch.split(grey, 500)]).numpy()


def draw(labels: Array, per_class: int, seed: int) -> tuple[Array, Array]:
    """Row numbers of `per_class` samples of each class, and of all the others."""
    order = np.random.default_rng(seed).permutation(len(labels))
    chosen = np.concatenate([order[labels[order] == label][:per_class] for label in np.unique(labels)])
    return chosen, np.setdiff1d(order, chosen)


def head_scores(features: Array, labels: Array, per_class: int, draws: int) -> tuple[float, float]:
    """Mean and standard deviation, over draws of `per_class` labels, of a logistic head's accuracy on all the rest.

    Features are centred and scaled by one number, both taken from the labelled samples; the strength of the L2
    penalty is chosen by cross-validation inside them.
    """
    scores = []
    for seed in range(draws):
        train, test = draw(labels, per_class, seed)
        centre = features[train].mean(axis=0)
        scaled = (features - centre) / np.sqrt(((features[train] - centre) ** 2).sum(axis=1).mean())
        heads = [LogisticRegression(C=strength, max_iter=5000) for strength in (1.0, 10.0, 100.0)]
        best = max(heads, key=lambda head: cross_val_score(head, scaled[train], labels[train], cv=5).mean())
        scores.append(float(best.fit(scaled[train], labels[train]).score(scaled[test], labels[test])))
    return float(np.mean(scores)), float(np.std(scores))


def cross_validated(features: Array, labels: Array) -> tuple[float, float]:
    """Mean and standard deviation over five stratified folds of a logistic head trained on four fifths of it all."""
    scaled = (features - features.mean(axis=0)) / np.sqrt(features.var(axis=0).sum())
    scores = cross_val_score(
        LogisticRegression(C=100.0, max_iter=5000), scaled, labels, cv=StratifiedKFold(5, shuffle=True, random_state=0)
    )
    return float(scores.mean()), float(scores.std())


def proxy_bitmaps(split: Split, *, binary: bool, count: int = 2000) -> tuple[Array, Array]:
    """Held-out images made the way scikit-learn's digits were: cropped to the ink, a bitmap, counted in 4x4 blocks."""
    images, labels = split.images[:count], split.labels[:count].numpy()
    centre, half = ink_box(images)
    half = half.amax(dim=1, keepdim=True).expand(-1, 2)
    grid = F.affine_grid(
        torch.cat([torch.diag_embed(half), centre[:, :, None]], dim=2),
        [count, 1, tiny.SIZE, tiny.SIZE],
        align_corners=False,
    )
    framed = F.grid_sample(images, grid, mode="bilinear", align_corners=False)
    if binary:  # one pen width for each image
        framed = (framed > uniform(torch.Generator().manual_seed(0), 0.15, 0.75, count, 1, 1, 1)).float()
    counted = (F.avg_pool2d(framed, 4) * 16).round() * (255 / 16)
    return counted.squeeze(1).round().to(torch.uint8).numpy(), labels


def proxy_scores(model: tiny.TinyBackbone, tests: dict[str, Split], draws: int = 10) -> dict[str, float]:
    """What recipes are chosen by: accuracy with 50 labels on 8x8 versions of the held-out images."""
    scores = {}
    for name, split in tests.items():
        bitmaps, labels = proxy_bitmaps(split, binary=name == "MNIST")
        scores[name] = head_scores(extract(model, bitmaps), labels, 5, draws)[0]
    return scores


def final_scores(model: tiny.TinyBackbone, tests: dict[str, Split]) -> dict[str, float]:
    """The table of docs/tiny.md. The digits are looked at here and nowhere else."""
    scores = {name: accuracy(model, split, 10 * index) for index, (name, split) in enumerate(tests.items())}
    scores |= {f"proxy {name}, 50 labels": score for name, score in proxy_scores(model, tests).items()}
    digits = load_digits()
    bitmaps = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    with torch.inference_mode():  # MNIST's ten classes are these ten: how far does its own classifier get?
        guesses = model.classifier(torch.from_numpy(extract(model, bitmaps)))[:, :10].argmax(dim=1).numpy()
    scores["digits, no labels, its own classifier"] = float((guesses == digits.target).mean())
    compared = {
        "tiny": extract(model, bitmaps),
        "random weights": extract(tiny.tiny(weights=False), bitmaps),
        "raw pixels": bitmaps.reshape(len(bitmaps), -1) / 255,
    }
    for name, features in compared.items():
        mean, deviation = head_scores(features, digits.target, per_class=5, draws=DRAWS)
        scores |= {f"digits, 50 labels, {name}": mean, f"digits, 50 labels, {name}, sd": deviation}
        mean, deviation = cross_validated(features, digits.target)
        scores |= {f"digits, all labels, {name}": mean, f"digits, all labels, {name}, sd": deviation}
    return scores


def save(model: tiny.TinyBackbone, path: Path, **metadata: object) -> None:
    """float16 halves the file. Only counters stay integers; every float here is far inside float16's range."""
    state = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in model.state_dict().items()
    }
    header = {name: json.dumps(value) for name, value in metadata.items()}
    path.write_bytes(to_safetensors(state, metadata=header))


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the embedded backbone and write its weights.")
    parser.add_argument(
        "--data",
        type=Path,
        default=ROOT.parent / "shared" / "data",
        help="holds MNIST/raw and FashionMNIST/raw (%(default)s)",
    )
    parser.add_argument("--out", type=Path, default=tiny.weights_path(), help="file to write (%(default)s)")
    parser.add_argument(
        "--epochs",
        type=int,
        default=Recipe.epochs,
        help="passes over 120000 images, about a minute each on two cores (%(default)s)",
    )
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    arguments = parser.parse_args()

    recipe = Recipe(epochs=arguments.epochs, seed=arguments.seed)
    halves = [[read(arguments.data, name, train=half) for name in SETS] for half in (True, False)]
    digits, clothes = halves[0]
    both = Split(torch.cat([digits.images, clothes.images]), torch.cat([digits.labels, clothes.labels + 10]))
    begin = time.perf_counter()
    model = train(both, recipe)
    minutes = (time.perf_counter() - begin) / 60
    model = model.half().float()  # the scores are those of the weights as stored
    scores = final_scores(model, dict(zip(SETS, halves[1], strict=True)))
    save(
        model,
        arguments.out,
        num_params=sum(parameter.numel() for parameter in model.parameters()),
        recipe={**asdict(recipe), "data": "MNIST and Fashion-MNIST, training halves", "torch": torch.__version__},
        scores={name: round(score, 4) for name, score in scores.items()},
    )
    for name, score in scores.items():
        print(f"{100 * score:6.2f}  {name}")
    print(f"{minutes:.1f} minutes of training; {arguments.out}, {arguments.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
