"""Image models of transformers: the features of the library's own calls, on the pictures of its own processors.

The library's processors exist twice, with Pillow and with torchvision, whose pixels differ by rounding. Of a PNG ours
are Pillow's; so features are compared on those, and pixels with both to within what rounding gives.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_image
from contracts import BackboneContract
from reference import features, real_photo, transform_of
from safetensors.torch import load_file, save_file
from torch import nn

from precompute import extract, fine_tune, load_backbone, open_cache, predict, train_head
from precompute.backbones.catalog import describe
from precompute.backbones.families.hf_encoder import Encoder
from precompute.backbones.load import Backbone
from precompute.backbones.tail import tail_of
from precompute.errors import BackboneError, PrecomputeError, WeightsError
from precompute.inputs.images.decode import decode
from precompute.inputs.images.transform import Transform

transformers: Any = pytest.importorskip(
    "transformers", reason="transformers is not installed: pip install 'precompute[hf]'"
)

VIT = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
TEXT = {
    "vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 37,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
}  # fmt: skip
STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]}
SHORTER = {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}}
EXACT = {"size": {"height": 32, "width": 32}}
SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 2], "num_heads": [2, 2], "window_size": 4}

MODELS: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "vit": ("ViTModel", VIT, "ViTImageProcessor", EXACT),
    "deit": (
        "DeiTModel", VIT, "DeiTImageProcessor",
        {"size": {"height": 40, "width": 40}, "crop_size": {"height": 32, "width": 32}},
    ),
    "beit": ("BeitModel", {**VIT, "use_mean_pooling": True}, "BeitImageProcessor", EXACT),
    "dinov2": ("Dinov2Model", VIT, "BitImageProcessor", SHORTER),
    "registers": (
        "Dinov2WithRegistersModel", {**VIT, "num_register_tokens": 4}, "BitImageProcessor",
        {**SHORTER, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
    ),
    "dinov3": ("DINOv3ViTModel", {**VIT, "num_register_tokens": 4}, "DINOv3ViTImageProcessor", EXACT),
    "dinov3-convnext": ("DINOv3ConvNextModel", {**STAGES, "image_size": 32}, "DINOv3ViTImageProcessor", EXACT),
    "clip": (
        "CLIPModel", {"text_config": TEXT, "vision_config": VIT, "projection_dim": 24}, "CLIPImageProcessor", SHORTER,
    ),
    "clip-tower": ("CLIPVisionModel", VIT, "CLIPImageProcessor", SHORTER),
    "clip-projected": (
        "CLIPVisionModelWithProjection", {**VIT, "projection_dim": 20}, "CLIPImageProcessor", SHORTER,
    ),
    "siglip": ("SiglipModel", {"text_config": TEXT, "vision_config": VIT}, "SiglipImageProcessor", EXACT),
    "siglip-tower": ("SiglipVisionModel", VIT, "SiglipImageProcessor", EXACT),
    "swin": ("SwinModel", SWIN, "ViTImageProcessor", EXACT),
    "convnext": ("ConvNextModel", STAGES, "ConvNextImageProcessor", {"size": {"shortest_edge": 32}}),
    "resnet": (
        "ResNetModel", {**STAGES, "embedding_size": 8, "layer_type": "basic"}, "ConvNextImageProcessor",
        {"size": {"shortest_edge": 400}},
    ),
}  # fmt: skip
WITHOUT_PILLOW = ("dinov3", "dinov3-convnext")
"""Whose processor exists with torchvision alone, which resizes before it rounds to grey levels."""

PICTURE = (330, 240)
"""Its crop begins between two pixels where the shorter side becomes 40: 55 - 32 is odd."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Any]]:
    """A folder with a random model and its processor, as the library saves them; and the model."""
    root, made = tmp_path_factory.mktemp("hf"), {}

    def of(kind: str) -> tuple[Path, Any]:
        if kind not in made:
            network, config, processor, settings = MODELS[kind]
            found = getattr(transformers, network)
            with torch.random.fork_rng():
                torch.manual_seed(3)
                model = found(found.config_class(**config)).eval()
            model.save_pretrained(root / kind)
            getattr(transformers, processor)(**settings).save_pretrained(root / kind)
            made[kind] = root / kind, model
        return made[kind]

    return of


