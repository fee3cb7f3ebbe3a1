"""The catalog: figures that are torchvision's own, without downloading anything."""

from __future__ import annotations

import json

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import EfficientNet_B0_Weights, ResNet50_Weights, list_models

from precompute.backbones import families, tiny
from precompute.backbones.catalog import catalog, describe, layer_names
from precompute.errors import BackboneError


def test_an_entry_holds_torchvision_s_own_figures() -> None:
    entry = describe("resnet50")
    meta = ResNet50_Weights.DEFAULT.meta
    assert (entry.name, entry.width, entry.input_size, entry.layer) == ("resnet50", 2048, 224, "flatten")
    assert entry.params == meta["num_params"]
    assert entry.accuracy == meta["_metrics"]["ImageNet-1K"]["acc@1"]
    assert entry.gflops == meta["_ops"]
    assert entry.weights == ("IMAGENET1K_V2", "IMAGENET1K_V1")


@pytest.mark.parametrize("name", ["squeezenet1_1", "efficientnet_b0", "vit_b_16", "mobilenet_v3_small"])
def test_published_parameter_counts_are_those_of_the_network(name: str) -> None:
    assert describe(name).params == sum(p.numel() for p in families.build(name, seed=None).parameters())


def test_input_size_is_that_of_the_default_weights() -> None:
    assert [describe("efficientnet_b0").input_size] == EfficientNet_B0_Weights.DEFAULT.transforms().crop_size
    assert describe("inception_v3").input_size == 299


def test_tiny_is_in_it() -> None:
    entry = describe("tiny")
    assert (entry.width, entry.input_size, entry.weights) == (tiny.NUM_FEATURES, tiny.SIZE, ("DEFAULT",))
    assert entry.params == sum(parameter.numel() for parameter in tiny.tiny().parameters())
    assert entry.accuracy is None


def test_entries_are_json() -> None:
    entry = describe("resnet18")
    assert json.loads(json.dumps(entry.to_dict()))["weights"] == list(entry.weights)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("resnet18", ["resnet18"]),
        ("squeeze", ["squeezenet1_0", "squeezenet1_1"]),
        ("mnasnet0_*", ["mnasnet0_5", "mnasnet0_75"]),
        ("t*y", ["tiny"]),
    ],
)
def test_patterns_are_wildcards_or_parts_of_names(pattern: str, names: list[str]) -> None:
    assert [entry.name for entry in catalog(pattern)] == names


@pytest.mark.parametrize(
    ("pattern", "says"), [("resnet19", "Close: resnet18"), ("zzz", "Unknown"), ("a:b", "No backbone")]
)
def test_a_pattern_without_match_is_an_error(pattern: str, says: str) -> None:
    with pytest.raises(BackboneError, match=says) as caught:
        catalog(pattern)
    assert "precompute backbones" in caught.value.hint


@pytest.mark.slow
def test_everything_is_listed() -> None:
    entries = catalog()
    embedded = ["ngram-hash", "mel-statistics", "resemblyzer"]
    assert [entry.name for entry in entries] == ["tiny", *list_models(module=torchvision.models), *embedded]
    assert all(entry.accuracy for entry in entries[1 : -len(embedded)])


def test_the_embedded_backbone_for_texts_is_in_it() -> None:
    entry = describe("ngram-hash")
    assert (entry.modality, entry.width, entry.input_size, entry.params) == ("text", 2048, None, 0)
    assert layer_names("ngram-hash") == ["output"]


def test_layer_names_of_a_network_and_of_a_factory() -> None:
    assert layer_names("resnet18")[-3:] == ["avgpool", "flatten", "fc"]
    assert "classifier" in layer_names("tiny")
    assert layer_names("torch.nn:Flatten") == ["input", "flatten"]
    with pytest.raises(BackboneError, match="Unknown backbone"):
        layer_names("resnet")


def test_building_for_the_catalog_takes_no_memory_and_moves_no_random_state() -> None:
    before = torch.random.get_rng_state()
    model: nn.Module = families.build("vgg19", seed=None)  # 144 million parameters
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert torch.equal(torch.random.get_rng_state(), before)
