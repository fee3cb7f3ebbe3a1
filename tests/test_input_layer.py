"""The layer `input`: what enters the network, stored as any other layer is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Command, make_photos
from torch import nn

from precompute import extract, load_backbone, open_cache, predict, train_head, verify
from precompute.backbones.catalog import layer_names
from precompute.backbones.crossing import cuts
from precompute.backbones.load import Backbone
from precompute.errors import BackboneError
from precompute.inputs.images.decode import decode
from precompute.inputs.images.preprocess import ImagePreprocess

OPTIONS = {"backbone": "resnet18", "weights": "random", "transform": {"resize": 64, "crop": 64}}
FP32 = {"engine": "torch", "precision": "fp32", "dtype": "float32"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photos(tmp_path_factory.mktemp("input") / "photos")


def pixels(backbone: Backbone, path: Path) -> np.ndarray:
    """(3, H, W): decoded, scaled and normalised, by the formula of the transform."""
    assert isinstance(backbone.preprocess, ImagePreprocess)
    transform = backbone.preprocess.transform
    mean, std = (np.array(values, np.float64).reshape(3, 1, 1) for values in (transform.mean, transform.std))
    return ((decode(path.read_bytes(), transform).double().numpy() / 255) - mean) / std


@pytest.mark.rotates(3)
@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_it_holds_the_preprocessed_images(photos: Path, tmp_path: Path, engine: str) -> None:
    if engine == "openvino":
        pytest.importorskip("openvino", reason="needs pip install 'precompute[openvino]'")
    extract(photos, tmp_path / "a.h5", layer="input", **{**FP32, "engine": engine}, **OPTIONS)
    cache, backbone = open_cache(tmp_path / "a.h5"), load_backbone("resnet18", weights="random", layer="input",
                                                                   transform=OPTIONS["transform"])  # fmt: skip
    assert cache.layers == ("input",)
    assert cache.spec["layers"] == [{"name": "input", "pooling": "none", "axes": ["channel", "height", "width"]}]
    assert backbone.taps[0].shape == (3, 64, 64)
    assert verify(cache).whole
    for row, name in enumerate(cache.ids):
        np.testing.assert_allclose(cache.features("input")[row], pixels(backbone, photos / name), rtol=1e-5, atol=1e-5)


@pytest.mark.rotates(3)
def test_beside_other_layers_with_views_and_pooled(photos: Path, tmp_path: Path) -> None:
    """Each as in a file of its own; an operation in place at the network's beginning changes nothing."""
    views = {"views": 3, "augment": "flip,crop"}
    extract(photos, tmp_path / "all.h5", layer=["input", "layer2:mean", "layer1"], **views, **FP32, **OPTIONS)
    extract(photos, tmp_path / "one.h5", layer=["input"], **views, **FP32, **OPTIONS)
    extract(photos, tmp_path / "mean.h5", layer="input:mean", **views, **FP32, **OPTIONS)
    several, one, mean = (open_cache(tmp_path / f"{name}.h5") for name in ("all", "one", "mean"))
    given = several.features("input")
    assert given.shape[1:] == (3, 3, 64, 64)
    assert several.spec["layers"][0]["axes"] == ["view", "channel", "height", "width"]
    assert given.tobytes() == one.features("input").tobytes()
    assert len({several.key, one.key, mean.key}) == 3
    np.testing.assert_allclose(mean.features("input"), given.mean(axis=(3, 4)), rtol=1e-4, atol=1e-5)
    assert not np.array_equal(given[:, 0], given[:, 1])


@pytest.mark.rotates(3)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_guard_and_the_audit_take_it(photos: Path, tmp_path: Path, precision: str) -> None:
    from precompute.engines.machine import Machine

    if not Machine.here().computes("torch", "cpu", precision):
        pytest.skip(f"torch does not compute in {precision} here")
    extract(photos, tmp_path / "a.h5", layer=["input", "layer1"], engine="torch", precision=precision, **OPTIONS)
    assert verify(open_cache(tmp_path / "a.h5")).whole


def test_by_the_command_with_auto_and_a_head_on_it(photos: Path, precompute: Command) -> None:
    done = precompute("extract", photos, "-b", "tiny", "--layer", "input", "-o", "a.h5", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["layers"] == {"input": [3, 32, 32]}
    listed = precompute("backbones", "tiny", "--layers")
    assert listed.stdout.splitlines()[0] == "input"


def test_a_head_on_pixels_predicts(photos: Path, tmp_path: Path) -> None:
    extract(photos, tmp_path / "a.h5", backbone="tiny", layer="input")
    train_head(tmp_path / "a.h5", tmp_path / "a.safetensors")
    assert len(predict(tmp_path / "a.safetensors", photos).items) == 24


class Inplace(nn.Module):
    """Changes its input in place at once."""

    def __init__(self) -> None:
        super().__init__()
        self.relu, self.conv, self.fc = nn.ReLU(inplace=True), nn.Conv2d(3, 4, 1), nn.Linear(4, 2)

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - its node has the layer's very name
        return self.fc(self.conv(self.relu(input)).mean((2, 3)))


class Named(nn.Module):
    """A module has the name of what enters it, and another that of the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.input, self.features = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), nn.Conv2d(4, 4, 1)
        self.fc = nn.Linear(4, 2)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.fc(self.features(self.input(features)).mean((2, 3)))


class Untraceable(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3)) if images.sum() > 0 else images.amax((2, 3))


class Two(nn.Module):
    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return (first + second).flatten(1)


@pytest.fixture
def networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "input_networks.py").write_text("from test_input_layer import Inplace, Named, Two, Untraceable\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


@pytest.mark.usefixtures("networks")
def test_an_operation_in_place_on_the_input_does_not_reach_it() -> None:
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for layers in (["input"], ["conv", "input"]):
        module = load_backbone("input_networks:Inplace", layer=layers).module
        with torch.no_grad():
            given = module(images.clone())[-1]
        assert torch.equal(given, images)


@pytest.mark.usefixtures("networks")
def test_the_name_of_a_module_is_not_taken_for_it() -> None:
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    backbone = load_backbone("input_networks:Named", layer=["fc", "input", "input.1"])
    fc, given, relu = backbone.module(images)
    assert torch.equal(given, images)
    assert torch.equal(relu, backbone.network.input(images))
    assert torch.equal(fc, backbone.network(images))
    assert cuts(backbone) == ("input", "input.0", "input.1")


@pytest.mark.usefixtures("networks")
def test_a_network_that_cannot_be_traced_has_an_input() -> None:
    images = torch.randn(2, 3, 224, 224)
    assert torch.equal(load_backbone("input_networks:Untraceable", layer="input").module(images)[0], images)


def test_several_inputs_are_no_layer() -> None:
    from precompute.backbones.layers import cut

    with pytest.raises(BackboneError, match="is not one tensor of floats"):
        cut(Two(), [("input", "none")], (torch.zeros(2, 3), torch.zeros(2, 3)))
    with pytest.raises(BackboneError, match="is not one tensor of floats"):
        cut(nn.Flatten(), [("input", "none")], (torch.zeros(2, 3, dtype=torch.long),))


def test_it_is_listed_first() -> None:
    assert layer_names("resnet18")[:2] == ["input", "conv1"]
