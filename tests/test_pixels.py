"""Activations from images, as training asks for them: the values of a file of that layer, other views in each epoch,
and what happens where an image is not what it was."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_image, make_photos

from precompute import extract, load_backbone, open_cache
from precompute.cache import key_of, plain_spec
from precompute.errors import CacheError, CacheKeyError, SampleError, SourceError, UsageError
from precompute.finetuning.data import Data
from precompute.finetuning.labelled_images import FEATURES, ImageOptions, open_images
from precompute.finetuning.pixels import STEPS_AHEAD, PixelActivations
from precompute.heads import RowView
from precompute.inputs.images.augmentation import Augmentation
from precompute.inputs.images.preprocess import ImagePreprocess
from precompute.sources.base import Raw, Source

ROWS = np.arange(24)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photos(tmp_path_factory.mktemp("pixels") / "photos")


@pytest.fixture(scope="module")
def features(photos: Path) -> Path:
    """What enters tiny's classifier, for each of them."""
    extract(photos, photos.parent / "features.h5", backbone="tiny")
    return photos.parent / "features.h5"


@pytest.fixture
def images(photos: Path, features: Path, tmp_path: Path) -> Iterator[Data]:
    made = opened(photos, tmp_path / "out.safetensors", features=features, workers=2)
    yield made
    made.activations.close()


def opened(photos: Path, out: Path, **options: Any) -> Data:
    return open_images(photos, out, ImageOptions(**options), backbone="tiny")


def view(rows: Any, number: int) -> Any:
    return np.full(len(rows), number, np.int64)


@pytest.mark.rotates(3)
def test_the_plain_view_is_what_a_file_of_the_input_holds(
    photos: Path, features: Path, images: Data, tmp_path: Path
) -> None:
    extract(photos, tmp_path / "input.h5", backbone="tiny", layer="input", precision="fp32")
    stored = open_cache(tmp_path / "input.h5")
    assert plain_spec(images.spec) == stored.spec
    assert images.spec["augment"] == Augmentation.of(["crop", "flip"]).spec()
    made = images.activations.batch(ROWS, view(ROWS, 0))
    assert made.dtype == torch.float32
    assert np.array_equal(made.numpy(), stored.features("input"))
    assert (images.layer, images.key, images.name) == ("input", key_of(images.spec), "features.h5")
    assert images.frozen is not None
    assert np.array_equal(images.frozen, open_cache(features).features())


@pytest.mark.rotates(3)
@pytest.mark.parametrize("layer", ["body.2", "embed.1"])
def test_the_frozen_part_gives_what_a_file_of_its_last_layer_holds(
    photos: Path, features: Path, tmp_path: Path, layer: str
) -> None:
    extract(photos, tmp_path / "layer.h5", backbone="tiny", layer=layer, precision="fp32")
    stored = open_cache(tmp_path / "layer.h5")
    made = opened(photos, tmp_path / "o", features=features, freeze_to=layer, workers=1)
    assert made.activations.shape == stored.features(layer).shape[1:]
    assert plain_spec(made.spec) == stored.spec
    for rows in (ROWS, ROWS[::-1][:5]):
        assert np.array_equal(made.activations.batch(rows, view(rows, 0)).numpy(), stored.features(layer)[rows])
    made.activations.close()


def test_a_view_follows_from_the_image_and_its_number_alone(images: Data, photos: Path) -> None:
    """Compared with the augmentation itself, on the bytes of one image."""
    row = 7
    raw = (photos / images.cache.ids[row]).read_bytes()
    backbone = load_backbone("tiny")
    assert isinstance(backbone.preprocess, ImagePreprocess)
    augmentation = Augmentation.of(["flip", "crop"])
    oracle = ImagePreprocess(backbone.preprocess.transform, 12, augmentation)
    expected = backbone.preprocess.device()(oracle.all_views(raw, hashlib.sha256(raw).digest())[11][0][None])[0]
    for others in ([], [3, 4], [23] * 9):
        rows = np.array([*others, row])
        assert torch.equal(images.activations.batch(rows, view(rows, 11))[-1], expected)
    assert not torch.equal(images.activations.batch(np.array([row]), np.array([0]))[0], expected)


def test_steps_come_in_order_whatever_the_threads_do(images: Data) -> None:
    draws = np.random.default_rng(0)
    plan = [(draws.integers(24, size=5), draws.integers(images.activations.views, size=5)) for _ in range(9)]
    expected = [images.activations.batch(*step) for step in plan]
    made = list(images.activations.batches(iter(plan)))
    assert len(made) == 9
    assert all(torch.equal(one, other) for one, other in zip(made, expected, strict=True))


def test_few_steps_are_read_ahead_and_closing_leaves_nothing_under_way(images: Data) -> None:
    asked = []

    def plan() -> Iterator[tuple[Any, Any]]:
        for number in range(1000):
            asked.append(number)
            yield ROWS, view(ROWS, number)

    made = images.activations.batches(plan())
    next(made)
    next(made)
    assert len(asked) <= 2 + STEPS_AHEAD
    made.close()
    assert len(images.activations.batch(ROWS, view(ROWS, 0))) == 24  # it can go on


def test_closing_ends_the_threads(photos: Path, features: Path, tmp_path: Path) -> None:
    before = threading.active_count()
    made = opened(photos, tmp_path / "o", features=features, workers=3)
    made.activations.batch(ROWS, view(ROWS, 1))
    made.activations.close()
    assert threading.active_count() == before


