"""What a run has to do: which rows an older file already holds, which must be computed, which leave."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precompute.cache import Cache, RowWriter, Samples, Status, column_digests, difference, key_of
from precompute.cache.checksum import row_checksums
from precompute.errors import CacheError, CacheFormatError, CacheKeyError, SourceError, UsageError
from precompute.extraction.output import CacheOutput
from precompute.sources.base import Source, Table, ascii_name

COPY_BYTES = 32 * 1024 * 1024  # how much of the old file is in memory at once
COPY_ROWS = 16_384  # and how many of its rows, where they are narrow: each is a few Python objects for a moment
RECORD_BYTES = 64 * 1024  # what a run's record may take at most; 800 are usual
PIECE_ROWS = 65_536  # how many ids are looked up at once


@dataclass(frozen=True)
class Plan:
    """For each row of the listing the place it can be copied from.

    olds: files with the same key, those in progress first · origin: (N,) int64, index into `olds` or -1 ·
    origin_row: (N,) int64 · dropped: rows of the finished file whose id is no longer listed · in_place: the file in
    progress already has exactly these samples and no row of another picture, so that it is simply continued.
    """

    olds: tuple[Cache, ...]
    origin: NDArray[np.int64]
    origin_row: NDArray[np.int64]
    dropped: int
    in_place: bool

    @property
    def missing(self) -> NDArray[np.int64]:
        return np.flatnonzero(self.origin < 0)


def samples_of(table: Table) -> Samples:
    """The table of a source as the cache wants it."""
    return Samples(table.ids, table.sizes, table.mtimes, table.labels, table.splits, table.classes)


def open_olds(output: CacheOutput, spec: dict[str, Any]) -> tuple[Cache, ...]:
    """The file in progress, what it kept of those before it, and the finished one, as far as they exist; then those
    whose rows may be copied, which must exist.

    Raises CacheKeyError, with the difference, for other settings, unless the output may be overwritten (which leaves
    them aside); CacheFormatError for a file that is not ours, except for a finished one that may be overwritten.
    """
    olds = []
    for path in (output.partial, output.kept, output.path):
        try:
            cache = output.open(path)
            if cache is None:
                continue
            cache.check_table()  # rows may be taken over from it
        except CacheFormatError as error:
            if output.overwrite and path == output.path:
                continue
            raise CacheFormatError(
                error.message, hint=f"{path} is left as it is. Choose another output, or move that file away."
            ) from error
        if cache.key == key_of(spec):
            olds.append(cache)
        elif not output.overwrite:
            raise CacheKeyError(
                f"{path} was made with other settings (there -> now):",
                difference=difference(cache.spec, spec)
                or ["the same settings as other JSON, not written by precompute"],
                hint="Use another output for these settings, or --overwrite to replace that file.",
            )
    for path in output.reuse:
        other = output.open(path)
        if other is None:
            raise CacheError(f"{path} does not exist.", hint="Name finished feature files with --reuse.")
        other.check_table()
        if other.key != key_of(spec):
            raise CacheKeyError(
                f"{path} was made with other settings, so no row of it can be used (there -> now):",
                difference=difference(other.spec, spec),
                hint="Use the settings that it was made with, or leave it out.",
            )
        olds.append(other)
    return tuple(olds)


def make_plan(
    source: Source,
    output: CacheOutput,
    olds: tuple[Cache, ...],
    *,
    limit: int | None = None,
    rehash: bool = False,
    refuse: bool = True,
) -> Plan:
    """Match the samples of `source` with older files by id and stamps; with `rehash` not even these are believed.

    A row that is not matched is not lost: its file is read, and the row copied where its bytes turn out to be known.
    Raises UsageError or SourceError where the result would discard a finished file's rows in a way that looks like
    a mistake, unless the output may be overwritten. refuse: False for anyone who only asks.
    """
    table = source.table
    origin = np.full(len(table), -1, dtype=np.int64)
    origin_row = np.full(len(table), -1, dtype=np.int64)
    dropped = 0
    for number, old in enumerate(olds):
        place = positions(old.column("samples/id"), table.ids)
        found = place >= 0
        if old.path == output.path:
            dropped = len(old) - int(found.sum())
            if dropped and refuse and not output.overwrite:
                _refuse_mistakes(source, old, found, dropped, limit)
            if source.unseen and refuse and not output.overwrite:
                _refuse_unseen(source, old, place)
        same = np.zeros_like(found) if rehash else found & lasting(old)[place]
        same &= old.column("samples/size")[place] == table.sizes
        same &= old.column("samples/mtime_ns")[place] == table.mtimes
        take = same & (origin < 0)
        origin[take] = number
        origin_row[take] = place[take]
        old.release_pages()
    in_place = bool(olds) and olds[0].path == output.partial and same_table(olds[0], table)
    # Where its block of records is full it is laid out anew, with the newest of them, so that this run's has room too.
    in_place = in_place and olds[0].provenance_room >= RECORD_BYTES
    # A row that is not taken as it is may still be known by its bytes: then the file must not be written over.
    in_place = in_place and not np.any(lasting(olds[0]) & (origin != 0))
    return Plan(olds, origin, origin_row, dropped, in_place)


def up_to_date(plan: Plan, table: Table, output: CacheOutput) -> Cache | None:
    """The finished file, where it is already what the run would make."""
    for number, old in enumerate(plan.olds):
        if old.path == output.path and bool(np.all(plan.origin == number)) and same_table(old, table):
            return old
    return None


def _refuse_mistakes(source: Source, old: Cache, found: NDArray[np.bool_], dropped: int, limit: int | None) -> None:
    if limit is not None:
        raise UsageError(
            f"{old.path} has {len(old)} rows; --limit {limit} would discard {dropped} of them.",
            hint="Use another output for the smaller file, or leave --limit out.",
        )
    gone = old.column("samples/id")[_absent(old, source.table)]
    for folder in source.gaps:
        if below := int(np.char.startswith(gone, folder).sum()):
            name = ascii_name(os.path.join(source.name, os.fsdecode(folder)))
            raise SourceError(
                f"{name} cannot be listed, so the {below} rows of {old.path} for {old.words.plural} in it would be "
                "discarded.",
                hint="Make it readable (or remove it), use another output, or use --overwrite.",
            )
    if not found.any():
        raise UsageError(
            f"None of the {len(old)} samples in {old.path} is in {source.name}, so all of its rows would be discarded.",
            hint="Check the source, use another output, or use --overwrite.",
        )


def _refuse_unseen(source: Source, old: Cache, place: NDArray[np.int64]) -> None:
    """place: row in `old` of each sample of the source, -1 for none."""
    rows = np.array(source.unseen)
    lost = rows[(place[rows] >= 0) & lasting(old)[place[rows]]]
    if len(lost):
        raise SourceError(
            f"{source.sample_name(int(lost[0]))} cannot be looked at, so its row of {old.path} would be discarded"
            + (f", and {len(lost) - 1:,} more." if len(lost) > 1 else "."),
            hint=f"Make it readable (or remove it from {source.name}), use another output, or use --overwrite.",
        )


def _absent(old: Cache, table: Table) -> NDArray[np.bool_]:
    """(len(old),) bool: rows whose id is no longer listed."""
    return positions(table.ids, old.column("samples/id")) < 0


def positions(old_ids: NDArray[np.bytes_], ids: NDArray[np.bytes_]) -> NDArray[np.int64]:
    """Row of each id in the ascending `old_ids`, -1 where it is not there."""
    if np.array_equal(old_ids, ids):
        return np.arange(len(ids))
    width = np.promote_types(old_ids.dtype, ids.dtype)
    old_ids = old_ids.astype(width, copy=False)  # once, where searching would do it for each piece
    positions = np.empty(len(ids), dtype=np.int64)
    for start in range(0, len(ids), PIECE_ROWS):
        piece = ids[start : start + PIECE_ROWS].astype(width, copy=False)
        place = np.minimum(np.searchsorted(old_ids, piece), len(old_ids) - 1)
        positions[start : start + PIECE_ROWS] = np.where(old_ids[place] == piece, place, -1)
    return positions


def lasting(old: Cache) -> NDArray[np.bool_]:
    """(N,) bool: rows that are there (checksums are looked at on copying) with an outcome that would not change."""
    there = np.ones(len(old), dtype=bool)
    for layer in old.layers:
        there &= old.column(f"checksums/{layer}") != 0
    final = [int(status) for status in Status if status is not Status.PENDING and not status.may_change]
    return there & np.isin(old.status, final)


def same_table(old: Cache, table: Table) -> bool:
    """Whether `old` has exactly these samples, with these labels, splits and further columns."""
    return (
        len(old) == len(table)
        and np.array_equal(old.column("samples/id"), table.ids)
        and np.array_equal(old.labels, table.labels)
        and np.array_equal(old.column("samples/split"), table.splits)
        and tuple(old.column("classes").tolist()) == table.classes
        and old.layout.further == column_digests(table.columns, len(table))
    )


def copy_rows(
    old: Cache, old_rows: NDArray[np.int64], writer: RowWriter | None, rows: NDArray[np.int64], now: Table | Samples
) -> NDArray[np.int64]:
    """Copy rows of `old` whose checksums hold to `rows` of the new file; return the rows that could not be copied.

    Sizes and modification times are those of `now`: the bytes are the same, the file may be another. Without a writer
    the rows are only checked, as when a file is continued in place.
    """
    width = sum(old.row_bytes(layer) for layer in old.layers)
    height = max(1, min(COPY_ROWS, COPY_BYTES // width))
    bad = []
    for start in range(0, len(rows), height):
        there, here = old_rows[start : start + height], rows[start : start + height]
        digests, statuses = old.column("samples/digest")[there], old.status[there]
        then = old.column("samples/size")[there], old.column("samples/mtime_ns")[there]
        features = {layer: old.stored(layer)[there] for layer in old.layers}
        good = np.ones(len(there), dtype=bool)
        for layer, values in features.items():
            good &= old.column(f"checksums/{layer}")[there] == row_checksums(digests, *then, statuses, values)
        bad.append(here[~good])
        if writer is not None and good.any():
            writer.write(
                here[good],
                {layer: values[good] for layer, values in features.items()},
                digests=digests[good],
                statuses=statuses[good],
                sizes=now.sizes[here[good]],
                mtimes=now.mtimes[here[good]],
            )
        old.release_pages()
    return np.concatenate(bad) if bad else np.zeros(0, dtype=np.int64)
