"""Comparing two heads: the same images, none that either was trained on, and a verdict that counts pairs."""

from __future__ import annotations

import base64
import json
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import Command, make_image, run_command
from sklearn.metrics import accuracy_score
from test_real_photos import openvino

from precompute import LogisticHead, compare, extract, load_head, open_cache, save_head, train_head
from precompute.errors import HeadFormatError, HeadMismatchError, TrainingError, UsageError
from precompute.training.splits import HOLDOUT, parts_of, whole_rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 photos of three classes, hard to tell apart; tiny.h5 and random.h5 of them, and one head on each."""
    place = tmp_path_factory.mktemp("comparison")
    for number in range(120):
        image = make_image(number)
        image.paste((40 + 30 * (number % 3), 90, 120), (0, 0, 18, 14))
        out = place / "photos" / "abc"[number % 3]
        out.mkdir(parents=True, exist_ok=True)
        image.save(out / f"{number}.png")
    extract(place / "photos", place / "tiny.h5", backbone="tiny")
    extract(place / "photos", place / "random.h5", backbone="tiny", weights="random")
    train_head(place / "tiny.h5", place / "tiny.safetensors", C=1.0)
    train_head(place / "random.h5", place / "random.safetensors", C=1.0)
    return place


def held_out(cache, seed: int) -> set[int]:
    return set(parts_of(cache, whole_rows(cache, cache.layers[0]), seed)[0][HOLDOUT].tolist())


def accuracy(head: Path, cache, rows: list[int]) -> float:
    true = np.array(cache.classes)[cache.labels[rows]]
    return accuracy_score(true, load_head(head).head.predict(np.array(cache.features()[rows])))


@pytest.mark.rotates(3)
def test_two_backbones_on_the_same_photos(folder: Path) -> None:
    found = compare(
        folder / "tiny.safetensors", folder / "random.safetensors", folder / "tiny.h5", folder / "random.h5"
    )
    caches = [open_cache(folder / name) for name in ("tiny.h5", "random.h5")]
    rows = sorted(held_out(caches[0], 0))
    assert found.split == HOLDOUT
    assert found.result.n == len(rows)
    assert found.left_out == {}
    assert found.result.accuracies == (
        accuracy(folder / "tiny.safetensors", caches[0], rows),
        accuracy(folder / "random.safetensors", caches[1], rows),
    )
    low, high = found.result.interval
    assert low <= found.result.difference <= high
    turned = compare(
        folder / "random.safetensors", folder / "tiny.safetensors", folder / "random.h5", folder / "tiny.h5"
    )
    assert turned.result.difference == -found.result.difference
    assert turned.result.p_value == found.result.p_value


@pytest.mark.rotates(3)
def test_images_that_either_was_trained_on_are_not_scored(folder: Path, tmp_path: Path) -> None:
    cache = open_cache(folder / "tiny.h5")
    train_head(cache, tmp_path / "b.safetensors", C=1e-3, seed=1)
    found = compare(folder / "tiny.safetensors", tmp_path / "b.safetensors", folder / "tiny.h5")
    rows = sorted(held_out(cache, 0) & held_out(cache, 1))
    assert 0 < len(rows) < len(held_out(cache, 0))
    assert found.result.n == len(rows)
    assert found.left_out == {"trained on by one of them": len(held_out(cache, 0)) - len(rows)}
    assert found.result.accuracies == (
        accuracy(folder / "tiny.safetensors", cache, rows),
        accuracy(tmp_path / "b.safetensors", cache, rows),
    )


@pytest.mark.rotates(3)
def test_copies_of_training_images_are_not_scored_and_test_comes_before_val(tmp_path: Path) -> None:
    for number in range(60):
        out = tmp_path / "photos" / ("train", "val", "test")[number // 20] / "ab"[number % 2]
        out.mkdir(parents=True, exist_ok=True)
        make_image(number).save(out / f"{number}.png")
    shutil.copy(tmp_path / "photos/train/a/0.png", tmp_path / "photos/test/a/copy.png")
    extract(tmp_path / "photos", tmp_path / "a.h5", backbone="tiny")
    for name, C in (("a", "auto"), ("b", 1e-3)):
        train_head(tmp_path / "a.h5", tmp_path / f"{name}.safetensors", C=C)
    found = compare(tmp_path / "a.safetensors", tmp_path / "b.safetensors", tmp_path / "a.h5")
    assert (found.split, found.result.n) == ("test", 20)
    assert found.left_out == {"trained on by one of them": 1}
    assert found.notes == ()  # val chose C, and is not what is scored


def test_a_head_against_itself_is_no_better(folder: Path) -> None:
    found = compare(folder / "tiny.safetensors", folder / "tiny.safetensors", folder / "tiny.h5")
    assert (found.result.difference, found.result.p_value, found.result.distinct) == (0, 1, False)
    assert found.words == "Both are right equally often."


def test_groups_are_one_observation(folder: Path, tmp_path: Path) -> None:
    pattern = r"(\d)\.png"
    train_head(folder / "tiny.h5", tmp_path / "a.safetensors", C=1.0, groups=pattern)
    train_head(folder / "tiny.h5", tmp_path / "b.safetensors", C=1e-4, groups=pattern)
    pair = tmp_path / "a.safetensors", tmp_path / "b.safetensors", folder / "tiny.h5"
    alone, grouped = compare(*pair), compare(*pair, groups=pattern)
    assert any("give --groups" in line for line in alone.notes)
    assert grouped.notes == ()
    assert grouped.result.n == alone.result.n
    assert grouped.groups is not None
    assert grouped.result.only_a + grouped.result.only_b <= grouped.groups < grouped.result.n
    with pytest.raises(UsageError, match="do not match"):
        compare(*pair, groups="(x)y")


@pytest.mark.rotates(3)
def test_other_images_labels_classes_or_features_are_refused(folder: Path, tmp_path: Path) -> None:
    a = folder / "tiny.safetensors", folder / "tiny.h5"

    def against(name: str, change) -> None:
        shutil.copytree(folder / "photos", tmp_path / name)
        change(tmp_path / name)
        extract(tmp_path / name, tmp_path / f"{name}.h5", backbone="tiny")
        train_head(tmp_path / f"{name}.h5", tmp_path / f"{name}.safetensors", C=1.0)
        compare(a[0], tmp_path / f"{name}.safetensors", a[1], tmp_path / f"{name}.h5")

    held = [open_cache(a[1]).ids[row] for row in sorted(held_out(open_cache(a[1]), 0))]
    with pytest.raises(TrainingError, match=rf"1 images have other bytes in .*edited\.h5 .*'{held[0]}'"):
        against("edited", lambda photos: make_image(999).save(photos / held[0]))
    with pytest.raises(TrainingError, match="know different classes: c, d"):
        against("renamed", lambda photos: (photos / "c").rename(photos / "d"))
    with pytest.raises(
        TrainingError, match=r"No image of hold-out was held out from both heads .24 not in .*moved\.h5"
    ):
        against("moved", lambda photos: [path.rename(path.with_suffix(".PNG")) for path in photos.rglob("*.png")])
    with pytest.raises(HeadMismatchError, match="(?s)other features than .*random.h5.*weights: .* -> "):
        compare(a[0], a[0], a[1], folder / "random.h5")
    with pytest.raises(HeadMismatchError, match=r"edited\.h5 does not hold the images that the head .*tiny"):
        compare(a[0], a[0], tmp_path / "edited.h5")


@pytest.mark.parametrize(
    ("memory", "error", "message"),
    [
        (None, HeadMismatchError, "does not say on which images"),
        ({"rows": "AAAA"}, HeadFormatError, "is damaged"),
        ({"rows": 7}, HeadFormatError, "is damaged"),
        ({"rows": base64.b64encode(zlib.compress(bytes(1 << 24))).decode()}, HeadFormatError, "another number of rows"),
        ({"rows": base64.b64encode(zlib.compress(b"\xff" * 120)).decode()}, HeadFormatError, "is damaged"),
        ({"images": "0" * 64}, HeadMismatchError, "does not hold the images"),
    ],
)
def test_what_a_head_remembers_is_checked(folder: Path, tmp_path: Path, memory, error, message) -> None:
    saved = load_head(folder / "tiny.safetensors")
    metadata = json.loads(json.dumps(saved.metadata))
    metadata["training"]["split"] = memory and {**metadata["training"]["split"], **memory}
    save_head(tmp_path / "a.safetensors", saved.head, metadata=metadata)
    with pytest.raises(error, match=message):
        compare(tmp_path / "a.safetensors", folder / "tiny.safetensors", folder / "tiny.h5")


def test_a_head_of_another_width_is_refused(folder: Path, tmp_path: Path) -> None:
    metadata = load_head(folder / "tiny.safetensors").metadata
    narrow = LogisticHead(C=1.0).fit(np.eye(3), ["a", "b", "c"])
    save_head(tmp_path / "narrow.safetensors", narrow, metadata=metadata)
    with pytest.raises(HeadMismatchError, match="takes 3 features; .* has 128"):
        compare(tmp_path / "narrow.safetensors", folder / "tiny.safetensors", folder / "tiny.h5")


def test_on_the_command_line(folder: Path, precompute: Command) -> None:
    arguments = [folder / name for name in ("tiny.safetensors", "random.safetensors", "tiny.h5", "random.h5")]
    done = precompute("compare", *arguments)
    assert done.returncode == 0, done.stderr
    for shown in ("24 of hold-out", "McNemar", "verdict", "points (95%: "):
        assert shown in done.stdout
    told = json.loads(precompute("compare", *arguments, "--json").stdout)
    assert told["n"] == 24
    assert told["verdict"] in done.stdout
    done = precompute("compare", *arguments[:2], folder / "nowhere.h5")
    assert done.returncode == 1
    assert "does not exist" in done.stderr


@pytest.mark.slow
@pytest.mark.daily(2)
def test_real_backbones_on_real_photos(
    hymenoptera: Path, mobilenet_weights: Path, squeezenet_weights: Path, tmp_path: Path
) -> None:
    for name, weights in (("mobilenet_v2", mobilenet_weights), ("squeezenet1_1", squeezenet_weights)):
        for command in (
            ("extract", hymenoptera, "-b", name, "--weights", weights, "-o", f"{name}.h5", "--precision", "fp32"),
            ("train-head", f"{name}.h5", "-o", f"{name}.safetensors"),
        ):
            done = run_command(tmp_path, *command, env=openvino(tmp_path))
            assert done.returncode == 0, done.stderr
    names = [f"{name}.{kind}" for kind in ("safetensors", "h5") for name in ("mobilenet_v2", "squeezenet1_1")]
    done = run_command(tmp_path, "compare", *names, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["n"] == 153
    assert told["split"] == "val"
    # The difference of the two accuracies that train-head gave
    scores = [load_head(tmp_path / name).metadata["training"]["scores"]["val"]["accuracy"] for name in names[:2]]
    assert told["accuracies"] == scores