@pytest.fixture
def picture(tmp_path: Path) -> bytes:
    """A PNG."""
    make_image(5, PICTURE).save(tmp_path / "picture.png")
    return (tmp_path / "picture.png").read_bytes()


def pixels_of(folder: Path, backend: str) -> torch.Tensor:
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend=backend)
    found: torch.Tensor = processor(images=make_image(5, PICTURE), return_tensors="pt")["pixel_values"]
    return found


def own_call(kind: str, model: Any, pixels: torch.Tensor) -> torch.Tensor:
    """What the library's users take for the features of a picture."""
    if hasattr(model, "get_image_features"):
        found = model.get_image_features(pixel_values=pixels)
        return found if isinstance(found, torch.Tensor) else found.pooler_output  # an object since 5, a tensor before
    found = model(pixel_values=pixels)
    if hasattr(found, "image_embeds"):
        return found.image_embeds
    pools = kind in ("beit", "clip-tower", "siglip-tower", "swin", "convnext", "resnet")
    return found.pooler_output.flatten(1) if pools else found.last_hidden_state[:, 0]


def as_pixels(backbone: Backbone, data: bytes) -> torch.Tensor:
    transform = transform_of(backbone)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (transform.mean, transform.std))
    return (decode(data, transform).float() / 255 - mean) / std


def encoder_of(backbone: Backbone) -> Encoder:
    assert isinstance(backbone.network, Encoder)
    return backbone.network


def images(backbone: Backbone) -> torch.Tensor:
    side = transform_of(backbone).crop
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(9))


# Features


