"""open_clip's image towers: the features of its own `encode_image`, and nothing random, wrong or executed unasked."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_image, run_python
from contracts import BackboneContract
from hostile_folders import Change, Runs, linked, pickled, written
from hub_server import COMMIT, Hub
from reference import features, real_photo
from safetensors.torch import load_file, save_file

from precompute import extract, load_backbone, open_cache, predict, train_head
from precompute.backbones.catalog import catalog, describe, layer_names
from precompute.backbones.families import completion, family_of
from precompute.backbones.families.open_clip_towers import Tower
from precompute.backbones.load import Backbone
from precompute.backbones.tail import tail_of
from precompute.errors import BackboneError, HeadMismatchError, PrecomputeError, WeightsError
from precompute.inputs.images.transform import Transform

open_clip: Any = pytest.importorskip(
    "open_clip", reason="open_clip_torch is not installed: pip install 'precompute[open_clip]'"
)

TEXT = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
VIT = {"layers": 3, "width": 64, "head_width": 32, "patch_size": 8, "image_size": 32}
MULTIMODAL = {**TEXT, "attn_pooler_heads": 2, "mlp_ratio": 2, "dim_head": 16, "n_queries": 4}
MODELS: dict[str, dict[str, Any]] = {
    "vit": {"vision_cfg": VIT},
    "quick": {"vision_cfg": VIT, "quick_gelu": True},
    "average": {"vision_cfg": {**VIT, "pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True}},
    "resnet": {"vision_cfg": {"layers": [1, 1, 1, 1], "width": 16, "image_size": 64, "patch_size": None}},
    "timm": {
        "vision_cfg": {"timm_model_name": "test_vit", "timm_model_pretrained": False, "timm_pool": "avg",
                       "timm_proj": "linear", "image_size": 160},
        "custom_text": True,
    },
    "coca": {
        "vision_cfg": {**VIT, "attentional_pool": True, "attn_pooler_heads": 4, "output_tokens": True},
        "multimodal_cfg": MULTIMODAL,
        "custom_text": True,
    },
}  # fmt: skip
"""A model of each kind that open_clip has; the texts they come with are never looked at."""

PICTURES = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3], "interpolation": "bicubic", "resize_mode": "shortest"}


def save(path: Path, kind: str, *, half: bool = False, **pictures: Any) -> Any:
    """A folder with a random model, as open_clip saves it; and the model."""
    config = {"embed_dim": 32, "text_cfg": TEXT, **MODELS[kind]}
    text = {**TEXT, "output_tokens": True} if kind == "coca" else TEXT
    arguments = {name: value for name, value in config.items() if name not in ("custom_text", "text_cfg")}
    named = {"timm": open_clip.CustomTextCLIP, "coca": open_clip.CoCa}
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = named.get(kind, open_clip.CLIP)(**arguments, text_cfg=text).eval()
    path.mkdir(parents=True)
    shown = {**PICTURES, **pictures, "size": config["vision_cfg"]["image_size"], "mode": "RGB", "fill_color": 0}
    saved = {"model_cfg": {**config, "text_cfg": text}, "preprocess_cfg": shown}
    (path / "open_clip_config.json").write_text(json.dumps(saved))
    state = {name: value.half() if half else value for name, value in model.state_dict().items()}
    save_file({name: value.contiguous() for name, value in state.items()}, path / WEIGHTS)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "vit"
    save(path, "vit")
    return path


def library_s(model: Any, pictures: dict[str, Any]) -> Any:
    size = model.visual.image_size
    config = open_clip.transform.PreprocessCfg(size=size, **pictures)
    return open_clip.transform.image_transform_v2(config, is_train=False)


# Features


@pytest.mark.rotates(3)
@pytest.mark.parametrize("kind", MODELS)
def test_features_are_those_of_encode_image(kind: str, tmp_path: Path) -> None:
    """On a PNG, of which Pillow makes all pixels, here and there: by rounding alone could a value differ."""
    squash = {"resize_mode": "squash", "interpolation": "bilinear"} if kind == "quick" else {}
    model = save(tmp_path / "model", kind, **squash)
    backbone = load_backbone(f"open_clip:{tmp_path}/model")
    picture = make_image(5, (320, 240))
    picture.save(tmp_path / "picture.png")
    with torch.inference_mode():
        seen = library_s(model, {**PICTURES, **squash})(picture)[None]
        found = model.encode_image(seen, normalize=False)  # CoCa's would otherwise be normalised
        expected = (found[0] if isinstance(found, tuple) else found)[0]
    assert [(tap.layer, tap.pooling, tap.shape) for tap in backbone.taps] == [("output", "none", (32,))]
    torch.testing.assert_close(features(backbone, (tmp_path / "picture.png").read_bytes()), expected)
    assert backbone.notes == ()


@pytest.mark.rotates(3)
def test_features_are_fp32_whatever_the_weights_are_stored_as(folder: Path, tmp_path: Path) -> None:
    save(tmp_path / "half", "vit", half=True)
    half, whole = load_backbone(f"open_clip:{tmp_path}/half"), load_backbone(f"open_clip:{folder}")
    assert {one.dtype for one in half.network.parameters()} == {torch.float32}
    torch.testing.assert_close(features(half, real_photo()), features(whole, real_photo()), rtol=0.02, atol=0.02)
    assert half.weights != whole.weights


@pytest.mark.rotates(3)
def test_a_library_s_model_is_built_as_the_library_builds_it() -> None:
    """The image tower alone, and none of the text's: the smallest that it has."""
    name = "ViT-S-32-alt"
    backbone = load_backbone(f"open_clip:{name}", weights="random:5")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = open_clip.create_model(name, precision="fp32").eval()
    assert backbone.network.state_dict().keys() == model.visual.state_dict().keys()
    model.visual.load_state_dict(backbone.network.state_dict())
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(9))
    with torch.inference_mode():
        torch.testing.assert_close(backbone.module(images)[0], model.encode_image(images))
    assert "weights are random" in backbone.notes[0]


