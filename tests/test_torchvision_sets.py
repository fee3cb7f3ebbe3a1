"""torchvision:NAME: the pictures, classes and splits of torchvision's own data sets."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
from conftest import SHARED, Command, make_image, make_photos
from contracts import SourceContract

from precompute import extract, open_cache
from precompute.errors import SourceError
from precompute.inputs.images.formats import IMAGES
from precompute.sources.base import Reading, Source
from precompute.sources.registry import kind_of, open_source
from precompute.sources.torchvision_sets import MARK, SETS, UNPICKLED

pytestmark = pytest.mark.usefixtures("tiny_made_once")


def opened(name: str, root: Path | None, **options: Any) -> Source:
    return open_source(MARK + name, IMAGES, reading=Reading.of(root, None), **options)


def write_mnist(root: Path, name: str = "FashionMNIST", rows: int = 6) -> Path:
    """Small files in the form of MNIST's."""
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for word, count in (("train", rows), ("t10k", rows // 2)):
        images = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        (raw / f"{word}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, count, 28, 28) + images.tobytes())
        (raw / f"{word}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, count) + labels.tobytes())
    return root


class TestContract(SourceContract):
    @pytest.fixture(params=["FashionMNIST", "ImageFolder"])
    def source(self, request: pytest.FixtureRequest, tmp_path: Path) -> Source:
        if request.param == "ImageFolder":
            return opened("ImageFolder", make_photos(tmp_path / "photos") / "train")
        return opened("FashionMNIST", write_mnist(tmp_path / "data"))


def test_train_and_test_are_together_with_the_names_of_the_classes(tmp_path: Path) -> None:
    root = write_mnist(tmp_path / "data")
    source = opened("FashionMNIST", root)
    known = torchvision.datasets.FashionMNIST(root, train=False)
    ids = [os.fsdecode(bytes(name)) for name in source.table.ids]
    assert ids == [*(f"test/{row:09d}" for row in range(3)), *(f"train/{row:09d}" for row in range(6))]
    assert source.table.splits.tolist() == [3] * 3 + [1] * 6
    assert [source.label_name(row) for row in range(3)] == known.classes[:3]
    extract(source, tmp_path / "a.h5", backbone="tiny")
    extract(known.data.numpy(), tmp_path / "b.h5", backbone="tiny")
    assert np.array_equal(open_cache(tmp_path / "a.h5").features()[:3], open_cache(tmp_path / "b.h5").features())


def test_a_second_run_reads_all_and_computes_what_has_changed(tmp_path: Path) -> None:
    root = write_mnist(tmp_path / "data")
    how: dict[str, Any] = {"backbone": "tiny", "root": str(root)}
    extract(f"{MARK}FashionMNIST", tmp_path / "a.h5", **how)
    path = root / "FashionMNIST/raw/train-images-idx3-ubyte"
    content = bytearray(path.read_bytes())
    content[16 + 2 * 784 : 16 + 3 * 784] = bytes(784)
    path.write_bytes(bytes(content))
    found = extract(f"{MARK}FashionMNIST", tmp_path / "a.h5", **how)
    assert (found.computed, found.copied, found.reused) == (1, 8, 0)
    extract(f"{MARK}FashionMNIST", tmp_path / "fresh.h5", **how)
    a, fresh = open_cache(tmp_path / "a.h5"), open_cache(tmp_path / "fresh.h5")
    assert a.features().tobytes() == fresh.features().tobytes()
    assert np.array_equal(a.labels, fresh.labels)


def write_pets(root: Path) -> Path:
    """Small files in the form of the Oxford-IIIT Pet data set."""
    (root / "oxford-iiit-pet/images").mkdir(parents=True)
    (root / "oxford-iiit-pet/annotations/trimaps").mkdir(parents=True)
    for split, first in (("trainval", 0), ("test", 4)):
        lines = []
        for number in range(first, first + 4):
            name = f"{('Abyssinian', 'beagle')[number % 2]}_{number}"
            make_image(number).save(root / "oxford-iiit-pet/images" / f"{name}.jpg")
            lines.append(f"{name} {number % 2 + 1} 1 1\n")
        (root / f"oxford-iiit-pet/annotations/{split}.txt").write_text("".join(lines))
    return root


def test_a_data_set_of_photos_has_its_splits_and_no_image_is_decoded_for_its_label(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_pets(tmp_path / "data")

    def refuse(self: Any, number: int) -> Any:
        raise AssertionError("an image was decoded")

    with monkeypatch.context() as patch:
        patch.setattr(torchvision.datasets.OxfordIIITPet, "__getitem__", refuse)
        source = opened("OxfordIIITPet", root)
    assert source.table.splits.tolist() == [3] * 4 + [1] * 4
    assert [source.label_name(row) for row in range(4)] == ["Abyssinian", "Beagle"] * 2
    assert extract(source, tmp_path / "a.h5", backbone="tiny").computed == 8


def test_what_is_missing_and_how_to_get_it_is_said(tmp_path: Path, precompute: Command) -> None:
    done = precompute("extract", "torchvision:FashionMNIST", "--root", tmp_path, "-b", "tiny", "-o", "a.h5")
    assert done.returncode == 1
    assert "torchvision finds no FashionMNIST in" in done.stderr
    assert "download=True" in done.stderr
    assert not any(tmp_path.iterdir())  # nothing was downloaded
    done = precompute("extract", "torchvision:FashionMNIST", "-b", "tiny", "-o", "a.h5")
    assert done.returncode == 2
    assert "--root FOLDER" in done.stderr
    write_mnist(tmp_path / "data")
    done = precompute("extract", "torchvision:FashionMNIST", "--root", "data", "-b", "tiny", "-o", "a.h5")
    assert done.returncode == 0, done.stderr
    assert "read again in each run" in done.stdout + done.stderr
    with pytest.raises(SourceError, match="no ImageFolder") as caught:
        opened("ImageFolder", tmp_path / "nowhere")
    assert "download" not in caught.value.hint  # which it does not know


def test_a_limit_gives_the_first_by_id(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    whole, cut = opened("FashionMNIST", tmp_path), opened("FashionMNIST", tmp_path, limit=3)
    assert cut.table.ids.tolist() == whole.table.ids[:3].tolist()
    assert [cut.label_name(row) for row in range(3)] == [whole.label_name(row) for row in range(3)]
    assert cut.table.splits.tolist() == whole.table.splits[:3].tolist()
    assert [cut.read(row).data for row in range(3)] == [whole.read(row).data for row in range(3)]


@pytest.mark.parametrize("name", ["", "Nothing", "fashionmnist", "VisionDataset", "__init__", "CocoDetection", "../x"])
def test_only_data_sets_of_image_and_label_are_known(tmp_path: Path, name: str) -> None:
    with pytest.raises(SourceError, match=r"is not a data set of \(image, label\)") as caught:
        opened(name, tmp_path)
    assert "FashionMNIST" in caught.value.hint


@pytest.mark.parametrize("name", UNPICKLED)
def test_nothing_is_unpickled(tmp_path: Path, name: str) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return os._exit, (7,)

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for path in ("data_batch_1", "batches.meta"):
        file = io.BytesIO()
        pickle.dump(Trap(), file)
        (folder / path).write_bytes(file.getvalue())
    with pytest.raises(SourceError, match="unpickling can run code"):
        opened(name, tmp_path)


def test_each_known_name_is_torchvisions() -> None:
    for name in (*SETS, *UNPICKLED):
        assert hasattr(torchvision.datasets, name), name
    assert kind_of("torchvision:FashionMNIST").what == "a data set of torchvision"


@pytest.mark.slow
@pytest.mark.daily(2)
@pytest.mark.parametrize("name", ["FashionMNIST", "MNIST"])
def test_the_real_files_give_what_their_arrays_give(tmp_path: Path, name: str) -> None:
    if not (SHARED / "data" / name).exists():
        pytest.skip(f"needs ../shared/data/{name}, which is not there")
    raw = tmp_path / "data" / name / "raw"
    raw.mkdir(parents=True)
    for packed in (SHARED / "data" / name / "raw").glob("*.gz"):
        (raw / packed.stem).write_bytes(gzip.decompress(packed.read_bytes()))
    extract(f"{MARK}{name}", tmp_path / "a.h5", backbone="tiny", batch_size=256, root=str(tmp_path / "data"))
    test = getattr(torchvision.datasets, name)(tmp_path / "data", train=False)
    extract(test.data.numpy(), tmp_path / "b.h5", backbone="tiny", batch_size=256)
    a, b = open_cache(tmp_path / "a.h5"), open_cache(tmp_path / "b.h5")
    assert (len(a), len(b)) == (70_000, 10_000)
    assert np.array_equal(a.features()[:10_000], b.features())
    assert [a.classes[label] for label in a.labels[:100]] == [str(test.classes[label]) for label in test.targets[:100]]
