"""The file in progress: checked before the work, laid out, filled from older files, and renamed when it is whole."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precompute.cache import RowWriter, create, open_cache
from precompute.errors import CacheError
from precompute.kept import drop_kept, keep_rest, sync_folder
from precompute.plan import Plan, copy_rows, partial_path, samples_of
from precompute.sources import Listing

Layers = dict[str, tuple[tuple[int, ...], np.dtype[Any]]]


def check_output(path: str) -> None:
    """Find out before the work, not after it, that the output cannot be written."""
    folder = os.path.dirname(path) or "."
    if os.path.isdir(path):
        raise CacheError(
            f"The output {path} is a folder.", hint=f"Name a file, such as {os.path.join(path, 'features.h5')}."
        )
    if not os.path.isdir(folder):
        raise CacheError(f"The output folder {folder} does not exist.", hint=f"Make it first: mkdir -p {folder}")
    try:
        probe = f"{path}.probe"  # always the same name: one that a crash left behind is removed by the next run
        os.close(os.open(probe, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644))
        os.unlink(probe)
    except OSError as error:
        raise CacheError(
            f"The output folder {folder} cannot be written: {error.strerror}.",
            hint="Choose another output with -o, or change the folder's permissions.",
        ) from error


@contextlib.contextmanager
def working_file(
    path: str, plan: Plan, spec: dict[str, Any], listing: Listing, layers: Layers
) -> Iterator[tuple[RowWriter, NDArray[np.int64]]]:
    """The file in progress, open for writing, with all reusable rows in it; and the rows that are missing."""
    partial = partial_path(path)
    if plan.in_place:
        with RowWriter(partial, plan.olds[0].layout) as writer:
            writer.forget(np.flatnonzero(plan.origin != 0))
            missing = _bring_over(plan, listing, writer)
            writer.forget(missing)
            yield writer, missing
            writer.sync()
        return
    fresh = f"{partial}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(fresh)  # left by a run that ended while it was laying out
    try:
        layout = create(
            fresh,
            spec=spec,
            samples=samples_of(listing),
            layers=layers,
            records=_records(plan),
        )
        with RowWriter(fresh, layout) as writer:
            missing = _bring_over(plan, listing, writer)
            writer.sync()
            keep_rest(path, plan, spec, layers, missing)
            os.replace(fresh, partial)
            sync_folder(path)
            yield writer, missing
            writer.sync()
    finally:
        with contextlib.suppress(OSError):  # gone already by then, or the error that ended the run is the one to tell
            os.unlink(fresh)


def _records(plan: Plan) -> list[dict[str, Any]]:
    """What older files say of themselves: their rows may be taken over, so their story goes with them."""
    records: list[dict[str, Any]] = []
    for old in reversed(plan.olds):
        records += [record for record in old.provenance if record not in records]
    return records


def _bring_over(plan: Plan, listing: Listing, writer: RowWriter) -> NDArray[np.int64]:
    """Copy what older files hold; return the rows that are still missing, ascending."""
    missing = [plan.missing]
    for number, old in enumerate(plan.olds):
        rows = np.flatnonzero(plan.origin == number)
        target = None if plan.in_place and number == 0 else writer
        missing.append(copy_rows(old, plan.origin_row[rows], target, rows, listing))
    return np.sort(np.concatenate(missing))


def finish(path: str) -> None:
    """The file in progress, flushed, becomes the finished one in one step. Raises CacheError where rows are missing."""
    made = open_cache(partial_path(path))
    there = np.all([made.column(f"checksums/{layer}") != 0 for layer in made.layers], axis=0)
    if not there.all():  # a mistake of ours; what is there is kept
        raise CacheError(
            f"{int((~there).sum()):,} rows of {made.path} were never computed.", hint="Run the same command again."
        )
    os.replace(partial_path(path), path)
    sync_folder(path)
    drop_kept(path)
