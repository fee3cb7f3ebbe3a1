"""Columns of a Parquet file as strings, in batches, by pyarrow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO

from precompute.errors import SourceError, reason_of
from precompute.sources.base import Reading
from precompute.sources.entries import BLOCK_ROWS, MAX_STRING_BYTES, Rows
from precompute.sources.header import choose
from precompute.sources.parquet_footer import RowGroup, row_groups

INSTALL = "pip install 'precompute[parquet]'"
MAX_CHUNK_BYTES = 2**30  # what one column of one row group may take when it is unpacked


def parquet_rows(raw: BinaryIO, shown: str, reading: Reading) -> Iterator[Rows]:
    """The columns of an open file that `reading` names.

    Strings stay in dictionaries until their lengths are known, so that a small file cannot fill the memory.
    Raises SourceError for what is no Parquet file, for types that are no strings or numbers, and without pyarrow.
    """
    _, parquet = needed(shown)
    schema = schema_of(raw, shown)
    with parquet_errors(shown):
        chosen = choose(schema.names, reading, shown)
        parts = {f"{part}s": schema.names[place] for part, place in chosen.parts.items()}
        wanted = list(dict.fromkeys([*parts.values(), *chosen.further]))
        kinds = {name: plain_type(schema.field(name).type, name, shown) for name in wanted}
        check_sizes(row_groups(raw, shown), wanted, shown)
        file = parquet.ParquetFile(raw, read_dictionary=wanted)
        first = 1
        for batch in file.iter_batches(BLOCK_ROWS, columns=wanted):
            strings = {name: strings_of(batch.column(name), name, first, shown) for name in wanted}
            yield Rows(
                range(first, first + len(batch)),
                **{part: strings[name] for part, name in parts.items()},
                further={name: strings[name] for name in chosen.further},
                texts=frozenset(name for name in chosen.further if is_text(kinds[name])),
            )
            first += len(batch)


def schema_of(raw: BinaryIO, shown: str) -> Any:
    """pyarrow's schema of an open Parquet file. Raises SourceError as `parquet_rows` does."""
    _, parquet = needed(shown)
    with parquet_errors(shown):
        schema = parquet.ParquetFile(raw).schema_arrow
        check_names(schema)
        return schema


def check_names(schema: Any) -> None:
    """Raise UnicodeDecodeError for names of columns that are no text, which pyarrow looks at when it is asked."""
    for field in schema:
        str(field.name), str(field.type)


def needed(shown: str) -> tuple[Any, Any]:
    """pyarrow and pyarrow.parquet. Raises SourceError with the way to install them."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise SourceError(f"{shown} is a Parquet file, which needs pyarrow.", hint=f"Install it: {INSTALL}") from error
    return pyarrow, parquet


@contextmanager
def parquet_errors(shown: str) -> Iterator[None]:
    """Errors of pyarrow's about a Parquet file become SourceErrors."""
    pyarrow, _ = needed(shown)
    try:
        yield
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise SourceError(
            f"{shown} cannot be read as Parquet: {reason_of(error)}.",
            hint="Write it again; the columns of paths, ids, labels and splits hold strings or whole numbers.",
        ) from error


def check_sizes(groups: Sequence[RowGroup], names: Sequence[str], shown: str) -> None:
    """Raise SourceError where a column would take too much memory at once."""
    for number, group in enumerate(groups):
        for name in names:
            size = group.columns[name].size if name in group.columns else 0
            if size > MAX_CHUNK_BYTES:
                raise SourceError(
                    f"{shown}: row group {number} has {size:,} bytes in the column {name!r}, more than "
                    f"{MAX_CHUNK_BYTES:,}.",
                    hint="Write the file with smaller row groups, such as "
                    "pyarrow.parquet.write_table(table, path, row_group_size=100).",
                )


def plain_type(kind: Any, name: str, shown: str) -> Any:
    """The type of the values. Raises SourceError for one whose values have no obvious form as strings."""
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    plain = (is_text, types.is_integer, types.is_floating, types.is_boolean, types.is_null)
    if not any(test(kind) for test in plain):
        raise SourceError(f"{shown}: the column {name!r} holds {kind}, not strings.", hint="Write it as strings.")
    return kind


def is_text(kind: Any) -> bool:
    from pyarrow import types

    tests = (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary)
    return any(test(kind) for test in tests)


def strings_of(column: Any, name: str, first: int, shown: str) -> list[str]:
    """The values of a batch; "" where there is none, as for NaN. first: number of its first row."""
    import pyarrow
    from pyarrow import compute, types

    folded = types.is_dictionary(column.type)
    values = column.dictionary if folded else column
    if is_text(values.type):
        longest = compute.max(compute.binary_length(values)).as_py() or 0
        if longest > MAX_STRING_BYTES:
            raise SourceError(
                f"{shown}, from row {first:,} on: the column {name!r} has a string of {longest:,} bytes, more than "
                f"{MAX_STRING_BYTES:,}.",
                hint="Is it another column that holds the paths, ids, labels or splits?",
            )
    column = column.dictionary_decode() if folded else column
    if types.is_boolean(column.type):
        column = column.cast(pyarrow.uint8())
    if types.is_floating(column.type):
        column = compute.if_else(compute.is_nan(column), None, column)  # what a data frame has for none
    return list(compute.fill_null(column.cast(pyarrow.string()), "").to_pylist())
