"""Hugging Face's own library: what it writes is read as it reads it, and what it loads by name is a source."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, make_photos
from hub_files import items_of_folder, needs_datasets, needs_pyarrow, write_form, write_parquet
from hub_server import COMMIT, Hub
from test_hf_datasets import ids, items, labels_of, opened
from test_shards import by_digest

from precompute import extract
from precompute.errors import SourceError
from precompute.sources.base import Source
from precompute.sources.hf_name import MARK

pytestmark = [pytest.mark.usefixtures("tiny_made_once"), needs_pyarrow, needs_datasets]


@pytest.fixture(autouse=True)
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of this test's own, no network, and no bars of progress."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf/datasets"))
    monkeypatch.setattr(datasets.config, "HF_CACHE_HOME", str(tmp_path / "hf"))
    datasets.disable_progress_bars()


def library(photos: Path) -> Any:
    """The photos as a DatasetDict."""
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value

    features = Features(
        {"image": Image(decode=False), "label": ClassLabel(names=["cats", "dogs"]), "n": Value("int32")}
    )
    splits = items_of_folder(photos, between="-")
    return DatasetDict(
        {
            split: Dataset.from_list(
                [{"image": one["image"], "label": one["label"] == "dogs", "n": n} for n, one in enumerate(rows)],
                features=features,
            )
            for split, rows in splits.items()
        }
    )


def rows_of(data: Any) -> list[tuple[str, bytes, str, int]]:
    """What the library reads of one split, without decoding."""
    names = data.features["label"].names
    return [(row["image"]["path"], row["image"]["bytes"], names[row["label"]], row["n"]) for row in data]


def rows_read(source: Source) -> list[tuple[str, bytes, str | None, int]]:
    n = source.table.columns["n"]
    return [
        (name, source.read(row).data, label, int(n[row]))
        for row, (name, label) in enumerate(zip(ids(source), labels_of(source), strict=True))
    ]


@pytest.mark.rotates(3)
@pytest.mark.parametrize("change", ["plain", "shuffled", "chosen", "filtered", "joined", "many files", "mapped"])
def test_what_it_saves_is_read_as_it_reads_it(photos: Path, tmp_path: Path, change: str) -> None:
    """A list of indices, as after `shuffle` or `select`, is gone once the data set is saved."""
    from datasets import concatenate_datasets, load_from_disk

    data = library(photos)["train"]
    if change == "shuffled":
        data = data.shuffle(seed=3)
    elif change == "chosen":
        data = data.select([5, 2, 9, 0])
    elif change == "filtered":
        data = data.filter(lambda row: row["n"] % 3 == 0)
    elif change == "joined":
        data = concatenate_datasets([data.select([4, 1]), data.select([7])])
    elif change == "mapped":
        data = data.map(lambda row: {"n": row["n"] + 1})
    data.save_to_disk(tmp_path / "a", num_shards=3 if change == "many files" else 1)
    found = rows_read(opened(tmp_path / "a", keep=("n",)))
    assert found == sorted(rows_of(load_from_disk(tmp_path / "a")))
    assert found == sorted(rows_of(data))


def test_splits_it_saves_and_parquet_files_it_writes_are_read_as_it_reads_them(photos: Path, tmp_path: Path) -> None:
    data = library(photos)
    data.save_to_disk(tmp_path / "a")
    (tmp_path / "hub").mkdir()
    for split, rows in data.items():
        rows.to_parquet(tmp_path / "hub" / f"{split}-00000-of-00001.parquet", batch_size=5)
    expected = sorted((f"{split}/{name}", *others) for split, rows in data.items() for name, *others in rows_of(rows))
    for folder in ("a", "hub"):
        source = opened(tmp_path / folder, keep=("n",))
        assert rows_read(source) == expected
        assert source.table.splits.tolist() == [1 if name.startswith("train") else 2 for name, *_ in expected]
    assert rows_read(opened(tmp_path / "hub/val-00000-of-00001.parquet", keep=("n",))) == sorted(rows_of(data["val"]))


def test_images_that_it_reads_from_files_are_embedded_when_it_saves_them(photos: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    data = load_dataset("imagefolder", data_dir=str(photos / "train"))
    data.save_to_disk(tmp_path / "a")
    extract(photos / "train", tmp_path / "folder.h5", backbone="tiny")
    extract(tmp_path / "a", tmp_path / "a.h5", backbone="tiny")
    found, expected = by_digest(tmp_path / "a.h5"), by_digest(tmp_path / "folder.h5")
    assert {digest: row[:2] for digest, row in found.items()} == {digest: row[:2] for digest, row in expected.items()}


@pytest.mark.rotates(3)
def test_a_local_folder_that_only_the_library_reads_is_loaded_by_it(photos: Path, tmp_path: Path) -> None:
    extract(f"{MARK}{photos}", tmp_path / "a.h5", backbone="tiny")
    extract(photos, tmp_path / "folder.h5", backbone="tiny")
    assert by_digest(tmp_path / "a.h5") == by_digest(tmp_path / "folder.h5")
    again = extract(f"{MARK}{photos}", tmp_path / "a.h5", backbone="tiny")
    assert (again.computed, again.copied) == (0, 24)  # they are files, of which the data set says nothing more


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "image,label\nx,1\n"),
        ("a.jsonl", '{"image": "x"}\n'),
        ("a.txt", "x\n"),
        ("run.py", "raise SystemExit(7)\n"),
    ],
)
def test_data_sets_of_other_kinds_are_refused(tmp_path: Path, name: str, content: str) -> None:
    """Also a script beside the data or instead of it: it is not run."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / name).write_text(content)
    (tmp_path / "a" / "a.py").write_text("import os\nos._exit(7)\n")
    with pytest.raises(SourceError, match=r"is read by datasets|cannot be loaded") as caught:
        opened(f"{MARK}{tmp_path / 'a'}")
    assert caught.value.hint


