"""Backbones: name, weights, layer and transform become one frozen network that computes what torchvision computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from reference import features, real_photo, reference
from torchvision.models import ResNet18_Weights

from precompute.backbones import families
from precompute.backbones.load import load_backbone, weights_digest
from precompute.backbones.tiny import tiny
from precompute.backbones.weights import digest_of
from precompute.errors import BackboneError, UsageError, WeightsError
from precompute.inputs.images.transform import Transform

FAMILIES = {
    "alexnet": "classifier.6",
    "convnext_tiny": "classifier.2",
    "densenet121": "classifier",
    "efficientnet_b0": "classifier.1",
    "googlenet": "fc",
    "inception_v3": "fc",
    "maxvit_t": "classifier.5",
    "mnasnet0_5": "classifier.1",
    "mobilenet_v2": "classifier.1",
    "mobilenet_v3_small": "classifier.3",
    "regnet_y_400mf": "fc",
    "resnet18": "fc",
    "resnext50_32x4d": "fc",
    "wide_resnet50_2": "fc",
    "shufflenet_v2_x0_5": "fc",
    "squeezenet1_1": "classifier.1",
    "swin_t": "head",
    "swin_v2_t": "head",
    "vgg11": "classifier.6",
    "vit_b_32": "heads.head",
}
"""The smallest network of every family, and the name of its classifier."""
QUICK = ("mnasnet0_5", "mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1", "resnet18")


@pytest.fixture(scope="module")
def photo() -> bytes:
    return real_photo()


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES])
def test_features_are_what_enters_the_classifier(name: str, photo: bytes) -> None:
    backbone = load_backbone(name, weights="random:3")
    given = features(backbone, photo)
    assert given.shape == backbone.taps[0].shape
    assert given.isfinite().all()
    assert given.std() > 0
    expected = reference(families.build(name, seed=3), FAMILIES[name], backbone, photo)
    torch.testing.assert_close(given, expected)


def test_tiny_is_the_default_that_needs_nothing(photo: bytes) -> None:
    backbone = load_backbone("tiny")
    assert (backbone.name, backbone.taps[0].shape, backbone.source, backbone.notes) == (
        "tiny",
        (128,),
        {"kind": "embedded"},
        (),
    )
    assert backbone.weights == weights_digest(tiny())
    torch.testing.assert_close(features(backbone, photo), reference(tiny(), "classifier", backbone, photo))


def test_a_backbone_is_frozen() -> None:
    backbone = load_backbone("tiny")
    assert not backbone.module.training
    assert not any(module.training for module in backbone.module.modules())
    assert not any(parameter.requires_grad for parameter in backbone.module.parameters())


# Weights


@pytest.fixture
def torch_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A TORCH_HOME of our own, and no network."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    place = tmp_path / "torch" / "hub" / "checkpoints"
    place.mkdir(parents=True)
    return place


@pytest.mark.rotates(3)
def test_an_entry_loads_its_file_and_brings_its_transform(torch_home: Path, photo: bytes) -> None:
    model = families.build("resnet18", seed=7)
    torch.save(model.state_dict(), torch_home / "resnet18-f37072fd.pth")
    for choice in ("DEFAULT", "IMAGENET1K_V1"):
        backbone = load_backbone("resnet18", weights=choice)
        assert backbone.preprocess.transform == Transform.from_preset(ResNet18_Weights.IMAGENET1K_V1.transforms())
        assert backbone.weights == digest_of(model.state_dict())
        assert backbone.source == {"kind": "entry", "entry": "IMAGENET1K_V1", "file": "resnet18-f37072fd.pth"}
        torch.testing.assert_close(features(backbone, photo), reference(model, "fc", backbone, photo))


def test_without_the_file_nothing_is_computed(torch_home: Path) -> None:
    with pytest.raises(WeightsError, match=r"resnet18-f37072fd\.pth"):
        load_backbone("resnet18")


def test_an_unknown_entry_lists_those_there_are() -> None:
    with pytest.raises(WeightsError, match="no weights 'IMAGENET1K_V3'") as caught:
        load_backbone("resnet50", weights="IMAGENET1K_V3")
    assert "DEFAULT, IMAGENET1K_V1, IMAGENET1K_V2, random" in caught.value.hint


@pytest.mark.rotates(3)
def test_published_weights_give_published_classes(hymenoptera: Path, mobilenet_weights: Path) -> None:
    """Features through the real classifier: ImageNet's class 309 is the bee, 310 the ant."""
    backbone = load_backbone("mobilenet_v2", weights=str(mobilenet_weights))
    head = torch.load(mobilenet_weights, weights_only=True)
    right = []
    for folder, number in (("ants", 310), ("bees", 309)):
        for path in sorted((hymenoptera / "val" / folder).glob("*.jpg"))[:6]:
            scores = head["classifier.1.weight"] @ features(backbone, path.read_bytes()) + head["classifier.1.bias"]
            right.append(number in scores.topk(5).indices)
    assert np.mean(right) > 0.7


