"""What SOURCE is, recognised in one place for every command."""

from __future__ import annotations

import io
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
from conftest import Command, list_images, make_image
from listings import rows_of_folder, write_listing

from precompute import extract, forecast, open_cache, predict, repair, train_head
from precompute.errors import SourceError, UsageError
from precompute.extraction.source_comparison import compare_source
from precompute.inputs.images.formats import IMAGES
from precompute.sources import registry
from precompute.sources.base import FileKind, Reading
from precompute.sources.registry import SourceKind, kind_of, open_source

pytestmark = pytest.mark.usefixtures("tiny_made_once")


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("photos", "a folder"),
        ("photos/", "a folder"),
        ("nowhere", "a folder"),
        ("one.jpg", "a file"),
        ("labels.csv", "a table"),
        ("LABELS.TSV", "a table"),
        ("labels.parquet", "a table"),
        ("files.txt", "a list of files"),
        ("@files", "a list of files"),
        ("@labels.csv", "a list of files"),
        ("-", "a list of files"),
        ("a.npy", "an array of images"),
        ("A.NPZ", "an array of images"),
        ("shards/*.tar", "a pattern of tar shards"),
        ("data-{000..099}.tar", "a pattern of tar shards"),
        ("one.tar.gz", "a pattern of tar shards"),
        ("s3://bucket/{0..9}.tar", "a pattern of tar shards"),
        ("hf-dataset:owner/name", "a data set of Hugging Face"),
        ("torchvision:MNIST", "a data set of torchvision"),
    ],
)
def test_a_source_is_recognised_by_its_name(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, what: str
) -> None:
    monkeypatch.chdir(tmp_path)
    make_image(1).save("one.jpg")
    assert kind_of(name).what == what


@pytest.mark.parametrize("name", ["photos.csv", "photos.txt", "@photos", "photos.parquet", "photos.tar", "photos.npz"])
def test_a_folder_is_a_folder_whatever_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir()
    make_image(1).save(Path(name, "a.jpg"))
    assert kind_of(name).what == "a folder"
    assert open_source(name, IMAGES).table.ids.tolist() == [b"a.jpg"]


@pytest.mark.rotates(3)
def test_a_new_kind_is_one_line_and_every_command_knows_it(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precompute: Command
) -> None:
    def open_photos(name: str, kind: FileKind, *, reading: Reading, limit: int | None, stop: object) -> object:
        return list_images(name.removeprefix("photos:"), limit=limit)

    def recognises(name: str) -> bool:
        return name.startswith("photos:")

    monkeypatch.setattr(registry, "KINDS", (SourceKind("photos", recognises, open_photos), *registry.KINDS))
    source = f"photos:{photos}"
    assert extract(source, tmp_path / "a.h5", backbone="tiny").computed == 24
    assert extract(source, tmp_path / "b.h5", backbone="tiny", limit=3).computed == 3
    assert forecast(source, backbone="tiny").images == 24
    assert compare_source(open_cache(tmp_path / "a.h5"), source).same
    train_head(tmp_path / "a.h5", tmp_path / "a.safetensors")
    assert len(predict(tmp_path / "a.safetensors", source).items) == 24
    assert repair(tmp_path / "a.h5", source).computed == 0
    assert precompute("verify", "a.h5", "--source", source).returncode == 0
    refused = precompute("extract", source, "--root", ".", "-b", "tiny", "-o", "c.h5")
    assert refused.returncode == 2
    assert "--root cannot be used with photos" in refused.stderr


def test_options_of_tables_are_refused_where_there_is_none(photos: Path, tmp_path: Path) -> None:
    for reading in (Reading(root="."), Reading(columns={"label": "x"})):
        with pytest.raises(UsageError, match=r"cannot be used with a folder, which .*photos is"):
            open_source(photos, IMAGES, reading=reading)
        with pytest.raises(UsageError, match="is listed already"):
            open_source(list_images(photos), IMAGES, reading=reading)
    (tmp_path / "files.txt").write_text("photos/val/cats/0.jpg\n")
    with pytest.raises(UsageError, match=r"--label-column and --split-column cannot be used with a list of files"):
        extract(tmp_path / "files.txt", "a.h5", backbone="tiny", columns={"label": "x", "split": "y"})
    with pytest.raises(UsageError, match="columns has names for 'lable'"):
        extract(tmp_path / "files.txt", "a.h5", backbone="tiny", columns={"lable": "x"})


