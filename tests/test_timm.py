"""timm's networks: features as timm computes them, weights and pictures as timm says, and nothing random unasked."""

from __future__ import annotations

import json
import os
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_image, run_python
from hub_server import COMMIT, Hub
from PIL import Image
from reference import features, real_photo
from safetensors.torch import save_file

from precompute import extract, load_backbone, open_cache, predict, train_head
from precompute.backbones.catalog import catalog, describe, layer_names
from precompute.backbones.families.timm_networks import transform_of
from precompute.backbones.load import Backbone
from precompute.backbones.tail import tail_of
from precompute.backbones.weights import digest_of
from precompute.errors import BackboneError, HeadMismatchError, WeightsError
from precompute.inputs.images.preprocess import ImagePreprocess
from precompute.inputs.images.transform import Transform

timm = pytest.importorskip("timm", reason="timm is not installed: pip install 'precompute[timm]'")
save_for_hf = import_module("timm.models._hub").save_for_hf  # the lowest timm names it nowhere else

QUICK = (
    *("test_byobnet", "test_convnext", "test_efficientnet", "test_nfnet", "test_resnet", "test_vit", "test_vit_relpos"),
    *("test_coatnet", "test_mambaout", "test_maxvit", "ghostnet_050", "regnetx_002", "mobilenetv3_small_050"),
)
"""One small network each of 13 families: CNNs, transformers and both in one."""
LARGER = (
    *("xcit_nano_12_p16_224", "levit_128s", "swin_tiny_patch4_window7_224", "mobilevit_xxs", "hiera_tiny_224"),
    *("deit_tiny_distilled_patch16_224", "mixer_s32_224", "edgenext_xx_small", "pit_ti_224", "eva02_tiny_patch14_224"),
    *("crossvit_tiny_240", "poolformer_s12", "tiny_vit_5m_224", "densenet121", "efficientformerv2_s0"),
)
NETWORKS = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGER)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as timm saves it: a small vision transformer with seven classes, and a transform of its own."""
    path = tmp_path_factory.mktemp("models") / "vit"
    torch.manual_seed(4)
    model = timm.create_model("test_vit", num_classes=7)
    model.pretrained_cfg = {**model.pretrained_cfg, "mean": (0.4, 0.5, 0.6), "crop_pct": 0.8}
    save_for_hf(model, path, model_config={"num_classes": 7}, safe_serialization=True)
    return path


def as_images(backbone: Backbone, count: int = 2) -> torch.Tensor:
    size = transform(backbone).crop
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(9))


def transform(backbone: Backbone) -> Transform:
    assert isinstance(backbone.preprocess, ImagePreprocess)
    return backbone.preprocess.transform


def there(name: str) -> str:
    if name not in timm.list_models():
        pytest.skip(f"timm {timm.__version__} has no {name}")
    return name


# Features


@pytest.mark.rotates(3)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_default_layer_is_what_timm_hands_to_its_classifier(name: str) -> None:
    backbone = load_backbone(f"timm:{there(name)}", weights="random:3")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model: Any = timm.create_model(name).eval()  # with its classifier
    model.load_state_dict(backbone.network.state_dict(), strict=False)
    images = as_images(backbone)
    with torch.inference_mode():
        expected = model.forward_head(model.forward_features(images), pre_logits=True)
        (given,) = backbone.module(images)
    assert [(tap.layer, tap.pooling, tap.shape) for tap in backbone.taps] == [("output", "none", expected.shape[1:])]
    assert backbone.taps[0].shape == (getattr(model, "head_hidden_size", model.num_features),)
    torch.testing.assert_close(given, expected)
    config = timm.data.resolve_model_data_config(model)
    assert (transform(backbone).crop, transform(backbone).mean) == (config["input_size"][1], tuple(config["mean"]))


@pytest.mark.slow
def test_a_network_whose_stages_have_no_names_of_their_own_has_no_mean_over_them() -> None:
    """timm names each of CrossViT's stages twice, once for each of its two branches."""
    with pytest.raises(BackboneError, match=r"'blocks\.0', 197 x 192 .* no mean over them"):
        load_backbone(f"timm:{there('crossvit_tiny_240')}", weights="random:3", layer="all-blocks", pooling="mean")


