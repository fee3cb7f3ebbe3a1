"""The values of a column before it is known what they are, and the target that they turn out to be.

A column says itself what it holds, unless the user does: text with a separator is several labels, numbers of which any
is not whole are numbers, all else is classes (scikit-learn's `type_of_target` draws the same line).
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precompute.cache import Cache
from precompute.errors import UsageError
from precompute.system import physical_memory
from precompute.training.targets import AUTO, CLASSES, LABELS, NUMBER, Target

SEPARATOR = ";"
WHOLE = re.compile(r"-?(0|[1-9][0-9]*)")
# As programs write them. 007 and 00.5 are names, unless the user says that they are numbers.
DECIMAL = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]*)?([eE][-+]?[0-9]+)?")
MEMORY_SHARE = 4  # of which labels may take one: heads need as much again
LARGEST = 1e100  # squares of larger numbers, summed, leave float64


@dataclass(frozen=True, eq=False)
class Values:
    """texts: (K,) different ones, in their order as bytes · codes: (N,) a place in them, -1 for an empty one ·
    ids: (N,) bytes · numbers: whether they come from a column of numbers · path, origin: for messages, the file and
    such as `column age`.
    """

    texts: tuple[str, ...]
    codes: NDArray[np.integer[Any]]
    ids: NDArray[np.bytes_]
    numbers: bool
    path: str
    origin: str

    def example(self, place: int) -> str:
        """The first sample that has the text at `place`, for a message."""
        row = int(np.flatnonzero(self.codes == place)[0])
        return f"{self.path}: the sample {os.fsdecode(bytes(self.ids[row]))!r}"

    def used(self) -> list[tuple[int, str]]:
        """Those places in `texts` that any sample has, with the text: a cache may name classes without samples."""
        there = np.unique(self.codes)
        return [(place, self.texts[place]) for place in there[there >= 0].tolist()]


def own_values(cache: Cache) -> Values:
    """The cache's own labels."""
    ids = cache.column("samples/id")
    return Values(cache.classes, cache.labels, ids, numbers=False, path=cache.path, origin="the file")


def values_of_texts(cache: Cache, texts: Sequence[str], origin: str) -> Values:
    """(N,) texts, "" for none."""
    distinct = sorted({os.fsencode(text) for text in texts if text})
    place = {os.fsdecode(text): number for number, text in enumerate(distinct)}
    codes = np.array([place.get(text, -1) for text in texts], np.int32)
    return Values(tuple(place), codes, cache.column("samples/id"), numbers=False, path=cache.path, origin=origin)


def values_of_column(cache: Cache, name: str, option: str) -> Values:
    """A further column; NaN is none. Raises UsageError for one that is not there, and for several values a sample."""
    column = further_column(cache, name, option, kinds="Siufb", needs="text or numbers")
    origin = f"column {name}"
    if column.dtype.kind == "S":
        return values_of_texts(cache, [os.fsdecode(value) for value in column.tolist()], origin)
    distinct, codes = np.unique(column, return_inverse=True)
    codes = np.where(np.isnan(column), -1, codes) if column.dtype.kind == "f" else codes
    distinct = distinct[~np.isnan(distinct)] if column.dtype.kind == "f" else distinct
    texts = [_written(value) for value in distinct.tolist()]
    order = np.array(sorted(range(len(texts)), key=lambda place: texts[place]), np.int64)
    place = np.full(len(texts) + 1, -1, np.int64)  # the last is that of -1
    place[order] = np.arange(len(order))
    names, ids = tuple(texts[i] for i in order.tolist()), cache.column("samples/id")
    return Values(names, place[codes], ids, numbers=True, path=cache.path, origin=origin)


def further_column(cache: Cache, name: str, option: str, *, kinds: str, needs: str) -> NDArray[Any]:
    """A further column (N,). Raises UsageError where there is none, or where NumPy's kind is none of `kinds`."""
    if name not in cache.columns:
        has = ", ".join(map(ascii, cache.columns)) or "none"
        raise UsageError(
            f"{cache.path} has no column {name!r} for {option}. Its further columns: {has}.",
            hint="Extract with --keep-column NAME from a table that has it.",
        )
    values = cache.column(f"columns/{name}")
    if values.ndim != 1 or values.dtype.kind not in kinds:
        raise UsageError(
            f"The column {name!r} of {cache.path} holds {values.dtype} of shape {values.shape}, and {option} needs "
            f"{needs}, one for each sample.",
            hint="Name another column.",
        )
    return values


def find_target(values: Values, task: str, separator: str | None) -> tuple[Target, str]:
    """The target of `values`, and a note about it.

    task: one of TASKS, or AUTO to find it · separator: what is between labels; None for SEPARATOR, where any value
    holds it. Raises UsageError for values that cannot be what `task` says, naming a sample.
    """
    if task == AUTO:
        task = _task_of(values, separator)
    if separator is not None and (task != LABELS or values.numbers):
        what = "a column of numbers has none" if values.numbers else f"--task {task} has one value a sample"
        raise UsageError(f"A separator stands between several labels, and {what}.", hint="Leave it out.")
    if task == NUMBER:
        return _numbers(values)
    if task == LABELS:
        return _labels(values, SEPARATOR if separator is None else separator)
    whole = bool(values.texts) and all(map(WHOLE.fullmatch, values.texts))
    note = f"labels from {values.origin}: {len(values.texts):,} classes"
    note += "; they are whole numbers: where those are amounts, give --task number" if whole else ""
    codes = values.codes.astype(np.int32, copy=False)
    return Target(CLASSES, values.texts, codes, codes >= 0), note


