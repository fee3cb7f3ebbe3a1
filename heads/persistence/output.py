"""What may be replaced by a head or a tail, and what by an export."""

from __future__ import annotations

from precompute.errors import HeadError, HeadFormatError
from precompute.heads.persistence.encoding import HEAD_FORMAT, FileFormat, is_of
from precompute.system.output import Kind
from precompute.system.untrusted import open_without_waiting


def kind_of_file(form: FileFormat) -> Kind:
    """Files that say that they are of this form, of any version; what follows their header may be damaged."""

    def check(path: str) -> None:
        try:
            with open(path, "rb", opener=open_without_waiting) as file:
                if is_of(file, form):
                    return
        except OSError as error:
            raise HeadError(f"The {form.noun} {path!r} cannot be read: {error.strerror}.", hint="") from error
        raise HeadFormatError(f"{path!r} exists, and is not a {form.noun}.", hint="")

    return Kind(HeadError, check)


def _check_export(path: str) -> None:
    raise HeadError(f"{path!r} exists, and a joblib file cannot be recognised without running it.", hint="")


HEAD = kind_of_file(HEAD_FORMAT)
EXPORT = Kind(HeadError, _check_export)
