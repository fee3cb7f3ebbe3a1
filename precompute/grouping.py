"""Which images must stay on one side of a split: groups that the user names, such as patients, and identical files."""

from __future__ import annotations

import csv
import os
import re

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from precompute.cache import Cache
from precompute.errors import UsageError

SHOWN = 3  # ids that an error names


def group_names(
    cache: Cache, rows: NDArray[np.int64], *, pattern: str | None = None, file: str | os.PathLike[str] | None = None
) -> list[str] | None:
    """The group of each of `rows`, None where the user gave none.

    pattern: a regular expression with a group in parentheses, searched for in each id, such as `patient_(\\d+)`.
    file: a CSV file with the columns id and group.
    Raises UsageError for both at once, a pattern or file that cannot be used, and ids that have no group.
    """
    if pattern is not None and file is not None:
        raise UsageError("--groups and --groups-file contradict each other.", hint="Give one of them.")
    ids = [os.fsdecode(value) for value in cache.column("samples/id")[rows].tolist()]
    if pattern is not None:
        expression = _compiled(pattern)
        found = [match[1] if (match := expression.search(name)) else None for name in ids]
        where = f"do not match --groups {pattern!r}"
    elif file is not None:
        table = _read(file)
        found = [table.get(name) for name in ids]
        where = f"are not in {os.fspath(file)}"
    else:
        return None
    if missing := [name for name, group in zip(ids, found, strict=True) if group is None]:
        names = ", ".join(map(repr, missing[:SHOWN])) + (", ..." if len(missing) > SHOWN else "")
        raise UsageError(
            f"{len(missing):,} of {len(ids):,} ids in {cache.path} {where}: {names}.",
            hint="Every labelled image needs a group; an image for itself can have its own name as group.",
        )
    return [group for group in found if group is not None]


def join(digests: NDArray[np.int64], names: list[str]) -> NDArray[np.int64]:
    """(n,) numbers that are equal where a chain of equal digests or equal names links two images.

    A file that lies under two patients makes the two one group: else one of them would leak through it.
    """
    _, digest = np.unique(digests, return_inverse=True)
    _, group = np.unique(np.array(names, dtype=np.str_), return_inverse=True)
    n_digests, n = int(digest.max()) + 1, int(digest.max()) + int(group.max()) + 2
    links = csr_array((np.ones(len(digest), np.int8), (digest, n_digests + group)), shape=(n, n))
    component: NDArray[np.int64] = connected_components(links, directed=False)[1].astype(np.int64)[digest]
    return component


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UsageError(
            f"--groups {pattern!r} is no regular expression: {error}.", hint=r"An example: --groups 'patient_(\d+)'"
        ) from error
    if not expression.groups:
        raise UsageError(
            f"--groups {pattern!r} has no part in parentheses, which is what names the group.",
            hint=r"An example: --groups 'patient_(\d+)'",
        )
    return expression


def _read(file: str | os.PathLike[str]) -> dict[str, str]:
    name = os.fspath(file)
    try:
        with open(file, newline="", encoding="utf-8-sig", errors="surrogateescape") as stream:
            reader = csv.DictReader(stream)
            if not {"id", "group"} <= set(reader.fieldnames or ()):
                raise UsageError(
                    f"{name} must have the columns id and group in its first line. Got {reader.fieldnames} instead.",
                    hint="Write lines such as `id,group` and `ants/1.jpg,patient7`.",
                )
            table: dict[str, str] = {}
            for row in reader:
                identity, group = row["id"], row["group"]
                if not group or table.setdefault(identity, group) != group:
                    what = f"two groups, {table[identity]!r} and {group!r}" if group else "no group"
                    raise UsageError(
                        f"{name}, line {reader.line_num}: {identity!r} has {what}.", hint="Give each id one group."
                    )
    except OSError as error:
        raise UsageError(f"{name} cannot be read: {error.strerror}.", hint="Check the name of the file.") from error
    except csv.Error as error:
        raise UsageError(f"{name} is no CSV file: {error}.", hint="Write lines of `id,group`.") from error
    return table
