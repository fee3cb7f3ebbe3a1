"""Parts become one file by copying alone: what a join checks before and after."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from precompute.errors import CacheError, UsageError
from precompute.extraction.matching import Plan
from precompute.sources.base import Source
from precompute.sources.part import parts_missing

SAMPLES_NAMED = 3


def check_join(plan: Plan, missing: NDArray[np.int64], source: Source) -> None:
    """Raise CacheError where rows are `missing`, with the parts that no file holds, according to their records."""
    if not len(missing):
        return
    named = ", ".join(source.sample_name(row) for row in missing[:SAMPLES_NAMED].tolist())
    asked = [old.last_run.get("options") for old in plan.olds]
    parts = {one["part"] for one in asked if isinstance(one, dict) and isinstance(one.get("part"), str)}
    try:
        absent = parts_missing(parts)
    except UsageError:  # a record that names no part
        absent = ""
    raise CacheError(
        f"{len(missing):,} of {len(source):,} samples are in none of the files that are joined, or have changed since: "
        f"{named}{', ...' if len(missing) > SAMPLES_NAMED else ''}."
        + (f" No file holds part {absent}." if absent else ""),
        hint="Run the jobs of those parts (again) and join then, or leave out --join to compute the samples here.",
    )
