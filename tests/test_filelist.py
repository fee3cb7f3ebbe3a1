"""Files as columns: whatever the order and the places they arrive in, what comes out is what sorting gives."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precompute.sources.columns import FileList

NAMES = st.binary(min_size=1, max_size=12).filter(lambda name: 0 not in name)
FOLDERS = st.lists(st.lists(NAMES, max_size=7), max_size=7)


@given(FOLDERS)
def test_columns_are_those_of_a_sorted_list_over_any_number_of_blocks(folders: list[list[bytes]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("precompute.sources.columns.BLOCK_FILES", 4)
        files, expected, seen = FileList(), [], set[bytes]()
        for place, names in enumerate(folders):
            for name in names:
                if name in seen:  # paths are never the same twice
                    continue
                seen.add(name)
                size, mtime = 3 * len(seen), -(2**40) * len(seen)
                expected.append((name, size, mtime, place))
                for column, value in ((files.names, name), (files.sizes, size), (files.mtimes, mtime)):
                    column.append(value)  # type: ignore[attr-defined]
            files.settle(place)
            assert len(files) == len(expected)
        columns = [column.tolist() for column in files.columns()]
    assert list(zip(*columns, strict=True)) == sorted(expected)
    assert len(files) == 0
