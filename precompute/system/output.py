"""Where a command may write: at a new name, or instead of a file of the same kind. Any other file is left alone.

A path is checked before the work (`check_output`), and again at the moment of the write (`Output`), since hours may lie
between them. What a link leads to is written; the link stays.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shlex
import stat
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from precompute.errors import PrecomputeError, UsageError, naming
from precompute.system import sync

Path = str | os.PathLike[str]
HEAD_BYTES = 64  # of a file beside the output: enough to recognise it
KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISLNK, "a link"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


@dataclass(frozen=True)
class Kind:
    """What a command writes. error: raised where it cannot be written.

    check: raises a PrecomputeError, with a message and a hint alone, where the ordinary file at a path is not of this
    kind. It must read the file as one that may come from anybody.
    """

    error: type[PrecomputeError]
    check: Callable[[str], object]


@dataclass(frozen=True)
class Output:
    """A path that `check_output` allowed, links followed."""

    path: str
    kind: Kind
    overwrite: bool = False

    def check(self) -> None:
        """Raise the kind's error unless there is nothing at the path, or an ordinary file that may be replaced."""
        try:
            mode = os.lstat(self.path).st_mode
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._failed(error) from error
        if not stat.S_ISREG(mode):
            found = next((name for is_kind, name in KINDS if is_kind(mode)), "no ordinary file")
            raise self.kind.error(
                f"The output {self.path!r} cannot be written: it is {found}.",
                hint="It is left as it is. Name a file: one that does not exist yet, or one that precompute wrote.",
            )
        if self.overwrite:
            return
        try:
            self.kind.check(self.path)
        except PrecomputeError as error:
            raise type(error)(
                error.message,
                hint=f"{self.path!r} is left as it is. Choose another output, move that file away, or replace it with "
                "--overwrite.",
            ) from error

    def put(self, made: str) -> None:
        """Give `made`, a file in the same folder whose bytes are on the disk, the output's name, in one step."""
        self.check()
        os.replace(made, self.path)
        sync_folder(self.path)

    def write(self, write: Callable[[BinaryIO], object]) -> None:
        """Let `write` fill a file, which appears under the output's name once it is whole and on the disk.

        Raises the kind's error; the file that was there before is then still there.
        """
        self.check()
        temporary = _temporary(self.path, secrets.token_hex(8))
        try:
            try:
                with open(temporary, "xb") as file:
                    write(file)
                    file.flush()
                    sync(file.fileno())
                self.put(temporary)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
                raise
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> PrecomputeError:
        return self.kind.error(
            f"The output {self.path!r} cannot be written: {error.strerror}.",
            hint="Check that the folder exists, that you may write to it, and that the disk has space.",
        )


def check_output(
    path: Path,
    kind: Kind,
    *,
    overwrite: bool = False,
    inputs: Iterable[Path | None] = (),
    suffixes: Sequence[str] = (),
) -> Output:
    """Find out before the work whether `path` can and may be written.

    inputs: files that the same command reads, or writes as well; None and names that are no file are skipped.
    suffixes: what the command puts behind the path for its other files. Raises UsageError for a path without a name and
    for one of `inputs`; else the kind's error.
    """
    given = os.fsdecode(path)
    if not given or "\0" in given:
        raise UsageError(f"The output {given!r} is not a file name.", hint="Name a file to write to.")
    real = os.path.realpath(given) if os.path.islink(given) else given  # a relative path stays short
    folder = os.path.dirname(real) or "."
    output = Output(real, kind, overwrite)
    _check_lengths(output, suffixes)
    if not os.path.isdir(folder):
        raise kind.error(
            f"The output {given!r} cannot be written: the folder {folder!r} does not exist.",
            hint=f"Make it first: mkdir -p {shlex.quote(folder)}",
        )
    for other in inputs:
        if other is not None and _same_file(real, os.fsdecode(other)):
            raise UsageError(
                f"The output {given!r} is the same file as {os.fsdecode(other)!r}, which this command uses as well.",
                hint="It is left as it is. Choose another output.",
            )
    output.check()
    try:
        # Permissions alone do not tell. The file has no name where the system allows that, else one of its own.
        with tempfile.TemporaryFile(prefix=".precompute-", dir=folder):
            pass
    except OSError as error:
        raise kind.error(
            f"The output {given!r} cannot be written: no file can be made in the folder {folder!r}: {error.strerror}.",
            hint="Choose another output, or change the folder's permissions.",
        ) from error
    return output


def check_beside(path: str, is_ours: Callable[[bytes], bool], error: type[PrecomputeError]) -> bool:
    """Whether a file of ours is at `path`, a name that a command needs for itself while it works.

    is_ours: of the first 64 bytes. Raises `error` where precompute did not make it: it is never changed.
    """
    with contextlib.suppress(FileNotFoundError):
        mode = os.lstat(path).st_mode
        if stat.S_ISREG(mode):
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if is_ours(os.pread(descriptor, HEAD_BYTES, 0)):
                    return True
            finally:
                os.close(descriptor)
        raise error(
            f"{path!r} was not made by precompute, which needs that name while it works.",
            hint="It is left as it is. Choose another output, or move that file away.",
        )
    return False


def sync_folder(path: str) -> None:
    """Make the name of the file at `path` durable."""
    folder = os.path.dirname(path) or "."
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with naming(folder):
            sync(descriptor)
    finally:
        os.close(descriptor)


def _temporary(path: str, token: str) -> str:
    return os.path.join(os.path.dirname(path), f".precompute-{token}.tmp")


def _check_lengths(output: Output, suffixes: Sequence[str]) -> None:
    """Raise the kind's error where a name would be too long: the file system itself is asked."""
    for name in (output.path, *(output.path + suffix for suffix in suffixes), _temporary(output.path, "0" * 16)):
        try:
            os.lstat(name)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise output.kind.error(
                    f"The output {output.path!r} cannot be written: its name is too long"
                    + (f" ({name!r} is needed as well)." if name != output.path else "."),
                    hint="Choose a shorter name.",
                ) from error


def _same_file(path: str, other: str) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.stat(other))
    except (OSError, ValueError):  # one is not there (yet)
        return bool(other) and os.path.realpath(path) == os.path.realpath(other)
