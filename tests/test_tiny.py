"""The embedded backbone: a small, safe file, and features that are worth more than the pixels they come from."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torchvision import transforms

from precompute.backbones import tiny
from precompute.errors import WeightsError


@pytest.fixture(scope="module")
def model() -> tiny.TinyBackbone:
    return tiny.tiny()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(16, 3, tiny.SIZE, tiny.SIZE, generator=torch.Generator().manual_seed(0))


def test_weights_are_small_and_hold_nothing_but_arrays() -> None:
    content = tiny.weights_path().read_bytes()
    assert len(content) <= 2_000_000
    (length,) = struct.unpack("<Q", content[:8])  # safetensors: header length, JSON header, plain arrays
    header = json.loads(content[8 : 8 + length])
    del header["__metadata__"]
    assert {entry["dtype"] for entry in header.values()} <= {"F16", "I64"}
    assert max(entry["data_offsets"][1] for entry in header.values()) == len(content) - 8 - length


def test_metadata_tells_what_the_weights_are(model: tiny.TinyBackbone) -> None:
    metadata = tiny.metadata()
    assert metadata["num_params"] == sum(parameter.numel() for parameter in model.parameters())
    assert metadata["recipe"]["epochs"] > 0
    assert metadata["scores"]["digits, 50 labels, tiny"] > metadata["scores"]["digits, 50 labels, raw pixels"]


@pytest.mark.parametrize("damage", ["missing", "truncated", "another model"])
def test_weights_that_do_not_fit_are_refused(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tiny.safetensors"
    if damage == "truncated":
        path.write_bytes(tiny.weights_path().read_bytes()[:-100])
    elif damage == "another model":
        from safetensors.torch import save_file

        save_file({"weight": torch.zeros(3)}, path)
    monkeypatch.setattr(tiny, "weights_path", lambda: path)
    with pytest.raises(WeightsError, match=r"tiny\.safetensors"):
        tiny.tiny()


def test_features_and_scores_have_their_shapes(model: tiny.TinyBackbone, images: torch.Tensor) -> None:
    assert not model.training
    with torch.inference_mode():
        features, scores = model.features(images[:, :1]), model(images)
    assert features.shape == (16, tiny.NUM_FEATURES)
    assert scores.shape == (16, tiny.NUM_CLASSES)
    assert features.isfinite().all()
    assert scores.isfinite().all()


def test_the_same_images_give_the_same_bytes(images: torch.Tensor) -> None:
    with torch.inference_mode():
        assert torch.equal(tiny.tiny()(images), tiny.tiny()(images))


def test_random_weights_depend_on_the_seed_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = (tiny.tiny(weights=False, seed=seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])


def test_reduced_precision_stays_close(model: tiny.TinyBackbone, images: torch.Tensor) -> None:
    with torch.inference_mode():
        exact = model(images)
        reduced = tiny.tiny().to(torch.bfloat16)(images.bfloat16())
    assert reduced.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(exact, reduced.float()).min() > 0.99


def test_tracing_finds_what_enters_the_classifier(model: tiny.TinyBackbone, images: torch.Tensor) -> None:
    traced = torch.fx.symbolic_trace(model)
    (node,) = (node for node in traced.graph.nodes if node.target == "classifier")
    assert str(node.args[0].target).startswith("embed")
    with torch.inference_mode():
        assert torch.equal(traced(images), model(images))


def through_png(bitmaps: NDArray[np.uint8], folder: Path) -> torch.Tensor:
    transform = transforms.Compose(
        [
            transforms.Resize(tiny.SIZE),
            transforms.CenterCrop(tiny.SIZE),
            transforms.ToTensor(),
            transforms.Normalize(tiny.MEAN, tiny.STD),
        ]
    )
    tensors = []
    for row, bitmap in enumerate(bitmaps):
        Image.fromarray(bitmap).save(folder / f"{row}.png")
        with Image.open(folder / f"{row}.png") as image:
            tensors.append(transform(image.convert("RGB")))
    return torch.stack(tensors)


@pytest.mark.rotates(3)
def test_fifty_labels_go_further_than_with_pixels_or_random_weights(tmp_path: Path) -> None:
    digits: Any = load_digits()
    bitmaps, labels = digits.images[:900], digits.target[:900]  # half of them, for the sake of time
    images = through_png(np.rint(bitmaps * (255 / 16)).astype(np.uint8), tmp_path)

    def features_of(model: tiny.TinyBackbone) -> NDArray[np.float32]:
        captured: list[torch.Tensor] = []
        model.classifier.register_forward_pre_hook(lambda _, inputs: captured.append(inputs[0]))
        with torch.inference_mode():
            model(images)
        return captured[0].numpy()

    def mean_accuracy(features: NDArray[Any], *, draws: int = 3, per_class: int = 5) -> float:
        scores = []
        for seed in range(draws):
            order = np.random.default_rng(seed).permutation(len(features))
            train = np.concatenate([order[labels[order] == digit][:per_class] for digit in range(10)])
            test = np.setdiff1d(order, train)
            scaled = (features - features[train].mean(axis=0)) / features[train].std()
            head = LogisticRegression(max_iter=5000).fit(scaled[train], labels[train])
            scores.append(head.score(scaled[test], labels[test]))
        return float(np.mean(scores))

    trained = mean_accuracy(features_of(tiny.tiny()))
    assert trained > mean_accuracy(bitmaps.reshape(len(bitmaps), -1))
    assert trained > mean_accuracy(features_of(tiny.tiny(weights=False)))
