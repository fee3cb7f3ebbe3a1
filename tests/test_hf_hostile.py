"""Arrow, Parquet and JSON files that lie: a clear error, no memory taken, and nothing outside of the folder read."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_files import arrow_table, needs_pyarrow, save, save_all, write_arrow, write_parquet
from hypothesis import given, settings
from hypothesis import strategies as st
from test_hf_datasets import items, opened

from precompute.errors import SampleError, SourceError
from precompute.sources import arrow_images, hf_folder, parquet, parquet_images
from precompute.sources.base import Source

pytestmark = needs_pyarrow
FILE = "data-00000-of-00001.arrow"


def read_all(source: Source) -> list[bytes | None]:
    """Bytes of each row, None where it fails with a reason."""
    found: list[bytes | None] = []
    for row in range(len(source)):
        try:
            found.append(source.read(row).data)
        except SampleError as error:
            assert error.reason in ("UNREADABLE", "VANISHED")
            found.append(None)
    return found


def refused(path: Path, message: str = "") -> SourceError:
    with pytest.raises(SourceError, match=message) as caught:
        opened(path)
    assert caught.value.hint
    return caught.value


# What the JSON says


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "..", "", "a/b.arrow", "a\0b", 3, None, {"a": 1}, ["x"]], ids=repr
)
def test_a_data_file_outside_of_the_folder_is_not_opened(tmp_path: Path, name: Any) -> None:
    folder = save(tmp_path / "a", items(1, 2), None)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    refused(folder, r"a/state\.json has no list of data files, each the name of a file next to it")
    folder = save_all(tmp_path / "b", {"train": items(1)}, None)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": [name]}))
    refused(folder, r"dataset_dict\.json has no list of splits")


@pytest.mark.parametrize("stored", [{}, {"_data_files": 3}, {"_data_files": None}, {"_data_files": ["x.arrow"]}, []])
def test_a_state_without_data_files_is_refused(tmp_path: Path, stored: Any) -> None:
    folder = save(tmp_path / "a", items(1), None)
    (folder / "state.json").write_text(json.dumps(stored))
    refused(folder, r"state\.json")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1, 2]", b"\xff\xfe", b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}", b"\0"]
)
@pytest.mark.parametrize("name", ["state.json", "dataset_info.json", "dataset_dict.json"])
def test_json_that_is_none_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    folder = save_all(tmp_path / "a", {"train": items(1)}, None)
    (folder if name == "dataset_dict.json" else folder / "train").joinpath(name).write_bytes(content)
    refused(folder, rf"{name} cannot be read as JSON")


def test_large_json_is_refused_before_it_is_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(tmp_path / "a", items(1), None)
    monkeypatch.setattr(hf_folder, "JSON_BYTES", 10)
    refused(folder, "more than 10 bytes")


def test_a_list_of_indices_is_refused_not_ignored(tmp_path: Path) -> None:
    folder = save(tmp_path / "a", items(1, 2), None)
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**state, "_indices_data_files": [{"filename": "indices.arrow"}]}))
    assert "save_to_disk" in refused(folder, "chooses its rows by a list of indices").hint


@pytest.mark.parametrize("described", ["x", {"label": 3}, {"label": {"_type": "ClassLabel", "names": [1, {}]}}, [1]])
def test_a_description_of_columns_that_is_none_is_no_error(tmp_path: Path, described: Any) -> None:
    folder = save(tmp_path / "a", items(1, 2), None)
    (folder / "dataset_info.json").write_text(json.dumps({"features": described}))
    assert len(opened(folder)) == 2
    table = arrow_table(items(1, 2))
    for content in (json.dumps({"info": {"features": described}}), "[" * 50_000, "{"):
        write_arrow(folder / FILE, table.replace_schema_metadata({"huggingface": content}))
        (folder / "dataset_info.json").write_text("{}")
        assert len(opened(folder)) == 2


# Arrow


def saved(place: Path, content: bytes) -> Path:
    folder = save(place / "a", items(1, 2, 3), None)
    (folder / FILE).write_bytes(content)
    return folder


@pytest.fixture
def stream(tmp_path: Path) -> bytes:
    return (save(tmp_path / "whole", items(1, 2, 3, 4, 5, 6, 7), ["a"]) / FILE).read_bytes()


@pytest.mark.rotates(3)
def test_a_stream_that_is_cut_short_is_refused(tmp_path: Path, stream: bytes) -> None:
    """Also between two batches, where pyarrow takes the end of a file for the end of a stream."""
    for size in (*range(0, len(stream), 197), *range(len(stream) - 40, len(stream))):
        refused(saved(tmp_path, stream[:size]), FILE)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty, or no Arrow file"),
        (b"ARROW1\0\0", "is empty, or no Arrow file"),
        (b"hello, this is no stream", "no Arrow message begins there"),
        (struct.pack("<Ii", 0xFFFFFFFF, 2**31 - 1) + b"x" * 64, "truncated or damaged"),
        (struct.pack("<Ii", 0xFFFFFFFF, -8) + b"x" * 64, "truncated or damaged"),
        (struct.pack("<Ii", 0xFFFFFFFF, 64) + b"\xff" * 64, "is damaged"),
        (struct.pack("<Ii", 0xFFFFFFFF, 64) + b"\0" * 64, "is damaged"),
        (struct.pack("<Ii", 0xFFFFFFFF, 0), "truncated or damaged"),
    ],
)
def test_what_is_no_stream_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    refused(saved(tmp_path, content), message)


@pytest.mark.rotates(3)
@settings(max_examples=150)
@given(edits=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=6))
def test_no_damage_of_a_stream_is_more_than_an_error(edits: list[tuple[int, int]], tmp_path_factory: Any) -> None:
    place = tmp_path_factory.mktemp("damaged")
    folder = save(place / "a", items(1, 2), ["a"])
    content = bytearray((folder / FILE).read_bytes())
    places = [*range(1200), *range(len(content) - 60, len(content))]  # what the images do not fill
    for where, value in edits:
        content[places[where % len(places)] % len(content)] = value
    (folder / FILE).write_bytes(bytes(content))
    try:
        source = opened(folder)
        read_all(source)
    except SourceError as error:
        assert error.hint
    shutil.rmtree(place)


def offsets_of(content: bytes, sizes: list[int]) -> int:
    """Where the offsets of the images stand in a stream."""
    ends = [sum(sizes[:number]) for number in range(len(sizes) + 1)]
    place = content.find(struct.pack(f"<{len(ends)}i", *ends))
    assert place > 0
    return place


@pytest.mark.parametrize("lies", [[0, 10, 2**31 - 1], [0, -5, 10], [5, 3, 4], [-9, 0, 10], [0, 2**30, 2**30 + 1]])
def test_offsets_that_lead_out_of_their_column_are_refused(tmp_path: Path, lies: list[int]) -> None:
    given = items(1, 2)
    folder = save(tmp_path / "a", given, None)
    content = bytearray((folder / FILE).read_bytes())
    place = offsets_of(bytes(content), [len(one["image"]["bytes"]) for one in given])
    content[place : place + 12] = struct.pack("<3i", *lies)
    (folder / FILE).write_bytes(bytes(content))
    refused(folder, r"offsets in the column 'image' lead out of its")


def test_a_batch_that_claims_many_rows_takes_no_memory(tmp_path: Path, stream: bytes) -> None:
    place = stream.find(struct.pack("<q", 5), 400)  # of the record batch's length, and then of its columns'
    content = bytearray(stream)
    while place > 0:
        content[place : place + 8] = struct.pack("<q", 2**40)
        place = stream.find(struct.pack("<q", 5), place + 8)
    refused(saved(tmp_path, bytes(content)), "rows in|is damaged|truncated")


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_compressed_batches_are_refused(tmp_path: Path, compression: str) -> None:
    import pyarrow

    folder = save(tmp_path / "a", items(1, 2, 3), None)
    options = pyarrow.ipc.IpcWriteOptions(compression=compression)
    write_arrow(folder / FILE, arrow_table(items(1, 2, 3)), options=options)
    refused(folder, "is compressed, so that no row can be read on its own")


def test_types_that_are_not_read_are_refused_and_others_beside_the_images_are_not(tmp_path: Path) -> None:
    import pyarrow

    folder = save(tmp_path / "a", items(1, 2), None)
    table = arrow_table(items(1, 2))
    fixed = pyarrow.array([[1, 2], [3, 4]], pyarrow.list_(pyarrow.int16(), 2))
    boxes = pyarrow.array([[{"x": 1}], []], pyarrow.list_(pyarrow.struct({"x": pyarrow.float64()})))
    for number, column in enumerate([fixed, boxes, pyarrow.nulls(2), pyarrow.array([True, None])]):
        more = table.add_column(0, "more", column)
        write_arrow(folder / FILE, more)
        source = opened(folder)
        assert read_all(source) == [one["image"]["bytes"] for one in items(1, 2)], number
    for column in (
        table["label"].combine_chunks().dictionary_encode(),
        pyarrow.array(["a", "b"], pyarrow.string_view()),
    ):
        write_arrow(folder / FILE, table.set_column(1, "label", column))
        refused(folder, "not read")


def test_large_and_sliced_columns_are_read(tmp_path: Path) -> None:
    import pyarrow

    image = pyarrow.struct({"path": pyarrow.large_string(), "bytes": pyarrow.large_binary()})
    given = items(*range(1, 12))
    folder = save(tmp_path / "a", given, None)
    values = [{"path": one["image"]["path"], "bytes": one["image"]["bytes"]} for one in given]
    values[3], given[3]["image"]["bytes"] = None, None
    table = pyarrow.table({"image": pyarrow.array(values, image)}).slice(2, 8)
    write_arrow(folder / FILE, table, rows_per_batch=3)
    source = opened(folder)
    assert read_all(source) == [one["image"]["bytes"] for one in given[2:10]]
    with pyarrow.OSFile(str(folder / FILE), "wb") as file, pyarrow.ipc.new_file(file, table.schema) as written:
        written.write_table(table)
    assert read_all(opened(folder)) == [one["image"]["bytes"] for one in given[2:10]]


# Strings, in either


@pytest.mark.parametrize("writer", ["saved", "parquet"])
def test_long_strings_and_columns_of_other_types_are_refused(
    tmp_path: Path, writer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(given: list[Any]) -> Path:
        return (
            save(tmp_path / "a", given, None)
            if writer == "saved"
            else write_parquet(tmp_path / "a.parquet", given, None)
        )

    given = items(1, 2)
    given[1]["label"] = "x" * 65_536
    refused(write(given), r"'label' has a string of 65,536 bytes")
    given = items(1, 2)
    given[1]["image"]["path"] = "x" * 65_536
    refused(write(given), r"path' has a string of 65,536 bytes")
    given = items(1, 2)
    for one in given:
        one["label"] = [1, 2]
    refused(write(given), r"'label' holds list")
    for module in (arrow_images, parquet):
        monkeypatch.setattr(module, "MAX_CHUNK_BYTES", 5)
    refused(write(items(1, 2)), "more than 5")


# Parquet


@pytest.mark.parametrize(
    "damage",
    [lambda data: b"", lambda data: data[:-100], lambda data: data[:4] + data[-4:], lambda data: b"PAR1" * 20],
)
def test_what_is_no_parquet_file_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = write_parquet(tmp_path / "train-00000-of-00001.parquet", items(1, 2), None)
    path.write_bytes(damage(path.read_bytes()))
    refused(tmp_path, "cannot be read as Parquet")


@pytest.mark.rotates(3)
@settings(max_examples=60)
@given(edits=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4))
def test_no_damage_of_a_parquet_file_is_more_than_an_error(edits: list[tuple[int, int]], tmp_path_factory: Any) -> None:
    place = tmp_path_factory.mktemp("damaged")
    path = write_parquet(place / "a.parquet", items(1, 2, 3), None)
    content = bytearray(path.read_bytes())
    for where, value in edits:
        content[-1 - where % 1500] = value
    path.write_bytes(bytes(content))
    try:
        read_all(opened(path))
    except SourceError as error:
        assert error.hint
    shutil.rmtree(place)


@pytest.mark.rotates(3)
def test_one_image_that_is_repeated_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow
    from pyarrow.parquet import write_table

    image = {"bytes": b"x" * 2**20, "path": "a.png"}
    kind = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    repeated = pyarrow.array([image], kind).take(pyarrow.array([0] * 60))
    write_table(pyarrow.table({"image": repeated}), tmp_path / "a.parquet", compression="zstd")
    assert (tmp_path / "a.parquet").stat().st_size < 2**20
    monkeypatch.setattr(parquet_images, "MAX_CHUNK_BYTES", 2**22)
    before = pyarrow.total_allocated_bytes()
    source = opened(tmp_path / "a.parquet")
    with pytest.raises(SampleError, match="a row group of more than"):
        source.read(0)
    assert pyarrow.total_allocated_bytes() - before < 2**23


def test_a_file_of_a_billion_rows_of_nothing_is_refused(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow.parquet import write_table

    kind = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    write_table(pyarrow.table({"image": pyarrow.nulls(2_000_000, kind)}), tmp_path / "a.parquet")
    refused(tmp_path / "a.parquet", "claims 2,000,000 rows in")
