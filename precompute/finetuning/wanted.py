"""What is to be learned, and how it is scored."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from precompute.errors import UsageError
from precompute.training.relabelling import Relabelling
from precompute.training.targets import AUTO


@dataclass(frozen=True)
class Wanted:
    """What is to be learned, and how it is scored: the options of `train_head` with these names."""

    groups: str | None = None
    groups_file: str | os.PathLike[str] | None = None
    groups_column: str | None = None
    label_column: str | Sequence[str] | None = None
    label_separator: str | None = None
    split_column: str | None = None
    task: str = AUTO
    labels: str | os.PathLike[str] | None = None
    expect: int | None = None
    similarity: float | None = None
    plain_view: bool = False
    average_views: bool = False
    calibrated: bool = False

    def columns(self, also: Sequence[str] = ()) -> tuple[str, ...]:
        """The further columns that it takes from a cache, behind those of `also`."""
        labels = (self.label_column,) if isinstance(self.label_column, str) else self.label_column or ()
        named = (*also, *labels, self.split_column, self.groups_column)
        return tuple(name for name in dict.fromkeys(named) if name is not None)

    def check(self) -> Relabelling:
        """Raise UsageError for what contradicts itself; where target and splits come from."""
        if self.similarity is not None and not 0 < self.similarity <= 1:
            given = f"Got {self.similarity!r} instead."
            raise UsageError(f"similarity must be above 0 and at most 1. {given}", hint="Try 0.9.")
        return Relabelling.of(
            self.label_column,
            self.split_column,
            self.labels,
            expected=self.expect,
            task=self.task,
            separator=self.label_separator,
        )
