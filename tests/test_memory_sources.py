"""What a program holds as a source: arrays, encoded images, and datasets as torch and torchvision have them."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SHARED
from contracts import SourceContract
from PIL import Image
from torchvision.datasets import FashionMNIST, ImageFolder

from precompute import extract, open_cache, predict, train_head
from precompute.errors import SourceError, UsageError
from precompute.sources.base import Source
from precompute.sources.memory import dataset, encoded_images, source_of

pytestmark = pytest.mark.usefixtures("tiny_made_once")


class Pairs:
    """A map-style dataset without anything else."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> Any:
        return self.items[number]


def pixels(folder: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(path).convert("RGB")) for path in sorted(folder.rglob("*.png"))]


class TestContract(SourceContract):
    @pytest.fixture(params=["bytes", "pairs", "ImageFolder"])
    def source(self, request: pytest.FixtureRequest, png_photos: Path) -> Source:
        if request.param == "bytes":
            return source_of([path.read_bytes() for path in sorted(png_photos.rglob("*.png"))])
        if request.param == "pairs":
            return source_of(Pairs([(one, number % 2) for number, one in enumerate(pixels(png_photos))]))
        return source_of(ImageFolder(png_photos / "train"))


def test_encoded_images_have_the_features_of_their_files(png_photos: Path, tmp_path: Path) -> None:
    extract(png_photos, tmp_path / "folder.h5", backbone="tiny")
    paths = sorted(png_photos.rglob("*.png"), reverse=True)
    source = encoded_images(
        [path.read_bytes() for path in paths],
        ids=[str(path.relative_to(png_photos)) for path in paths],
        labels=[path.parent.name for path in paths],
        splits=[path.parent.parent.name for path in paths],
    )
    extract(source, tmp_path / "a.h5", backbone="tiny")
    ours, theirs = open_cache(tmp_path / "a.h5"), open_cache(tmp_path / "folder.h5")
    for name in ("samples/id", "samples/digest", "samples/label", "samples/split", "classes", "features/embed.4"):
        assert np.array_equal(ours.column(name), theirs.column(name)), name


def test_an_image_folder_of_torchvision(png_photos: Path, tmp_path: Path) -> None:
    folder = ImageFolder(png_photos / "train")
    extract(png_photos / "train", tmp_path / "folder.h5", backbone="tiny")
    extract(folder, tmp_path / "a.h5", backbone="tiny")
    ours, theirs = open_cache(tmp_path / "a.h5"), open_cache(tmp_path / "folder.h5")
    assert ours.classes == theirs.classes == ("cats", "dogs")
    assert np.array_equal(ours.features(), theirs.features())
    assert np.array_equal(ours.labels, theirs.labels)


@pytest.mark.parametrize("kind", ["PIL", "palette", "array", "tensor", "channels first", "bytes"])
def test_items_of_any_kind_are_the_same_picture(kind: str, png_photos: Path, tmp_path: Path) -> None:
    def item(one: np.ndarray) -> Any:
        if kind == "palette":
            return Image.fromarray(one).convert("RGBA")
        if kind == "bytes":
            file = io.BytesIO()
            Image.fromarray(one).save(file, "PNG")
            return file.getvalue()
        made = {"PIL": Image.fromarray, "array": np.array, "tensor": torch.tensor}
        return torch.tensor(one).permute(2, 0, 1) if kind == "channels first" else made[kind](one)

    given = pixels(png_photos)
    extract(np.stack(given), tmp_path / "array.h5", backbone="tiny")
    extract(Pairs([(item(one), 0) for one in given]), tmp_path / "a.h5", backbone="tiny")
    assert np.array_equal(open_cache(tmp_path / "a.h5").features(), open_cache(tmp_path / "array.h5").features())


def test_it_is_read_again_and_only_what_is_new_is_computed(png_photos: Path, tmp_path: Path) -> None:
    given = pixels(png_photos)
    extract(Pairs([(one, 0) for one in given]), tmp_path / "a.h5", backbone="tiny")
    given[2] = 255 - given[2]
    found = extract(Pairs([(one, 1) for one in given]), tmp_path / "a.h5", backbone="tiny")
    assert (found.computed, found.copied) == (1, len(given) - 1)
    assert open_cache(tmp_path / "a.h5").classes == ("1",)


def test_labels_come_from_targets_classes_or_items(png_photos: Path) -> None:
    given = pixels(png_photos)[:4]
    plain = Pairs([(one, label) for one, label in zip(given, (torch.tensor(2), np.int64(0), 2, 1), strict=True)])
    assert dataset(plain).table.classes == (b"0", b"1", b"2")
    plain.classes = ["ant", "bee", "cow"]  # type: ignore[attr-defined]
    assert [dataset(plain).label_name(row) for row in range(4)] == ["cow", "ant", "cow", "bee"]
    plain.targets = torch.tensor([0, 0, 1, 1])  # type: ignore[attr-defined]
    assert [dataset(plain).label_name(row) for row in range(4)] == ["ant", "ant", "bee", "bee"]
    plain.targets = [0, -1, None, 1]  # type: ignore[attr-defined]
    assert [dataset(plain).label_name(row) for row in range(4)] == ["ant", None, None, "bee"]
    assert dataset(Pairs(given)).table.classes == ()
    assert [dataset(Pairs([(one, None) for one in given])).label_name(row) for row in range(4)] == [None] * 4


