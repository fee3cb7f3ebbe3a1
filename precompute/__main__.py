"""The command as its own process: `precompute`, or `python -m precompute`."""

from __future__ import annotations

import atexit
import gc
import os
from typing import NoReturn

from precompute.cli import main

GC_THRESHOLD = 1_000_000
"""Loading torch and torchvision makes millions of objects, none of them garbage: looking through them again and again
takes a quarter of the time (Python's own threshold is 700)."""


def command() -> NoReturn:
    """Run `main` and end the process, with what was registered to be done at the end, but without the second that
    Python takes to clear away torch's modules one by one."""
    gc.set_threshold(GC_THRESHOLD, *gc.get_threshold()[1:])
    status: object = 1
    try:
        main()
    except SystemExit as ended:
        status = ended.code
    atexit._run_exitfuncs()
    os._exit(status if isinstance(status, int) else 1)


if __name__ == "__main__":
    command()
