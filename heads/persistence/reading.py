"""Files of heads and tails, opened and decoded without trust; whatever is wrong with one is an error with its name."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from precompute.errors import HeadError, HeadFormatError
from precompute.heads.persistence.encoding import FileFormat, UnknownFormatError, decode
from precompute.system.untrusted import is_sparse, open_without_waiting

if TYPE_CHECKING:
    from precompute.heads.persistence.encoding import Arrays

Restored = TypeVar("Restored")


def read_whole(
    path: str | os.PathLike[str],
    form: FileFormat,
    command: str,
    restore: Callable[[Arrays, dict[str, str]], Restored],
) -> Restored:
    """What `restore` makes of the arrays and strings of a file that `precompute COMMAND` wrote.

    Raises HeadFormatError for anything but a whole file of a known version, and where `restore` raises ValueError or
    TypeError; HeadError where the file cannot be read, or memory does not suffice.
    """
    noun, name = form.noun, repr(os.fspath(path))  # in quotes; bytes that are not UTF-8 as escapes
    try:
        with open(path, "rb", opener=open_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ValueError("it is not a regular file")
            if status.st_size <= form.max_bytes and is_sparse(status):  # a larger one is refused for its size
                raise ValueError(f"of its {status.st_size:,} bytes, most were never written")
            return restore(*decode(file, status.st_size, form))
    except MemoryError as error:
        raise HeadError(
            f"The {noun} {name} needs more memory than there is.", hint="Load it on a machine with more memory."
        ) from error
    except OSError as error:
        raise HeadError(
            f"The {noun} {name} cannot be read: {error.strerror}.",
            hint=f"Check the name, or train a {noun} with `precompute {command}`.",
        ) from error
    except UnknownFormatError as error:
        raise HeadFormatError(
            f"{name} is not a {noun} that this precompute reads: {error}.",
            hint=f"Give the file that `precompute {command}` wrote; for a newer version, update precompute.",
        ) from error
    except (ValueError, TypeError) as error:
        raise HeadFormatError(
            f"{name} is not a whole {noun} file: {error}.",
            hint=f"Copy it again from an intact copy, or train the {noun} again.",
        ) from error