def test_plain_images_are_an_array_that_scoring_reads(images: Data) -> None:
    plain = images.activations.plain
    whole = images.activations.batch(ROWS, view(ROWS, 0)).numpy()
    assert (plain.shape, plain.ndim, len(plain), plain.dtype) == (whole.shape, 4, 24, whole.dtype)
    assert plain.strides == np.ascontiguousarray(whole).strides
    assert np.array_equal(plain[3:9], whole[3:9])
    assert np.array_equal(plain[np.array([5, 2])], whole[[5, 2]])
    assert np.array_equal(plain[4], whole[4])
    assert plain[0:0].shape == (0, 3, 32, 32)
    rows = np.array([9, 10, 11, 2])
    view_of = RowView(plain, rows)
    assert view_of.shape == (4, 3 * 32 * 32)
    assert np.array_equal(np.concatenate([block for _, block in view_of.blocks(3)]), whole[rows].reshape(4, -1))
    with pytest.raises(ValueError, match="cannot reshape"):
        plain.reshape(23, -1)


def test_none_trains_on_the_plain_images(photos: Path, features: Path, tmp_path: Path) -> None:
    made = opened(photos, tmp_path / "o", features=features, augment="none")
    assert made.activations.views == 1
    made.activations.close()


@pytest.mark.rotates(3)
def test_the_features_are_made_beside_the_output_and_found_again(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "full.safetensors"
    made = opened(photos, out)
    made.activations.close()
    path = Path(f"{out}{FEATURES}")
    assert made.cache.path == str(path)
    before = path.stat().st_mtime_ns
    opened(photos, out).activations.close()
    assert path.stat().st_mtime_ns == before


def test_a_file_of_the_users_under_that_name_is_left_as_it_is(photos: Path, tmp_path: Path) -> None:
    path = tmp_path / f"full.safetensors{FEATURES}"
    path.write_bytes(b"mine")
    with pytest.raises(CacheError, match="is left as it is"):
        opened(photos, tmp_path / "full.safetensors")
    assert path.read_bytes() == b"mine"


@pytest.mark.rotates(3)
@pytest.mark.parametrize(
    ("made_with", "difference"),
    [
        ({"weights": "random"}, "weights: "),
        ({"transform": {"resize": 40}}, "transform.resize: 40 -> 32"),
        ({"layer": "body.2"}, "layers: body.2 -> embed.4"),
        ({"views": 2, "augment": "flip"}, "views: 2 -> 1"),
    ],
    ids=["weights", "transform", "layer", "views"],
)
def test_features_of_another_network_are_refused(
    photos: Path, tmp_path: Path, made_with: dict[str, Any], difference: str
) -> None:
    extract(photos, tmp_path / "other.h5", backbone="tiny", **made_with)
    with pytest.raises(CacheKeyError, match="not those of this network") as raised:
        opened(photos, tmp_path / "o", features=tmp_path / "other.h5")
    assert difference in raised.value.message


@pytest.mark.parametrize("change", ["removed", "added"])
def test_features_of_other_images_are_refused(photos: Path, features: Path, tmp_path: Path, change: str) -> None:
    folder = make_photos(tmp_path / "photos")
    if change == "removed":
        (folder / "val" / "dogs" / "3.png").unlink()
    else:
        make_image(99).save(folder / "val" / "dogs" / "new.png")
    name = {"removed": "val/dogs/3.png", "added": "val/dogs/new.png"}[change]
    with pytest.raises(CacheError, match=name):
        opened(folder, tmp_path / "o", features=features)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: make_image(77).save(path), "train/cats/0.jpg has changed"),
        (lambda path: path.unlink(), "train/cats/0.jpg: vanished"),
        (lambda path: path.write_bytes(b""), "train/cats/0.jpg"),
    ],
    ids=["changed", "vanished", "emptied"],
)
def test_an_image_that_is_not_what_it_was_is_named(features: Path, tmp_path: Path, damage: Any, message: str) -> None:
    folder = make_photos(tmp_path / "photos")
    made = opened(folder, tmp_path / "o", features=features)
    damage(folder / "train" / "cats" / "0.jpg")
    with pytest.raises(SampleError, match=message) as raised:
        list(made.activations.batches([(ROWS, view(ROWS, 1)), (ROWS, view(ROWS, 2))]))
    assert "checkpoint is kept" in raised.value.hint
    made.activations.close()


def test_a_source_that_went_away_is_one_error_of_its_own(features: Path, tmp_path: Path) -> None:
    folder = make_photos(tmp_path / "photos")
    made = opened(folder, tmp_path / "o", features=features)
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(SourceError, match="disappeared"):
        made.activations.batch(ROWS, view(ROWS, 0))
    made.activations.close()


def test_a_step_of_augmentation_that_there_is_none_of(photos: Path, features: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="augment must name"):
        opened(photos, tmp_path / "o", features=features, augment="none,flip")


class Counting(Source):
    """Samples that wait for a network: each read is counted."""

    def __init__(self, other: Source) -> None:
        self.name, self.table, self.reads_at_once = other.name, other.table, 4
        self._other, self._lock, self.reads_done = other, threading.Lock(), 0

    def read(self, row: int) -> Raw:
        with self._lock:
            self.reads_done += 1
        return self._other.read(row)


def test_reads_that_wait_for_a_network_are_begun_once_each(photos: Path, features: Path) -> None:
    from conftest import list_images

    cache = open_cache(features)
    source = Counting(list_images(photos))
    backbone = load_backbone("tiny", layer="embed.1", pooling="none")
    activations = PixelActivations(source, cache.column("samples/digest"), backbone, workers=2)
    rows = np.array([3, 3, 4])  # the same image twice in a step
    made = list(activations.batches([(rows, view(rows, 0)), (rows, view(rows, 0))]))
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0][0], made[0][1])
    assert 4 <= source.reads_done <= 6
    activations.close()
