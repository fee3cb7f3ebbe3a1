"""Fields of the `.json` beside images in shards: labels, splits and columns that go into the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Command
from test_shards import ids, picture, write_shard

from precompute import extract, open_cache
from precompute.errors import SourceError, UsageError
from precompute.inputs.images.formats import IMAGES
from precompute.sources import tar_index
from precompute.sources.base import Reading, Source
from precompute.sources.registry import open_source

pytestmark = pytest.mark.usefixtures("tiny_made_once")


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "kept"))
    return tmp_path / "kept" / "precompute" / "shards"


def shard(path: Path, *described: Any) -> Path:
    """A sample `N.png` for each, and `N.json` in front of it but for None; bytes as they are."""
    members = []
    for number, one in enumerate(described):
        if one is not None:
            members.append((f"{number}.json", one if isinstance(one, bytes) else json.dumps(one).encode()))
        members.append((f"{number}.png", picture(number)))
    return write_shard(path, members)


def open_fields(path: Path, *keep: str, **columns: str) -> Source:
    return open_source(path, IMAGES, reading=Reading(columns=columns, keep=keep))


def test_fields_become_labels_splits_and_columns(tmp_path: Path) -> None:
    shard(tmp_path / "train-0.tar", {"kind": "cat", "age": 3, "fold": "val", "seen": True, "w": 0.5, "name": "007"})
    shard(
        tmp_path / "train-1.tar",
        {"kind": "ant", "age": 4, "fold": "train", "seen": False, "w": 1, "name": "ä", "list": [1]},
        {"kind": "", "age": 5, "fold": "", "seen": True, "w": None, "name": ""},
    )
    source = open_fields(tmp_path / "*.tar", "age", "seen", "w", "name", label="kind", split="fold")
    assert ids(source) == ["train-0/0.png", "train-1/0.png", "train-1/1.png"]
    assert source.table.classes == (b"ant", b"cat")
    assert source.table.labels.tolist() == [1, 0, -1]
    assert source.table.splits.tolist() == [2, 1, 0]
    columns = source.table.columns
    assert (columns["age"].dtype, columns["age"].tolist()) == (np.int64, [3, 4, 5])
    assert (columns["seen"].dtype, columns["seen"].tolist()) == (np.int64, [1, 0, 1])
    assert columns["w"].dtype == np.float64
    assert columns["w"].tolist()[:2] == [0.5, 1.0]
    assert np.isnan(columns["w"][2])
    assert columns["name"].tolist() == [b"007", "ä".encode(), b""]
    assert source.notes == ("1 images have no 'kind' in their .json and so no label",)


def test_numbers_and_truth_values_are_labels_too(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", {"y": 3}, {"y": True}, {"y": -1.5}, {"y": "3"}, None, {})
    source = open_fields(path, label="y")
    assert [source.label_name(row) for row in range(6)] == ["3", "1", "-1.5", "3", None, None]


def test_the_file_has_them_and_they_cost_no_forward_pass(tmp_path: Path, precompute: Command) -> None:
    shard(tmp_path / "a.tar", {"y": "cat", "age": 3}, {"y": "dog", "age": 4})
    how = ["extract", "a.tar", "-b", "tiny", "-o", "a.h5"]
    assert precompute(*how).returncode == 0
    done = precompute(*how, "--label-column", "y", "--keep-column", "age")
    assert done.returncode == 0, done.stderr
    assert "nothing new" in done.stdout
    cache = open_cache(tmp_path / "a.h5")
    assert cache.classes == ("cat", "dog")
    assert cache.column("columns/age").tolist() == [3, 4]
    for option in ("--id-column", "--path-column", "--root"):
        done = precompute(*how, option, "y")
        assert done.returncode == 2
        assert f"{option} cannot be used with a pattern of tar shards" in done.stderr


def test_without_fields_no_json_is_read(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", b"no json", b"[" * 100_000)
    assert len(open_fields(path)) == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"no json", "not JSON in UTF-8"),
        (b"", "not JSON in UTF-8"),
        (b"\xff\xfe", "not JSON in UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"y":' * 100_000, "nested too deeply"),
        (b'{"y": ' + b"9" * 5000 + b"}", "not JSON in UTF-8"),
        (b"[1]", "no JSON object"),
        (b'"text"', "no JSON object"),
        (b'{"y": [1, 2]}', "'y' holds a list"),
        (b'{"y": {"z": 1}}', "'y' holds an object"),
        (b'{"y": "' + b"x" * 5000 + b'"}', "5,000 bytes"),
        (b'{"y": "a\\u0000b"}', "NUL"),
        (b'{"y": "\\ud800"}', "surrogate"),
        (b'{"y": "' + b"x" * 2**20 + b'"}', "more than 1,048,576"),
    ],
)
def test_what_cannot_be_used_is_an_error_that_names_shard_and_member(tmp_path: Path, content: bytes, said: str) -> None:
    path = shard(tmp_path / "a.tar", {"y": "fine"}, content)
    with pytest.raises(SourceError, match=rf"a\.tar, 1\.json.*{said}"):
        open_fields(path, label="y")


def test_fields_that_are_not_there_and_splits_that_are_none(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", {"y": "fine"}, {"y": "odd"})
    with pytest.raises(SourceError, match="has a field 'lable'"):
        open_fields(path, label="lable")
    with pytest.raises(SourceError, match=r"json of a/[01]\.png has the split '(fine|odd)', which is none"):
        open_fields(path, split="y")
    with pytest.raises(SourceError, match="is not allowed in a feature file"):
        open_fields(shard(tmp_path / "b.tar", {"a/b": 1}), "a/b")
    twice = write_shard(tmp_path / "c.tar", [("1.json", b"{}"), ("1.png", picture(1)), ("./1.json", b"{}")])
    with pytest.raises(SourceError, match="twice"):
        open_fields(twice, label="y")
    with pytest.raises(UsageError, match="cannot be used"):
        open_fields(path, id="y")


def test_kept_indexes_know_which_fields_they_hold(tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_index, "KEPT_FROM", 1)
    path = shard(tmp_path / "a.tar", {"y": "cat", "age": 3}, {"y": "dog", "age": "old"})
    first = [open_fields(path), open_fields(path, label="y"), open_fields(path, "age", label="y")]
    assert len(list(kept.iterdir())) == 3
    monkeypatch.setattr(tar_index, "_scan", None)  # whoever scans once more fails
    again = [open_fields(path), open_fields(path, label="y"), open_fields(path, "age", label="y")]
    for one, other in zip(first, again, strict=True):
        assert one.table.labels.tolist() == other.table.labels.tolist()
        assert one.table.columns.keys() == other.table.columns.keys()
    assert again[2].table.columns["age"].tolist() == [b"3", b"old"]


def test_one_long_value_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from precompute.sources import further

    monkeypatch.setattr(further, "PADDED_BYTES", 1024)
    path = shard(tmp_path / "a.tar", {"y": "x" * 4000}, *({"y": ""} for _ in range(40)))
    with pytest.raises(SourceError, match="most far shorter"):
        open_fields(path, label="y")
    shard(tmp_path / "b.tar", [])  # no object, which is an error of its own: it is not reached
    with pytest.raises(SourceError, match="most far shorter"):
        open_fields(tmp_path / "*.tar", label="y")


def test_nan_is_no_label(tmp_path: Path) -> None:
    source = open_fields(shard(tmp_path / "a.tar", {"y": float("nan")}, {"y": 1}), "y", label="y")
    assert source.table.classes == (b"1",)
    assert np.isnan(source.table.columns["y"][0])


def test_a_limit_cuts_the_fields_too(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", {"y": "b"}, {"y": "a"}, {"y": "c"})
    made = extract(path, tmp_path / "a.h5", backbone="tiny", columns={"label": "y"}, keep=["y"], limit=2)
    assert made.rows == 2
    assert open_cache(tmp_path / "a.h5").classes == ("a", "b")
    assert open_cache(tmp_path / "a.h5").column("columns/y").tolist() == [b"b", b"a"]
