"""Cuts: what lies behind a layer computes, from its activation, what the uncut network does, and can be trained."""

from __future__ import annotations

import copy
import json
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import Command
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer

from precompute import extract, load_backbone, open_cache
from precompute.backbones.crossing import Crossings, cuts, example_input
from precompute.backbones.load import Backbone
from precompute.backbones.proposals import price, propose
from precompute.backbones.tail import Tail, own_tail, tail_of
from precompute.errors import BackboneError, UsageError

TOLERANCE = 1e-5  # relative L2, of fp32
MAX_LAYERS = 64


def small_vit() -> nn.Module:
    """Four blocks of 24 channels on 4 x 4 patches of 8 pixels, the class token learned."""
    torch.manual_seed(0)
    made = VisionTransformer(
        image_size=32, patch_size=8, num_layers=5, num_heads=3, hidden_dim=24, mlp_dim=48, num_classes=7
    )
    nn.init.normal_(made.heads.head.weight)  # torchvision's is zero
    return made.eval()


class Awkward(nn.Module):
    """Residual connections that jump far, sums in place, shapes of what lies before, an unused branch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.one, self.two = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.relu = nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        self.unused = nn.Conv2d(8, 2, 1)
        self.scale = nn.Parameter(torch.tensor([0.5]))
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.register_buffer("shift", torch.randn(8))
        self.mix = nn.Linear(8, 8)
        self.fc = nn.Linear(8, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        count, _, height, width = images.shape
        stem = self.stem(images)
        self.unused(stem)
        x = self.relu(self.norm(self.one(stem)))
        x = self.two(x)
        x = x.add_(stem)
        tokens = x.reshape(count, 8, (height // 2) * (width // 2)).transpose(1, 2)
        tokens = torch.cat([self.token.expand(count, -1, -1), tokens], dim=1)
        tokens = self.mix(tokens) * self.scale + self.shift
        tokens = tokens + self.token.to(images.device, images.dtype).expand(count, 1, -1)
        return self.fc(tokens.mean(1))


def awkward() -> nn.Module:
    torch.manual_seed(1)
    made = Awkward()
    made(torch.randn(8, 3, 32, 32))  # BatchNorm's statistics are not those it begins with
    return made.eval()


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Backbone]]:
    """Loads any backbone at 32 pixels where it is small; `vit` and `awkward` are those of this module."""
    (tmp_path / "tail_networks.py").write_text("from test_cuts import awkward, small_vit\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))

    def load(name: str, **options: object) -> Backbone:
        return load_network(name, **options)

    yield load
    sys.modules.pop("tail_networks", None)


NETWORKS = {
    "tiny": ("tiny", {}),
    "resnet18": ("resnet18", {"weights": "random:1", "transform": {"resize": 64, "crop": 64}}),
    "vit": ("tail_networks:small_vit", {"transform": {"resize": 32, "crop": 32}}),
    "awkward": ("tail_networks:awkward", {"transform": {"resize": 32, "crop": 32}}),
    "googlenet": ("googlenet", {"weights": "random:1", "transform": {"resize": 64, "crop": 64}}),
}


SMALLER = (
    *("resnet50", "inception_v3", "shufflenet_v2_x0_5", "regnet_y_400mf", "mobilenet_v2", "efficientnet_b0"),
    *("squeezenet1_1", "mnasnet0_5", "swin_t", "swin_v2_t", "convnext_tiny", "densenet121", "vgg11"),
)
"""They take other sizes than their own, and compute what they do there in less time."""


def load_network(name: str, **options: object) -> Backbone:
    size = {"transform": {"resize": 96, "crop": 96}} if name in SMALLER else {}
    known, given = NETWORKS.get(name, (name, {"weights": "random:1", **size}))
    return load_backbone(known, **{**given, **options})


def batch_for(backbone: Backbone, count: int = 3) -> torch.Tensor:
    (images,) = example_input(backbone, count, seed=5)
    return images


def uncut(backbone: Backbone, images: torch.Tensor, classifier: str) -> torch.Tensor:
    """What enters the classifier of the whole network, seen by a hook."""
    seen: list[torch.Tensor] = []
    network = copy.deepcopy(backbone.network)
    hook = network.get_submodule(classifier).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    with torch.no_grad():
        network(images)
    hook.remove()
    return seen[0].mean(dim=(2, 3)) if seen[0].ndim == 4 else seen[0]


def activations(backbone: Backbone, layers: list[str], images: torch.Tensor) -> dict[str, torch.Tensor]:
    """What `extract` stores, of all layers, some at a time."""
    found = {}
    options = {"weights": "random:1"} if not backbone.is_code and backbone.name != "tiny" else {}
    transform = backbone.preprocess.transform
    for start in range(0, len(layers), MAX_LAYERS):
        part = load_backbone(
            backbone.name,
            layer=layers[start : start + MAX_LAYERS],
            transform={"resize": transform.resize, "crop": transform.crop},
            **options,
        )
        with torch.no_grad():
            outputs = part.module(images)
        found |= {tap.layer: output for tap, output in zip(part.taps, outputs, strict=True)}
    return found


def relative(given: torch.Tensor, expected: torch.Tensor) -> float:
    return float((given - expected).norm() / expected.norm())


CLASSIFIERS = {"tiny": "classifier", "resnet18": "fc", "vit": "heads.head", "awkward": "fc", "googlenet": "fc"}
OF_TORCHVISION = {
    **dict.fromkeys(("resnet50", "inception_v3", "shufflenet_v2_x0_5", "regnet_y_400mf"), "fc"),
    **dict.fromkeys(("mobilenet_v2", "efficientnet_b0", "squeezenet1_1", "mnasnet0_5"), "classifier.1"),
    **dict.fromkeys(("vit_b_16",), "heads.head"),
    **dict.fromkeys(("swin_t", "swin_v2_t"), "head"),
    **dict.fromkeys(("convnext_tiny",), "classifier.2"),
    **dict.fromkeys(("densenet121",), "classifier"),
    **dict.fromkeys(("vgg11",), "classifier.6"),
    **dict.fromkeys(("maxvit_t",), "classifier.5"),
}


@pytest.mark.parametrize(
    "name", [name if name != "googlenet" else pytest.param(name, marks=pytest.mark.slow) for name in CLASSIFIERS]
)
def test_body_then_tail_is_the_uncut_network_at_every_place(name: str, load: Callable[..., Backbone]) -> None:
    check_places(load(name), CLASSIFIERS[name])


@pytest.mark.slow
@pytest.mark.daily(4)
@pytest.mark.parametrize("name", OF_TORCHVISION)
def test_body_then_tail_is_the_uncut_network_at_places_of_large_networks(name: str) -> None:
    """At some sixteen of each, from the input on; scripts/check_tails.py takes all. A third of them each day."""
    check_places(load_network(name), OF_TORCHVISION[name], most=16)


def check_places(backbone: Backbone, classifier: str, *, most: int = 1000) -> None:
    """Also with one sample and with another number of them than the cut was found with, laid out as channels_last."""
    images = batch_for(backbone)
    crossings = Crossings.of(backbone)
    places = crossings.places[:: max(1, len(crossings.places) // most)]
    layers = [place.layer for place in places]
    assert layers[0] == "input"
    given = activations(backbone, layers, images)
    expected = uncut(backbone, images, classifier)
    for place in places:
        tail = tail_of(backbone, place.layer, crossings=crossings)
        activation = given[place.layer]
        assert (tail.layer, tail.shape, tail.width) == (place.layer, activation.shape[1:], expected.shape[1])
        before = activation.clone()
        with torch.no_grad():
            assert relative(tail(activation), expected) <= TOLERANCE, place.layer
            assert torch.equal(activation, before), place.layer
            assert relative(tail(activation[:1]), expected[:1]) <= TOLERANCE, place.layer
            if activation.ndim == 4:
                last = activation.contiguous(memory_format=torch.channels_last)
                assert relative(tail(last), expected) <= TOLERANCE, place.layer


@pytest.mark.rotates(3)
@pytest.mark.parametrize("name", ["tiny", "resnet18", "vit", "awkward"])
def test_gradients_are_those_of_the_uncut_network_with_its_body_frozen(
    name: str, load: Callable[..., Backbone]
) -> None:
    backbone = load(name)
    images = batch_for(backbone)
    network = copy.deepcopy(backbone.network).requires_grad_(True)
    classifier = network.get_submodule(CLASSIFIERS[name])
    target = torch.tensor([0, 2, 1])
    nn.functional.cross_entropy(network(images), target).backward()
    expected = dict(network.named_parameters())
    crossings = Crossings.of(backbone)
    layers = [place.layer for place in crossings.places[:: 4 if name == "resnet18" else 1]]
    for layer, activation in activations(backbone, layers, images).items():
        tail = tail_of(backbone, layer, crossings=crossings)
        nn.functional.cross_entropy(classifier(tail(activation)), target).backward()
        assert dict(tail.named_parameters()).keys() <= expected.keys()
        for parameter, value in tail.named_parameters():
            if not value.requires_grad:  # the part in front of the cut uses it as well
                assert (name, parameter, value.grad) == ("awkward", "token", None)
                continue
            assert value.grad is not None, (layer, parameter)
            error = float((value.grad - expected[parameter].grad).norm())
            assert error <= 1e-4 * float(expected[parameter].grad.norm()) + 1e-7, (layer, parameter)


@pytest.mark.rotates(3)
def test_a_tail_holds_what_lies_behind_under_the_network_s_names_and_as_copies() -> None:
    backbone = load_network("resnet18")
    tail = tail_of(backbone, "layer3")
    state = backbone.network.state_dict()
    assert tail.state_dict().keys() == {name for name in state if name.startswith("layer4.")}
    assert all(torch.equal(value, state[name]) for name, value in tail.state_dict().items())
    with torch.no_grad():
        for parameter in tail.parameters():
            assert parameter.requires_grad
            parameter.add_(1)
    assert all(torch.equal(value, state[name]) for name, value in backbone.network.state_dict().items())
    assert not any(parameter.requires_grad for parameter in backbone.network.parameters())
    again = copy.deepcopy(tail)
    assert isinstance(again, Tail)
    assert (again.layer, again.shape, again.width) == ("layer3", (256, 4, 4), 512)
    tail.load_state_dict({name: state[name] for name in tail.state_dict()})


@pytest.mark.rotates(3)
def test_the_layers_where_a_cut_is_possible() -> None:
    assert cuts(load_network("resnet18")) == (
        *("input", "conv1", "bn1", "relu", "maxpool", "layer1.0.add", "layer1.0", "layer1.1.add", "layer1"),
        *("layer2.0.add", "layer2.0", "layer2.1.add", "layer2", "layer3.0.add", "layer3.0", "layer3.1.add", "layer3"),
        *("layer4.0.add", "layer4.0"),
    )


@pytest.mark.rotates(3)
def test_behind_the_input_lies_everything_but_the_classifier() -> None:
    backbone = load_network("resnet18")
    whole = tail_of(backbone, "input")
    assert whole.shape == (3, 64, 64)
    names = {name for name in backbone.network.state_dict() if not name.startswith("fc.")}
    assert whole.state_dict().keys() == names


@pytest.mark.rotates(3)
def test_training_mode_leaves_statistics_and_dropout_alone() -> None:
    network = nn.Sequential(tail_of(load_network("mobilenet_v2"), "features.17"), nn.Dropout(0.5))
    network.train()
    assert network[1].training
    assert not any(part.training for part in network[0].modules())
    before = {name: value.clone() for name, value in network[0].state_dict().items()}
    network(torch.randn(4, *network[0].shape)).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in network[0].state_dict().items())


REFUSED = {
    ("resnet18", "layer3.0.bn1"): ("also need 'layer2'", r"before: layer2\.1\.add, layer2; behind: layer3\.0\.add"),
    ("resnet18", "layer3.0.downsample"): ("also need 'layer3.0.bn2'", "before: .*layer2; behind: layer3.0.add"),
    ("resnet18", "layer4"): ("no parameters to train", r"are before: .*layer4\.0\.$"),
    ("resnet18", "avgpool"): ("no parameters to train", "layer4.0"),
    ("resnet18", "flatten"): ("there is nothing to train except the head", "layer4.0"),
    ("resnet18", "fc"): ("there is nothing to train except the head", "layer4.0"),
    ("resnet18", "output"): ("there is nothing to train except the head", "layer4.0"),
    ("resnet18", "layer5"): ("no layer 'layer5'.* Close: .*layer4", "precompute backbones NAME --layers"),
    ("resnet18", "layer3:mean"): ("'layer3' are averaged over its positions", "--layer layer3:none"),
    ("vit", "encoder.layers.encoder_layer_1.ln_1"): (
        "also need",
        "before: .*encoder_layer_1.add; behind: .*encoder_layer_1,",
    ),
    ("vit", "encoder.layers.encoder_layer_1.getitem_1"): ("do not depend on the layer", "before: "),
    ("vit", "class_token"): ("do not depend on the layer", "before: "),
    ("awkward", "one"): ("also need 'stem'", "before: .*stem; behind: "),
    ("awkward", "unused"): ("do not depend on the layer", "before: .*stem; behind: "),
    ("awkward", "getattr"): ("do not depend on the layer", "nearest"),
}


@pytest.mark.rotates(3)
@pytest.mark.parametrize(("name", "layer"), REFUSED)
def test_where_a_cut_is_not_possible_the_nearest_places_are_named(
    name: str, layer: str, load: Callable[..., Backbone]
) -> None:
    message, hint = REFUSED[name, layer]
    with pytest.raises(BackboneError, match=message) as caught:
        tail_of(load(name), layer)
    assert re.search(hint, caught.value.hint), caught.value.hint


class Shared(nn.Module):
    """One convolution, used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last, self.fc = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Linear(3, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.conv(images).relu()
        x = self.last(self.conv(x))
        return self.fc(x.mean((2, 3)))


class Ignored(nn.Module):
    """Changes a tensor in place and goes on with it under its old name."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last, self.fc = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Linear(3, 2)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.conv(images)
        self.relu(x)
        return self.fc(self.last(x).mean((2, 3)))


class Clash(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.layer, self.fc = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Linear(3, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.layer(self.stem(images)).mean((2, 3)))


class Growing(nn.Module):
    """Needs the number of images, plus one, behind its convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last, self.fc = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Linear(3, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        count = images.shape[0] + 1
        return self.fc(self.last(self.conv(images)).mean((2, 3)) * count)


class Dependent(nn.Module):
    """A number that is no shape, but follows from what the image shows, crosses."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last, self.fc = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Linear(3, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        largest = images.amax().item()
        return self.fc(self.last(self.conv(images)).mean((2, 3)) * largest)


class Headless(nn.Module):
    """A map is its output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 4, 2, stride=2)
        self.scale = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.last(self.conv(images)) * self.scale


class Untraceable(nn.Module):
    """Looks at its values, and changes them in place first; its own names are those of attributes of a tail."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.token = nn.Conv2d(3, 4, 1), nn.Parameter(torch.ones(4, 1, 1))
        self.norm, self.drop = nn.BatchNorm2d(4), nn.Dropout(0.5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        images.relu_()
        x = self.drop(self.norm(self.layer(images))) * self.token
        return x.mean((2, 3)) if x.sum() > -1e9 else x.amax((2, 3))


def backbone_of(network: nn.Module) -> Backbone:
    """`tiny`'s preprocessing in front of another network."""
    return replace(load_backbone("tiny"), network=network.eval().requires_grad_(False), name="a:b", taps=())


def test_what_both_parts_use_is_not_trained() -> None:
    torch.manual_seed(0)
    tail = tail_of(backbone_of(Shared()), "relu")
    trained = {name for name, parameter in tail.named_parameters() if parameter.requires_grad}
    assert trained == {"last.weight", "last.bias"}
    assert "conv.weight" in tail.state_dict()


def test_a_change_in_place_that_the_cut_separates_is_refused() -> None:
    torch.manual_seed(0)
    with pytest.raises(BackboneError, match="differs from the whole network"):
        tail_of(backbone_of(Ignored()), "conv")


def test_a_name_that_a_tail_needs_is_refused() -> None:
    with pytest.raises(BackboneError, match="a part called 'layer'"):
        tail_of(backbone_of(Clash()), "stem")


def test_a_number_computed_from_the_number_of_images_is_computed_again() -> None:
    torch.manual_seed(0)
    backbone = backbone_of(Growing())
    images = batch_for(backbone, 7)
    tail = tail_of(backbone, "conv")
    with torch.no_grad():
        given = tail(backbone.network.conv(images))
        assert relative(given, uncut(backbone, images, "fc")) <= TOLERANCE


def test_a_number_that_the_image_decides_crosses_a_cut() -> None:
    with pytest.raises(BackboneError, match="also need 'item'"):
        tail_of(backbone_of(Dependent()), "conv")


def test_without_a_classifier_the_output_is_the_features() -> None:
    torch.manual_seed(0)
    backbone = backbone_of(Headless())
    images = batch_for(backbone)
    tail = tail_of(backbone, "conv")
    assert tail.width == 4 * 16 * 16
    with torch.no_grad():
        assert relative(tail(backbone.network.conv(images)), backbone.network(images).flatten(1)) <= TOLERANCE


def test_a_network_that_cannot_be_traced_is_a_tail_behind_its_input() -> None:
    torch.manual_seed(0)
    backbone = backbone_of(Untraceable())
    images = batch_for(backbone)
    tail = tail_of(backbone, "input")
    assert (tail.layer, tail.shape, tail.width) == ("input", (3, 32, 32), 4)
    assert tail.state_dict().keys() == backbone.network.state_dict().keys()
    again = copy.deepcopy(tail)
    nn.Sequential(tail).train()
    before = images.clone()
    nn.functional.cross_entropy(tail(images), torch.tensor([0, 1, 2])).backward()
    assert torch.equal(images, before)
    with torch.no_grad():
        assert torch.equal(tail(images), backbone.network(images.clone()))
        for parameter in again.parameters():
            parameter.zero_()
        assert not again(images).any()
        assert torch.equal(tail(images), backbone.network(images.clone()))
    assert all(parameter.grad is not None for parameter in tail.parameters())
    with pytest.raises(BackboneError, match="cannot trace"):
        tail_of(backbone, "layer")


# Proposals


@pytest.mark.rotates(3)
def test_proposals_of_a_resnet_and_of_a_transformer(load: Callable[..., Backbone]) -> None:
    assert [one.layer for one in propose(load("resnet18"))] == ["layer2", "layer3"]
    blocks = [f"encoder.layers.encoder_layer_{number}" for number in (0, 2, 3)]
    assert [one.layer for one in propose(load("vit"))] == blocks
    assert [one.layer for one in propose(load("tiny"))] == ["body.3", "body"]


@pytest.mark.rotates(6)
def test_what_a_proposal_says_is_what_its_tail_is() -> None:
    backbone = load_network("resnet18")
    whole = sum(parameter.numel() for parameter in tail_of(backbone, "input").parameters())
    proposals = propose(backbone)
    shares = []
    for one in proposals:
        tail = tail_of(backbone, one.layer)
        assert one.shape == tail.shape
        assert one.bytes_per_sample == 2 * tail.shape[0] * tail.shape[1] * tail.shape[2]
        assert one.bytes_per_sample_int8 == one.bytes_per_sample // 2 + 8 * tail.shape[0]
        assert one.parameters == sum(parameter.numel() for parameter in tail.parameters())
        assert one.share == one.parameters / whole
        shares.append(one.gflops_share)
    assert 1 > shares[0] > shares[1] > 0
    # Each 3x3 convolution of layer4 at 2x2, the first of fewer channels, and the 1x1 beside them
    expected = (256 * 512 * 9 + 3 * 512 * 512 * 9 + 256 * 512) * 4 / 1e9
    assert proposals[1].gflops == pytest.approx(expected)


@pytest.mark.rotates(3)
def test_prices_are_for_all_samples_and_views() -> None:
    backbone = load_backbone("tiny")
    proposals = propose(backbone)
    for one, proposal in zip(price(backbone, proposals, samples=100, views=3), proposals, strict=True):
        assert one.proposal == proposal
        assert (one.bytes, one.bytes_int8) == (300 * proposal.bytes_per_sample, 300 * proposal.bytes_per_sample_int8)
        assert one.seconds > 0
        assert one.to_dict()["layer"] == proposal.layer


def test_a_network_that_can_be_cut_nowhere_has_no_proposals() -> None:
    with pytest.raises(BackboneError, match="a:b has no layer with a part worth training") as caught:
        propose(backbone_of(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2))))
    assert "train-head" in caught.value.hint


