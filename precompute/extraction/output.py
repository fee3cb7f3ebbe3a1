"""The file in progress: checked before the work, laid out, filled from older files, and renamed when it is whole."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precompute.cache import Layer, RowWriter, check_lock, create, lock_path, open_cache, read_layout
from precompute.errors import CacheError, CacheFormatError
from precompute.extraction.leftovers import check_leftover, drop_kept, keep_rest, remove_leftover
from precompute.extraction.matching import (
    Plan,
    copy_rows,
    fresh_kept_path,
    fresh_path,
    kept_path,
    partial_path,
    samples_of,
)
from precompute.sources.base import Table
from precompute.system.output import Kind, Output, check_output, sync_folder


def _check_feature_file(path: str) -> None:
    read_layout(path)


FEATURE_FILE = Kind(CacheError, _check_feature_file)


def check_cache_output(
    path: str | os.PathLike[str], *, overwrite: bool = False, inputs: Iterable[str | os.PathLike[str] | None] = ()
) -> Output:
    """Find out before the work whether the feature file `path`, and the files beside it, can and may be written.

    Raises CacheError and UsageError. What stands beside it under a name that a run needs is never somebody else's file.
    """
    beside = [f("") for f in (lock_path, partial_path, kept_path, fresh_path, fresh_kept_path)]
    output = check_output(path, FEATURE_FILE, overwrite=overwrite, inputs=inputs, suffixes=beside)
    check_lock(output.path)
    check_leftover(fresh_path(output.path))
    check_leftover(fresh_kept_path(output.path))
    _check_begun(partial_path(output.path))
    _check_begun(kept_path(output.path))
    return output


def _check_begun(path: str) -> None:
    """Files in progress and of kept rows appear whole, by a rename: what is no feature file there is not ours."""
    hint = f"{path} is left as it is, and precompute needs that name. Choose another output, or move it away."
    if os.path.islink(path):
        raise CacheError(f"{path} is a link.", hint=hint)
    if os.path.exists(path):
        try:
            read_layout(path)
        except CacheFormatError as error:
            if os.path.lexists(path):  # else a run that is just ending has renamed it: its lock decides
                raise CacheFormatError(error.message, hint=hint) from error


@contextlib.contextmanager
def working_file(
    path: str, plan: Plan, spec: dict[str, Any], table: Table, layers: Mapping[str, Layer]
) -> Iterator[tuple[RowWriter, NDArray[np.int64]]]:
    """The file in progress, open for writing, with all reusable rows in it; and the rows that are missing."""
    partial = partial_path(path)
    if plan.in_place:
        with RowWriter(partial, plan.olds[0].layout) as writer:
            writer.forget(np.flatnonzero(plan.origin != 0))
            missing = _bring_over(plan, table, writer)
            writer.forget(missing)
            yield writer, missing
            writer.sync()
        return
    fresh = fresh_path(path)
    remove_leftover(fresh)
    try:
        layout = create(
            fresh,
            spec=spec,
            samples=samples_of(table),
            layers=layers,
            records=_records(plan),
        )
        with RowWriter(fresh, layout) as writer:
            missing = _bring_over(plan, table, writer)
            writer.sync()
            keep_rest(path, plan, spec, layers, missing)
            os.replace(fresh, partial)
            sync_folder(path)
            yield writer, missing
            writer.sync()
    finally:
        with contextlib.suppress(OSError, CacheError):  # the error that ended the run is the one to report
            remove_leftover(fresh)


def _records(plan: Plan) -> list[dict[str, Any]]:
    """What older files say of themselves: their rows may be taken over, so their story goes with them."""
    records: list[dict[str, Any]] = []
    for old in reversed(plan.olds):
        records += [record for record in old.provenance if record not in records]
    return records


def _bring_over(plan: Plan, table: Table, writer: RowWriter) -> NDArray[np.int64]:
    """Copy what older files hold; return the rows that are still missing, ascending."""
    missing = [plan.missing]
    for number, old in enumerate(plan.olds):
        rows = np.flatnonzero(plan.origin == number)
        target = None if plan.in_place and number == 0 else writer
        missing.append(copy_rows(old, plan.origin_row[rows], target, rows, table))
    return np.sort(np.concatenate(missing))


def finish(path: str, plan: Plan) -> None:
    """The file in progress, flushed, becomes the finished one in one step.

    Raises CacheError where rows are missing, or where another file has appeared at `path` meanwhile.
    """
    made = open_cache(partial_path(path))
    there = np.all([made.column(f"checksums/{layer}") != 0 for layer in made.layers], axis=0)
    if not there.all():  # a mistake of ours; what is there is kept
        raise CacheError(
            f"{int((~there).sum()):,} rows of {made.path} were never computed.", hint="Run the same command again."
        )
    Output(path, FEATURE_FILE, plan.overwrite).put(partial_path(path))
    drop_kept(path)