class TestAnImageTower(BackboneContract):
    @pytest.fixture
    def backbone(self, folder: Path) -> Backbone:
        return load_backbone(f"open_clip:{folder}", layer=["output", "transformer.resblocks.1"])


# Layers


@pytest.mark.rotates(3)
@pytest.mark.parametrize(
    ("kind", "blocks"),
    [
        ("vit", [f"transformer.resblocks.{number}" for number in range(3)]),
        ("resnet", ["layer1", "layer2", "layer3", "layer4"]),
        ("timm", [f"trunk.blocks.{number}" for number in range(6)]),
    ],
)
def test_all_blocks_are_those_of_the_library_s_forward_intermediates(
    kind: str, blocks: list[str], tmp_path: Path
) -> None:
    model = save(tmp_path / "model", kind)
    backbone = load_backbone(f"open_clip:{tmp_path}/model", layer="all-blocks", pooling="mean")
    assert [tap.layer for tap in backbone.taps] == blocks
    size = MODELS[kind]["vision_cfg"]["image_size"]
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(9))
    with torch.inference_mode():
        maps = model.visual.forward_intermediates(images)["image_intermediates"]
        given = backbone.module(images)
    for features_, found in zip(given, maps[-len(blocks) :], strict=True):
        torch.testing.assert_close(features_, found.mean((2, 3)), rtol=1e-4, atol=1e-5)


@pytest.mark.rotates(3)
def test_a_layer_by_its_name_and_a_tail_behind_it(folder: Path) -> None:
    whole = load_backbone(f"open_clip:{folder}")
    layer = "transformer.resblocks.1"
    cut = load_backbone(f"open_clip:{folder}", layer=layer, pooling="none")
    assert (cut.taps[0].shape, cut.taps[0].axes) == ((17, 64), ("token", "channel"))
    tail, images = tail_of(cut, layer), torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(9))
    with torch.inference_mode():
        torch.testing.assert_close(tail(cut.module(images)[0]), whole.module(images)[0])
    assert layer_names(f"open_clip:{folder}")[0] == "input"
    with pytest.raises(BackboneError, match="no layer 'transformer.resblocks.9'"):
        load_backbone(f"open_clip:{folder}", layer="transformer.resblocks.9")


