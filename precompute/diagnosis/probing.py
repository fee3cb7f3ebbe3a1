"""Asking a separate process (`probe`), so that a package which crashes the interpreter ends that one alone."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PROBE = Path(__file__).with_name("probe.py")
SECONDS = 180.0  # a package on a network file system may take a minute


def import_errors(modules: Sequence[str]) -> dict[str, str | None]:
    """By module why it cannot be imported; None for those that can be."""
    found: dict[str, str | None] = {}
    while rest := [name for name in modules if name not in found]:
        answers, ended = _ask({"modules": rest})
        found.update({name: answer["error"] for name, answer in zip(rest, answers, strict=False)})
        if len(answers) < len(rest):
            found[rest[len(answers)]] = ended  # the others are tried again without it
    return found


def load_error(backbone: str, weights: str) -> dict[str, Any]:
    """{"error": None, "source", "file"} where a network can be loaded without a connection, else its error and hint."""
    answers, ended = _ask({"backbone": backbone, "weights": weights})
    return answers[0] if answers else {"error": ended, "hint": ""}


def _ask(task: dict[str, Any]) -> tuple[list[dict[str, Any]], str]:
    """The answers, and in words how the process ended."""
    command = [sys.executable, "-P", str(PROBE)]
    text = json.dumps({**task, "path": sys.path})
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=SECONDS, check=False)
        output, ended = done.stdout, _ending(done.returncode)
    except subprocess.TimeoutExpired as error:
        output, ended = _text(error.stdout), f"it did not end within {SECONDS:.0f} seconds"
    whole = output[: output.rfind("\n") + 1]
    return [json.loads(line) for line in whole.splitlines()], ended


def _text(output: bytes | str | None) -> str:
    return output.decode() if isinstance(output, bytes) else output or ""


def _ending(status: int) -> str:
    if status >= 0:
        return f"it ended the interpreter with status {status}"
    try:
        return f"it crashed the interpreter ({signal.Signals(-status).name})"
    except ValueError:
        return f"it crashed the interpreter (signal {-status})"