def run(place: Path, source: str, out: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command with a home and a hub of the test's own."""
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return subprocess.run(
        [sys.executable, "-m", "precompute", "extract", source, "-b", "tiny", "-o", out, "--json"],
        capture_output=True,
        text=True,
        cwd=place,
        env={
            **kept,
            "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
            "HF_HOME": str(place / "hf"),
            **environment,
        },
        timeout=300,
        check=False,
    )


@pytest.mark.slow
def test_a_name_is_loaded_from_the_hub_and_later_without_it(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos")
    extract(photos, tmp_path / "folder.h5", backbone="tiny")
    folder = write_form("hub", tmp_path, photos)
    (folder / "other.py").write_text("import os\nos._exit(7)\n")
    with Hub(folder, "me/photos") as hub:
        done = run(tmp_path, f"{MARK}me/photos", "a.h5", HF_ENDPOINT=hub.url)
        assert done.returncode == 0, done.stderr
        assert "examples" not in done.stderr  # nobody sees the library's bars
        told = json.loads(done.stdout)
        assert (told["rows"], told["computed"], told["classes"]) == (24, 24, 2)
        assert by_digest(tmp_path / "a.h5") == by_digest(tmp_path / "folder.h5")
        assert any(COMMIT in request for request in hub.requests)
        assert not any("GET" in request and request.endswith(".py") for request in hub.requests)
        wrong = run(tmp_path, f"{MARK}me/nothing", "b.h5", HF_ENDPOINT=hub.url.replace("//", "//user:secret@"))
        assert wrong.returncode == 1
        assert "me/nothing cannot be loaded" in wrong.stderr
        assert "secret" not in json.loads(wrong.stdout)["error"]["message"]
    offline = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    again = run(tmp_path, f"{MARK}me/photos#validation", "val.h5", **offline)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["rows"] == 12
    again = run(tmp_path, f"{MARK}me/photos", "a.h5", **offline)
    assert (json.loads(again.stdout)["reused"], json.loads(again.stdout)["computed"]) == (24, 0)


@pytest.mark.rotates(3)
def test_a_broken_data_file_of_a_name_is_an_error(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a" / "train-00000-of-00001.parquet", items(1, 2), None)
    path.write_bytes(path.read_bytes()[:-50])
    (tmp_path / "b").mkdir()
    with Hub(tmp_path / "a", "me/broken") as hub:
        done = run(tmp_path, f"{MARK}me/broken", "a.h5", HF_ENDPOINT=hub.url)
    assert done.returncode == 1
    assert "me/broken cannot be loaded" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.rotates(3)
def test_a_data_set_with_code_of_its_own_is_refused_and_the_code_not_run(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a" / "train-00000-of-00001.parquet", items(1, 2), None)
    (tmp_path / "a" / "code.py").write_text("import os\nos._exit(7)\n")
    with Hub(tmp_path / "a", "me/code") as hub:
        done = run(tmp_path, f"{MARK}me/code", "a.h5", HF_ENDPOINT=hub.url)
    assert done.returncode == 1
    assert "scripts are no longer supported" in done.stderr