# Pictures


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ViT-B-32/laion2b_s34b_b79k", (224, "bicubic", False, 0.4814)),
        ("ViT-B-16-SigLIP-256/webli", (256, "bicubic", True, 0.5)),
        ("ViT-L-14-CLIPA-336/datacomp1b", (336, "bilinear", True, 0.485)),
        ("MobileCLIP-S1/datacompdr", (256, "bilinear", False, 0.0)),
    ],
)
def test_pictures_are_those_that_the_library_says(name: str, expected: tuple[Any, ...]) -> None:
    from precompute.backbones.families.open_clip import tower_of  # it needs the library

    made = tower_of(*name.split("/")).transform(name)
    assert (made.crop, made.resize) == (expected[0], expected[0])
    assert (made.interpolation, made.squash, round(made.mean[0] - 5e-5, 4)) == (
        *expected[1:3], pytest.approx(expected[3], abs=1e-4),
    )  # fmt: skip


def test_pictures_that_cannot_be_made_are_refused() -> None:
    plain = Tower(32, VIT, False, {})
    assert isinstance(plain.transform("x"), Transform)
    with pytest.raises(BackboneError, match="x takes pictures with resize_mode 'longest'"):
        Tower(32, VIT, False, {"resize_mode": "longest"}).transform("x")
    with pytest.raises(BackboneError, match="no squares"):
        Tower(32, {**VIT, "image_size": (32, 64)}, False, {}).transform("x")


# Names and weights


def test_openai_s_weights_are_refused_without_their_gelu() -> None:
    for model, tag in (("ViT-B-32", "openai"), ("ViT-B-16", "metaclip_400m"), ("RN50", "yfcc15m")):
        for name, weights in ((f"open_clip:{model}/{tag}", "random"), (f"open_clip:{model}", tag)):
            with pytest.raises(
                BackboneError, match=f"{tag} of {model} were trained with OpenAI's quick GELU"
            ) as caught:
                load_backbone(name, weights=weights)
            assert f"Use open_clip:{model}-quickgelu/{tag}" in caught.value.hint
    family_of("open_clip:").check("open_clip:ViT-B-32-quickgelu/openai")
    listed = family_of("open_clip:").names()
    assert "open_clip:ViT-B-32/openai" not in listed
    assert "open_clip:ViT-B-32-quickgelu/openai" in listed


@pytest.mark.parametrize(
    ("name", "weights", "says", "hint"),
    [
        ("ViT-B-33/openai", "random", "no model 'ViT-B-33'.*open_clip:ViT-B-32", "precompute backbones open_clip:"),
        ("", "random", "no model ''", "precompute backbones open_clip:"),
        ("ViT-B-32/mine", "random", "no weights 'mine' of ViT-B-32", "laion2b_s34b_b79k"),
        ("ViT-B-32", "DEFAULT", "does not say which weights", "open_clip:ViT-B-32/laion2b_s34b_b79k"),
        ("ViT-S-32-alt", "DEFAULT", "does not say which weights", "random:SEED"),
        ("ViT-B-32/laion2b_s34b_b79k", "DEFAULT@main", "'main' is not a revision", "laion2b_s34b_b79k@"),
        ("ViT-B-32/laion2b_s34b_b79k", "nothing", "has no weights 'nothing'", "laion2b_s34b_b79k"),
        ("./nowhere", "DEFAULT", "There is no folder ./nowhere", ""),
    ],
)
def test_what_there_is_not_is_named_with_what_there_is(name: str, weights: str, says: str, hint: str) -> None:
    """Nothing is random because nobody said which weights."""
    with pytest.raises((BackboneError, WeightsError), match=says) as caught:
        load_backbone(f"open_clip:{name}", weights=weights)
    assert hint in caught.value.hint


def test_no_value_of_an_image_tower_is_random_unasked(folder: Path, tmp_path: Path) -> None:
    state = load_file(folder / WEIGHTS)
    del state["visual.proj"], state["visual.ln_post.bias"]
    save_file(state, tmp_path / "part.safetensors")
    with pytest.raises(WeightsError, match=r"2 missing: (proj, ln_post\.bias|ln_post\.bias, proj)"):
        load_backbone(f"open_clip:{folder}", weights=str(tmp_path / "part.safetensors"))
    with pytest.raises(WeightsError, match="do not fit"):
        load_backbone("open_clip:ViT-S-32-alt", weights=str(folder / WEIGHTS))


