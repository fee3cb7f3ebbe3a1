"""Tables and lists of files as people write them, in each form that a source may have."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

import pytest

try:
    import pyarrow
    from pyarrow import parquet
except ImportError:
    pyarrow = None

needs_pyarrow = pytest.mark.skipif(pyarrow is None, reason="needs pyarrow (pip install 'precompute[parquet]')")
TABLES = ["csv", "tsv", pytest.param("parquet", marks=needs_pyarrow)]
FORMS = [*TABLES, "txt"]

Row = dict[str, str]


def write_listing(path: Path, rows: Iterable[Row]) -> Path:
    """A file of the form that the name of `path` says; a list holds paths alone."""
    rows = list(rows)
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=5)
    elif path.suffix == ".txt":
        path.write_text("".join(f"{row['path']}\n" for row in rows), encoding="utf-8")
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


def rows_of_folder(photos: Path) -> list[Row]:
    """A row for each file of photos/SPLIT/CLASS/..., in no particular order."""
    files = sorted(path for path in photos.glob("*/*/*") if path.is_file() and path.name[0] != ".")
    names = [path.relative_to(photos).as_posix() for path in (*files[1::2], *files[::2])]
    return [{"path": name, "label": name.split("/")[1], "split": name.split("/")[0]} for name in names]
