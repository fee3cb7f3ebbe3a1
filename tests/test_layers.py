"""Layers: what enters the final classifier of every network, and cuts at any node."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torchvision
from conftest import make_image
from torch import nn
from torchvision.models import list_models
from torchvision.models.feature_extraction import get_graph_node_names

from precompute.backbones import families, layers
from precompute.backbones.families import TINY
from precompute.backbones.families.torchvision import own_transform
from precompute.backbones.layers import OUTPUT, default_layer, final_classifier, node_names
from precompute.backbones.layout import BATCH, Layout, _reshaped
from precompute.errors import BackboneError

CLASSIFIERS = ("fc", "head", "heads.head", "classifier", "classifier.1", "classifier.2", "classifier.3", "classifier.5",
               "classifier.6")  # fmt: skip
"""Every name that torchvision gives to a last layer."""

ONE_OF_EACH_KIND = frozenset(
    "alexnet convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet inception_v3 maxvit_t mnasnet0_5 "
    "mobilenet_v2 mobilenet_v3_small regnet_x_400mf regnet_y_400mf resnet18 resnext50_32x4d shufflenet_v2_x0_5 "
    "squeezenet1_1 swin_t swin_v2_t vgg11 vgg11_bn vit_b_32 wide_resnet50_2".split()
)
SMALL = ("squeezenet1_1", "mobilenet_v3_small", "shufflenet_v2_x0_5", "mnasnet0_5", "resnet18")


def classifier_of(model: nn.Module) -> nn.Module:
    """By name, without tracing: the last layer of the network."""
    modules = dict(model.named_modules())
    found = [modules[name] for name in CLASSIFIERS if isinstance(modules.get(name), nn.Linear | nn.Conv2d)]
    return found[-1]


class One(nn.Module):
    """A network with a single tap, whose output it gives."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.module(images)[0]


def cut(model: nn.Module, layer: str, pooling: str, size: int = 224) -> One:
    device = next((parameter.device for parameter in model.parameters()), None)
    return One(layers.cut(model, [(layer, pooling)], (torch.zeros(BATCH, 3, size, size, device=device),))[0]).eval()


def picture() -> torch.Tensor:
    pixels = torchvision.transforms.functional.pil_to_tensor(make_image(3, (224, 224)))
    return pixels[None].float().div(255).sub(0.5).div(0.25)


NETWORKS_OF_TORCHVISION = [
    name if name in ONE_OF_EACH_KIND else pytest.param(name, marks=pytest.mark.slow)
    for name in list_models(module=torchvision.models)
]


@pytest.mark.rotates(3)
@pytest.mark.parametrize("name", NETWORKS_OF_TORCHVISION)
def test_every_network_s_default_layer_enters_its_classifier(name: str) -> None:
    model = families.build(name, seed=None)
    classifier = classifier_of(model)
    _, pooling, width = default_layer(model)
    if isinstance(classifier, nn.Conv2d):
        assert (pooling, width) == ("mean", classifier.in_channels)
    else:
        assert (pooling, width) == ("none", classifier.in_features)


@pytest.mark.rotates(3)
@pytest.mark.parametrize("name", SMALL)
def test_features_through_the_classifier_are_the_network_s_output(name: str) -> None:
    model = families.build(name, seed=1)
    layer, pooling, width = default_layer(model)
    assert model.get_submodule(final_classifier(model)) is classifier_of(model)
    with torch.inference_mode():
        expected = model(picture())
        features = cut(model, layer, "none")(picture())
        scores = classifier_of(model)(features)
        if pooling == "mean":  # SqueezeNet: classifier, ReLU, average
            scores = scores.relu().mean(dim=(2, 3))
    assert features.shape[1] == width
    torch.testing.assert_close(scores, expected)


@pytest.mark.rotates(3)
def test_mean_pooling_averages_over_positions() -> None:
    model = families.build("squeezenet1_1", seed=1)
    layer, _, width = default_layer(model)
    with torch.inference_mode():
        assert torch.equal(cut(model, layer, "mean")(picture()), cut(model, layer, "none")(picture()).mean(dim=(2, 3)))
        assert cut(model, layer, "mean")(picture()).shape == (1, width)
        assert cut(model, "features.3", "mean")(picture()).shape == (1, 128)


@pytest.mark.parametrize(
    "name", ["resnet18", "efficientnet_b0", "swin_t"]
)  # the last two hold torchvision's own modules
def test_names_are_torchvision_s(name: str) -> None:
    model = families.build(name, seed=None)
    assert node_names(model) == get_graph_node_names(model)[1]


