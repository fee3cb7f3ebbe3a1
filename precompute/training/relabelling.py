"""Labels and splits that the file has in other columns, or that a table brings along, in place of its own."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precompute.cache import SPLITS, Cache, RelabelledCache
from precompute.errors import HeadMismatchError, UsageError

SHOWN = 3  # ids that an error names


@dataclass(frozen=True)
class Relabelling:
    """What to take in place of a file's own labels and splits; None for its own.

    label_column, split_column: names of further columns · table: a CSV file with the columns id and label · expected:
    samples that the table must name at least.
    """

    label_column: str | None = None
    split_column: str | None = None
    table: str | None = None
    expected: int | None = None

    @classmethod
    def of_head(cls, metadata: dict[str, Any], head: str) -> Relabelling:
        """What a head was trained by. Raises HeadMismatchError where that was a table, which the file does not hold."""
        known = recorded(metadata)
        if known.get("table") is not None:
            raise HeadMismatchError(
                f"The head {head} was trained on labels from the table {known['table']}, which it does not hold.",
                hint="Train it on a label column of the cache instead: extract SOURCE --keep-column NAME.",
            )
        label, split = (known.get(name) for name in ("label_column", "split_column"))
        return cls(label if isinstance(label, str) else None, split if isinstance(split, str) else None)

    def record(self) -> dict[str, str]:
        """For a head's file; empty where nothing is replaced."""
        table = None if self.table is None else os.path.basename(self.table)
        given = {"label_column": self.label_column, "split_column": self.split_column, "table": table}
        return {name: value for name, value in given.items() if value is not None}

    def apply(self, cache: Cache) -> tuple[Cache, list[str]]:
        """`cache` with these labels and splits, and what there is to say of them.

        Raises UsageError for a column that is not there or cannot be used, and a table that does not fit.
        """
        if self.label_column is not None and self.table is not None:
            raise UsageError("--labels and --label-column contradict each other.", hint="Give one of them.")
        if self.expected is not None and self.table is None:
            raise UsageError("--expect counts the rows of a table, and there is none.", hint="Give --labels TABLE.csv.")
        replaced: dict[str, NDArray[Any]] = {}
        notes: list[str] = []
        names: list[str] | None = None
        if self.label_column is not None:
            names, origin = text_column(cache, self.label_column, "--label-column"), f"column {self.label_column}"
        elif self.table is not None:
            names, notes = self._joined(cache, self.table)
            origin = self.table
        if names is not None:
            classes = sorted({os.fsencode(name) for name in names if name})
            place = {name: number for number, name in enumerate(classes)}
            replaced["samples/label"] = np.array([place[os.fsencode(n)] if n else -1 for n in names], np.int32)
            replaced["classes"] = np.array(classes or [b""])[: len(classes)]
            notes.append(f"labels from {origin}: {len(classes):,} classes")
        if self.split_column is not None:
            replaced["samples/split"] = _splits(cache, self.split_column)
            notes.append(f"splits from column {self.split_column}")
        return (RelabelledCache(cache, replaced) if replaced else cache), notes

    def _joined(self, cache: Cache, table: str) -> tuple[list[str], list[str]]:
        """The label of each sample by its id, "" for those that the table does not name."""
        known = read_table(table, "label")
        names = [known.get(one, "") for one in cache.ids]
        matched = sum(bool(name) for name in names)
        if not matched:
            ours, theirs = cache.ids[:SHOWN], list(known)[:SHOWN]
            raise UsageError(
                f"No id in {table} ({', '.join(map(repr, theirs))}, ...) is one of {cache.path} "
                f"({', '.join(map(repr, ours))}, ...).",
                hint="The column id must hold ids as `precompute export` writes them.",
            )
        if self.expected is not None and matched < self.expected:
            raise UsageError(
                f"{table} names {matched:,} of the {len(names):,} samples in {cache.path}, fewer than the "
                f"{self.expected:,} of --expect.",
                hint="Nothing was trained. Look for ids that are written in another way.",
            )
        return names, [f"{matched:,} of {len(names):,} samples stand in {table}, which has {len(known):,} rows"]


def recorded(metadata: dict[str, Any]) -> dict[str, Any]:
    """What `Relabelling.record` has put into a head's file; empty where nothing was replaced."""
    training = metadata.get("training")
    known = training.get("relabelling") if isinstance(training, dict) else None
    return known if isinstance(known, dict) else {}


def text_column(cache: Cache, name: str, option: str) -> list[str]:
    """A further column (N,) as text; whole numbers as their digits. Raises UsageError where it is none."""
    if name not in cache.columns:
        has = ", ".join(map(ascii, cache.columns)) or "none"
        raise UsageError(
            f"{cache.path} has no column {name!r} for {option}. Its further columns: {has}.",
            hint="Extract with --keep-column NAME from a table that has it.",
        )
    values = cache.column(f"columns/{name}")
    if values.ndim != 1 or values.dtype.kind not in "Siu":
        raise UsageError(
            f"The column {name!r} of {cache.path} holds {values.dtype} of shape {values.shape}, and {option} needs "
            "text or whole numbers, one for each sample.",
            hint="Name a column of categories.",
        )
    return [os.fsdecode(value) if isinstance(value, bytes) else str(value) for value in values.tolist()]


def read_table(file: str | os.PathLike[str], value: str) -> dict[str, str]:
    """`value` by id from a CSV file with the columns id and `value`. Raises UsageError for what is wrong with it."""
    name = os.fspath(file)
    try:
        with open(file, newline="", encoding="utf-8-sig", errors="surrogateescape") as stream:
            reader = csv.DictReader(stream)
            if not {"id", value} <= set(reader.fieldnames or ()):
                raise UsageError(
                    f"{name} must have the columns id and {value} in its first line. Got {reader.fieldnames} instead.",
                    hint=f"Write lines such as `id,{value}` and `ants/1.jpg,{value}7`.",
                )
            table: dict[str, str] = {}
            for row in reader:
                identity, found = row["id"], row[value]
                if not found or table.setdefault(identity, found) != found:
                    what = f"two {value}s, {table[identity]!r} and {found!r}" if found else f"no {value}"
                    raise UsageError(
                        f"{name}, line {reader.line_num}: {identity!r} has {what}.", hint=f"Give each id one {value}."
                    )
    except OSError as error:
        raise UsageError(f"{name} cannot be read: {error.strerror}.", hint="Check the name of the file.") from error
    except csv.Error as error:
        raise UsageError(f"{name} is no CSV file: {error}.", hint=f"Write lines of `id,{value}`.") from error
    return table


def _splits(cache: Cache, name: str) -> NDArray[np.uint8]:
    codes = {"": 0, **{split: code for code, split in enumerate(SPLITS)}}
    words = text_column(cache, name, "--split-column")
    if odd := sorted({word for word in words if word not in codes}):
        raise UsageError(
            f"The column {name!r} of {cache.path} names splits that are not known: {', '.join(map(repr, odd[:SHOWN]))}"
            f"{', ...' if len(odd) > SHOWN else ''}.",
            hint=f"Known are {', '.join(SPLITS)}.",
        )
    return np.array([codes[word] for word in words], np.uint8)