@pytest.mark.rotates(3)
def test_weights_from_a_file_in_the_forms_that_training_leaves(folder: Path, tmp_path: Path) -> None:
    whole, state = load_backbone(f"open_clip:{folder}"), load_file(folder / WEIGHTS)
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "a.pt"
    )
    alone = {name.removeprefix("visual."): value for name, value in state.items() if name.startswith("visual.")}
    save_file(alone, tmp_path / "b.safetensors")
    for path in ("a.pt", "b.safetensors"):
        found = load_backbone(f"open_clip:{folder}", weights=str(tmp_path / path))
        assert (found.weights, found.source["weights"]) == (whole.weights, str(tmp_path / path))
    digests = {load_backbone(f"open_clip:{folder}", weights=f"random:{seed}").weights for seed in (0, 1)}
    assert len(digests | {whole.weights}) == 3


# The key, files of features and heads


@pytest.mark.rotates(3)
def test_the_key_holds_the_library_and_what_the_tower_is_built_from(folder: Path, tmp_path: Path) -> None:
    spec = load_backbone(f"open_clip:{folder}").spec(precision="fp32", storage="float32")
    assert spec["backbone"] == "open_clip:vit-l3-w64-p8-32"
    assert spec["backend"]["open_clip"] == open_clip.__version__
    assert spec["backend"]["vision"] == VIT
    assert spec["transform"]["mean"] == [0.4, 0.5, 0.6]
    save(tmp_path / "quick", "quick")
    save(tmp_path / "timm", "timm")
    quick, timm_s = (load_backbone(f"open_clip:{tmp_path}/{kind}").settings["backend"] for kind in ("quick", "timm"))
    assert (quick["quick_gelu"], spec["backend"]["quick_gelu"]) == (True, False)
    assert {"timm"} <= timm_s.keys()
    assert "timm" not in quick


