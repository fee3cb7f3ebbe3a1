"""What may be replaced by a head, and what by an export."""

from __future__ import annotations

from precompute.errors import HeadError, HeadFormatError
from precompute.heads.persistence.encoding import is_head
from precompute.system.output import Kind
from precompute.system.untrusted import open_without_waiting


def _check_head(path: str) -> None:
    try:
        with open(path, "rb", opener=open_without_waiting) as file:
            if is_head(file):
                return
    except OSError as error:
        raise HeadError(f"The head {path!r} cannot be read: {error.strerror}.", hint="") from error
    raise HeadFormatError(f"{path!r} exists, and is not a head.", hint="")


def _check_export(path: str) -> None:
    raise HeadError(f"{path!r} exists, and what a joblib file is cannot be found out without running it.", hint="")


HEAD = Kind(HeadError, _check_head)
EXPORT = Kind(HeadError, _check_export)
