"""What of the processor this process may use."""

from __future__ import annotations

import os


def cores() -> int:
    """Cores that this process may run on: a container or `taskset` leaves it fewer than the machine has."""
    return len(os.sched_getaffinity(0))
