"""A separate process that imports packages, or loads a network without a connection: either may end it.

Run as a script: it reads its task as JSON on stdin, {"path": sys.path, "modules": [...]} or {"path", "backbone",
"weights"}, and writes a line of JSON for each answer. Whatever the libraries print goes to /dev/null.
"""

from __future__ import annotations

import importlib
import json
import os
import socket
import sys
import warnings
from collections.abc import Iterator
from typing import Any

LETTERS = 300


def main() -> None:
    task = json.loads(sys.stdin.read())
    answers = os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    sys.path[:] = task["path"]
    sys.argv = ["precompute"]
    warnings.simplefilter("ignore")
    found = _imported(task["modules"]) if "modules" in task else [_loaded(task["backbone"], task["weights"])]
    for answer in found:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    answers.close()
    os._exit(0)  # without the libraries' own end, which may crash as well


def _imported(modules: list[str]) -> Iterator[dict[str, str | None]]:
    for name in modules:
        try:
            importlib.import_module(name)
            yield {"error": None}
        except BaseException as error:  # noqa: BLE001 - SystemExit, too
            yield {"error": _words(error)}


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip() or 'no reason given'}"[:LETTERS]


def _loaded(backbone: str, weights: str) -> dict[str, Any]:
    """Load a network with nothing but what is on this machine."""
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
    socket.getaddrinfo = socket.create_connection = _refuse  # type: ignore[assignment]
    from precompute.backbones.families import family_of
    from precompute.errors import PrecomputeError

    try:
        family = family_of(backbone)
        family.check(backbone)
        made = family.load(backbone, weights)
    except PrecomputeError as error:
        return {"error": error.message, "hint": error.hint}
    except BaseException as error:  # noqa: BLE001 - of the user's own code, or of a library
        return {"error": _words(error), "hint": ""}
    return {"error": None, "source": made.source, "file": made.file}


def _refuse(*_: Any, **__: Any) -> None:
    raise OSError("doctor opens no connection")


if __name__ == "__main__":
    main()
