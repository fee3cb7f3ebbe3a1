"""What became of each sample, and which split it belongs to: the two HDF5 enums of the file."""

from __future__ import annotations

from enum import IntEnum


class Status(IntEnum):
    """One value for each outcome of a sample. Numbers are part of the file format and never change."""

    PENDING = 0
    OK = 1
    UNREADABLE = 2
    NOT_AN_IMAGE = 3
    TRUNCATED = 4
    TOO_MANY_PIXELS = 5
    VANISHED = 6
    NON_FINITE = 7

    @property
    def text(self) -> str:
        return _TEXTS[self]

    @property
    def may_change(self) -> bool:
        """True where the same bytes may well succeed in the next run, so that a rerun tries them again."""
        return self in (Status.UNREADABLE, Status.VANISHED)


def status_name(code: int) -> str:
    """Name of a status code, such as `TRUNCATED`; a reader takes codes that it does not know for failures."""
    return Status(code).name if code in _TEXTS else f"UNKNOWN_{code}"


_TEXTS = {
    Status.PENDING: "not computed yet",
    Status.OK: "ok",
    Status.UNREADABLE: "cannot be read",
    Status.NOT_AN_IMAGE: "not an image",
    Status.TRUNCATED: "truncated or damaged",
    Status.TOO_MANY_PIXELS: "too many pixels",
    Status.VANISHED: "vanished since it was listed",
    Status.NON_FINITE: "gives features that are not finite",
}

SPLITS = ("none", "train", "val", "test")
"""Names of the split codes 0 to 3."""
