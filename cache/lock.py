"""One writer for each output. The operating system frees the lock with the process, however that ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from datetime import UTC, datetime
from types import TracebackType

from precompute.errors import CacheError, CacheLockedError, naming
from precompute.system.output import check_beside

SIGNATURE = b'{"pid": '
LEASE = 120.0  # seconds: NFS version 4 gives 90 to clients that do not answer
AGAIN = 0.5
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


def lock_path(output: str) -> str:
    """The name says whose it is: what else is called `NAME.lock` (think of poetry.lock) is not precompute's."""
    return f"{output}.precompute.lock"


def check_lock(output: str) -> bool:
    """Whether this output has a lock file, left or held. Raises CacheError where its name is taken by another file."""
    return check_beside(lock_path(output), _is_ours, CacheError)


def _is_ours(content: bytes) -> bool:
    """Ours is signed, empty (it has just been made, or the disk is full), or lost a part of that to a power cut."""
    return content.startswith((SIGNATURE, b"\0")) or SIGNATURE.startswith(content.rstrip(b"\0"))


class WriteLock:
    """Hold `OUTPUT.precompute.lock` with flock(2) while inside `with`.

    The file names pid, host and time of its holder for anyone who comes second. A lock file without a living holder
    means nothing: flock belongs to the process, so a dead process holds none. Its own file is locked, not the
    cache, because HDF5 readers take a shared flock on the cache and would be kept out.

    A dead machine sends no answer, and the server of a network file system keeps its locks until their lease is
    over: so a lock of another host is waited for, `LEASE` seconds, before somebody is reported to hold it.

    Raises CacheLockedError where another process holds it, CacheError where the name is taken by another file, and
    where the file system has no locks.
    """

    def __init__(self, output: str) -> None:
        self._output = output
        self._path = lock_path(output)
        self._descriptor = -1

    def __enter__(self) -> WriteLock:
        began = time.monotonic()
        while self._descriptor < 0:
            descriptor = self._open()
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                holder = os.pread(descriptor, 4096, 0)
                os.close(descriptor)
                if _elsewhere(holder) and time.monotonic() - began < LEASE:
                    time.sleep(AGAIN)
                    continue
                raise CacheLockedError(
                    f"{self._output} is being written by {_describe(holder)}.",
                    hint="Wait for it to finish, or choose another output. Nothing was changed.",
                ) from error
            except OSError as error:
                os.close(descriptor)
                if error.errno not in NO_LOCKS:
                    raise
                raise CacheError(
                    f"The file system of {self._output} has no locks, so two runs could write one file: "
                    f"{error.strerror}.",
                    hint="Write to another one, such as a local disk, and move the file when it is finished; or have "
                    "it mounted with locks (Lustre: -o flock).",
                ) from error
            if self._is_current(descriptor):
                self._descriptor = descriptor
            else:  # the last holder removed the file between our open and our flock
                os.close(descriptor)
        try:
            self._sign()
        except OSError as error:
            # On a full disk the lock holds all the same, unsigned; how much is missing is told when space is reserved.
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                self.__exit__(None, None, None)
                raise
        return self

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        while True:
            if check_lock(self._output):
                with contextlib.suppress(FileNotFoundError):  # its holder has just removed it
                    return os.open(self._path, flags)
            else:
                with contextlib.suppress(FileExistsError):  # another process has just made it
                    return os.open(self._path, flags | os.O_CREAT | os.O_EXCL, 0o644)

    def _sign(self) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        holder = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": now})
        with naming(self._path):
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, holder.encode(), 0)

    def _is_current(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self._path, follow_symlinks=False))
        except FileNotFoundError:
            return False

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # While still locked, so that nobody can lock the old file and a new one at once. Where it cannot be removed (a
        # file system that went read-only) it means nothing either, and must not hide the error that ended the run.
        with contextlib.suppress(OSError):
            if self._is_current(self._descriptor):
                os.unlink(self._path)
        os.close(self._descriptor)
        self._descriptor = -1


def _elsewhere(content: bytes) -> bool:
    """Whether the holder says that it runs on another machine."""
    try:
        return str(json.loads(content)["host"]) != socket.gethostname()
    except (ValueError, TypeError, KeyError):
        return False


def _describe(content: bytes) -> str:
    try:
        holder = json.loads(content)
        return f"process {int(holder['pid'])} on {holder['host']!s:.200} since {holder['since']!s:.40}"
    except (ValueError, TypeError, KeyError):
        return "another, unidentified process (it has just started, or the disk is full)"
