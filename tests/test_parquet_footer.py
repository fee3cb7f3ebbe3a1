"""The footer of a Parquet file as we read it is what pyarrow reads, and none does any harm."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from hub_files import arrow_table, needs_pyarrow
from hypothesis import given
from hypothesis import strategies as st
from test_hf_datasets import items

from precompute.errors import SourceError
from precompute.sources.parquet_footer import RowGroup, row_groups

pytestmark = needs_pyarrow


def read(path: Path) -> tuple[RowGroup, ...]:
    with path.open("rb") as file:
        return row_groups(file, "a.parquet")


def tables() -> list[Any]:
    import pyarrow

    pictures = arrow_table(items(*range(1, 13)))
    nothing = pyarrow.table({"a": pyarrow.nulls(20), "b": pyarrow.array([None, 1.5, 2.5, None] * 5)})
    many = pyarrow.table({f"column {number}": list(range(100)) for number in range(40)})
    nested = pyarrow.table({"x": [[{"y": 1, "z": "a"}], [], None]})
    return [pictures, nothing, many, nested, pictures.slice(0, 0)]


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize(
    "options",
    [{}, {"compression": "none"}, {"write_statistics": False}, {"data_page_version": "2.0", "use_dictionary": False}],
    ids=str,
)
def test_row_groups_are_those_that_pyarrow_reads(tmp_path: Path, number: int, options: dict[str, Any]) -> None:
    from pyarrow import parquet

    parquet.write_table(tables()[number], tmp_path / "a.parquet", row_group_size=5, **options)
    about = parquet.ParquetFile(tmp_path / "a.parquet").metadata
    found = read(tmp_path / "a.parquet")
    assert len(found) == about.num_row_groups
    for group, ours in enumerate(found):
        theirs = about.row_group(group)
        assert ours.rows == theirs.num_rows
        assert len(ours.columns) == theirs.num_columns
        for place in range(theirs.num_columns):
            column = theirs.column(place)
            chunk = ours.columns[column.path_in_schema]
            assert chunk.size == column.total_uncompressed_size
            statistics = column.statistics
            known = statistics is not None and statistics.has_null_count
            assert chunk.nulls == (statistics.null_count if known else None)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PAR1",
        b"PAR1" + struct.pack("<I", 2**32 - 1) + b"PAR1",
        b"PAR1" + struct.pack("<I", 0) + b"PAR1",
        b"PAR1" + b"\x1c" * 400 + struct.pack("<I", 400) + b"PAR1",  # structs within structs
        b"PAR1" + b"\x49\xfc\xff\xff\xff\x0f" + struct.pack("<I", 6) + b"PAR1",  # a list of 2**32 structs
        b"PAR1" + b"\x18\xff\xff\xff\xff\x0f" + struct.pack("<I", 6) + b"PAR1",  # a text of 4 GiB
        b"PAR1" + b"\xff" * 40 + struct.pack("<I", 40) + b"PAR1",
    ],
)
def test_a_footer_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.parquet").write_bytes(content)
    try:
        assert read(tmp_path / "a.parquet") == ()  # a struct without row groups
    except SourceError as error:
        assert "cannot be read as Parquet" in error.message


@given(footer=st.binary(max_size=300))
def test_any_footer_gives_row_groups_or_an_error(footer: bytes, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "any.parquet"
    path.write_bytes(b"PAR1" + footer + struct.pack("<I", len(footer)) + b"PAR1")
    try:
        assert all(group.rows >= 0 for group in read(path))
    except SourceError as error:
        assert error.hint