@pytest.mark.rotates(3)
def test_one_image_is_a_source_for_predictions_and_none_for_features(photos: Path, tmp_path: Path) -> None:
    extract(photos, tmp_path / "a.h5", backbone="tiny")
    train_head(tmp_path / "a.h5", tmp_path / "a.safetensors")
    image = photos / "val/cats/0.jpg"
    (one,) = predict(tmp_path / "a.safetensors", image).items
    assert one.id == "0.jpg"
    for function in (extract, forecast):
        with pytest.raises(SourceError, match=r"0\.jpg is a file"):
            function(image, tmp_path / "b.h5", backbone="tiny")


@pytest.mark.rotates(3)
def test_every_command_takes_a_table(photos: Path, tmp_path: Path, precompute: Command) -> None:
    rows = [{"file": row["path"], "species": row["label"], "part": row["split"]} for row in rows_of_folder(photos)]
    write_listing(tmp_path / "labels.csv", rows)
    how = ["--root", "photos", "--path-column", "file", "--label-column", "species", "--split-column", "part"]
    assert precompute("plan", "labels.csv", *how, "-b", "tiny").returncode == 0
    done = precompute("extract", "labels.csv", *how, "-b", "tiny", "-o", "a.h5")
    assert done.returncode == 0, done.stderr
    assert "24 images in 2 classes (12 train, 12 val)" in done.stdout
    assert precompute("verify", "a.h5", "--source", "labels.csv", *how).returncode == 0
    last = " ".join(precompute("info", "a.h5").stdout.split())
    command = (
        r"precompute extract \S+/labels.csv --backbone tiny --root \S+/photos --label-column species --path-column"
    )
    assert re.search(command, last), last
    assert precompute("train-head", "a.h5", "-o", "a.safetensors").returncode == 0
    told = precompute("predict", "a.safetensors", "labels.csv", *how)
    assert told.returncode == 0, told.stderr
    assert "of 24 are right by their labels" in told.stderr
    assert precompute("verify", "a.h5", "--root", "photos").returncode == 2


@pytest.mark.rotates(3)
@pytest.mark.parametrize("name", ["labels.csv", "files.txt"])
def test_damaged_rows_are_repaired_from_a_table_or_a_list(photos: Path, tmp_path: Path, name: str) -> None:
    rows = [{**row, "path": f"photos/{row['path']}"} for row in rows_of_folder(photos)]
    if name == "labels.csv":
        rows = [{**row, "id": f"../{number}"} for number, row in enumerate(rows)]  # an id is not a path
    listing = write_listing(tmp_path / name, rows)
    for out in ("a.h5", "whole.h5"):
        extract(listing, tmp_path / out, backbone="tiny", batch_size=4)
    cache = open_cache(tmp_path / "a.h5")
    column = cache.layout.columns["samples/digest"]
    cache.close()
    with (tmp_path / "a.h5").open("r+b") as file:
        file.seek(column.offset + 5 * column.row_bytes)
        file.write(b"\0" * column.row_bytes)
    assert repair(tmp_path / "a.h5", listing).computed == 1
    mended, whole = open_cache(tmp_path / "a.h5"), open_cache(tmp_path / "whole.h5")
    assert np.array_equal(mended.features(), whole.features())


@pytest.mark.rotates(3)
def test_every_command_takes_shards(photos: Path, tmp_path: Path, precompute: Command) -> None:
    for split in ("train", "val"):
        with tarfile.open(tmp_path / f"{split}-000.tar", "w") as shard:
            for path in sorted((photos / split).rglob("*.*")):
                shard.add(path, f"{path.parent.name}/{path.name}")
                label = tarfile.TarInfo(f"{path.parent.name}/{path.stem}.cls")
                label.size = len(path.parent.name)
                shard.addfile(label, io.BytesIO(path.parent.name.encode()))
    done = precompute("extract", "*.tar", "-b", "tiny", "-o", "a.h5")
    assert done.returncode == 0, done.stderr
    extract(photos, tmp_path / "folder.h5", backbone="tiny")
    ours, theirs = open_cache(tmp_path / "a.h5"), open_cache(tmp_path / "folder.h5")
    assert [name.replace("-000/", "/") for name in ours.ids] == theirs.ids
    assert np.array_equal(ours.features(), theirs.features())
    assert np.array_equal(ours.labels, theirs.labels)
    assert ours.split.tolist() == theirs.split.tolist()
    train_head(tmp_path / "a.h5", tmp_path / "head", C=1.0)
    for arguments in (
        ("plan", "train-{000..000}.tar", "-b", "tiny"),
        ("verify", "a.h5", "--source", "*.tar"),
        ("predict", "head", "val-000.tar"),
    ):
        done = precompute(*arguments)
        assert done.returncode == 0, done.stderr
    done = precompute("extract", "*.tar", "-b", "tiny", "-o", "a.h5", "--root", ".")
    assert done.returncode == 2
    assert "cannot be used with a pattern of tar shards" in done.stderr
