"""How much memory is left, so that what cannot fit is refused before it is taken."""

from __future__ import annotations

from pathlib import Path

__all__ = ["available_bytes"]

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def available_bytes() -> int | None:
    """Bytes that this process can still get, a container's limit included; None where the system does not say."""
    found = [*_of_machine(), *_of_container()]
    return min(found, default=None)


def _of_machine() -> list[int]:
    try:
        lines = MEMINFO.read_text().splitlines()
    except OSError:
        return []
    return [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]


def _of_container() -> list[int]:
    try:
        limit, used = ((CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return []
    return [] if limit == "max" else [max(0, int(limit) - int(used))]