@pytest.mark.rotates(6)
@pytest.mark.parametrize("name", [name for name in NETWORKS if "crossvit" not in str(name)])
def test_all_blocks_are_the_stages_that_timm_names(name: str) -> None:
    """Their mean over positions is that of timm's own forward_intermediates, however the network was cut."""
    backbone = load_backbone(f"timm:{there(name)}", weights="random:3", layer="all-blocks", pooling="mean")
    model: Any = backbone.network
    images = as_images(backbone)
    with torch.inference_mode():
        maps = model.forward_intermediates(images, intermediates_only=True)
        given = backbone.module(images)
    named = {info["module"]: found for info, found in zip(model.feature_info, maps, strict=True)}
    assert [tap.layer for tap in backbone.taps] == sorted(named)
    for tap, features_ in zip(backbone.taps, given, strict=True):
        expected = named[tap.layer].mean((2, 3))
        assert (features_ - expected).norm() <= 1e-4 * expected.norm(), tap.layer


@pytest.mark.rotates(3)
def test_a_layer_by_its_name_and_the_names_that_there_are() -> None:
    backbone = load_backbone("timm:test_vit", weights="random", layer=["blocks.1", "blocks.1.norm1:mean", "output"])
    assert [(tap.layer, len(tap.shape)) for tap in backbone.taps] == [
        ("blocks.1", 2),
        ("blocks.1.norm1", 1),
        ("output", 1),
    ]
    named = layer_names("timm:test_vit")
    assert named[0] == "input"
    assert any(one.startswith("blocks.1.norm1") for one in named)
    with pytest.raises(BackboneError, match="no layer 'blocks.77'"):
        load_backbone("timm:test_vit", weights="random", layer="blocks.77")


@pytest.mark.rotates(3)
def test_a_network_that_fx_cannot_trace_has_its_output_and_its_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its forward asks for a value of its input, as no traced code may; timm's own methods do not go through it."""
    kind = type(timm.create_model("test_vit"))
    plain = kind.forward_features

    def asks(self: Any, x: torch.Tensor, *more: Any, **options: Any) -> Any:
        return plain(self, x, *more, **options) if x.sum() >= 0 else plain(self, x)

    monkeypatch.setattr(kind, "forward_features", asks)
    backbone = load_backbone("timm:test_vit", weights="random")
    assert backbone.taps[0].shape == (64,)
    both = load_backbone("timm:test_vit", weights="random", layer=["blocks.3", "output"])
    assert [(tap.layer, tap.axes) for tap in both.taps] == [
        ("blocks.3", ("channel", "height", "width")),
        ("output", ("channel",)),
    ]
    images = as_images(both)
    with torch.inference_mode():
        stage, output = both.module(images)
        torch.testing.assert_close(output, backbone.module(images)[0])
        expected = both.network.forward_intermediates(images, indices=[3], intermediates_only=True)[0]  # type: ignore[operator]
    torch.testing.assert_close(stage, expected)
    with pytest.raises(BackboneError, match="cannot trace"):
        load_backbone("timm:test_vit", weights="random", layer="blocks.3.norm1")
    with pytest.raises(BackboneError, match="cannot trace"):
        tail_of(backbone, "blocks.3")


@pytest.mark.rotates(3)
@pytest.mark.parametrize(("name", "layer"), [("test_resnet", "layer3"), ("test_vit", "blocks.2")])
def test_a_tail_goes_on_where_its_network_was_cut(name: str, layer: str) -> None:
    whole = load_backbone(f"timm:{name}", weights="random:1")
    cut = load_backbone(f"timm:{name}", weights="random:1", layer=layer, pooling="none")
    tail, images = tail_of(cut, layer), as_images(whole)
    with torch.inference_mode():
        torch.testing.assert_close(tail(cut.module(images)[0]), whole.module(images)[0], rtol=1e-4, atol=1e-5)


# Weights and names


