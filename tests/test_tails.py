"""Cuts: what lies behind a layer computes, from its activation, what the uncut network does, and can be trained."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import make_image, make_photos
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer

from precompute import load_backbone
from precompute.backbones import families
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
    (tmp_path / "tail_networks.py").write_text("from test_tails import awkward, small_vit\n")
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


def load_network(name: str, **options: object) -> Backbone:
    known, given = NETWORKS.get(name, (name, {"weights": "random:1"}))
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


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_body_then_tail_is_the_uncut_network_at_every_place(name: str, load: Callable[..., Backbone]) -> None:
    check_every_place(load(name), CLASSIFIERS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_TORCHVISION)
def test_body_then_tail_is_the_uncut_network_at_every_place_of_large_networks(name: str) -> None:
    check_every_place(load_network(name), OF_TORCHVISION[name])


def check_every_place(backbone: Backbone, classifier: str) -> None:
    """Also with one sample and with another number of them than the cut was found with, laid out as channels_last."""
    images = batch_for(backbone)
    crossings = Crossings.of(backbone)
    layers = [place.layer for place in crossings.places]
    assert layers[0] == "input"
    given = activations(backbone, layers, images)
    expected = uncut(backbone, images, classifier)
    for place in crossings.places:
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
    for layer, activation in activations(backbone, list(cuts(backbone)), images).items():
        tail = tail_of(backbone, layer)
        nn.functional.cross_entropy(classifier(tail(activation)), target).backward()
        assert dict(tail.named_parameters()).keys() <= expected.keys()
        for parameter, value in tail.named_parameters():
            assert value.grad is not None, (layer, parameter)
            error = float((value.grad - expected[parameter].grad).norm())
            assert error <= 1e-4 * float(expected[parameter].grad.norm()) + 1e-7, (layer, parameter)


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


def test_behind_the_input_lies_everything_but_the_classifier() -> None:
    backbone = load_network("resnet18")
    whole = tail_of(backbone, "input")
    assert whole.shape == (3, 64, 64)
    names = {name for name in backbone.network.state_dict() if not name.startswith("fc.")}
    assert whole.state_dict().keys() == names


def test_training_mode_leaves_statistics_and_dropout_alone() -> None:
    network = nn.Sequential(tail_of(load_network("mobilenet_v2"), "features.17"), nn.Dropout(0.5))
    network.train()
    assert network[1].training
    assert not any(part.training for part in network[0].modules())
    before = {name: value.clone() for name, value in network[0].state_dict().items()}
    network(torch.randn(4, *network[0].shape)).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in network[0].state_dict().items())


REFUSED = {
    ("resnet18", "layer3.0.bn1"): ("also needs 'layer2'", r"before: layer2\.1\.add, layer2; behind: layer3\.0\.add"),
    ("resnet18", "layer3.0.downsample"): ("also needs 'layer3.0.bn2'", "before: .*layer2; behind: layer3.0.add"),
    ("resnet18", "layer4"): ("no parameters to train", "lie before: .*layer4.0$"),
    ("resnet18", "avgpool"): ("no parameters to train", "layer4.0"),
    ("resnet18", "flatten"): ("nothing is left to train but the head", "layer4.0"),
    ("resnet18", "fc"): ("nothing is left to train but the head", "layer4.0"),
    ("resnet18", "output"): ("nothing is left to train but the head", "layer4.0"),
    ("resnet18", "layer5"): ("no layer 'layer5'.* Close: .*layer4", "precompute backbones NAME --layers"),
    ("resnet18", "layer3:mean"): ("'layer3' are averaged over its positions", "--layer layer3:none"),
    ("vit", "encoder.layers.encoder_layer_1.ln_1"): ("also needs", "before: .*encoder_layer_0; behind"),
    ("vit", "encoder.layers.encoder_layer_1.getitem_1"): ("do not depend on the layer", "before: "),
    ("vit", "class_token"): ("do not depend on the layer", "before: "),
    ("awkward", "one"): ("also needs 'stem'", "before: .*stem; behind: "),
    ("awkward", "unused"): ("do not depend on the layer", "before: .*stem; behind: "),
    ("awkward", "getattr"): ("do not depend on the layer", "nearest"),
}


@pytest.mark.parametrize(("name", "layer"), REFUSED)
def test_where_a_cut_is_not_possible_the_nearest_places_are_named(
    name: str, layer: str, load: Callable[..., Backbone]
) -> None:
    message, hint = REFUSED[name, layer]
    with pytest.raises(BackboneError, match=message) as caught:
        tail_of(load(name), layer)
    assert __import__("re").search(hint, caught.value.hint), caught.value.hint