@pytest.mark.rotates(3)
@pytest.mark.parametrize("kind", MODELS)
def test_features_are_those_of_the_library_s_own_call(
    folders: Callable[[str], tuple[Path, Any]], picture: bytes, kind: str
) -> None:
    folder, model = folders(kind)
    backbone = load_backbone(f"hf:{folder}")
    with torch.inference_mode():
        # Where there is none with Pillow, the network alone: its pixels are in the next test
        pixels = as_pixels(backbone, picture)[None] if kind in WITHOUT_PILLOW else pixels_of(folder, "pil")
        expected = own_call(kind, model, pixels)[0]
    assert [(tap.layer, tap.shape) for tap in backbone.taps] == [("output", tuple(expected.shape))]
    torch.testing.assert_close(features(backbone, picture), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.rotates(3)
@pytest.mark.parametrize("kind", MODELS)
def test_pixels_are_those_of_the_library_s_processors(
    folders: Callable[[str], tuple[Path, Any]], picture: bytes, kind: str
) -> None:
    """To two grey levels: Pillow and torchvision's kernels round after each axis, or DINOv3's processor never does, and
    what was rounded for the first axis is weighed by up to 1.5 along the second.
    """
    folder, _ = folders(kind)
    backbone = load_backbone(f"hf:{folder}")
    ours = as_pixels(backbone, picture)
    level = 1 / 255 / min(transform_of(backbone).std)
    assert (ours - pixels_of(folder, "torchvision")[0]).abs().max() <= 2.01 * level
    if kind not in WITHOUT_PILLOW:
        torch.testing.assert_close(ours, pixels_of(folder, "pil")[0], rtol=1e-5, atol=1e-5)


@pytest.mark.rotates(3)
@pytest.mark.parametrize(
    ("kind", "prefix"),
    [("vit", 1), ("deit", 2), ("dinov2", 1), ("registers", 5), ("dinov3", 5), ("dinov3-convnext", 1), ("clip", 1),
     ("siglip", 0), ("convnext", 0)],
)  # fmt: skip
def test_every_pooling_is_what_it_says(folders: Callable[[str], tuple[Path, Any]], kind: str, prefix: int) -> None:
    """prefix: the class token, registers and the like, which stand for no place and are in no mean."""
    folder, model = folders(kind)
    tower = getattr(model, "vision_model", model)
    known = load_backbone(f"hf:{folder}")
    pixels = images(known)
    with torch.inference_mode():
        found = tower(pixel_values=pixels)
        tokens = found.last_hidden_state
        tokens = tokens.flatten(2).transpose(1, 2) if tokens.ndim == 4 else tokens
        expected = {
            "none": tokens,
            "mean": tokens[:, prefix:].mean(1),
            "max": tokens[:, prefix:].amax(1),
            "pooler": found.pooler_output,
            **({"cls": tokens[:, 0]} if prefix else {}),
            **({"projection": own_call(kind, model, pixels)} if kind == "clip" else {}),
        }
        assert set(encoder_of(known).poolings) == set(expected)
        for pooling, wanted in expected.items():
            backbone = load_backbone(f"hf:{folder}", pooling=pooling)
            assert backbone.taps[0].axes == (("token", "channel") if pooling == "none" else ("channel",))
            torch.testing.assert_close(backbone.module(pixels)[0], wanted, rtol=1e-4, atol=1e-5)
    for pooling in {"cls", "projection", "mean_sqrt_len"} - set(expected):
        with pytest.raises(BackboneError, match=f"no '{pooling}' pooling") as caught:
            load_backbone(f"hf:{folder}", pooling=pooling)
        assert "mean" in caught.value.hint


def test_dinov2_s_pooler_is_its_class_token_behind_the_last_norm(
    folders: Callable[[str], tuple[Path, Any]],
) -> None:
    folder, _ = folders("dinov2")
    both = [load_backbone(f"hf:{folder}", pooling=pooling) for pooling in ("cls", "pooler")]
    with torch.inference_mode():
        assert torch.equal(*(one.module(images(one))[0] for one in both))


def test_a_model_of_two_towers_gives_one_in_its_own_width(folders: Callable[[str], tuple[Path, Any]]) -> None:
    """A whole CLIP says itself what it projects to; its image tower's settings may say something else."""
    folder, model = folders("clip")
    assert model.config.vision_config.projection_dim != model.config.projection_dim == 24
    backbone = load_backbone(f"hf:{folder}")
    assert not [name for name in backbone.network.state_dict() if "text" in name]
    assert "text_model" in backbone.notes[0]
    entry = describe(f"hf:{folder}")
    assert (entry.width, entry.input_size, entry.layer, entry.modality) == (24, 32, "output", "image")
    assert entry.params == sum(one.numel() for one in backbone.network.parameters())


class TestImageTowers(BackboneContract):
    @pytest.fixture(params=["clip", "registers", "convnext"])
    def backbone(self, folders: Callable[[str], tuple[Path, Any]], request: pytest.FixtureRequest) -> Backbone:
        folder, _ = folders(request.param)
        blocks = load_backbone(f"hf:{folder}", layer="all-blocks", pooling="mean").taps
        return load_backbone(f"hf:{folder}", layer=["output", f"{blocks[0].layer}:none"])


# Layers


@pytest.mark.rotates(3)
@pytest.mark.parametrize("kind", ["vit", "registers", "dinov3-convnext", "clip", "siglip", "swin"])
def test_all_blocks_are_what_its_layers_give(folders: Callable[[str], tuple[Path, Any]], kind: str) -> None:
    """The last one too, which the library's own `hidden_states` has behind the last norm in some models."""
    folder, _ = folders(kind)
    backbone = load_backbone(f"hf:{folder}", layer="all-blocks", pooling="mean")
    network, seen = encoder_of(backbone).network, {}

    def remember(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, given: Any, result: Any) -> None:
            seen[name] = result[0] if isinstance(result, tuple) else result

        return hook

    for tap in backbone.taps:
        network.get_submodule(tap.layer).register_forward_hook(remember(tap.layer))
    with torch.inference_mode():
        given = backbone.module(images(backbone))
    prefix = {"vit": 1, "registers": 5, "clip": 1}.get(kind, 0)
    assert len(seen) == len(backbone.taps) >= 2
    for tap, features_ in zip(backbone.taps, given, strict=True):
        state = seen[tap.layer]
        state = state.flatten(2).transpose(1, 2) if state.ndim == 4 else state
        torch.testing.assert_close(features_, state[:, prefix:].mean(1), rtol=1e-4, atol=1e-5)


def test_a_layer_and_the_output_in_one_pass(folders: Callable[[str], tuple[Path, Any]]) -> None:
    folder, _ = folders("vit")
    both = load_backbone(f"hf:{folder}", layer=["layers.1:none", "output"])
    assert [(tap.layer, tap.pooling, tap.shape) for tap in both.taps] == [
        ("layers.1", "none", (17, 32)),
        ("output", "cls", (32,)),
    ]
    with pytest.raises(BackboneError, match="no layer 'layers.9'"):
        load_backbone(f"hf:{folder}", layer="layers.9")
    folder, _ = folders("dinov3-convnext")
    with pytest.raises(BackboneError, match="has no class token"):
        load_backbone(f"hf:{folder}", layer="model.stages.1:cls")


# Pictures


ViT = {"image_processor_type": "ViTImageProcessor"}
CLIP = {"image_processor_type": "CLIPImageProcessor"}
SIGLIP = {"image_processor_type": "SiglipImageProcessor"}
CONVNEXT = {"image_processor_type": "ConvNextImageProcessor"}
FORMS: dict[str, tuple[dict[str, Any], tuple[int, int, str, bool]]] = {
    "nothing but the kind": (ViT, (224, 224, "bilinear", True)),
    "one number for both sides": (
        {"feature_extractor_type": "ViTFeatureExtractor", "size": 64}, (64, 64, "bilinear", True),
    ),
    "one number for the shorter side": (
        {"feature_extractor_type": "CLIPFeatureExtractor", "size": 64, "crop_size": 48},
        (64, 48, "bicubic", False),
    ),
    "nothing at all, so the model's own": ({}, (384, 384, "bicubic", True)),
    "DINOv2's": (
        {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 256}, "resample": 3,
         "crop_size": {"height": 224, "width": 224}, "do_center_crop": True},
        (256, 224, "bicubic", False),
    ),
    "SigLIP's": ({**SIGLIP, "size": {"height": 384, "width": 384}}, (384, 384, "bicubic", True)),
    "the fast one's": (
        {"image_processor_type": "DINOv3ViTImageProcessorFast", "size": {"height": 64, "width": 64}, "resample": 2,
         "default_to_square": True, "data_format": "channels_first", "crop_size": None, "do_center_crop": None},
        (64, 64, "bilinear", True),
    ),
    "small ConvNeXT's": ({**CONVNEXT, "size": {"shortest_edge": 224}, "crop_pct": 0.875}, (256, 224, "bicubic", False)),
    "large ConvNeXT's": ({**CONVNEXT, "size": {"shortest_edge": 384}}, (384, 384, "bicubic", True)),
    "Lanczos": ({**ViT, "resample": 1}, (224, 224, "lanczos", True)),
}  # fmt: skip


