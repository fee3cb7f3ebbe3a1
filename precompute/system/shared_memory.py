"""Memory that several processes see and that has no name: it is gone with the last of them, however they end.

Named memory, as of `multiprocessing.shared_memory`, stays in /dev/shm when its owner is killed, and is limited there:
to 64 MB in a container.
"""

from __future__ import annotations

import mmap
import os
import tempfile


class SharedMemory:
    """`size` bytes, zeros at first, behind the file descriptor `fd`, which a process that is started may inherit.

    Raises OSError where there is no memory. On systems without memfd_create it is a file that has been deleted.
    """

    def __init__(self, size: int) -> None:
        self.size = max(size, mmap.PAGESIZE)
        self.fd = _nameless()
        try:
            os.ftruncate(self.fd, self.size)
            self.memory = mmap.mmap(self.fd, self.size)
        except BaseException:
            os.close(self.fd)
            raise

    def close(self) -> None:
        """Release it here; the memory itself stays as long as an array looks into it."""
        os.close(self.fd)


def mapped(fd: int, *, shared: bool) -> mmap.mmap:
    """The memory behind a descriptor that was inherited; where it is not shared, changes stay in this process."""
    flags = mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE
    return mmap.mmap(fd, os.fstat(fd).st_size, flags=flags)


def _nameless() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("precompute")
    descriptor, path = tempfile.mkstemp()
    os.unlink(path)
    return descriptor