@pytest.mark.rotates(3)
def test_a_folder_gives_its_own_weights_and_transform(folder: Path) -> None:
    backbone = load_backbone(f"timm:{folder}")
    assert (backbone.name, backbone.is_code, backbone.notes) == ("timm:test_vit", False, ())
    assert backbone.source == {"kind": "folder", "path": str(folder)}
    assert transform(backbone) == Transform(200, 160, "bicubic", (0.4, 0.5, 0.6), transform(backbone).std)
    theirs: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    weights = {name: value for name, value in theirs.state_dict().items() if not name.startswith("head.")}
    assert backbone.weights == digest_of(weights)
    pixels = timm.data.create_transform(**timm.data.resolve_model_data_config(theirs), is_training=False)
    picture = make_image(5, (320, 240))
    picture.save(folder.parent / "picture.png")  # no JPEG: Pillow makes all of its pixels, here and there
    with torch.inference_mode():
        expected = theirs.forward_head(theirs.forward_features(pixels(picture)[None]), pre_logits=True)[0]
    given = features(backbone, (folder.parent / "picture.png").read_bytes())
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.rotates(3)
def test_the_key_names_timm_and_its_release(folder: Path) -> None:
    spec = load_backbone(f"timm:{folder}").spec(precision="fp32", storage="float32")
    assert spec["backend"]["timm"] == timm.__version__
    assert "backend" not in load_backbone("tiny").spec(precision="fp32", storage="float32")


@pytest.mark.rotates(3)
def test_what_a_folder_s_network_is_built_with_is_part_of_the_key(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    config["model_args"] = {**config.get("model_args", {}), "img_size": [160, 160], "dynamic_img_size": True}
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    backbone = load_backbone(f"timm:{tmp_path}/other")
    assert backbone.settings["backend"]["arguments"]["dynamic_img_size"] is True
    assert load_backbone(f"timm:{folder}").settings != backbone.settings


@pytest.mark.rotates(6)
def test_weights_from_a_file_and_random_ones(folder: Path, tmp_path: Path) -> None:
    state = timm.create_model(f"local-dir:{folder}", pretrained=True).state_dict()
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "w.pth")
    whole = load_backbone(f"timm:{folder}")
    assert load_backbone("timm:test_vit", weights=str(tmp_path / "w.pth")).weights == whole.weights
    digests = [load_backbone("timm:test_vit", weights=one).weights for one in ("random", "random:0", "random:1")]
    assert digests[0] == digests[1] != digests[2]
    note = load_backbone("timm:test_vit", weights="random").notes[0]
    assert "weights are random" in note


@pytest.mark.rotates(3)
def test_no_value_of_a_network_is_random_unasked(folder: Path, tmp_path: Path) -> None:
    """timm itself leaves what a file lacks as it was made, and says so in a log at most."""
    state = timm.create_model(f"local-dir:{folder}", pretrained=True).state_dict()
    del state["blocks.1.attn.qkv.weight"], state["norm.bias"]
    save_file(state, tmp_path / "part.safetensors")
    with pytest.raises(WeightsError, match=r"2 missing: blocks\.1\.attn\.qkv\.weight, norm\.bias"):
        load_backbone("timm:test_vit", weights=str(tmp_path / "part.safetensors"))
    with pytest.raises(WeightsError, match="do not fit test_resnet"):
        load_backbone("timm:test_resnet", weights=str(folder / "model.safetensors"))
    name = next(one for one in timm.list_models() if not timm.list_pretrained(f"{one}.*"))
    with pytest.raises(WeightsError, match=f"no pretrained weights of {name}") as caught:
        load_backbone(f"timm:{name}")
    assert "random:SEED" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "weights", "says", "hint"),
    [
        ("timm:resnet19", "random", "timm has no model 'resnet19'.*timm:resnet18", "precompute backbones timm:"),
        ("timm:", "random", "timm has no model ''", "precompute backbones timm:"),
        ("timm:resnet18.a9_in1k", "random", "no weights 'a9_in1k' of resnet18", "a1_in1k"),
        ("timm:resnet18", "IMAGENET1K_V1", "no weights 'IMAGENET1K_V1'", "a1_in1k"),
        ("timm:resnet18", "DEFAULT@main", "'main' is not a revision", "a1_in1k@"),
        ("timm:./nowhere", "DEFAULT", "There is no folder ./nowhere", "config.json"),
    ],
)
def test_what_there_is_not_is_named_with_what_there_is(name: str, weights: str, says: str, hint: str) -> None:
    with pytest.raises((BackboneError, WeightsError), match=says) as caught:
        load_backbone(name, weights=weights)
    assert hint in caught.value.hint