def with_processor(folder: Path, place: Path, values: dict[str, Any], name: str = "preprocessor_config.json") -> str:
    shutil.copytree(folder, place)
    (place / "preprocessor_config.json").unlink(missing_ok=True)
    (place / name).write_text(json.dumps(values))
    return f"hf:{place}"


@pytest.mark.parametrize("form", FORMS)
def test_a_processor_s_file_in_any_of_its_forms(
    folders: Callable[[str], tuple[Path, Any]], tmp_path: Path, form: str
) -> None:
    values, expected = FORMS[form]
    folder, _ = folders("resnet")  # it takes pictures of any size
    name = with_processor(folder, tmp_path / "model", values)
    found = transform_of(load_backbone(name, layer="output", pooling="mean"))
    assert (found.resize, found.crop, found.interpolation, found.squash) == expected


def test_a_processor_nested_in_that_of_two_modalities(
    folders: Callable[[str], tuple[Path, Any]], tmp_path: Path
) -> None:
    folder, _ = folders("clip")
    values = {"processor_class": "CLIPProcessor", "image_processor": {**CLIP, **SHORTER, "image_std": [0.1, 0.2, 0.3]}}
    name = with_processor(folder, tmp_path / "model", values, "processor_config.json")
    assert transform_of(load_backbone(name)).std == (0.1, 0.2, 0.3)