@pytest.mark.rotates(3)
def test_a_head_finds_its_folder_again_and_no_other(folder: Path, photos: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(folder, tmp_path / "vit"))
    extract(photos, tmp_path / "a.h5", backbone=f"open_clip:{place}")
    assert extract(photos, tmp_path / "a.h5", backbone=f"open_clip:{place}").computed == 0
    train_head(tmp_path / "a.h5", tmp_path / "head.safetensors")
    plain = predict(tmp_path / "head.safetensors", photos).items
    moved = place.rename(tmp_path / "moved")
    with pytest.raises(HeadMismatchError, match="no longer at") as caught:
        predict(tmp_path / "head.safetensors", photos)
    assert "-b open_clip:FOLDER" in caught.value.hint
    assert predict(tmp_path / "head.safetensors", photos, backbone=f"open_clip:{moved}").items == plain
    config = json.loads((moved / "open_clip_config.json").read_text())
    config["preprocess_cfg"]["resize_mode"] = "squash"
    (moved / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(PrecomputeError, match=r"transform"):
        extract(photos, tmp_path / "a.h5", backbone=f"open_clip:{moved}")
    assert "squash" not in open_cache(tmp_path / "a.h5").spec["transform"]


# Hostile folders


def config(**changes: Any) -> Change:
    """With other values in its model_cfg."""
    return _changed("model_cfg", changes)


def vision(**changes: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / "open_clip_config.json"
        found = json.loads(path.read_text())
        found["model_cfg"]["vision_cfg"].update(changes)
        path.write_text(json.dumps(found))

    return change


def pictures(**changes: Any) -> Change:
    return _changed("preprocess_cfg", changes)


def _changed(part: str, changes: dict[str, Any]) -> Change:
    def change(folder: Path) -> None:
        path = folder / "open_clip_config.json"
        found = json.loads(path.read_text())
        found[part].update(changes)
        path.write_text(json.dumps(found))

    return change


def without(*names: str) -> Change:
    def change(folder: Path) -> None:
        path = folder / WEIGHTS
        save_file({name: value for name, value in load_file(path).items() if not name.startswith(names)}, path)

    return change


HEADER = (10 * 2**30).to_bytes(8, "little") + b"{}"
CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"

HOSTILE: dict[str, tuple[Change, str, str]] = {
    "link for config": (linked(CONFIG), rf"{CONFIG} is a link to .*out of the folder", "copy"),
    "link for weights": (
        linked(WEIGHTS),
        r"safetensors is a link to .*out of the folder",
        "copy",
    ),
    "a pickle": (
        pickled("open_clip_pytorch_model.bin", WEIGHTS),
        r"open_clip_pytorch_model\.bin, a form that can run",
        "--wei",
    ),
    "another pickle": (
        pickled("model.pt", WEIGHTS),
        r"model\.pt, a form that can run code",
        "--weights PATH",
    ),
    "header of 10 GB": (written(WEIGHTS, HEADER), "cannot be loaded safely", ""),
    "missing tensors": (without("visual.proj", "visual.class_embedding"), "2 missing", ""),
    "no image tower": (without("visual."), "describes an image tower of at least", ""),
    "no JSON": (written(CONFIG, b"\xff{"), f"{CONFIG} holds no JSON", ""),
    "no model": (written(CONFIG, b'{"model_type": "clip"}'), f"{CONFIG} names no model_cfg", ""),
    "large config": (written(CONFIG, b" " * (3 * 2**20)), f"{CONFIG} has more than", ""),
    "absurd output": (config(embed_dim=10**9), "gives embed_dim as 1000000000", ""),
    "absurd width": (vision(width=10**9), "gives width as 1000000000", ""),
    "absurd depth": (vision(layers=10**6), "gives layers as 1000000", ""),
    "no number": (vision(mlp_ratio=float("inf")), "gives mlp_ratio as inf", ""),
    "larger than its weights": (vision(width=8192), "describes an image tower of", ""),
    "more positions than weights": (vision(image_size=2048, width=4096), "describes an image tower of", ""),
    "too many tokens": (vision(image_size=2048, patch_size=1), "into more than 65,536 tokens", ""),
    "unknown key": (vision(checkpoint_path="/tmp/x.pth"), "requests 'checkpoint_path'", "factory"),
    "a network's name with a path": (
        vision(timm_model_name="local-dir:/etc"),
        "names the network 'local-dir:/etc'",
        "",
    ),
    "a network of the hub": (vision(timm_model_name="hf-hub:a/b"), "names the network 'hf-hub:a/b'", ""),
    "absurd norm": (vision(norm_kwargs={"device": "cuda"}), "gives norm_kwargs as", ""),
    "no deviation": (pictures(std=[0, 0, 0]), "gives std", ""),
    "odd interpolation": (pictures(interpolation="lanczos"), "interpolation 'lanczos'", "factory"),
    "padded pictures": (pictures(resize_mode="longest"), "resize_mode 'longest'", "factory"),
    "no squares": (vision(image_size=[16, 64]), "no squares", "factory"),
    "settings of no kind": (lambda folder: _replaced(folder, preprocess_cfg=[1]), "gives preprocess_cfg", ""),
    "no heads": (vision(head_width=1000), "cannot build the image tower", ""),
}


def _replaced(folder: Path, **values: Any) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_folder_is_refused_by_name(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    change, says, hint = HOSTILE[name]
    place = tmp_path / "model"
    shutil.copytree(folder, place)
    change(place)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PrecomputeError, match=says) as caught:
        load_backbone(f"open_clip:{place}")
    assert isinstance(caught.value, WeightsError | BackboneError)
    assert hint in caught.value.hint
    assert not (tmp_path / "was-run").exists()


def test_what_a_folder_says_of_texts_is_not_looked_at(folder: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(folder, tmp_path / "model"))
    config(text_cfg={"hf_model_name": "no/where", "hf_model_pretrained": True}, custom_text=True)(place)
    assert load_backbone(f"open_clip:{place}").weights == load_backbone(f"open_clip:{folder}").weights


# The hub


class Models(Hub):
    """Serves a folder as a repository of weights."""

    def answer(self, address: str) -> tuple[bytes, dict[str, str]] | None:
        return super().answer(f"/datasets{address}" if "/resolve/" in address else address)


HUB = """
import json, open_clip
from precompute import load_backbone
from precompute.errors import PrecomputeError
open_clip.add_model_config({config!r})
open_clip.pretrained._PRETRAINED["small"] = dict(one=open_clip.pretrained._slpcfg(hf_hub="someone/small/"))
for weights in {weights!r}:
    try:
        one = load_backbone("open_clip:small/one", weights=weights)
        print(json.dumps([one.name, one.weights, one.source, one.preprocess.transform.squash]))
    except PrecomputeError as error:
        print(json.dumps([error.message, error.hint]))
"""


@pytest.mark.slow
def test_weights_of_the_hub_are_fetched_once_and_pinned(folder: Path, tmp_path: Path) -> None:
    """A model that is registered as the library's own are, on a hub on loopback."""
    served = tmp_path / "served"
    served.mkdir()
    (served / "open_clip_pytorch_model.bin").write_bytes(pickle.dumps(Runs()))
    settings = json.loads((folder / CONFIG).read_text())["model_cfg"]
    (tmp_path / "small.json").write_text(json.dumps(settings))
    around = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    entry = f"one@{COMMIT}"

    def run(*weights: str, **more: str) -> list[Any]:
        script = HUB.format(config=str(tmp_path / "small.json"), weights=weights)
        done = run_python(script, **{**around, **more})
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    with Models(served, "someone/small") as hub:
        around["HF_ENDPOINT"] = hub.url
        ((message, hint),) = run("DEFAULT")  # the pickle is neither loaded nor requested
        assert "no weights in a form that runs no code" in message
        assert not [one for one in hub.requests if "pytorch_model" in one]
        shutil.copy(folder / WEIGHTS, served)
        (found,) = run("DEFAULT")
    source = {"kind": "entry", "entry": entry, "repository": "someone/small"}
    assert found == ["open_clip:small/one", load_backbone(f"open_clip:{folder}").weights, source, True]
    *there, (message, hint) = run("DEFAULT", "one", entry, f"one@{'b' * 40}", HF_HUB_OFFLINE="1")
    assert there == [found] * 3
    assert "someone/small" in message
    assert "--weights PATH" in hint


# The list, and without the library


def test_the_list_is_made_without_memory_and_without_a_download() -> None:
    (entry,) = catalog("open_clip:ViT-B-32/laion2b_s34b_b79k")
    assert (entry.width, entry.input_size, entry.layer, entry.weights) == (512, 224, "output", ("laion2b_s34b_b79k",))
    assert entry.params == 87_849_216
    many = catalog("open_clip:*")
    assert len(many) > 100
    assert {one.params for one in many} == {None}
    assert {one.width for one in many if "ViT-B-16-SigLIP/" in one.name} == {768}
    assert describe("open_clip:ViT-bigG-14/laion2b_s39b_b160k").params > 1_800_000_000  # type: ignore[operator]
    with pytest.raises(BackboneError, match="open_clip has no model"):
        catalog("open_clip:zzz")


def test_the_model_in_a_folder_is_listed_by_the_folder_s_name(folder: Path) -> None:
    (entry,) = catalog(f"open_clip:{folder}")
    assert (entry.name, entry.width, entry.input_size) == (f"open_clip:{folder}", 32, 32)


def test_a_shell_completes_them() -> None:
    assert completion.completions("open") == ["open_clip:"]
    assert "open_clip:ViT-L-14-quickgelu/openai" in completion.completions("open_clip:ViT-L-14-")


WITHOUT = """
import sys
sys.modules["open_clip"] = None  # as if it were not installed
from precompute.backbones.families.completion import completions
assert completions("open_clip:V") == []
from precompute.cli import main
sys.argv = ["precompute", *{arguments!r}]
main()
"""


@pytest.mark.rotates(6)
@pytest.mark.parametrize("command", ["backbones", "plan"])
def test_a_library_that_is_missing_is_named_with_its_install_line(photos: Path, command: str) -> None:
    name = "open_clip:ViT-B-32/laion2b_s34b_b79k"
    arguments = [command, name, "--json"] if command == "backbones" else [command, str(photos), "-b", name, "--json"]
    done = run_python(WITHOUT.format(arguments=arguments))
    assert done.returncode == 1
    error = json.loads(done.stdout)["error"]
    assert "needs open_clip_torch" in error["message"]
    assert "pip install 'precompute[open_clip]'" in error["hint"]
