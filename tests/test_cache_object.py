"""A cache as a Python object: closed, pickled by its path, a dataset for workers, a table, and what is checked when."""

from __future__ import annotations

import os
import pickle
import shutil
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from stranger import write
from torch.utils.data import DataLoader

from precompute import train_head
from precompute.backbones.load import load_backbone
from precompute.cache import Cache, open_cache, reader, verify
from precompute.errors import CacheError, CacheFormatError
from precompute.extraction.matching import open_olds
from precompute.extraction.output import CacheOutput


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write(str(tmp_path / "a.h5"), "", 24, 300)
    return tmp_path / "a.h5"


def open_files(path: Path) -> int:
    """How many descriptors and mappings of this process hold the file."""
    links = [os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
    held = sum(os.path.exists(link) and os.path.realpath(link) == str(path) for link in links)
    return held + Path("/proc/self/maps").read_text().count(str(path))


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="no /proc/self/maps")
def test_a_closed_cache_gives_its_file_back(path: Path) -> None:
    with open_cache(path) as cache:
        assert isinstance(cache, Cache)
        features = cache.features()
        assert open_files(path)
    with pytest.raises(CacheError, match="has been closed"):
        cache.features()
    assert features[0].any(), "arrays taken from it stay valid"
    cache.close()  # a second time does nothing
    del features
    assert not open_files(path)


def test_a_cache_is_pickled_by_its_path(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    cache = open_cache("a.h5")
    monkeypatch.chdir("/")
    data = pickle.dumps(cache)
    assert len(data) < 1000
    again = pickle.loads(data)
    assert np.array_equal(again.features(), cache.features())
    assert (again.classes, again.ids, again.key) == (cache.classes, cache.ids, cache.key)
    write(str(path), "", 30)
    with pytest.raises(CacheError, match="has been replaced by one with other settings or samples"):
        pickle.loads(data)
    path.unlink()
    with pytest.raises(CacheFormatError, match="does not exist"):
        pickle.loads(data)


@pytest.mark.rotates(3)
def test_workers_open_the_file_themselves(path: Path) -> None:
    dataset = open_cache(path).dataset()
    assert len(pickle.dumps(dataset)) < 2000 < open_cache(path).features().nbytes
    alone = [features for features, _ in DataLoader(dataset, batch_size=5)]
    spawned = [features for features, _ in DataLoader(dataset, 5, num_workers=1, multiprocessing_context="spawn")]
    assert torch.equal(torch.cat(alone), torch.cat(spawned))
    again = pickle.loads(pickle.dumps(dataset))
    assert again.rows.dtype == np.int64
    assert again.rows.tolist() == dataset.rows.tolist()


@pytest.mark.parametrize("width", [8, 20_000])
def test_batches_are_the_single_items(tmp_path: Path, width: int) -> None:
    """Of rows that are read a batch at a time, and of those that are not."""
    write(str(tmp_path / "a.h5"), "", 12, width)
    dataset, wanted = open_cache(tmp_path / "a.h5").dataset(), [7, 2, 2, 11]
    for (features, label), index in zip(dataset.__getitems__(wanted), wanted, strict=True):
        assert torch.equal(features, dataset[index][0])
        assert label == dataset[index][1]


def test_it_opens_beside_a_program_part_that_has_it_open_by_h5py(path: Path) -> None:
    with h5py.File(path) as file:  # which takes a lock that open_cache does not
        assert np.array_equal(open_cache(path).features(), file["features/deep"][:])


def test_a_name_that_is_no_column_is_refused(path: Path) -> None:
    assert open_cache(path).columns == ("site",)
    with pytest.raises(CacheError, match="has no column 'columns/sight'"):
        open_cache(path).column("columns/sight")


# What is checked when


def test_a_large_files_table_is_checked_before_it_is_used(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(str(path), "table")
    with pytest.raises(CacheFormatError, match="not those it was made with"):
        open_cache(path)
    monkeypatch.setattr(reader, "CHECKED_ROWS", 24)
    cache = open_cache(path)
    for use in (lambda: verify(cache), lambda: train_head(cache), cache.dataset, cache.check_table):
        with pytest.raises(CacheFormatError, match="not those it was made with"):
            use()
    with pytest.raises(CacheFormatError, match="is left as it is"):
        open_olds(CacheOutput(str(path)), cache.spec)
    with h5py.File(path, "r+") as file:
        file["samples/label"][0] = 3
    with pytest.raises(CacheFormatError, match="it has labels without a class"):
        _ = open_cache(path).labels


# A table for pandas


def test_a_table_of_samples(path: Path) -> None:
    pd = pytest.importorskip("pandas", reason="needs pip install 'precompute[pandas]'")
    with h5py.File(path, "r+") as file:
        file["samples/status"][3] = 4
    cache = open_cache(path)
    frame = cache.to_pandas()
    assert list(frame.columns) == ["id", "label", "split", "status", "site"]
    assert frame["id"].tolist() == cache.ids
    assert frame["label"].tolist() == [cache.classes[label] for label in cache.labels]
    assert frame["status"].tolist() == ["OK"] * 3 + ["TRUNCATED"] + ["OK"] * 20
    assert set(frame["split"]) == {"none"}
    assert frame["site"].tolist() == [row // 2 for row in range(24)]
    bees = cache.features()[frame.index[frame.label == "bees"]]
    assert np.array_equal(bees, cache.features()[cache.labels == 1])
    assert isinstance(frame, pd.DataFrame)


def test_without_pandas_the_extra_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(CacheError, match=r"pip install 'precompute\[pandas\]'"):
        open_cache(path).to_pandas()


# What a file says of its axes


@pytest.mark.rotates(3)
@pytest.mark.parametrize(
    ("name", "layer", "pooling", "axes"),
    [
        ("tiny", None, "auto", "channel"),
        ("resnet18", "layer4", "none", "channel height width"),
        ("resnet18", "layer4", "mean", "channel"),
        ("swin_t", "features", "none", "height width channel"),
        ("vit_b_16", "encoder", "none", "token channel"),
        ("vit_b_16", "encoder", "mean", "channel"),
    ],
)
def test_axes_of_layers(name: str, layer: str | None, pooling: str, axes: str) -> None:
    found = load_backbone(name, weights="random" if name != "tiny" else "DEFAULT", layer=layer, pooling=pooling)
    assert " ".join(found.taps[0].axes) == axes
    assert len(found.taps[0].axes) == len(found.taps[0].shape)
    (entry,) = found.spec(precision="fp32", storage="float32")["layers"]
    assert entry["axes"] == list(found.taps[0].axes)


def test_what_is_not_known_is_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "odd.py").write_text(
        "import torch\n\nclass Odd(torch.nn.Module):\n    def forward(self, x):\n"
        "        return torch.linalg.svd(x[:, :, :4, :4]).U.flatten(1).reshape(-1, 2, 3, 8)\n\n"
        "def make():\n    return Odd()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    found = load_backbone("odd:make", layer="output", pooling="none")
    assert (found.taps[0].shape, found.taps[0].axes) == ((2, 3, 8), ("axis1", "axis2", "axis3"))


def test_a_copy_of_a_file_is_the_same_cache(path: Path) -> None:
    shutil.copy(path, path.parent / "b.h5")
    data = pickle.dumps(open_cache(path))
    os.replace(path.parent / "b.h5", path)
    assert len(pickle.loads(data)) == 24