def test_pictures_are_squashed_where_timm_says_so(tmp_path: Path) -> None:
    name = next(
        one
        for one in timm.list_pretrained("convnext_base.*")
        if timm.models.get_pretrained_cfg(one).crop_mode == "squash"
    )
    model = timm.create_model(
        "test_convnext", pretrained_cfg=timm.models.get_pretrained_cfg(name).to_dict(), num_classes=0
    )
    ours = transform_of(model, name)
    assert ours.squash
    theirs = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    picture = make_image(2, (500, 260))
    expected = theirs(picture) * torch.tensor(ours.std).view(3, 1, 1) + torch.tensor(ours.mean).view(3, 1, 1)
    torch.testing.assert_close(ours.apply_pil(picture).float() / 255, expected)
    assert Transform.from_spec(ours.spec()) == ours
    assert "squash" not in Transform().spec()
    model.pretrained_cfg["crop_mode"] = "border"
    with pytest.raises(BackboneError, match="crop_mode 'border'"):
        transform_of(model, name)


# Files of features and heads


@pytest.mark.rotates(6)
def test_a_head_finds_its_folder_again_and_no_other(folder: Path, photos: Path, tmp_path: Path) -> None:
    place = shutil.copytree(folder, tmp_path / "vit")
    extract(photos, tmp_path / "a.h5", backbone=f"timm:{place}")
    train_head(tmp_path / "a.h5", tmp_path / "head.safetensors")
    plain = predict(tmp_path / "head.safetensors", photos).items
    moved = place.rename(tmp_path / "moved")
    with pytest.raises(HeadMismatchError, match="no longer at") as caught:
        predict(tmp_path / "head.safetensors", photos)
    assert "-b timm:FOLDER" in caught.value.hint
    again = predict(tmp_path / "head.safetensors", photos, backbone=f"timm:{moved}").items
    assert plain == again
    with pytest.raises(HeadMismatchError, match="not on timm:resnet18"):
        predict(tmp_path / "head.safetensors", photos, backbone="timm:resnet18")


@pytest.mark.rotates(6)
def test_a_changed_config_is_noticed(folder: Path, photos: Path, tmp_path: Path) -> None:
    place = shutil.copytree(folder, tmp_path / "vit")
    extract(photos, tmp_path / "a.h5", backbone=f"timm:{place}")
    assert extract(photos, tmp_path / "a.h5", backbone=f"timm:{place}").computed == 0
    config = json.loads((place / "config.json").read_text())
    config["pretrained_cfg"]["mean"] = [0.1, 0.1, 0.1]
    (place / "config.json").write_text(json.dumps(config))
    with pytest.raises(Exception, match=r"transform\.mean"):
        extract(photos, tmp_path / "a.h5", backbone=f"timm:{place}")
    assert open_cache(tmp_path / "a.h5").spec["transform"]["mean"] == [0.4, 0.5, 0.6]


# The hub


class Models(Hub):
    """Serves a folder as a repository of weights."""

    def answer(self, address: str) -> tuple[bytes, dict[str, str]] | None:
        return super().answer(f"/datasets{address}" if "/resolve/" in address else address)


HUB = """
import json
from precompute import load_backbone
from precompute.errors import PrecomputeError
try:
    one = load_backbone({name!r}, weights={weights!r})
    print(json.dumps([one.name, one.weights, one.source]))
except PrecomputeError as error:
    print(json.dumps([error.message, error.hint]))
"""


