"""Sources whose samples are files: reading one, whatever has taken its place since it was listed."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from abc import abstractmethod
from typing import Any

from precompute.errors import SampleError
from precompute.sources.base import Raw, Source, Table

MAX_FILE_BYTES = 2**30  # a gigabyte holds any picture below the pixel limit
EARLIEST, LATEST = -(2**63), 2**63 - 1  # what int64 holds of nanoseconds since 1970: years 1677 to 2262


def mtime_ns(status: os.stat_result) -> int:
    """Modification time in ns since 1970; the nearest that int64 holds where it is before 1677 or after 2262."""
    return min(max(status.st_mtime_ns, EARLIEST), LATEST)


def read_file(path: bytes) -> Raw:
    """The bytes of one file; its size and mtime are from before they were read.

    Raises SampleError with the reason VANISHED or UNREADABLE; a FIFO or device that took the file's place is not read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb", buffering=0) as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise SampleError("not an ordinary file", reason="UNREADABLE")
            if status.st_size > MAX_FILE_BYTES:
                raise SampleError(f"{status.st_size:,} bytes, more than {MAX_FILE_BYTES:,}", reason="UNREADABLE")
            data: bytes | None = file.readall()  # None from a view of the kernel that has nothing to give just now
            if data is None:
                raise SampleError("not an ordinary file", reason="UNREADABLE")
            return Raw(data, status.st_size, mtime_ns(status))
    except OSError as error:
        reason = "VANISHED" if error.errno in (errno.ENOENT, errno.ENOTDIR) else "UNREADABLE"
        raise SampleError(error.strerror or str(error), reason=reason) from error


def read_at(descriptor: int, size: int, offset: int) -> bytes:
    """`size` bytes from `offset` on; fewer at the end of the file. Raises OSError."""
    parts = [os.pread(descriptor, size, offset)]
    while parts[-1] and (done := sum(map(len, parts))) < size:
        parts.append(os.pread(descriptor, size - done, offset + done))
    return parts[0] if len(parts) == 1 else b"".join(parts)


def identity_of(path: bytes) -> tuple[int, int] | None:
    """Which folder or file is there: of a disk that was unmounted only the empty mount point is left."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


class FilesSource(Source):
    """Samples that are separate files below one folder.

    root: path of the folder, or of the one file that is the source.
    """

    def __init__(self, root: bytes, table: Table) -> None:
        self.root = root
        self.table = table
        self._identity = identity_of(root)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """In another process, perhaps on another machine, where the same folder has another number."""
        vars(self).update(state)
        self._identity = identity_of(self.root)

    @abstractmethod
    def path(self, row: int) -> bytes:
        """Path of the file behind `row`."""

    def read(self, row: int) -> Raw:
        return read_file(self.path(row))

    def alive(self) -> bool:
        return self._identity is not None and identity_of(self.root) == self._identity

    def reads(self, path: str) -> bool:
        try:
            status = os.stat(path)
        except OSError:
            return False
        alike = (self.table.sizes == status.st_size) & (self.table.mtimes == mtime_ns(status))
        for row in alike.nonzero()[0]:
            with contextlib.suppress(OSError):  # a file that is gone is not the output
                if os.path.samestat(status, os.stat(self.path(row))):
                    return True
        return False
