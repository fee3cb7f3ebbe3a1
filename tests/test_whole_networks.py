"""Tails and whole networks in the commands that take heads: predict, compare, info and export-head."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from conftest import Command, make_image, make_photos, run_command
from safetensors.torch import load_file
from tails import make_tail_head, save_made_tail
from torch import nn

from precompute import compare, extract, load_backbone, open_cache, predict, predict_each, train_head
from precompute.backbones.families import family_of
from precompute.backbones.tiny import TinyBackbone
from precompute.errors import CacheError, HeadError, HeadFormatError, HeadMismatchError, SampleError, UsageError
from precompute.finetuning.opening import is_tail, open_head
from precompute.finetuning.whole_network import network_state, whole_network
from precompute.heads import load_head

MIDDLE = "body.3"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos; files of what enters tiny's classifier, of a layer in the middle, and of its input; a head on the first,
    a tail behind the second, and a whole network."""
    place = tmp_path_factory.mktemp("whole")
    photos = make_photos(place / "photos", per_class=10)
    for name, layer in (("features", None), ("middle", MIDDLE), ("input", "input")):
        extract(photos, place / f"{name}.h5", backbone="tiny", layer=layer, precision="fp32")
    train_head(place / "features.h5", place / "head.safetensors")
    cache = open_cache(place / "features.h5")
    save_made_tail(place / "tail.safetensors", load_backbone("tiny", layer=MIDDLE), cache)
    save_made_tail(place / "full.safetensors", load_backbone("tiny", layer="input"), cache, seed=1)
    return place


def probabilities(result: Any) -> Any:
    return np.array([[item.label == result.classes[1], item.probability] for item in result.items], dtype=float)


def logits_by_hand(place: Path, file: str, layer: str) -> torch.Tensor:
    """The whole of tiny with what the file holds put into its own class, on the images as they are preprocessed."""
    opened = open_head(place / file)
    network = TinyBackbone(num_classes=2)
    state = load_backbone("tiny").network.state_dict()
    arrays = opened.saved.trained  # type: ignore[union-attr]
    state |= {name.removeprefix("tail."): torch.from_numpy(a) for name, a in arrays.items() if name.startswith("tail.")}
    for part in ("weight", "bias"):
        state[f"classifier.{part}"] = torch.from_numpy(arrays[f"output.{part}"])
    network.load_state_dict(state)
    pixels = np.array(open_cache(place / "input.h5").features())
    with torch.no_grad():
        return network.eval()(torch.from_numpy(pixels))


@pytest.mark.rotates(3)
@pytest.mark.parametrize("file", ["tail", "full"])
def test_images_and_caches_give_what_the_network_itself_gives(place: Path, file: str) -> None:
    layer = {"tail": MIDDLE, "full": "input"}[file]
    expected = logits_by_hand(place, f"{file}.safetensors", layer).softmax(dim=1).numpy()
    cache = {"tail": "middle.h5", "full": "input.h5"}[file]
    for source in (place / "photos", place / cache):
        found = probabilities(predict(place / f"{file}.safetensors", source))
        assert np.array_equal(found[:, 0], expected.argmax(axis=1))
        assert np.allclose(found[:, 1], expected.max(axis=1), atol=1e-5)


@pytest.mark.slow
def test_a_new_process_gives_the_same_from_images_and_from_the_cache(place: Path) -> None:
    of_images = run_command(place, "predict", "full.safetensors", "photos", "--json")
    of_cache = run_command(place, "predict", "full.safetensors", "input.h5", "--json")
    assert (of_images.returncode, of_cache.returncode) == (0, 0), of_images.stderr + of_cache.stderr
    first, second = (json.loads(done.stdout)["predictions"] for done in (of_images, of_cache))
    assert [one["label"] for one in first] == [one["label"] for one in second]
    assert np.allclose([one["probability"] for one in first], [one["probability"] for one in second], atol=1e-6)


@pytest.mark.rotates(3)
def test_heads_tails_and_networks_in_one_pass_give_what_each_gives_alone(place: Path) -> None:
    files = [place / f"{name}.safetensors" for name in ("head", "full", "tail")]
    together = predict_each(files, place / "photos")
    for file, one in zip(files, together, strict=True):
        assert one.head == str(file)
        assert np.allclose(probabilities(one), probabilities(predict(file, place / "photos")), atol=1e-6)


