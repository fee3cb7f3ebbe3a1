"""Arrays of images as a source: the features of the pictures that they were made from."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Command
from contracts import SourceContract
from PIL import Image

from precompute import extract, open_cache, predict, train_head
from precompute.errors import SampleError, SourceError, Stopped
from precompute.inputs.images.formats import IMAGES
from precompute.sources.base import Reading
from precompute.sources.images_array import ArraySource, bmp, images_of, open_images

pytestmark = pytest.mark.usefixtures("tiny_made_once")


def arrays(folder: Path, *, grey: bool = False) -> dict[str, np.ndarray]:
    """What a program would keep of the PNG photos below `folder`, in an order of its own."""
    paths = sorted(folder.rglob("*.png"), key=lambda path: path.name)
    images = [np.asarray(Image.open(path).convert("L" if grey else "RGB")) for path in paths]
    return {
        "images": np.stack(images),
        "id": np.array([str(path.relative_to(folder)) for path in paths]),
        "label": np.array([path.parent.name for path in paths]),
        "split": np.array([path.parent.parent.name for path in paths]),
        "age": np.arange(len(paths)),
    }


def opened(path: Path, **options: Any) -> ArraySource:
    return open_images(str(path), IMAGES, reading=Reading(), limit=None, stop=None, **options)


class TestContract(SourceContract):
    @pytest.fixture(params=[np.savez, np.savez_compressed, None], ids=["plain", "compressed", "in memory"])
    def source(self, request: pytest.FixtureRequest, png_photos: Path, tmp_path: Path) -> ArraySource:
        given = arrays(png_photos)
        if request.param is None:
            return images_of(given["images"], ids=given["id"], labels=given["label"])
        request.param(tmp_path / "a.npz", **given)
        return opened(tmp_path / "a.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_features_are_those_of_the_files(save: Any, png_photos: Path, tmp_path: Path) -> None:
    extract(png_photos, tmp_path / "folder.h5", backbone="tiny")
    save(tmp_path / "a.npz", **arrays(png_photos))
    found = extract(tmp_path / "a.npz", tmp_path / "a.h5", backbone="tiny")
    ours, theirs = open_cache(tmp_path / "a.h5"), open_cache(tmp_path / "folder.h5")
    assert found.computed == len(theirs)
    assert (ours.ids, ours.classes, ours.key) == (theirs.ids, theirs.classes, theirs.key)
    assert np.array_equal(ours.features(), theirs.features())
    assert np.array_equal(ours.labels, theirs.labels)
    assert np.array_equal(ours.split, theirs.split)
    names = arrays(png_photos)
    assert ours.column("columns/age").tolist() == [names["age"][names["id"].tolist().index(one)] for one in ours.ids]


def test_images_alone_and_in_memory(png_photos: Path, tmp_path: Path) -> None:
    given = arrays(png_photos)
    np.save(tmp_path / "a.npy", given["images"])
    extract(tmp_path / "a.npy", tmp_path / "a.h5", backbone="tiny")
    source = images_of(given["images"], labels=given["label"], splits=given["split"])
    extract(source, tmp_path / "b.h5", backbone="tiny")
    a, b = open_cache(tmp_path / "a.h5"), open_cache(tmp_path / "b.h5")
    assert a.ids == b.ids
    assert a.ids[0] in ("row/00", "row/0")
    assert np.array_equal(a.features(), b.features())
    assert (a.classes, b.classes) == ((), ("cats", "dogs"))
    grey = arrays(png_photos, grey=True)["images"]
    extract(images_of(grey), tmp_path / "grey.h5", backbone="tiny")
    extract(images_of(np.repeat(grey[..., None], 3, axis=3)), tmp_path / "rgb.h5", backbone="tiny")
    assert np.array_equal(open_cache(tmp_path / "grey.h5").features(), open_cache(tmp_path / "rgb.h5").features())


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (7, 4), (2, 3, 3), (5, 1, 3), (4, 6, 3)])
def test_a_bmp_holds_the_pixels(shape: tuple[int, ...], tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    (tmp_path / "a.bmp").write_bytes(bmp(pixels))
    with Image.open(tmp_path / "a.bmp") as image:
        assert np.array_equal(np.asarray(image.convert("RGB" if len(shape) == 3 else "L")), pixels)


def test_only_images_that_have_changed_are_computed(png_photos: Path, tmp_path: Path) -> None:
    given = arrays(png_photos)
    np.savez(tmp_path / "a.npz", **given)
    extract(tmp_path / "a.npz", tmp_path / "a.h5", backbone="tiny")
    again = extract(tmp_path / "a.npz", tmp_path / "a.h5", backbone="tiny")
    assert (again.computed, again.to_read) == (0, 0)
    os.utime(tmp_path / "a.npz")
    assert extract(tmp_path / "a.npz", tmp_path / "a.h5", backbone="tiny").computed == 0
    given["images"] = given["images"].copy()
    given["images"][3] ^= 255
    given["id"] = given["id"].copy()
    given["id"][5] = "renamed.png"
    np.savez(tmp_path / "a.npz", **given)
    found = extract(tmp_path / "a.npz", tmp_path / "a.h5", backbone="tiny")
    assert (found.computed, found.copied) == (1, 1)
    np.savez(tmp_path / "b.npz", **given)
    extract(tmp_path / "b.npz", tmp_path / "b.h5", backbone="tiny")
    assert np.array_equal(open_cache(tmp_path / "a.h5").features(), open_cache(tmp_path / "b.h5").features())


def test_a_run_that_was_stopped_goes_on_where_it_was(png_photos: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **arrays(png_photos))
    extract(tmp_path / "a.npz", tmp_path / "whole.h5", backbone="tiny", batch_size=2)
    with pytest.raises(Stopped):
        extract(tmp_path / "a.npz", tmp_path / "a.h5", backbone="tiny", batch_size=2, stop=lambda: 15)
    found = extract(tmp_path / "a.npz", tmp_path / "a.h5", backbone="tiny", batch_size=2)
    assert 0 < found.computed < len(open_cache(tmp_path / "a.h5"))
    assert np.array_equal(open_cache(tmp_path / "a.h5").features(), open_cache(tmp_path / "whole.h5").features())


def test_a_limit_leaves_the_classes_of_what_is_left(png_photos: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **arrays(png_photos))
    extract(tmp_path / "a.npz", tmp_path / "a.h5", backbone="tiny", limit=2)
    extract(png_photos, tmp_path / "b.h5", backbone="tiny", limit=2)
    a, b = open_cache(tmp_path / "a.h5"), open_cache(tmp_path / "b.h5")
    assert (a.ids, a.classes, a.labels.tolist()) == (b.ids, b.classes, b.labels.tolist())


def test_a_file_that_changes_while_it_is_read_gives_no_wrong_image(png_photos: Path, tmp_path: Path) -> None:
    given = arrays(png_photos)
    np.save(tmp_path / "a.npy", given["images"])
    source = opened(tmp_path / "a.npy")
    assert source.read(0).mtime == source.table.mtimes[0]
    with open(tmp_path / "a.npy", "r+b") as file:
        file.truncate(1000)
    with pytest.raises(SampleError, match="has been replaced"):
        source.read(0)
    (tmp_path / "a.npy").unlink()
    assert not source.alive()
    with pytest.raises(SampleError) as caught:
        source.read(0)
    assert caught.value.reason == "VANISHED"


WRONG = {
    "float": ({"images": np.zeros((3, 4, 4, 3), np.float32)}, "of the type float32"),
    "channels first": ({"images": np.zeros((3, 3, 8, 8), np.uint8)}, "channels last"),
    "one image": ({"images": np.zeros((8, 8), np.uint8)}, r"shape \(8, 8\)"),
    "none": ({"images": np.zeros((0, 8, 8), np.uint8)}, r"shape \(0, 8, 8\)"),
    "features": ({"features": np.zeros((3, 8), np.float32)}, "has no array `images`; it has 'features'"),
    "an id twice": ({"images": np.zeros((2, 8, 8), np.uint8), "id": np.array(["a", "a"])}, "the id 'a' in row 0"),
    "objects": ({"images": np.array([[None]], dtype=object)}, "Python objects"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said(case: str, tmp_path: Path) -> None:
    given, message = WRONG[case]
    np.savez(tmp_path / "a.npz", **given)
    with pytest.raises(SourceError) as caught:
        extract(tmp_path / "a.npz", tmp_path / "a.h5", backbone="tiny")
    assert re.search(message, f"{caught.value} {caught.value.hint}")
    assert not (tmp_path / "a.h5").exists()


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((9, 8, 8), np.uint8))
    content = (tmp_path / "a.npz").read_bytes()
    for name, data in {
        "cut.npz": content[:-40],
        "cut.npy": b"\x93NUMPY",
        "empty.npz": b"",
        "text.npy": b"hello",
    }.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(SourceError, match=name):
            opened(tmp_path / name)
    with pytest.raises(SourceError, match="does not exist"):
        opened(tmp_path / "nowhere.npz")
    np.savez_compressed(tmp_path / "packed.npz", images=np.zeros((9, 8, 8), np.uint8))
    monkeypatch.setattr("precompute.sources.images_array.MEMORY_BYTES", 100)
    with pytest.raises(SourceError, match="is compressed, and its 576 bytes"):
        opened(tmp_path / "packed.npz")


def test_every_command_takes_them(png_photos: Path, tmp_path: Path, precompute: Command) -> None:
    np.savez(tmp_path / "a.npz", **arrays(png_photos))
    assert precompute("extract", "a.npz", "-b", "tiny", "-o", "a.h5").returncode == 0
    assert precompute("plan", "a.npz", "-b", "tiny").returncode == 0
    assert precompute("verify", "a.h5", "--source", "a.npz").returncode == 0
    train_head(tmp_path / "a.h5", tmp_path / "head", C=1.0)
    assert predict(tmp_path / "head", tmp_path / "a.npz").accuracy is not None
    done = precompute("extract", "a.npz", "-b", "tiny", "-o", "a.npz")
    assert done.returncode in (1, 2)
    assert np.load(tmp_path / "a.npz")["images"].shape[0] > 0
