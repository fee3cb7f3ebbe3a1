"""Which kind of source SOURCE is. A new kind is one file next to this one and one line in KINDS."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from precompute.errors import SourceError, UsageError
from precompute.sources import file_list, folder, hf_folder, hf_name, images_array, shards, table, torchvision_sets
from precompute.sources.base import FileKind, Reading, Source, ascii_name
from precompute.sources.memory import is_paths, is_texts, source_of, texts_of
from precompute.sources.remote import folder as remote
from precompute.sources.remote.address import address_of, is_address
from precompute.sources.texts import TEXT
from precompute.system.steps import step


class Opener(Protocol):
    """Lists a source. limit: only the first so many samples by id · stop: a signal's number ends the listing.

    Raises SourceError, and Stopped.
    """

    def __call__(
        self, name: str, kind: FileKind, *, reading: Reading, limit: int | None, stop: Callable[[], int] | None
    ) -> Source: ...


@dataclass(frozen=True)
class SourceKind:
    """A kind of source.

    what: for messages · recognises: whether SOURCE is one, by its name and what is there; nothing is read · open:
    lists it · options: those of `Reading.given` that it knows · many: it is not one sample alone · by_path: ids are
    paths relative to SOURCE, so that a sample is found without listing all · only: what samples there can be, as
    `FileKind.plural` calls them, "" for any.
    """

    what: str
    recognises: Callable[[str], bool]
    open: Opener
    options: frozenset[str] = frozenset()
    many: bool = True
    by_path: bool = False
    only: str = ""


ROOT = frozenset({"--root"})
DATA_SET = table.COLUMN_OPTIONS - {"--text-column"}
IMAGES = "images"

KINDS: tuple[SourceKind, ...] = (
    SourceKind("a list of files", file_list.recognises, file_list.open_list, ROOT),
    SourceKind("a table", table.recognises, table.open_table, ROOT | table.COLUMN_OPTIONS),
    SourceKind("a pattern of tar shards", shards.recognises, shards.open_pattern, shards.COLUMN_OPTIONS),
    SourceKind("an array of images", images_array.recognises, images_array.open_images, only=IMAGES),
    SourceKind("an object store", remote.recognises, remote.open_prefix),
    SourceKind("a data set of Hugging Face", hf_name.recognises, hf_name.open_name, DATA_SET, only=IMAGES),
    SourceKind("a data set of torchvision", torchvision_sets.recognises, torchvision_sets.open_set, ROOT, only=IMAGES),
    SourceKind("a folder of datasets", hf_folder.recognises, hf_folder.open_folder, DATA_SET, only=IMAGES),
    SourceKind("a file", os.path.isfile, folder.open_folder, many=False, by_path=True),
    SourceKind("a folder", lambda _: True, folder.open_folder, by_path=True),
)
"""The first that recognises a source opens it; the last takes the rest, and reports a missing file."""


def kind_of(name: str) -> SourceKind:
    """What kind of source SOURCE is, or would be if it were there."""
    return next(one for one in KINDS if one.recognises(name))


def open_source(
    source: Any,
    kind: FileKind,
    *,
    reading: Reading | None = None,
    limit: int | None = None,
    stop: Callable[[], int] | None = None,
    alone: bool = True,
) -> Source:
    """The samples of this kind in `source`: what a path leads to, the files of a list of paths, a source that the
    caller made, or what `precompute.sources.memory` makes one of.

    alone: whether it may be one file. Raises SourceError; UsageError for options that this kind of source does not
    know, and for a limit on a source that cannot be cut; Stopped.
    """
    reading = reading or Reading()
    if TEXT in reading.columns and not kind.column:
        raise UsageError(
            f"--text-column is for backbones that take texts, and this one takes {kind.plural}.", hint="Leave it out."
        )
    if kind.column and is_texts(source):
        return _made_by_the_caller(texts_of(source), reading, limit)
    if is_paths(source):
        _refuse_options(reading, ROOT, "a list of paths", "which the source is")
        return file_list.open_paths(source, kind, reading=reading, limit=limit, stop=stop)
    if not isinstance(source, str | os.PathLike):
        made = source if isinstance(source, Source) else source_of(source)
        return _made_by_the_caller(made, reading, limit)
    name = os.fsdecode(source)
    if is_address(name):
        address_of(name)  # before any message: one with a password is refused, and not shown
    found = kind_of(name)
    if not (found.many or alone):
        raise SourceError(f"{ascii_name(name)} is a file.", hint=f"Name the folder that holds the {kind.plural}.")
    if found.only not in ("", kind.plural):
        raise SourceError(
            f"{ascii_name(name)} is {found.what}, which is read for {found.only} alone, and the backbone takes "
            f"{kind.plural}.",
            hint=f"Name a folder of {kind.plural}, a table, or a list of files.",
        )
    _refuse_options(reading, found.options, found.what, f"which {ascii_name(name)} is")
    with step(f"listing {kind.plural}"):
        opened = found.open(name, kind, reading=reading, limit=limit, stop=stop)
    opened.reading = reading
    return opened


def _refuse_options(reading: Reading, known: frozenset[str], what: str, which: str) -> None:
    if strange := [option for option in reading.given() if option not in known]:
        raise UsageError(
            f"{' and '.join(strange)} cannot be used with {what}, {which}.",
            hint=f"Leave {'it' if len(strange) == 1 else 'them'} out.",
        )


def _made_by_the_caller(source: Source, reading: Reading, limit: int | None) -> Source:
    if limit is not None and limit < len(source):
        raise UsageError(
            f"{source.name} has {len(source):,} samples, and a limit is for folders.",
            hint="Make a source of fewer samples.",
        )
    if given := reading.given():
        raise UsageError(f"{source.name} is listed already, without {' and '.join(given)}.", hint="Leave them out.")
    return source