@pytest.mark.rotates(3)
@pytest.mark.parametrize("layer", ["conv1", "layer1.0.relu", "layer4", "layer4.1", "flatten", "fc", OUTPUT])
def test_a_cut_gives_what_the_module_gives_in_the_whole_network(layer: str) -> None:
    model = families.build("resnet18", seed=1)
    seen: list[torch.Tensor] = []
    module = model if layer == OUTPUT else model.avgpool if layer == "flatten" else model.get_submodule(layer)
    with torch.inference_mode():
        handle = module.register_forward_hook(lambda module, inputs, output: seen.append(output.clone()))
        model(picture())
        handle.remove()
        given = cut(model, layer, "none")(picture())
    first = 0 if layer == "layer1.0.relu" else -1  # this module runs twice; its node of that name is the first run
    torch.testing.assert_close(given, seen[first].flatten(1) if layer == "flatten" else seen[first])


@pytest.mark.rotates(3)
def test_what_lies_behind_the_cut_is_gone() -> None:
    whole = sum(parameter.numel() for parameter in families.build("resnet18", seed=None).parameters())
    for layer, share in (("layer1", 0.1), ("flatten", 0.96)):
        body = cut(families.build("resnet18", seed=1), layer, "none")
        assert sum(parameter.numel() for parameter in body.parameters()) < share * whole
        assert not body.training


@pytest.mark.parametrize(
    ("layer", "close"), [("layer5", "layer4"), ("avg_pool", "avgpool"), ("flaten", "flatten"), ("layer4.", "layer4")]
)
def test_an_unknown_layer_names_close_ones(layer: str, close: str) -> None:
    with pytest.raises(BackboneError, match=f"no layer {layer!r}") as caught:
        cut(families.build("resnet18", seed=None), layer, "none")
    assert close in caught.value.message
    assert "flatten, fc" in caught.value.hint