def test_what_is_no_image_fails_with_its_reason_and_costs_nothing_else(png_photos: Path, tmp_path: Path) -> None:
    given: list[Any] = [(one, "a") for one in pixels(png_photos)]
    given[1] = (torch.zeros(3, 8, 8), "b")
    given[3] = (b"no image", "b")
    found = extract(Pairs(given), tmp_path / "a.h5", backbone="tiny")
    assert found.failures == {"UNDECODABLE": 2}
    assert any("leave transforms out" in detail for _, _, detail in found.failed)

    class Broken(Pairs):
        def __getitem__(self, number: int) -> Any:
            if number == 2:
                raise ZeroDivisionError("the program's own mistake")
            return super().__getitem__(number)

    found = extract(Broken([(one, "a") for one in pixels(png_photos)]), tmp_path / "c.h5", backbone="tiny")
    assert found.failures == {"UNREADABLE": 1}
    assert "ZeroDivisionError: the program's own mistake" in found.failed[0][2]
    for wrong in (3, {"a": 1}, [], ["path.jpg", 3], object()):
        with pytest.raises(SourceError, match="is not a source"):
            extract(wrong, tmp_path / "b.h5", backbone="tiny")


def test_a_list_of_paths_has_the_features_of_the_folder(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract(photos, tmp_path / "folder.h5", backbone="tiny")
    monkeypatch.chdir(photos)
    names = sorted(str(path.relative_to(photos)) for path in photos.rglob("*.*"))
    extract([*map(Path, names[::2]), *names[1::2]], tmp_path / "a.h5", backbone="tiny")
    extract(names, tmp_path / "b.h5", backbone="tiny", root=str(photos))
    folder = open_cache(tmp_path / "folder.h5")
    for out in ("a.h5", "b.h5"):
        ours = open_cache(tmp_path / out)
        assert (ours.ids, ours.classes) == (folder.ids, ())
        assert ours.features().tobytes() == folder.features().tobytes()
    assert extract(names, tmp_path / "a.h5", backbone="tiny").reused == 24
    assert extract(names[:5], tmp_path / "c.h5", backbone="tiny", limit=3).rows == 3


@pytest.mark.rotates(3)
def test_a_list_of_paths_may_name_files_anywhere_and_misses_some(photos: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere" / "a.png"
    other.parent.mkdir()
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(other)
    paths = [other, photos / "train/cats/1.png", photos / "nowhere.png"]
    found = extract(paths, tmp_path / "a.h5", backbone="tiny")
    assert (found.computed, found.failures) == (2, {"VANISHED": 1})
    assert open_cache(tmp_path / "a.h5").ids == sorted(map(str, paths))
    with pytest.raises(SourceError, match="None of the 1 files"):
        extract([tmp_path / "nowhere.png"], tmp_path / "b.h5", backbone="tiny")
    with pytest.raises(SourceError, match="the id .* in paths 1 and 2"):
        extract([other, str(other)], tmp_path / "b.h5", backbone="tiny")
    with pytest.raises(SourceError, match="leads out of"):
        extract([other], tmp_path / "b.h5", backbone="tiny", root=str(photos))
    with pytest.raises(UsageError, match="--label-column cannot be used with a list of paths"):
        extract([other], tmp_path / "b.h5", backbone="tiny", columns={"label": "x"})
    with pytest.raises(UsageError, match="is one of the samples"):
        extract([other], other, backbone="tiny", overwrite=True)
    train_head(_labelled(photos, tmp_path), tmp_path / "head")
    assert len(predict(tmp_path / "head", paths[:2]).items) == 2


def _labelled(photos: Path, place: Path) -> Path:
    extract(photos, place / "labelled.h5", backbone="tiny")
    return place / "labelled.h5"


@pytest.mark.slow
@pytest.mark.daily(2)
@pytest.mark.skipif(not (SHARED / "data" / "FashionMNIST").exists(), reason="needs ../shared/data")
def test_fashion_mnist_of_torchvision_equals_its_array(tmp_path: Path) -> None:
    raw = tmp_path / "data" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for packed in (SHARED / "data" / "FashionMNIST" / "raw").glob("*.gz"):
        (raw / packed.stem).write_bytes(gzip.decompress(packed.read_bytes()))
    known = FashionMNIST(tmp_path / "data", train=False)
    extract(known, tmp_path / "a.h5", backbone="tiny", batch_size=256)
    extract(known.data.numpy(), tmp_path / "b.h5", backbone="tiny", batch_size=256)
    a, b = open_cache(tmp_path / "a.h5"), open_cache(tmp_path / "b.h5")
    assert np.array_equal(a.features(), b.features())
    assert len(a.classes) == 10
    assert [a.classes[label] for label in a.labels[:50]] == [known.classes[label] for label in known.targets[:50]]