def test_a_cache_without_the_layer_is_refused(place: Path) -> None:
    with pytest.raises(HeadMismatchError, match="other features than"):
        predict(place / "full.safetensors", place / "features.h5")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "random"}, "other features"),
        ({"backbone": "resnet18"}, "not on resnet18"),
        ({"workers": 2}, None),
    ],
    ids=["weights", "backbone", "workers"],
)
def test_another_backbone_than_that_of_the_training(place: Path, options: dict[str, Any], message: str | None) -> None:
    for source in ("photos", "input.h5"):
        if message is None and source == "photos":
            continue
        error, words = (HeadMismatchError, message) if message else (UsageError, "workers has no effect")
        with pytest.raises(error, match=words):
            predict(place / "full.safetensors", place / source, **options)


def test_images_of_another_size_are_preprocessed_as_always(place: Path, tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    make_image(3, (500, 300)).save(tmp_path / "large" / "one.png")
    assert len(predict(place / "full.safetensors", tmp_path / "large").items) == 1


def test_info_shows_a_tail_without_its_backbone(place: Path, precompute: Command) -> None:
    done = precompute("info", place / "full.safetensors", "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["kind"], found["task"]) == (0, "whole network", "classes")
    assert found["classes"] == ["cats", "dogs"]
    network = TinyBackbone(num_classes=2)
    assert found["tail"]["parameters"] == sum(one.numel() for one in network.parameters())
    assert found["tail"]["shape"] == [3, 32, 32]
    assert "split" not in found["training"]
    words = precompute("info", place / "tail.safetensors")
    assert words.returncode == 0
    assert "epoch 2 of 2" in words.stdout
    assert MIDDLE in words.stdout


@pytest.mark.rotates(3)
def test_a_head_and_a_tail_each_with_its_cache(place: Path) -> None:
    """Right and wrong by hand, on the images of val."""
    result = compare(
        place / "head.safetensors", place / "tail.safetensors", place / "features.h5", place / "middle.h5"
    ).result
    cache = open_cache(place / "features.h5")
    val = cache.split == "val"
    said = logits_by_hand(place, "tail.safetensors", MIDDLE).argmax(dim=1).numpy()
    right = said[val] == cache.labels[val]
    assert result.n == val.sum()
    assert result.accuracies[1] == pytest.approx(right.mean())  # type: ignore[union-attr]


@pytest.mark.rotates(3)
def test_a_network_that_was_trained_from_images_is_compared_on_them(place: Path, precompute: Command) -> None:
    of_cache = compare(
        place / "head.safetensors", place / "full.safetensors", place / "features.h5", place / "input.h5"
    )
    of_images = compare(
        place / "head.safetensors", place / "full.safetensors", place / "features.h5", source=place / "photos"
    )
    assert of_images == of_cache
    both = precompute(
        *("compare", place / "full.safetensors", place / "full.safetensors", place / "features.h5"),
        *("--source", place / "photos", "--json"),
    )
    assert both.returncode == 0, both.stderr
    assert json.loads(both.stdout)["difference"] == 0


def test_images_are_asked_for_where_no_cache_has_the_layer(place: Path) -> None:
    with pytest.raises(HeadMismatchError, match="takes the layer input") as raised:
        compare(place / "head.safetensors", place / "full.safetensors", place / "features.h5")
    assert "--source" in raised.value.hint


def test_a_tail_of_stored_activations_is_not_scored_on_others(place: Path, tmp_path: Path) -> None:
    cache = open_cache(place / "features.h5")
    save_made_tail(tmp_path / "t.safetensors", load_backbone("tiny", layer=MIDDLE), cache, storage="float16")
    with pytest.raises(HeadMismatchError, match="cannot be computed again"):
        compare(tmp_path / "t.safetensors", place / "head.safetensors", cache.path, source=place / "photos")


def test_other_images_than_those_of_the_cache_are_refused(place: Path, tmp_path: Path) -> None:
    photos = shutil.copytree(place / "photos", tmp_path / "photos")
    make_image(500).save(photos / "val" / "cats" / "1.png")
    with pytest.raises(SampleError, match="val/cats/1.png has changed"):
        compare(place / "head.safetensors", place / "full.safetensors", place / "features.h5", source=photos)


def test_where_a_head_is_asked_for_a_tail_says_what_it_is_and_the_other_way_round(
    place: Path, precompute: Command, tmp_path: Path
) -> None:
    assert is_tail(place / "tail.safetensors")
    assert not is_tail(place / "head.safetensors")
    assert not is_tail(place / "features.h5")
    with pytest.raises(HeadFormatError, match="format"):
        load_head(place / "tail.safetensors")
    kept = shutil.copy(place / "tail.safetensors", tmp_path / "kept.safetensors")
    before = Path(kept).read_bytes()
    done = precompute("train-head", place / "features.h5", "-o", kept)
    assert done.returncode == 1
    assert "not a head" in done.stderr
    assert Path(kept).read_bytes() == before


@pytest.mark.rotates(6)
@pytest.mark.parametrize("name", ["tiny", "resnet18", "mobilenet_v2"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_an_exported_network_is_loaded_strictly_and_gives_the_same_logits(
    tmp_path: Path, precompute: Command, name: str, suffix: str
) -> None:
    layer = {"tiny": "input", "resnet18": "layer3", "mobilenet_v2": "features.14"}[name]
    options: dict[str, Any] = {} if name == "tiny" else {"weights": "random", "transform": {"resize": 64, "crop": 64}}
    photos = make_photos(tmp_path / "photos", per_class=2)
    extract(photos, tmp_path / "f.h5", backbone=name, precision="fp32", **options)
    backbone = load_backbone(name, layer=layer, **options)
    names = ("a", "b", "c")
    head = save_made_tail(tmp_path / "tail.safetensors", backbone, open_cache(tmp_path / "f.h5"), names=names)
    done = precompute("export-head", "tail.safetensors", "-o", f"whole{suffix}", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["outputs"] == list(names)
    path = tmp_path / f"whole{suffix}"
    state = load_file(path) if suffix == ".safetensors" else torch.load(path, weights_only=True)
    model = TinyBackbone(num_classes=3) if name == "tiny" else torchvision.models.get_model(name, num_classes=3)
    assert said["load_with"] == family_of(name).loading_code(name, 3)
    model.load_state_dict(state, strict=True)
    images = torch.randn(5, 3, backbone.preprocess.transform.crop, backbone.preprocess.transform.crop)  # type: ignore[attr-defined]
    with torch.no_grad():
        (activations,) = backbone.module(images)
        expected = torch.from_numpy(head.outputs(activations.numpy()))
        assert torch.allclose(model.eval()(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.rotates(6)
@pytest.mark.parametrize(
    ("name", "layer"),
    [("efficientnet_lite0", "blocks.5"), ("vit_tiny_patch16_224", "blocks.10"), ("resnet10t", "layer3")],
)
def test_an_exported_network_of_timm_predicts_without_precompute(
    tmp_path: Path, precompute: Command, name: str, layer: str
) -> None:
    timm = pytest.importorskip("timm", reason="needs the extra `timm`")
    photos = make_photos(tmp_path / "photos", per_class=2)
    options: dict[str, Any] = {"weights": "random:1"}
    extract(photos, tmp_path / "f.h5", backbone=f"timm:{name}", precision="fp32", **options)
    backbone = load_backbone(f"timm:{name}", layer=layer, pooling="none", **options)
    names = ("a", "b", "c")
    save_made_tail(tmp_path / "tail.safetensors", backbone, open_cache(tmp_path / "f.h5"), names=names)
    done = precompute("export-head", "tail.safetensors", "-o", "whole.safetensors", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["load_with"] == f"timm.create_model({name!r}, num_classes=3)"
    model = timm.create_model(name, num_classes=3).eval()
    model.load_state_dict(load_file(tmp_path / "whole.safetensors"), strict=True)
    front = backbone.preprocess.device()
    for item in predict(tmp_path / "tail.safetensors", photos).items:
        (pixels,) = backbone.preprocess.host((photos / item.id).read_bytes())
        with torch.no_grad():
            said = model(front(pixels[None])).softmax(1)[0]
        assert names[int(said.argmax())] == item.label
        assert float(said.max()) == pytest.approx(item.probability, abs=1e-3)


@pytest.mark.rotates(3)
@pytest.mark.parametrize("task", ["labels", "number"])
def test_an_exported_network_of_labels_or_numbers(task: str) -> None:
    backbone = load_backbone("tiny", layer=MIDDLE)
    head = make_tail_head(backbone, task=task, names=("x", "y") if task == "labels" else ())
    network = whole_network(head, backbone)
    images = torch.randn(6, 3, 32, 32)
    with torch.no_grad():
        (activations,) = backbone.module(images)
        found = network(images).numpy()
    if task == "labels":
        assert np.allclose(1 / (1 + np.exp(-found)), head.predict_proba(activations.numpy()), atol=1e-5)
    else:
        assert np.allclose(found[:, 0], head.predict(activations.numpy()), atol=1e-4)


def test_the_backbone_itself_stays_as_it_was() -> None:
    backbone = load_backbone("tiny", layer="input")
    before = {name: value.clone() for name, value in backbone.network.state_dict().items()}
    whole_network(make_tail_head(backbone), backbone)
    after = backbone.network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.rotates(3)
def test_a_network_whose_classifier_is_no_linear_layer_has_no_place_for_one() -> None:
    small = {"weights": "random", "transform": {"resize": 64, "crop": 64}}
    backbone = load_backbone("squeezenet1_1", layer="features.9", **small)  # type: ignore[arg-type]
    with pytest.raises(HeadError, match=r"classifier.*Conv2d"):
        whole_network(make_tail_head(backbone), backbone)


@pytest.mark.rotates(3)
def test_classifiers_that_serve_training_alone_stay_behind() -> None:
    small = {"weights": "random", "transform": {"resize": 64, "crop": 64}}
    backbone = load_backbone("googlenet", layer="inception4e", **small)  # type: ignore[arg-type]
    head = make_tail_head(backbone, names=("a", "b", "c"))
    state = network_state(whole_network(head, backbone))
    model: nn.Module = eval(family_of("googlenet").loading_code("googlenet", 3), {"torchvision": torchvision})
    model.load_state_dict(state, strict=True)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        (activations,) = backbone.module(images)
        expected = torch.from_numpy(head.outputs(activations.numpy()))
        assert torch.allclose(model.eval()(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("full.safetensors", "-o", "x.joblib"), 2, "are no .joblib"),
        (("full.safetensors", "-o", "there.pth"), 1, "origin of its weights is unknown"),
        (("full.safetensors", "-o", "full.safetensors"), 2, "the same file"),
        (("full.safetensors", "-o", "x.pth", "--weights", "random"), 1, "other features"),
        (("head.safetensors", "-o", "x.joblib", "--weights", "random"), 2, "a head's pipeline needs none"),
    ],
    ids=["ending", "there", "itself", "weights", "head"],
)
def test_what_is_not_exported(
    place: Path, tmp_path: Path, precompute: Command, arguments: tuple[str, ...], code: int, words: str
) -> None:
    for name in ("full.safetensors", "head.safetensors"):
        shutil.copy(place / name, tmp_path)
    (tmp_path / "there.pth").write_bytes(b"mine")
    done = precompute("export-head", *arguments)
    assert done.returncode == code
    assert words in done.stderr
    assert (tmp_path / "there.pth").read_bytes() == b"mine"
    assert is_tail(tmp_path / "full.safetensors")


def test_a_damaged_tail_is_no_tail_to_any_command(place: Path, tmp_path: Path, precompute: Command) -> None:
    data = bytearray((place / "full.safetensors").read_bytes())
    data[-100] ^= 1
    (tmp_path / "bad.safetensors").write_bytes(data)
    for command in (
        ("predict", "bad.safetensors", place / "photos"),
        ("info", "bad.safetensors"),
        ("compare", "bad.safetensors", place / "head.safetensors", place / "features.h5"),
        ("export-head", "bad.safetensors", "-o", "x.pth"),
    ):
        done = precompute(*command)
        assert done.returncode == 1
        assert "not a whole tail file" in done.stderr, command


@pytest.mark.rotates(3)
def test_a_cache_of_other_images_than_a_tail_was_trained_on(place: Path, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", per_class=3)
    extract(photos, tmp_path / "other.h5", backbone="tiny", precision="fp32")
    with pytest.raises((HeadMismatchError, CacheError), match="does not hold the images"):
        compare(place / "head.safetensors", place / "full.safetensors", tmp_path / "other.h5", source=photos)


@pytest.mark.rotates(3)
def test_a_tail_of_activations_in_8_bits_sees_the_same_from_images(place: Path, tmp_path: Path) -> None:
    extract(place / "photos", tmp_path / "q.h5", backbone="tiny", layer=MIDDLE, precision="fp32", dtype="int8")
    backbone, cache = load_backbone("tiny", layer=MIDDLE), open_cache(tmp_path / "q.h5")
    save_made_tail(tmp_path / "t.safetensors", backbone, cache, storage="int8")
    of_cache, of_images = (predict(tmp_path / "t.safetensors", one) for one in (cache.path, place / "photos"))
    assert np.allclose(probabilities(of_cache), probabilities(of_images), atol=1e-5)
