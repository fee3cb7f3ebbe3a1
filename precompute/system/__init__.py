"""What depends on the operating system: cores, memory, versions, and calls that Linux has and macOS lacks.

Each of those has a substitute here that keeps its promise, perhaps more slowly (docs/decisions/018). What is missing is
looked for at each call, so that a test can take it away.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import resource
import sys

BLOCK_BYTES = 2**20
NO_FULL_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOTTY)


def cores() -> int:
    """Cores that this process may run on: a container or `taskset` leaves it fewer than the machine has.

    Slurm binds a job to its cores where the cluster is set up so; elsewhere only SLURM_CPUS_PER_TASK says how many are
    its own. macOS binds no process to cores: there it is the number of the machine's.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return min(bound, int(given)) if given.isdecimal() and int(given) else bound


def cpu_flags() -> frozenset[str]:
    """Instruction sets of the processor by the kernel's names, such as `avx512_bf16`; none where it does not say."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            flags = next((line for line in file if line.startswith(("flags", "Features"))), "")
    except OSError:
        return frozenset()
    return frozenset(flags.partition(":")[2].split())


def physical_memory() -> int:
    """Bytes of memory of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def peak_memory() -> int:
    """Bytes that this process has held at once, at most."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def version_of(package: str) -> str | None:
    """The installed version of a package; None where it is not installed."""
    from importlib.metadata import PackageNotFoundError, version  # loads email and zipfile: a tenth of `--help`

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def release_of(package: str) -> str:
    """Its version without the part that says how it was built, 0.29.1 of 0.29.1+cpu; "" where it is not installed."""
    return (version_of(package) or "").partition("+")[0]


def reserve(descriptor: int, size: int) -> None:
    """Let the disk hold `size` bytes for an open file, so that later writes find room; what is in it stays.

    Without posix_fallocate every block that is not there yet is written. Nobody else may write to the file meanwhile.
    Raises OSError (ENOSPC, EDQUOT, EFBIG) where there is no room.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
        return
    there = os.fstat(descriptor)
    if there.st_size >= size and there.st_blocks * 512 >= size:
        return
    for start in range(0, size, BLOCK_BYTES):
        length = min(BLOCK_BYTES, size - start)
        write_at(descriptor, os.pread(descriptor, length, start).ljust(length, b"\0"), start)


def write_at(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data`, however little of it the system takes at once."""
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def sync(descriptor: int) -> None:
    """Return once all that was written to an open file or folder is on the disk.

    On macOS fsync leaves it in the drive's own memory; F_FULLFSYNC does not, where the file system has it.
    """
    if hasattr(fcntl, "F_FULLFSYNC"):
        try:
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            return
        except OSError as error:
            if error.errno not in NO_FULL_SYNC:
                raise
    os.fsync(descriptor)


def sync_data(descriptor: int) -> None:
    """`sync` less what is not needed to read the bytes again, such as times; all of it without fdatasync."""
    if hasattr(os, "fdatasync"):
        os.fdatasync(descriptor)
    else:
        sync(descriptor)


def use_huge_pages(mapping: mmap.mmap) -> None:
    """Use pages as large as an array in memory has them; where there are none, those of usual size do."""
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without huge pages
            mapping.madvise(mmap.MADV_HUGEPAGE)
