"""The target that heads learn, and splits: the file's own, those of its further columns, or those of a table."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precompute.cache import SPLITS, Cache, RelabelledCache
from precompute.errors import HeadMismatchError, UsageError
from precompute.training.columns import (
    Values,
    find_target,
    further_column,
    own_values,
    target_of_columns,
    values_of_column,
    values_of_texts,
)
from precompute.training.tables import SHOWN, joined, read_table
from precompute.training.targets import AUTO, CLASSES, TASKS, Target


@dataclass(frozen=True)
class Relabelling:
    """Where target and splits come from; the file's own where nothing is given.

    label_columns, split_column: names of further columns; several label columns hold 0 and 1 each · table: a CSV file
    with the columns id (or path) and label · expected: samples that the table must name at least · task: one of TASKS,
    or AUTO · separator: between labels in one text.
    """

    label_columns: tuple[str, ...] = ()
    split_column: str | None = None
    table: str | None = None
    expected: int | None = None
    task: str = AUTO
    separator: str | None = None

    @classmethod
    def of(
        cls,
        label_column: str | Sequence[str] | None = None,
        split_column: str | None = None,
        table: str | os.PathLike[str] | None = None,
        *,
        expected: int | None = None,
        task: str = AUTO,
        separator: str | None = None,
    ) -> Relabelling:
        """As `train_head` takes them. Raises UsageError for a task that there is none of, and for contradictions."""
        columns = (label_column,) if isinstance(label_column, str) else tuple(label_column or ())
        if task not in (AUTO, *TASKS):
            raise UsageError(f"task must be one of {', '.join((AUTO, *TASKS))}. Got {task!r} instead.", hint="--task.")
        if columns and table is not None:
            raise UsageError("--labels and --label-column contradict each other.", hint="Give one of them.")
        if expected is not None and table is None:
            raise UsageError("--expect counts the rows of a table, and there is none.", hint="Give --labels TABLE.csv.")
        return cls(columns, split_column, None if table is None else os.fspath(table), expected, task, separator)

    @classmethod
    def of_head(
        cls,
        metadata: dict[str, Any],
        head: str,
        task: str,
        *,
        table: str | os.PathLike[str] | None = None,
        option: str | None = None,
    ) -> Relabelling:
        """What a head was trained by. table: the table of labels, where that is available · option: that gives it.

        Raises HeadMismatchError where it was trained by a table, which the file does not hold, and none is given.
        """
        known = recorded(metadata)
        given = None if table is None or known.get("table") is None else os.fspath(table)
        if known.get("table") is not None and given is None:
            raise HeadMismatchError(
                f"The head {head} was trained on labels from the table {known['table']}, which it does not hold.",
                hint="Train it on a label column of the cache instead: extract SOURCE --keep-column NAME."
                if option is None
                else f"Give that table again: {option} FILE.",
            )
        split, separator = (known.get(name) for name in ("split_column", "label_separator"))
        return cls(
            recorded_columns(metadata),
            split if isinstance(split, str) else None,
            given,
            task=task,
            separator=separator if isinstance(separator, str) else None,
        )

    def record(self) -> dict[str, Any]:
        """For a head's file; empty where nothing is replaced."""
        columns: str | list[str] | None = list(self.label_columns) or None
        if len(self.label_columns) == 1:
            columns = self.label_columns[0]
        table = None if self.table is None else os.path.basename(self.table)
        given = {"label_column": columns, "split_column": self.split_column, "table": table}
        given["label_separator"] = self.separator
        return {name: value for name, value in given.items() if value is not None}

    def apply(self, cache: Cache) -> tuple[Cache, Target, list[str]]:
        """`cache` with these splits, the target of its rows, and what there is to say of them.

        Raises UsageError for a column that is not there or cannot be used, and a table that does not fit.
        """
        target, notes = self._target(cache)
        if self.split_column is None:
            return cache, target, notes
        splits = _splits(cache, self.split_column)
        notes.append(f"splits from column {self.split_column}")
        return RelabelledCache(cache, {"samples/split": splits}), target, notes

    def _target(self, cache: Cache) -> tuple[Target, list[str]]:
        notes: list[str] = []
        if len(self.label_columns) > 1:
            target, note = target_of_columns(cache, self.label_columns, self.task, self.separator)
            return target, [note]
        if self.label_columns:
            values = values_of_column(cache, self.label_columns[0], "--label-column")
        elif self.table is not None:
            values, notes = self._joined(cache, self.table)
        else:
            values = own_values(cache)
        target, note = find_target(values, self.task, self.separator)
        if self.table is not None:  # a head's file holds the notes, and others get it
            note, *notes = (line.replace(self.table, os.path.basename(self.table)) for line in (note, *notes))
        is_own = not self.label_columns and self.table is None
        return target, notes if is_own and target.task == CLASSES else [*notes, note]

    def _joined(self, cache: Cache, name: str) -> tuple[Values, list[str]]:
        table = read_table(name, "label", keys=("id", "path"), empty=True)
        texts = joined(cache, table)
        matched = sum(map(bool, texts))
        if self.expected is not None and matched < self.expected:
            raise UsageError(
                f"{name} names {matched:,} of the {len(texts):,} samples in {cache.path}, fewer than the "
                f"{self.expected:,} of --expect.",
                hint="Nothing was trained. Look for ids that are written in another way.",
            )
        by = ", by path" if table.key == "path" else ""
        note = f"{matched:,} of {len(texts):,} samples are in {name}, which has {len(table.values):,} rows{by}"
        return values_of_texts(cache, texts, name), [note]


def recorded(metadata: dict[str, Any]) -> dict[str, Any]:
    """What `Relabelling.record` has put into a head's file; empty where nothing was replaced."""
    training = metadata.get("training")
    known = training.get("relabelling") if isinstance(training, dict) else None
    return known if isinstance(known, dict) else {}


def recorded_columns(metadata: dict[str, Any]) -> tuple[str, ...]:
    """The label columns among these."""
    known = recorded(metadata).get("label_column")
    names = known if isinstance(known, list) else [known]
    return tuple(name for name in names if isinstance(name, str))


def text_column(cache: Cache, name: str, option: str) -> list[str]:
    """A further column (N,) as text; whole numbers as their digits. Raises UsageError where it is none."""
    values = further_column(cache, name, option, kinds="Siu", needs="text or whole numbers")
    return [os.fsdecode(value) if isinstance(value, bytes) else str(value) for value in values.tolist()]


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
