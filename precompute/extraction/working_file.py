"""The file in progress: laid out, filled from older files, and renamed when it is whole."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precompute.cache import Cache, Layer, RowWriter, create
from precompute.errors import CacheError, naming
from precompute.extraction.leftovers import drop_kept, keep_rest
from precompute.extraction.matching import Plan, copy_rows, samples_of
from precompute.extraction.output import CacheOutput, remove_leftover
from precompute.sources.base import Table
from precompute.system.output import sync_folder
from precompute.system.steps import step


@contextlib.contextmanager
def working_file(
    output: CacheOutput, plan: Plan, spec: dict[str, Any], table: Table, layers: Mapping[str, Layer]
) -> Iterator[tuple[RowWriter, NDArray[np.int64]]]:
    """The file in progress, open for writing, with all reusable rows in it; and the rows that are missing."""
    if plan.in_place:
        with RowWriter(output.partial, plan.olds[0].layout) as writer:
            writer.forget(np.flatnonzero(plan.origin != 0))
            with step("copying rows"):
                missing = _bring_over(plan, table, writer)
            writer.forget(missing)
            yield writer, missing
            writer.sync()
        return
    fresh = output.fresh
    remove_leftover(fresh)
    try:
        with step("laying out the file"):
            layout = create(
                fresh,
                spec=spec,
                samples=samples_of(table),
                layers=layers,
                columns=table.columns,
                records=_records(plan),
            )
        with RowWriter(fresh, layout) as writer:
            with step("copying rows"):
                missing = _bring_over(plan, table, writer)
            writer.sync()
            keep_rest(output, plan, spec, layers, missing)
            os.replace(fresh, output.partial)
            sync_folder(output.path)
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


def finish(output: CacheOutput, made: Cache) -> None:
    """The file in progress, `made`, flushed, becomes the finished one in one step.

    Raises CacheError where rows are missing, or where another file has appeared under either name meanwhile.
    """
    there = np.all([made.column(f"checksums/{layer}") != 0 for layer in made.layers], axis=0)
    if not there.all():  # a mistake of ours; what is there is kept
        raise CacheError(
            f"{int((~there).sum()):,} rows of {output.partial} were never computed.",
            hint="Run the same command again.",
        )
    with naming(output.partial):
        status = os.lstat(output.partial)
    if (status.st_dev, status.st_ino) != made.layout.identity:
        raise CacheError(
            f"{output.partial} has been replaced by another file while it was being filled.",
            hint="It is left as it is. Check which program did that, and run the same command again.",
        )
    output.put(output.partial)
    drop_kept(output)
