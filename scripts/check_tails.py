"""A network cut in two at a layer: do its parts compute what the uncut network does, on real photos at fp32?

    python scripts/check_tails.py SOURCE [-n 8] [--all] [-b NAME[=WEIGHTS] ...]

For every layer that `--cut auto` proposes (with --all: every layer at which a cut is possible) of each network, the
body, as `extract` runs it, then the tail. Features are compared with what enters the classifier of the uncut network,
seen by a hook, and the scores of its own classifier with the network's output. Prints a table: network, layer, shape,
bytes of an activation as float16, parameters that are trained, and relative L2 errors. Exits with 1 where one is above
1e-5. Weights are random unless named; without -b the seven networks of the README, and others with --all.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path

import torch
from torch import nn

from precompute import load_backbone
from precompute.backbones.crossing import Crossings
from precompute.backbones.layers import final_classifier
from precompute.backbones.load import MAX_LAYERS, Backbone
from precompute.backbones.proposals import propose
from precompute.backbones.tail import tail_of

TOLERANCE = 1e-5
SEVEN = ("resnet18", "resnet50", "mobilenet_v2", "vit_b_16", "convnext_tiny", "efficientnet_b0", "swin_t")
OTHERS = ("tiny", "densenet121", "googlenet", "inception_v3", "squeezenet1_1", "vgg11", "shufflenet_v2_x0_5",
          "regnet_y_400mf", "maxvit_t")  # fmt: skip
SUFFIXES = (".jpg", ".jpeg", ".png")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path, help="a folder with photos, also in folders inside it")
    parser.add_argument("-n", "--count", type=int, default=8, help="photos, spread over the folder")
    parser.add_argument("-b", "--backbone", action="append", help="NAME or NAME=WEIGHTS, also several times")
    parser.add_argument("--all", action="store_true", help="every layer at which a cut is possible")
    options = parser.parse_args(arguments)
    paths = sorted(path for path in options.source.rglob("*") if path.suffix.lower() in SUFFIXES)
    paths = paths[:: max(1, len(paths) // options.count)][: options.count]
    found: list[float] = []
    print(f"{'network':20} {'layer':38} {'activation':>15} {'bytes':>9} {'trained':>11} {'features':>9} {'scores':>9}")
    for text in options.backbone or (*SEVEN, *(OTHERS if options.all else ())):
        name, _, weights = text.partition("=")
        weights = weights or ("DEFAULT" if name == "tiny" else "random:1")
        errors = list(check(name, weights, paths, every=options.all))
        found += errors
        print(f"{name:20} {len(errors) // 2} layers, at worst {max(errors):.1e}", flush=True)
    print(f"relative L2 at worst {max(found):.1e}, allowed {TOLERANCE:.0e}")
    return int(not all(error <= TOLERANCE for error in found))


def check(name: str, weights: str, paths: Sequence[Path], *, every: bool) -> Iterator[float]:
    """Prints a row for each layer and gives its two errors."""
    backbone = load_backbone(name, weights=weights)
    make_scores_differ(backbone.network)
    images = images_of(backbone, paths)
    expected, scores = uncut(backbone, images)
    crossings = Crossings.of(backbone)
    layers = [one.layer for one in (crossings.places if every else propose(backbone, crossings=crossings))]
    for start in range(0, len(layers), MAX_LAYERS):
        cut = load_backbone(name, weights=weights, layer=layers[start : start + MAX_LAYERS])
        with torch.no_grad():
            given = dict(zip([tap.layer for tap in cut.taps], cut.module(images), strict=True))
        for layer in layers[start : start + MAX_LAYERS]:
            tail = tail_of(backbone, layer, crossings=crossings)
            with torch.no_grad():
                features = tail(given[layer])
            errors = relative(features, expected), scores_error(backbone.network, features, scores)
            trained = sum(one.numel() for one in tail.parameters() if one.requires_grad)
            shape = " x ".join(map(str, tail.shape))
            print(
                f"{name:20} {layer:38} {shape:>15} {2 * prod(tail.shape):>9,} {trained:>11,} "
                f"{errors[0]:>9.1e} {errors[1]:>9.1e}",
                flush=True,
            )
            yield from errors


def make_scores_differ(network: nn.Module) -> None:
    """torchvision's new ViT has a classifier of zeros, which says nothing."""
    weight = network.get_submodule(final_classifier(network)).get_parameter("weight")
    with torch.no_grad():
        if not weight.any():
            weight.normal_(generator=torch.Generator().manual_seed(0))


def images_of(backbone: Backbone, paths: Sequence[Path]) -> torch.Tensor:
    samples = [backbone.preprocess.host(path.read_bytes()) for path in paths]
    batch = [torch.stack(one) for one in zip(*samples, strict=True)]
    with torch.no_grad():
        images: torch.Tensor = backbone.preprocess.device()(*batch)
    return images


def uncut(backbone: Backbone, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What enters the classifier of the whole network, averaged where it is a map, and the network's output."""
    seen: list[torch.Tensor] = []
    classifier = backbone.network.get_submodule(final_classifier(backbone.network))
    hook = classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    with torch.no_grad():
        scores = backbone.network(images)
    hook.remove()
    return (seen[0].mean((2, 3)) if seen[0].ndim == 4 else seen[0]), scores


def scores_error(network: nn.Module, features: torch.Tensor, expected: torch.Tensor) -> float:
    """Of the network's own classifier on the tail's features. One that is a convolution sees a map, which a mean is
    not, so that there the features alone are compared."""
    classifier = network.get_submodule(final_classifier(network))
    if not isinstance(classifier, nn.Linear):
        return 0.0
    with torch.no_grad():
        return relative(classifier(features), expected)


def relative(given: torch.Tensor, expected: torch.Tensor) -> float:
    return float((given - expected).norm() / expected.norm())


if __name__ == "__main__":
    sys.exit(main())
