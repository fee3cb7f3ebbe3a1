"""What ended a command, in words: of the user's making, a limit of the machine, or a bug in precompute."""

from __future__ import annotations

import errno
import os
import signal
from dataclasses import dataclass
from functools import singledispatch

import click

from precompute.cli._signals import Interrupted
from precompute.errors import PrecomputeError, Stopped

GO_ON = "Finished work is kept. Run the same command again to resume."
KEPT = "Finished work is kept; fix the cause and run the same command again."
MEMORY_HINT = (
    "Use smaller batches (--batch-size), fewer --workers or a smaller --hidden, or a machine with more memory."
)
HINTS = {
    errno.EMFILE: "Allow more open files (ulimit -n 4096), or use fewer --workers.",
    errno.ENFILE: "The whole machine has too many files open; wait, or end other programs.",
    errno.ENOMEM: MEMORY_HINT,
    errno.ENOSPC: f"Make room on that disk. {KEPT}",
    errno.EDQUOT: f"Your quota on that disk is used up. {KEPT}",
}
# torch, OpenVINO and C++ have no type of their own for these; they come as RuntimeError.
NO_MEMORY = (
    "allocate memory",
    "out of memory",
    "bad_alloc",
    "bad allocation",
    "not enough memory",
    "storage size calculation overflowed",
    "invalid buffer size",
)
SHARED_OBJECTS = (".so", ".dylib")
NO_THREAD = "can't start new thread"


@dataclass(frozen=True)
class Failure:
    """kind: the type that --json names · hint: the next step, may be empty · status: exit status."""

    kind: str
    message: str
    hint: str
    status: int = 1

    @property
    def text(self) -> str:
        label = "" if self.kind == Stopped.__name__ else "Error: "
        return f"{label}{self.message}" + (f"\n{self.hint}" if self.hint else "")


@singledispatch
def failure_of(error: BaseException) -> Failure:
    """Classify what a command has raised."""
    return _unexpected(error)


def _unexpected(error: BaseException) -> Failure:
    return Failure(
        type(error).__name__,
        f"Unexpected {type(error).__name__}: {error}",
        "This is a bug in precompute. Please report it with the output of --debug (before the command).",
    )


@failure_of.register
def _of_precompute(error: PrecomputeError) -> Failure:
    return Failure(type(error).__name__, error.message, error.hint, error.exit_code)


@failure_of.register
def _of_click(error: click.ClickException) -> Failure:
    context = error.ctx if isinstance(error, click.UsageError) else None
    command = "precompute" if context is None else context.command_path
    return Failure("UsageError", error.format_message(), f"Try '{command} --help' for help.", error.exit_code)


@failure_of.register
def _of_signal(error: Interrupted) -> Failure:
    return _stopped(error.signum)


@failure_of.register(click.Abort)
@failure_of.register(KeyboardInterrupt)
def _of_keyboard(error: BaseException) -> Failure:  # noqa: ARG001
    return _stopped(signal.SIGINT)


def _stopped(signum: int) -> Failure:
    return Failure("Stopped", f"Stopped by {signal.Signals(signum).name}.", GO_ON, 128 + signum)


@failure_of.register
def _of_memory(error: MemoryError) -> Failure:
    return _no_memory(error)


@failure_of.register
def _of_libraries(error: RuntimeError) -> Failure:
    if any(words in str(error).lower() for words in NO_MEMORY):
        return _no_memory(error)
    if NO_THREAD in str(error):
        return Failure(
            "RuntimeError", "No more threads can be started here.", "Use fewer --workers (see ulimit -u and -v)."
        )
    return _unexpected(error)


@failure_of.register
def _of_loading(error: ImportError) -> Failure:
    if not any(ending in str(error) for ending in SHARED_OBJECTS):
        return _unexpected(error)
    hint = "There is too little memory for it (see ulimit -v), or the package must be installed again."
    return Failure("ImportError", f"A library cannot be loaded: {error}.", hint)


@failure_of.register
def _of_system(error: OSError) -> Failure:
    if isinstance(error, FileNotFoundError) and not _in_a_folder():
        gone = "The working folder no longer exists."
        return Failure(type(error).__name__, gone, "Change to a folder that exists: cd FOLDER")
    what = error.strerror or str(error)
    if error.filename is not None:
        what += f": {os.fsdecode(error.filename)}"
    return Failure(type(error).__name__, what, HINTS.get(error.errno or 0, KEPT))


def _in_a_folder() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


def _no_memory(error: Exception) -> Failure:
    detail = str(error).strip().partition("\n")[0].rstrip(".")
    return Failure("MemoryError", f"Memory ran out: {detail}." if detail else "Memory ran out.", MEMORY_HINT)
