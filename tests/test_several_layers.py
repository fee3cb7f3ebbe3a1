"""Several layers in one pass: each is, byte for byte, what a file made for it alone holds."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Command, make_photos

from precompute import extract, load_backbone, open_cache, predict, repair, train_head, verify
from precompute.backbones.layers import cut
from precompute.engines.machine import Machine
from precompute.engines.torch import folded
from precompute.errors import CacheError, UsageError

LAYERS = ["layer1.0.bn2", "layer2:mean", "layer3:mean", "layer4", "output"]
OPTIONS = {"backbone": "resnet18", "weights": "random", "transform": {"resize": 64, "crop": 64}}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photos(tmp_path_factory.mktemp("several") / "photos")


@pytest.fixture(scope="module")
def several(photos: Path) -> Path:
    extract(photos, photos.parent / "several.h5", layer=LAYERS, engine="torch", precision="fp32", **OPTIONS)
    return photos.parent / "several.h5"


@pytest.mark.rotates(3)
@pytest.mark.parametrize("name", LAYERS)
def test_each_layer_is_that_of_a_file_of_its_own(name: str, photos: Path, several: Path, tmp_path: Path) -> None:
    """Also where an operation in place follows, such as the addition behind a BatchNorm."""
    extract(photos, tmp_path / "one.h5", layer=name, engine="torch", precision="fp32", **OPTIONS)
    layer = name.partition(":")[0]
    one, whole = open_cache(tmp_path / "one.h5"), open_cache(several)
    assert one.layers == (layer,)
    assert one.features(layer).tobytes() == whole.features(layer).tobytes()
    assert one.column("samples/id").tobytes() == whole.column("samples/id").tobytes()


@pytest.mark.parametrize("precision", [pytest.param("fp32", marks=pytest.mark.slow), "bf16"])
def test_openvino_gives_the_same_bytes_too(photos: Path, tmp_path: Path, precision: str) -> None:
    """Left to itself it computes what lies in front of an output in fp32, so that one more tap changes the others."""
    pytest.importorskip("openvino", reason="needs pip install 'precompute[openvino]'")
    if not Machine.here().computes("openvino", "cpu", precision):
        pytest.skip(f"OpenVINO does not compute in {precision} here")
    names = ["layer2:mean", "layer4"]
    extract(photos, tmp_path / "all.h5", layer=names, engine="openvino", precision=precision, **OPTIONS)
    for name in names:
        extract(photos, tmp_path / f"{name}.h5", layer=name, engine="openvino", precision=precision, **OPTIONS)
        layer = name.partition(":")[0]
        one, whole = open_cache(tmp_path / f"{name}.h5"), open_cache(tmp_path / "all.h5")
        assert one.features(layer).tobytes() == whole.features(layer).tobytes()


def test_the_file_holds_them_with_their_shapes_and_is_whole(several: Path) -> None:
    cache = open_cache(several)
    shapes = {layer: cache.features(layer).shape[1:] for layer in cache.layers}
    assert shapes == {
        "layer1.0.bn2": (64, 16, 16),
        "layer2": (128,),
        "layer3": (256,),
        "layer4": (512, 2, 2),
        "output": (1000,),
    }
    assert verify(cache).whole
    with pytest.raises(CacheError, match="holds the layers"):
        cache.features()


@pytest.mark.rotates(3)
def test_a_stopped_run_goes_on_in_all_layers(photos: Path, several: Path, tmp_path: Path) -> None:
    calls: list[int] = []

    def stop() -> int:
        calls.append(1)
        return 15 if len(calls) == 1 else 0

    arguments = {"layer": LAYERS, "engine": "torch", "precision": "fp32", "batch_size": 4, **OPTIONS}
    with pytest.raises(Exception, match="Stopped with"):
        extract(photos, tmp_path / "a.h5", stop=stop, **arguments)
    assert extract(photos, tmp_path / "a.h5", **arguments).reused > 0
    whole, again = open_cache(several), open_cache(tmp_path / "a.h5")
    for layer in whole.layers:
        np.testing.assert_allclose(whole.features(layer), again.features(layer), rtol=1e-4, atol=1e-5)


@pytest.mark.rotates(3)
def test_a_damaged_layer_is_repaired(photos: Path, several: Path, tmp_path: Path) -> None:
    data = bytearray(several.read_bytes())
    data[open_cache(several).layout.columns["features/layer3"].offset] ^= 1
    (tmp_path / "a.h5").write_bytes(data)
    assert len(verify(open_cache(tmp_path / "a.h5")).damaged) == 1
    assert repair(tmp_path / "a.h5", photos).computed == 1
    assert verify(open_cache(tmp_path / "a.h5")).whole
    for layer in open_cache(several).layers:
        np.testing.assert_allclose(
            open_cache(tmp_path / "a.h5").features(layer), open_cache(several).features(layer), rtol=1e-4, atol=1e-5
        )


@pytest.mark.rotates(3)
def test_a_head_is_trained_on_one_of_them_and_predicts(photos: Path, several: Path, tmp_path: Path) -> None:
    for layer in ("layer2", "layer4"):
        training = train_head(several, tmp_path / "a.safetensors", layer=layer, overwrite=True)
        assert training.layer == layer
        found = predict(tmp_path / "a.safetensors", photos)
        assert len(found.items) == len(open_cache(several))
    with pytest.raises(CacheError, match="holds the layers"):
        train_head(several)


@pytest.mark.rotates(3)
def test_the_command_takes_layers_several_times(photos: Path, precompute: Command) -> None:
    done = precompute(
        *("extract", photos, "-b", "tiny", "--layer", "body:mean", "--layer", "embed", "-o", "a.h5", "--json")
    )
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)["layers"]) == {"body", "embed"}
    shown = precompute("extract", photos, "-b", "tiny", "--layer", "all-blocks", "-o", "b.h5")
    assert shown.returncode == 0, shown.stderr
    assert "body, " in shown.stdout
    assert (
        precompute("extract", photos, "-b", "tiny", "--layer", "all-blocks", "-o", "b.h5").stdout.count("nothing new")
        == 1
    )


@pytest.mark.parametrize(
    ("layer", "message"),
    [(["layer1", "layer1:mean"], "named twice"), ([], "between 1 and 64"), (["all-blocks", "layer4"], "named twice")],
)
def test_what_makes_no_sense_is_refused(layer: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_backbone("resnet18", weights="random", layer=layer)


@pytest.mark.rotates(3)
def test_an_operation_in_place_does_not_reach_an_earlier_layer() -> None:
    model = load_backbone("resnet18", weights="random", layer=["layer1.0.bn2", "layer1.0.relu_1", "layer1.0.add"])
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        outputs = dict(zip([tap.layer for tap in model.taps], model.module(images), strict=True))
    assert (outputs["layer1.0.bn2"] < 0).any()
    assert (outputs["layer1.0.add"] < 0).any()
    assert torch.equal(outputs["layer1.0.relu_1"], outputs["layer1.0.add"].relu())
    assert not torch.equal(outputs["layer1.0.bn2"], outputs["layer1.0.add"])


class FunctionalDropout(torch.nn.Module):
    """Drops values in training mode by a function, and works in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.relu = torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4), torch.nn.ReLU(inplace=True)
        self.fc = torch.nn.Linear(4, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.norm(self.conv(images)))
        return self.fc(torch.nn.functional.dropout(x.mean((2, 3)), 0.9, self.training))


def test_copies_that_engines_make_keep_to_evaluation_mode_and_to_the_taps_as_they_were() -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 3, 8, 8)
    wanted = [(layer, "none") for layer in ("norm", "relu", "output")]
    module, _ = cut(FunctionalDropout(), wanted, (images,))
    with torch.inference_mode():
        norm, relu, output = module(images)
        for other in (copy.deepcopy(module), folded(module)):
            for given, expected in zip(other(images), (norm, relu, output), strict=True):
                torch.testing.assert_close(given, expected)
    assert (norm < 0).any()
    assert torch.equal(relu, norm.relu())