def target_of_columns(cache: Cache, names: Sequence[str], task: str, separator: str | None) -> tuple[Target, str]:
    """Several columns of 0 and 1, each of which is a label. Raises UsageError for any other value, naming it."""
    if task not in (AUTO, LABELS):
        raise UsageError(f"Several label columns are several labels, not --task {task}.", hint="Name one column.")
    if separator is not None:
        raise UsageError("Several label columns need no separator.", hint="Leave it out, or name one column.")
    if len(set(names)) < len(names):
        raise UsageError("A label column is named twice.", hint="Name each column once.")
    columns = [_indicator(cache, name) for name in names]
    known = np.logical_and.reduce([there for _, there in columns])
    values = np.stack([ones & known for ones, _ in columns], axis=1).astype(np.uint8)
    note = f"labels from {len(names):,} columns, several a sample: {_counts(names, values)}"
    return Target(LABELS, tuple(names), values, known), note


def _written(value: float) -> str:
    """A number as text; whole ones by their digits."""
    return str(int(value)) if math.isfinite(value) and value == int(value) else repr(value)


def _task_of(values: Values, separator: str | None) -> str:
    if separator is not None or (not values.numbers and any(SEPARATOR in text for text in values.texts)):
        return LABELS
    texts = [text.strip() for text in values.texts]
    texts = [text for text in texts if text.lower() != "nan"]  # as pandas writes what is missing, when it is asked to
    if values.numbers or all(map(DECIMAL.fullmatch, texts)):
        return CLASSES if all(float(text).is_integer() for text in texts) else NUMBER
    return CLASSES


def _numbers(values: Values) -> tuple[Target, str]:
    found = np.full(len(values.texts) + 1, np.nan)  # the last is that of -1
    for place, text in values.used():
        try:
            number = math.inf if "_" in text else float(text)
        except ValueError:
            number = math.inf
        if abs(number) > LARGEST:  # infinity among them
            raise UsageError(
                f"{values.example(place)} has {text!r} in {values.origin}, which is not a number of up to {LARGEST:g}.",
                hint="Correct it (decimals have a point), leave it empty (such samples are left out), or choose "
                "another --task.",
            )
        found[place] = number
    numbers = found[values.codes]
    known = ~np.isnan(numbers)
    spread = f", {np.nanmin(numbers):g} to {np.nanmax(numbers):g}" if known.any() else ""
    return Target(NUMBER, (), numbers, known), f"numbers from {values.origin}{spread}"


def _labels(values: Values, separator: str) -> tuple[Target, str]:
    if values.numbers:
        ones, known = _zero_or_one(values)
        name = values.origin.removeprefix("column ")
        return Target(LABELS, (name,), ones[:, None].astype(np.uint8), known), f"one label from {values.origin}"
    if not separator:
        raise UsageError("The separator of labels is empty.", hint="For example --label-separator ';'.")
    parts = [{part.strip() for part in text.split(separator)} - {""} for text in values.texts]
    blank = np.array([not text.strip() and separator not in text for text in values.texts] + [True])
    names = sorted({name for found in parts for name in found}, key=os.fsencode)
    place = {name: number for number, name in enumerate(names)}
    needed = (len(values.codes) + len(parts) + 1) * len(names)
    if needed > physical_memory() // MEMORY_SHARE:
        raise UsageError(
            f"{values.path} has {len(names):,} labels in {values.origin}, and {needed:,} bytes for all samples are "
            "more than a quarter of this machine's memory.",
            hint="Is it a column of names, and not of labels? Give --task classes, or another separator.",
        )
    of_text = np.zeros((len(parts) + 1, len(names)), np.uint8)
    for row, found in enumerate(parts):
        of_text[row, [place[name] for name in found]] = 1
    if not names:
        raise UsageError(f"No sample of {values.path} has a label in {values.origin}.", hint="Name another column.")
    rows = of_text[values.codes]
    note = f"labels from {values.origin}, several a sample by {separator!r}: {_counts(names, rows)}"
    return Target(LABELS, tuple(names), rows, ~blank[values.codes]), note


def _indicator(cache: Cache, name: str) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    return _zero_or_one(values_of_column(cache, name, "--label-column"))


def _zero_or_one(values: Values) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(N,) which are 1, and which are 0 or 1. Raises UsageError for what is neither, and not empty."""
    for place, text in values.used():
        if text not in ("0", "1"):
            raise UsageError(
                f"{values.example(place)} has {text!r} in {values.origin}, and a label's own column holds "
                "0 or 1, or nothing.",
                hint="Name columns of 0 and 1; one column of names is several labels by --label-separator.",
            )
    one = values.texts.index("1") if "1" in values.texts else len(values.texts)
    return values.codes == one, values.codes >= 0


def _counts(names: Sequence[str], values: NDArray[np.uint8]) -> str:
    """How often each label stands, for a note."""
    counts = zip(names, values.sum(axis=0, dtype=np.int64).tolist(), strict=True)
    shown = [f"{name} ({count:,})" for name, count in counts]
    return f"{len(names):,} labels: " + ", ".join(shown[:12]) + (", ..." if len(shown) > 12 else "")