class Split(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        halves = images.chunk(2)
        return torch.cat([halves[0], halves[1]])


def test_a_layer_that_is_no_tensor_is_refused() -> None:
    with pytest.raises(BackboneError, match="gives a tuple, not a tensor"):
        cut(Split(), "chunk", "none")(torch.zeros(2, 3, 4, 4))


class Untraceable(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images if images.sum() > 0 else -images


NETWORKS: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "untraceable": ("torch.fx cannot trace", Untraceable),
    "no classifier": ("does not end in a linear classifier", lambda: nn.Sequential(nn.ReLU(), nn.Flatten())),
    "nothing but a classifier": ("single linear layer", lambda: nn.Sequential(nn.Dropout(), nn.Linear(3, 2))),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_network_without_a_default_layer_says_why(kind: str) -> None:
    message, build = NETWORKS[kind]
    with pytest.raises(BackboneError, match=message) as caught:
        default_layer(build())
    assert "--layer" in caught.value.hint


def test_dropout_before_the_classifier_is_skipped() -> None:
    body = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Dropout(), nn.Identity(), nn.Linear(16, 2))
    assert default_layer(body) == ("1", "none", 16)


# Pooling over positions, against the whole network's own activations


def activation(model: nn.Module, layer: str, images: torch.Tensor) -> torch.Tensor:
    """What the module `layer` of the uncut network gives."""
    seen: list[torch.Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.inference_mode():
        model(images)
    handle.remove()
    return seen[-1].clone()


MAPS = {  # by name, so that the test knows the layout from the papers and not from the code
    **dict.fromkeys(("swin_t features.3", "swin_t features.7", "swin_v2_t features.5", "swin_t features.0"), "BHWC"),
    **dict.fromkeys(("vit_b_32 encoder.layers.encoder_layer_3", "vit_b_32 encoder"), "BTC"),
    **dict.fromkeys(("resnet18 layer3", "convnext_tiny features.5", "vgg11 avgpool"), "BCHW"),
    **dict.fromkeys(("vit_b_32 conv_proj", "densenet121 features.denseblock2"), "BCHW"),
    **dict.fromkeys(("shufflenet_v2_x0_5 stage3", "googlenet inception4a", "efficientnet_b0 features.4"), "BCHW"),
}


QUICK = ("swin_t features.3", "vit_b_32 encoder", "resnet18 layer3", "shufflenet_v2_x0_5 stage3")


@pytest.mark.rotates(3)
@pytest.mark.parametrize(
    "which", [which if which in QUICK else pytest.param(which, marks=pytest.mark.slow) for which in MAPS]
)
def test_mean_pooling_is_over_positions_wherever_their_axes_are(which: str) -> None:
    name, layer = which.split()
    model = families.build(name, seed=1)
    images = torch.cat([picture(), picture().flip(3)])
    whole = activation(model, layer, images)
    expected = {
        "BCHW": lambda: whole.mean(dim=(2, 3)),
        "BHWC": lambda: whole.mean(dim=(1, 2)),
        "BTC": lambda: whole[:, 1:].mean(dim=1),  # all tokens but the class token
    }[MAPS[which]]()
    with torch.inference_mode():
        given = cut(model, layer, "mean")(images)
    torch.testing.assert_close(given, expected)
    assert given.ndim == 2


IN_THE_MIDDLE = (
    *("layer3", "features.5", "features.denseblock2", "blocks.1", "stage3", "layers.10", "trunk_output.block2"),
    *("inception4a", "Mixed_6a", "encoder.layers.encoder_layer_3"),
)


@pytest.mark.slow
@pytest.mark.daily(4)
@pytest.mark.parametrize("name", [name for name in families.names() if name != TINY])
def test_mean_pooling_of_every_network_leaves_its_channels(name: str) -> None:
    """At a layer in the middle of each: Swin and ViT have their channels last, all others second."""
    model = families.build(name, seed=1)
    crop = getattr(
        model, "image_size", own_transform(name)[0].crop
    )  # weights of vit_h_14 have another than the network
    modules = dict(model.named_modules())
    layer = next(one for one in IN_THE_MIDDLE if one in modules)
    pooled = cut(model, layer, "mean", crop)
    with torch.inference_mode():
        given, whole = pooled(torch.zeros(1, 3, crop, crop)), cut(model, layer, "none")(torch.zeros(1, 3, crop, crop))
    assert given.shape == (1, whole.shape[-1 if name.startswith(("swin", "vit")) else 1]), layer


@pytest.mark.rotates(3)
def test_what_has_no_positions_is_left_as_it_is() -> None:
    model = families.build("resnet18", seed=1)
    with torch.inference_mode():
        assert torch.equal(cut(model, "flatten", "mean")(picture()), cut(model, "flatten", "none")(picture()))


@pytest.mark.slow
def test_axes_that_cannot_be_told_are_refused() -> None:
    model = families.build("maxvit_t", seed=1)
    layer = "blocks.0.layers.0.layers.window_attention.attn_layer.1.softmax"
    with pytest.raises(
        BackboneError, match=r"64 x 2 x 49 x 49 for one image, are positions cannot be determined"
    ) as caught:
        cut(model, layer, "mean")
    assert "--pooling none" in caught.value.hint


class Shapeless(nn.Module):
    """Cannot be traced, and gives channels last."""

    def __init__(self, sides: int) -> None:
        super().__init__()
        self.body, self.sides = nn.Conv2d(3, 5, 3, stride=4), sides

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if images.sum() > 1e9 or (self.sides and images.shape[2] != self.sides):
            raise ValueError("too much")
        return self.body(images).permute(0, 2, 3, 1)


def test_a_network_that_cannot_be_traced_is_run_on_a_larger_image() -> None:
    model = Shapeless(0)
    with torch.inference_mode():
        assert torch.equal(cut(model, OUTPUT, "mean", 32)(picture()), model(picture()).mean(dim=(1, 2)))
    with pytest.raises(BackboneError, match="are positions cannot be determined"):
        cut(Shapeless(32), OUTPUT, "mean", 32)


@pytest.mark.parametrize(
    ("before", "roles", "after", "expected"),
    [
        ((6, 4, 5), "CPP", (6, 20), "CP"),
        ((6, 4, 5), "CPP", (2, 3, 4, 5), "CCPP"),
        ((6, 4, 5), "CPP", (24, 5), "?P"),
        ((4, 4, 6), "PPC", (2, 2, 2, 2, 6), "PPPPC"),
        ((6, 1, 1), "CPP", (6,), "C"),
        ((1, 1, 6), "PPC", (1, 6), "PC"),
        ((6,), "C", (6, 1, 1), "CCC"),
    ],
)
def test_a_reshape_hands_on_what_axes_are(
    before: tuple[int, ...], roles: str, after: tuple[int, ...], expected: str
) -> None:
    assert _reshaped(Layout(f"B{roles}"), (2, *before), (2, *after)) == Layout(f"B{expected}")