@pytest.mark.rotates(6)
def test_weights_of_the_hub_are_fetched_once_and_pinned(folder: Path, tmp_path: Path) -> None:
    name = next(iter(timm.list_pretrained("test_vit.*")))
    served = tmp_path / "served"
    served.mkdir()
    shutil.copy(folder / "model.safetensors", served)
    with Models(served, f"timm/{name}") as hub:
        around = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        done = run_python(HUB.format(name="timm:test_vit", weights="DEFAULT"), **around)
        found = json.loads(done.stdout or "[]")
        assert done.returncode == 0, done.stderr
        entry = f"{name.partition('.')[2]}@{COMMIT}"
        source = {"kind": "entry", "entry": entry, "repository": f"timm/{name}"}
        assert found == [f"timm:{name}", load_backbone(f"timm:{folder}").weights, source]
    offline = {**around, "HF_HUB_OFFLINE": "1"}
    for weights in ("DEFAULT", entry):
        done = run_python(HUB.format(name=f"timm:{name}", weights=weights), **offline)
        assert json.loads(done.stdout) == found, done.stderr
    done = run_python(HUB.format(name="timm:test_resnet", weights="DEFAULT"), **offline)
    message, hint = json.loads(done.stdout)
    assert "timm/test_resnet." in message
    assert str(tmp_path / "home") in message
    assert "--weights PATH" in hint


@pytest.mark.rotates(6)
def test_a_pickle_on_the_hub_is_not_taken(folder: Path, tmp_path: Path) -> None:
    name = next(iter(timm.list_pretrained("test_vit.*")))
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with Models(tmp_path / "served", f"timm/{name}") as hub:
        around = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        done = run_python(HUB.format(name="timm:test_vit", weights="DEFAULT"), **around)
        assert "no model.safetensors" in json.loads(done.stdout)[0], done.stderr
        assert not [one for one in hub.requests if "pytorch_model" in one]


# The list


@pytest.mark.rotates(3)
def test_the_list_is_made_without_memory_and_without_a_download() -> None:
    (entry,) = [one for one in catalog("timm:test_vit*") if one.name == "timm:test_vit"]
    assert (entry.width, entry.input_size, entry.layer) == (64, 160, "output")
    assert entry.weights == tuple(one.partition(".")[2] for one in timm.list_pretrained("test_vit.*"))
    assert entry.params == sum(one.numel() for one in timm.create_model("test_vit", num_classes=0).parameters())
    many = catalog("timm:resnet*")
    assert len(many) > 20
    assert {one.params for one in many} == {None}
    assert describe("timm:vit_huge_patch14_224").params > 600_000_000  # type: ignore[operator]
    with pytest.raises(BackboneError, match="timm has no model"):
        catalog("timm:zzz")


# The real thing


@pytest.mark.rotates(6)
def test_an_imagenet_network_sees_in_photos_what_timm_sees(hymenoptera: Path) -> None:
    weights = hymenoptera.parent.parent / "weights" / "timm_efficientnet_lite0"
    if not weights.is_dir():
        pytest.skip("needs ../shared/weights/timm_efficientnet_lite0, which is not there")
    theirs: Any = timm.create_model(f"local-dir:{weights}", pretrained=True).eval()
    pixels = timm.data.create_transform(**timm.data.resolve_model_data_config(theirs), is_training=False)
    backbone = load_backbone(f"timm:{weights}")
    paths = sorted((hymenoptera / "val").rglob("*.jpg"))[::16]
    with torch.inference_mode():
        images = torch.stack([pixels(Image.open(path).convert("RGB")) for path in paths])
        expected = theirs.forward_head(theirs.forward_features(images), pre_logits=True)
        given = torch.stack([features(backbone, path.read_bytes()) for path in paths])
        assert (given - expected).norm() <= 5e-3 * expected.norm()
        classifier = theirs.get_classifier()
        assert torch.equal(classifier(given).argmax(1), classifier(expected).argmax(1))


@pytest.mark.rotates(3)
def test_features_do_not_depend_on_who_asks(folder: Path) -> None:
    before = torch.random.get_rng_state()
    one, other = (load_backbone(f"timm:{folder}") for _ in range(2))
    assert torch.equal(features(one, real_photo()), features(other, real_photo()))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not any(module.training for module in one.module.modules())
    assert not any(parameter.requires_grad for parameter in one.network.parameters())
    assert os.path.isabs(one.source["path"])
