"""Which columns of a table are read, by the names in its header."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from precompute.errors import SourceError
from precompute.sources.base import PARTS, Reading, ascii_name

COLUMNS_NAMED = 20


@dataclass(frozen=True)
class Chosen:
    """Places of the columns that are read. parts: by what they hold, one of PARTS · further: by their names."""

    parts: dict[str, int]
    further: dict[str, int]


def choose(header: Sequence[str], reading: Reading, shown: str, *, sample: str = "path") -> Chosen:
    """Where the columns stand that are to be read. Raises SourceError for one that is missing or there twice.

    sample: what must be there, the path of a file or the text itself.
    """
    parts = {}
    for part in (sample, *PARTS[1:]):
        name = reading.columns.get(part, part)
        if name in header or part == sample or part in reading.columns:
            hint = f"Name the one that holds the {part} of each sample: --{part}-column NAME."
            parts[part] = _place(header, name, shown, hint)
    further = {}
    for name in dict.fromkeys(reading.keep):
        further[name] = _place(header, name, shown, "Name one of them: --keep-column NAME.")
        check_name(name, shown)
    return Chosen(parts, further)


def check_name(name: str, shown: str) -> None:
    """Raise SourceError for a column that is to be kept and cannot have its name there."""
    if not name or not name.isprintable() or "/" in name:
        raise SourceError(
            f"{shown} has a column {ascii_name(name)!r}, which is not allowed in a feature file.",
            hint="Give it a name that is printable and holds no /.",
        )


def _place(header: Sequence[str], name: str, shown: str, hint: str) -> int:
    if (count := header.count(name)) == 1:
        return header.index(name)
    names = ", ".join(map(ascii_name, header[:COLUMNS_NAMED])) + (", ..." if len(header) > COLUMNS_NAMED else "")
    raise SourceError(
        f"{shown} has {count or 'no'} column{'s' if count else ''} {ascii_name(name)!r}; its columns are: {names}.",
        hint=hint,
    )