def test_pictures_that_are_not_normalised(folders: Callable[[str], tuple[Path, Any]], tmp_path: Path) -> None:
    folder, _ = folders("vit")
    name = with_processor(folder, tmp_path / "model", {**ViT, **EXACT, "do_normalize": False})
    found = transform_of(load_backbone(name))
    assert (found.mean, found.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another kind": ({"image_processor_type": "PixtralImageProcessor"}, "image_processor_type 'PixtralImageProcessor'"),
    "patches of any shape": ({"image_processor_type": "Siglip2ImageProcessor"}, "image_processor_type 'Siglip2Image"),
    "no squares": ({**ViT, "size": {"height": 32, "width": 64}}, "size {'height': 32, 'width': 64}"),
    "a longest side": ({**ViT, "size": {"shortest_edge": 32, "longest_edge": 64}}, "longest_edge"),
    "no resize": ({**ViT, "do_resize": False}, "do_resize False"),
    "no rescale": ({**ViT, "do_rescale": False}, "do_rescale False"),
    "another scale": ({**ViT, "rescale_factor": 1 / 127.5}, "rescale_factor 0.0078"),
    "no crop of the shorter side": ({**CLIP, "do_center_crop": False}, "size 224, without do_center_crop"),
    "padding": ({**ViT, "do_pad": True}, "do_pad True"),
    "a step of its own": ({**ViT, "do_flip_channel_order": True}, "do_flip_channel_order True"),
    "an absurd size": ({**ViT, "size": 10**9}, "size 1000000000"),
    "an absurd crop": ({**CLIP, "crop_size": 10**9}, "crop_size 1000000000"),
    "no number of Pillow's": ({**ViT, "resample": 9}, "resample 9"),
    "two channels": ({**ViT, "image_mean": [0.5, 0.5]}, "image_mean"),
    "no deviation": ({**ViT, "image_std": [0, 0, 0]}, r"image_std as \[0, 0, 0\], which is out of range"),
    "an absurd part": ({**CONVNEXT, "size": {"shortest_edge": 224}, "crop_pct": 1e-9}, "crop_pct 1e-09"),
    "code": ({**ViT, "auto_map": {"AutoImageProcessor": "mine.Mine"}}, "requests that code be run"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_pictures_cannot_be_made_is_named_with_its_field(
    folders: Callable[[str], tuple[Path, Any]], tmp_path: Path, case: str
) -> None:
    values, says = REFUSED[case]
    name = with_processor(folders("vit")[0], tmp_path / "model", values)
    with pytest.raises(PrecomputeError, match=says.replace("{", r"\{").replace("}", r"\}")) as caught:
        load_backbone(name)
    assert "preprocessor_config.json" in str(caught.value)


def test_a_folder_without_a_processor(folders: Callable[[str], tuple[Path, Any]], tmp_path: Path) -> None:
    place = Path(shutil.copytree(folders("vit")[0], tmp_path / "model"))
    (place / "preprocessor_config.json").rename(tmp_path / "outside.json")
    with pytest.raises(BackboneError, match="has no preprocessor_config.json") as caught:
        load_backbone(f"hf:{place}")
    assert "AutoImageProcessor" in caught.value.hint
    (place / "preprocessor_config.json").symlink_to(tmp_path / "outside.json")
    with pytest.raises(WeightsError, match="out of the folder"):
        load_backbone(f"hf:{place}")


def test_a_crop_that_begins_between_two_pixels() -> None:
    """Down, as transformers does it, for each odd difference; and black around what is too small."""
    from torchvision.transforms.functional import pil_to_tensor

    for width in range(33, 45):
        image = make_image(1, (width, 32))
        pixels = pil_to_tensor(image)
        start = (width - 32) // 2
        found = Transform(32, 32, floor_crop=True)
        assert torch.equal(found.apply_pil(image), pixels[:, :, start : start + 32])
        assert torch.equal(found.apply_tensor(pixels), pixels[:, :, start : start + 32])
    small = Transform(16, 33, floor_crop=True)
    for made in (small.apply_pil(make_image(1, (20, 16))), small.apply_tensor(pil_to_tensor(make_image(1, (20, 16))))):
        assert made.shape == (3, 33, 33)
        assert not made[:, :8].any() and not made[:, :, :6].any()
        assert torch.equal(made[:, 8:24, 6:26], pil_to_tensor(make_image(1, (20, 16))))
    assert Transform.from_spec(small.spec()) == small
    assert "floor_crop" not in Transform().spec()


# Weights


def test_weights_of_an_image_tower_in_the_forms_there_are(
    folders: Callable[[str], tuple[Path, Any]], tmp_path: Path
) -> None:
    """Without the text tower, in half precision, and of a tower alone as older releases have saved it."""
    folder, _ = folders("clip")
    whole = load_backbone(f"hf:{folder}")
    place = Path(shutil.copytree(folder, tmp_path / "alone"))
    state = load_file(place / "model.safetensors")
    save_file(
        {name: value.half() for name, value in state.items() if name.startswith("vis")}, place / "model.safetensors"
    )
    half = load_backbone(f"hf:{place}")
    assert {one.dtype for one in half.network.parameters()} == {torch.float32}
    torch.testing.assert_close(features(half, real_photo()), features(whole, real_photo()), rtol=0.02, atol=0.02)
    older = Path(shutil.copytree(folders("clip-tower")[0], tmp_path / "older"))
    state = load_file(older / "model.safetensors")
    save_file({f"vision_model.{name}": value for name, value in state.items()}, older / "model.safetensors")
    same = load_backbone(f"hf:{folders('clip-tower')[0]}")
    assert load_backbone(f"hf:{older}").weights == same.weights


@pytest.mark.parametrize(
    ("kind", "name"),
    [("clip", "visual_projection.weight"), ("siglip", "vision_model.head.probe"), ("dinov2", "layernorm.bias")],
)
def test_no_value_is_random_unasked(
    folders: Callable[[str], tuple[Path, Any]], tmp_path: Path, kind: str, name: str
) -> None:
    place = Path(shutil.copytree(folders(kind)[0], tmp_path / "model"))
    state = load_file(place / "model.safetensors")
    del state[name]
    save_file(state, place / "model.safetensors")
    with pytest.raises(WeightsError, match=f"1 missing: .*{name.rpartition('.')[2]}|describes a network of"):
        load_backbone(f"hf:{place}")


def test_a_pooler_that_is_missing_is_no_feature(folders: Callable[[str], tuple[Path, Any]], tmp_path: Path) -> None:
    """As in folders of classifiers, whose class token is taken without it."""
    place = Path(shutil.copytree(folders("vit")[0], tmp_path / "model"))
    state = load_file(place / "model.safetensors")
    save_file(
        {name: value for name, value in state.items() if not name.startswith("pooler.")}, place / "model.safetensors"
    )
    assert torch.isfinite(features(load_backbone(f"hf:{place}"), real_photo())).all()
    with pytest.raises(BackboneError, match="no 'pooler' pooling"):
        load_backbone(f"hf:{place}", pooling="pooler")


@pytest.mark.parametrize(
    ("kind", "changes", "pictures", "says"),
    [
        ("swin", {"image_size": 1024, "window_size": 256}, {}, "values in addition to its parameters"),
        ("dinov3", {"patch_size": 1}, {"size": {"height": 1024, "width": 1024}}, "into more than 16,384 tokens"),
        ("vit", {"hidden_size": 2**20}, {}, "describes a network of"),
    ],
)
def test_what_would_take_all_memory_is_refused_before_it_does(
    folders: Callable[[str], tuple[Path, Any]],
    tmp_path: Path,
    kind: str,
    changes: dict[str, Any],
    pictures: dict[str, Any],
    says: str,
) -> None:
    place = Path(shutil.copytree(folders(kind)[0], tmp_path / "model"))
    for name, values in (("config.json", changes), ("preprocessor_config.json", pictures)):
        (place / name).write_text(json.dumps({**json.loads((place / name).read_text()), **values}))
    with pytest.raises(WeightsError, match=says):
        load_backbone(f"hf:{place}")


def test_a_siglip_without_its_pooler_is_asked_how_it_is_pooled(tmp_path: Path) -> None:
    config = transformers.SiglipVisionConfig(**VIT, vision_use_head=False)
    transformers.SiglipVisionModel(config).save_pretrained(tmp_path / "model")
    transformers.SiglipImageProcessor(**EXACT).save_pretrained(tmp_path / "model")
    with pytest.raises(BackboneError, match="precompute does not guess") as caught:
        load_backbone(f"hf:{tmp_path}/model")
    assert "none|mean|max" in caught.value.hint
    assert load_backbone(f"hf:{tmp_path}/model", pooling="mean").taps[0].shape == (32,)


# Files of features and heads


@pytest.mark.rotates(3)
def test_the_key_holds_the_pictures_the_pooling_and_the_library(
    folders: Callable[[str], tuple[Path, Any]], photos: Path, tmp_path: Path
) -> None:
    place = Path(shutil.copytree(folders("dinov2")[0], tmp_path / "model"))
    extract(photos, tmp_path / "a.h5", backbone=f"hf:{place}")
    spec = open_cache(tmp_path / "a.h5").spec
    assert spec["backend"]["transformers"] == transformers.__version__
    assert (spec["transform"]["resize"], spec["transform"]["crop"], spec["transform"]["floor_crop"]) == (40, 32, True)
    assert spec["layers"][0]["pooling"] == "cls"
    train_head(tmp_path / "a.h5", tmp_path / "head.safetensors")
    assert len(predict(tmp_path / "head.safetensors", photos).items) == 24
    with pytest.raises(PrecomputeError, match="pooling"):
        extract(photos, tmp_path / "a.h5", backbone=f"hf:{place}", pooling="mean")
    values = json.loads((place / "preprocessor_config.json").read_text())
    (place / "preprocessor_config.json").write_text(json.dumps({**values, "resample": 2}))
    with pytest.raises(PrecomputeError, match=r"transform\.interpolation"):
        extract(photos, tmp_path / "a.h5", backbone=f"hf:{place}")


@pytest.mark.rotates(3)
def test_the_whole_network_is_trained_and_no_part_of_it(
    folders: Callable[[str], tuple[Path, Any]], photos: Path, tmp_path: Path
) -> None:
    """It cannot be traced, so it begins at its input or not at all."""
    folder, _ = folders("clip")
    tuning = fine_tune(photos, tmp_path / "whole.safetensors", backbone=f"hf:{folder}", epochs=1, device="cpu")
    assert tuning.layer == "input"
    assert len(predict(tmp_path / "whole.safetensors", photos).items) == 24
    backbone = load_backbone(f"hf:{folder}", layer="vision_model.encoder.layers.1", pooling="none")
    with pytest.raises(BackboneError, match="cannot be traced") as caught:
        tail_of(backbone, "vision_model.encoder.layers.1")
    assert "precompute fine-tune SOURCE" in caught.value.hint


@pytest.mark.rotates(6)
@pytest.mark.parametrize("kind", ["vit", "clip"])
def test_the_engines_run_it_with_their_guard(
    folders: Callable[[str], tuple[Path, Any]],
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    """auto, which is OpenVINO on CPUs where it is installed and proves itself, else torch."""
    for name in ("PRECOMPUTE_ENGINE", "PRECOMPUTE_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    folder, _ = folders(kind)
    made = []
    for engine, precision in (("torch", "fp32"), ("auto", "auto")):
        path = tmp_path / f"{engine}.h5"
        extract(photos, path, backbone=f"hf:{folder}", engine=engine, precision=precision)
        made.append(torch.tensor(open_cache(path).features()[:]).float())
    assert torch.cosine_similarity(*made).min() >= 0.995  # of all photos; the guard's 0.999 is of one pass over 32
