"""What became of each sample, and which split it belongs to: the codes of /samples/status and /samples/split."""

from __future__ import annotations

from enum import IntEnum


class Status(IntEnum):
    """One value for each outcome of a sample, of any modality. Numbers are part of the file format and never change."""

    PENDING = 0
    OK = 1
    UNREADABLE = 2
    UNDECODABLE = 3
    TRUNCATED = 4
    TOO_LARGE = 5
    VANISHED = 6
    NON_FINITE = 7

    @property
    def text(self) -> str:
        """In words, as messages and tables show it: the only place where they stand."""
        return _TEXTS[self]

    @property
    def may_change(self) -> bool:
        """True where the same bytes may well succeed in the next run, so that a rerun tries them again."""
        return self in (Status.UNREADABLE, Status.VANISHED)


_TEXTS = {
    Status.PENDING: "not computed yet",
    Status.OK: "ok",
    Status.UNREADABLE: "unreadable",
    Status.UNDECODABLE: "undecodable",
    Status.TRUNCATED: "truncated or damaged",
    Status.TOO_LARGE: "too large",
    Status.VANISHED: "vanished",
    Status.NON_FINITE: "features not finite",
}

SPLITS = ("none", "train", "val", "test")
"""Names of the split codes 0 to 3."""

UNKNOWN_SPLIT = "unknown"
"""Any other code, of a later precompute: nothing trains on such rows or is scored on them."""


def status_name(code: int) -> str:
    """Name of a status code, such as `TRUNCATED`; a reader takes codes that it does not know for failures."""
    return Status(code).name if code in _TEXTS else f"UNKNOWN_{code}"


def status_text(name: str) -> str:
    """`Status.text` by the status' name, as results hold it; a code of a later precompute is named by its number."""
    return Status[name].text if name in Status.__members__ else name.lower().replace("_", " ")


def split_name(code: int) -> str:
    """Name of a split code, such as `train`."""
    return SPLITS[code] if code < len(SPLITS) else UNKNOWN_SPLIT