# A tail of one's own


OWN = """
import torch
from torch import nn

def good(shape):
    return nn.Sequential(nn.Conv2d(shape[0], 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())

def pooled(shape):
    return nn.Linear(*shape, 4)

def whole(shape):
    return nn.Conv2d(shape[0], 5, 1)

def other(shape):
    return nn.Linear(7, 5)

def inplace(shape):
    return nn.Sequential(nn.ReLU(inplace=True), nn.Flatten())

def nothing(shape):
    return None

def failing(shape):
    raise OSError("no such file")

class Infinite(nn.Module):
    def forward(self, x):
        return x.flatten(1) / 0

def infinite(shape):
    return Infinite()
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "own_tails.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("own_tails", None)


@pytest.mark.usefixtures("own")
def test_a_tail_of_one_s_own_gets_the_shape_and_a_seed() -> None:
    backbone = load_backbone("tiny", layer="body")
    state = torch.random.get_rng_state()
    tails = [own_tail("own_tails:good", backbone, "body", seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.random.get_rng_state(), state)
    weights = [tail.state_dict()["0.weight"] for tail in tails]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert all(parameter.requires_grad for parameter in tails[0].parameters())
    assert tails[0](torch.randn(3, 192, 4, 4)).shape == (3, 5)
    mean = load_backbone("tiny", layer="body:mean")
    assert own_tail("own_tails:pooled", mean, "body")(torch.randn(3, 192)).shape == (3, 4)


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("whole", r"gives \(2, 5, 4, 4\) for 2 samples"),
        ("other", "does not take activations of 192, 4, 4"),
        ("inplace", "changes its input in place"),
        ("nothing", "returned a NoneType"),
        ("failing", "OSError: no such file"),
        ("missing", "has no attribute 'missing'"),
        ("infinite", "no finite floats"),
    ],
)
def test_a_tail_of_one_s_own_that_will_not_do_is_refused(name: str, message: str) -> None:
    with pytest.raises(BackboneError, match=message):
        own_tail(f"own_tails:{name}", load_backbone("tiny", layer="body"), "body")


def test_a_tail_of_one_s_own_has_a_name_of_two_parts() -> None:
    with pytest.raises(UsageError, match=r"package\.module:factory"):
        own_tail("own_tails.good", load_backbone("tiny"), "body")


# --cut auto


@pytest.mark.rotates(3)
def test_the_command_says_where_to_cut_and_the_lines_to_run_next(
    photos: Path, tmp_path: Path, precompute: Command
) -> None:
    options = (photos, "-b", "tiny", "--mean", "0.5,0.5,0.5", "--cut", "auto")
    shown = precompute("fine-tune", *options)
    assert shown.returncode == 0, shown.stderr
    proposals = propose(load_backbone("tiny"))
    for one in proposals:
        assert re.search(rf"{one.layer} .*{' x '.join(map(str, one.shape))}.*{one.parameters:,}", shown.stdout)
    found = json.loads(precompute("fine-tune", *options, "--json").stdout)
    assert (found["backbone"], found["samples"]) == ("tiny", 24)
    assert [one["layer"] for one in found["cuts"]] == [one.layer for one in proposals]
    assert [one["bytes"] for one in found["cuts"]] == [24 * one.bytes_per_sample for one in proposals]
    for line in found["commands"]:
        assert line in shown.stdout
        done = precompute(*shlex.split(line)[1:])
        assert done.returncode == 0, done.stderr
    stored = tmp_path / "photos-body.h5"
    assert open_cache(stored).features().nbytes == found["cuts"][-1]["bytes"]


@pytest.mark.rotates(3)
def test_the_bytes_of_int8_are_those_of_the_file(photos: Path, tmp_path: Path) -> None:
    (proposal,) = [one for one in propose(load_backbone("tiny")) if one.layer == "body"]
    extract(photos, tmp_path / "a.h5", backbone="tiny", layer="body", dtype="int8")
    stored = open_cache(tmp_path / "a.h5").stored("body")
    assert stored.codes.nbytes + stored.scales.nbytes == 24 * proposal.bytes_per_sample_int8


def test_cuts_are_proposed_for_images_and_a_named_network(photos: Path, tmp_path: Path, precompute: Command) -> None:
    extract(photos, tmp_path / "a.h5", backbone="tiny", layer="body")
    for options, message in (
        ((photos,), "needs a network: -b NAME"),
        ((tmp_path / "a.h5", "-b", "tiny"), "holds features already"),
        ((photos, "-b", "tiny", "--batch-size", "0"), "batch_size must be 1 or more"),
    ):
        done = precompute("fine-tune", *options, "--cut", "auto")
        assert done.returncode == 2
        assert message in done.stderr
