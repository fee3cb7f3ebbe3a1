"""Which images must stay on one side of a split: groups that the user names, such as patients, and identical files."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from precompute.cache import Cache
from precompute.errors import UsageError
from precompute.training.relabelling import text_column
from precompute.training.tables import read_table

SHOWN = 3  # ids that an error names
SECONDS_PER_ID = 1.0  # of CPU time, for a search that takes microseconds where it is not hopeless
SECONDS = 120  # for all ids; a million take 3
# What finds groups, in a Python that imports nothing else. It answers with a list that ends before an id that took too
# long. `re` looks for signals while it matches.
SEARCHER = """
import json, re, signal, sys
given = json.load(sys.stdin)
search, seconds, found = re.compile(given["pattern"]).search, given["seconds"], []
def stop(*_): raise TimeoutError
signal.signal(signal.SIGVTALRM, stop)
try:
    for name in given["ids"]:
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
        match = search(name)
        found.append(match and match[1])
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
except TimeoutError:
    pass
json.dump(found, sys.stdout)
"""


def group_names(
    cache: Cache,
    rows: NDArray[np.int64],
    *,
    pattern: str | None = None,
    file: str | os.PathLike[str] | None = None,
    column: str | None = None,
) -> list[str] | None:
    """The group of each of `rows`, None where the user gave none.

    pattern: a regular expression with a group in parentheses, searched for in each id, such as `patient_(\\d+)`.
    file: a CSV file with the columns id and group. column: a further column of the cache.
    Raises UsageError for two at once, a column, pattern or file that cannot be used, ids whose match takes too long,
    and ids that have no group.
    """
    options = {"--groups": pattern, "--groups-file": file, "--groups-column": column}
    given = [option for option, value in options.items() if value is not None]
    if len(given) > 1:
        raise UsageError(f"{given[0]} and {given[1]} contradict each other.", hint="Give one of them.")
    ids = [os.fsdecode(value) for value in cache.column("samples/id")[rows].tolist()]
    if pattern is not None:
        _check_pattern(pattern)
        found = _search(pattern, ids)
        where = f"do not match --groups {pattern!r}"
    elif file is not None:
        of_id = read_table(file, "group").values
        found = [of_id.get(name) for name in ids]
        where = f"are not in {os.fspath(file)}"
    elif column is not None:
        of_all = text_column(cache, column, "--groups-column")
        found = [of_all[row] or None for row in rows.tolist()]
        where = f"have nothing in the column {column!r}"
    else:
        return None
    if missing := [name for name, group in zip(ids, found, strict=True) if group is None]:
        names = ", ".join(map(repr, missing[:SHOWN])) + (", ..." if len(missing) > SHOWN else "")
        raise UsageError(
            f"{len(missing):,} of {len(ids):,} ids in {cache.path} {where}: {names}.",
            hint=f"Every labelled {cache.words.one} needs a group; {cache.words.single} for itself can have its own "
            "name as group.",
        )
    return [group for group in found if group is not None]


def join(digests: NDArray[np.int64], names: list[str]) -> NDArray[np.int64]:
    """(n,) numbers that are equal where a chain of equal digests or equal names links two images.

    A file that is under two patients makes the two one group: else one of them would leak through it.
    """
    _, digest = np.unique(digests, return_inverse=True)
    _, group = np.unique(np.array(names, dtype=np.str_), return_inverse=True)
    n_digests, n = int(digest.max()) + 1, int(digest.max()) + int(group.max()) + 2
    links = csr_array((np.ones(len(digest), np.int8), (digest, n_digests + group)), shape=(n, n))
    component: NDArray[np.int64] = connected_components(links, directed=False)[1].astype(np.int64)[digest]
    return component


def _check_pattern(pattern: str) -> None:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UsageError(
            f"--groups {pattern!r} is not a regular expression: {error}.", hint=r"An example: --groups 'patient_(\d+)'"
        ) from error
    if not expression.groups:
        raise UsageError(
            f"--groups {pattern!r} has no part in parentheses, which is what names the group.",
            hint=r"An example: --groups 'patient_(\d+)'",
        )


def _search(pattern: str, ids: list[str]) -> list[str | None]:
    """What the first group of `pattern` finds in each id, None where it does not match.

    Some patterns, such as `(a+)+$`, try out more ways to match an id than anyone can wait for. Outside the main thread
    Python's `re` cannot be interrupted, so it runs in its own process, whose main thread a timer interrupts.
    Raises UsageError for an id that takes more than SECONDS_PER_ID of CPU time, or ids that take SECONDS in all.
    """
    given = json.dumps({"pattern": pattern, "ids": ids, "seconds": SECONDS_PER_ID})
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", SEARCHER],
            input=given.encode(),
            capture_output=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _too_slow(pattern, f"{len(ids):,} ids in {SECONDS} seconds") from None
    if done.returncode:
        problem = done.stderr.decode(errors="replace").strip().rpartition("\n")[2] or f"exit status {done.returncode}"
        raise UsageError(
            f"--groups {pattern!r} cannot be searched for: {problem}.", hint="Give a simpler pattern, or --groups-file."
        )
    found: list[str | None] = json.loads(done.stdout)
    if len(found) < len(ids):
        raise _too_slow(pattern, f"the id {ids[len(found)]!r} within {SECONDS_PER_ID:g} second of CPU time")
    return found


def _too_slow(pattern: str, what: str) -> UsageError:
    return UsageError(
        f"--groups {pattern!r} could not be matched with {what}.",
        hint="Repetitions of repetitions, as in (a+)+, take endless time. Give a simpler pattern, or --groups-file.",
    )