@pytest.mark.rotates(3)
def test_a_fine_tuned_checkpoint_loads_without_its_classifier(tmp_path: Path, photo: bytes) -> None:
    tuned = torchvision.models.mobilenet_v2(num_classes=10).eval()
    torch.save({"state_dict": {f"module.{k}": v for k, v in tuned.state_dict().items()}}, tmp_path / "tuned.pth")
    backbone = load_backbone("mobilenet_v2", weights=str(tmp_path / "tuned.pth"))
    assert any("another classifier.1" in note for note in backbone.notes)
    torch.testing.assert_close(features(backbone, photo), reference(tuned, "classifier.1", backbone, photo))
    bare = {name: value for name, value in tuned.state_dict().items() if not name.startswith("classifier")}
    torch.save(bare, tmp_path / "bare.pth")
    again = load_backbone("mobilenet_v2", weights=str(tmp_path / "bare.pth"))
    assert any("no classifier.1" in note for note in again.notes)
    assert again.weights == backbone.weights


@pytest.mark.rotates(3)
def test_random_weights_are_the_same_for_a_seed_and_leave_the_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    digests = [load_backbone("squeezenet1_1", weights=choice).weights for choice in ("random", "random:0", "random:1")]
    assert digests[0] == digests[1] != digests[2]
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("choice", ["random:-1", "random:x", "random:1.5"])
def test_a_seed_is_a_whole_number(choice: str) -> None:
    with pytest.raises(WeightsError, match="not a whole number"):
        load_backbone("tiny", weights=choice)


# Names, layers, transforms


@pytest.mark.parametrize(
    ("name", "close"), [("resnet19", "resnet18"), ("ResNet50", "resnet50"), ("efficientnet-b0", "efficientnet_b0")]
)
def test_an_unknown_backbone_names_close_ones(name: str, close: str) -> None:
    with pytest.raises(BackboneError, match=f"Unknown backbone '{name}'") as caught:
        load_backbone(name, weights="random")
    assert close in caught.value.message
    assert "precompute backbones" in caught.value.hint


@pytest.mark.parametrize(
    ("layer", "pooling", "shape"),
    [
        ("layer4", "auto", (512, 7, 7)),
        ("layer4", "mean", (512,)),
        ("layer1.0.relu", "none", (64, 56, 56)),
        ("fc", "auto", (1000,)),
        ("output", "none", (1000,)),
    ],
)
def test_any_layer_can_be_had(layer: str, pooling: str, shape: tuple[int, ...]) -> None:
    backbone = load_backbone("resnet18", weights="random", layer=layer, pooling=pooling)
    assert (backbone.taps[0].layer, backbone.taps[0].shape) == (layer, shape)


def test_an_unknown_layer_or_pooling_is_refused() -> None:
    with pytest.raises(BackboneError, match="Close: .*layer4"):
        load_backbone("resnet18", weights="random", layer="layer5")
    with pytest.raises(UsageError, match="pooling must be one of auto, none, mean"):
        load_backbone("tiny", pooling="max")


def test_the_transform_can_be_changed_value_by_value() -> None:
    backbone = load_backbone("resnet18", weights="random", transform={"resize": 64, "crop": 48})
    assert backbone.preprocess.transform == Transform(resize=64, crop=48)
    assert backbone.taps[0].shape == (512,)


@pytest.mark.rotates(3)
def test_a_size_the_network_does_not_take_is_refused() -> None:
    with pytest.raises(BackboneError, match="vit_b_32 does not take images of 96 x 96") as caught:
        load_backbone("vit_b_32", weights="random", transform={"crop": 96})
    assert "--crop" in caught.value.hint


@pytest.mark.rotates(3)
def test_the_spec_names_everything_that_changes_a_value() -> None:
    one = load_backbone("tiny")
    spec = one.spec(precision="fp32", storage="float16")
    others: list[dict[str, Any]] = [
        {"weights": "random"},
        {"layer": "embed", "weights": "DEFAULT"},
        {"layer": "body", "pooling": "mean"},
        {"layer": "body", "pooling": "none"},
        {"transform": {"interpolation": "bicubic"}},
        {"transform": {"mean": (0.2, 0.21, 0.21)}},
    ]
    specs = [load_backbone("tiny", **choice).spec(precision="fp32", storage="float16") for choice in others]
    for number, other in enumerate(specs):
        assert other not in [spec, *specs[:number]]
