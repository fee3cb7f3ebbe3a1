"""Real processes of the command without the seconds that loading torch takes: forked from one that has loaded it.

Each runs `precompute.cli.main` from `sys.argv` to the interpreter's end, with the signal handlers of a fresh process.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any


class Forks:
    """Starts processes, inside `with`. What the one started last printed lies in `output` and `errors` afterwards."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.output, self.errors = folder / "forked.out", folder / "forked.err"

    def __enter__(self) -> Forks:
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            cwd=self._folder,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._ask() == "ready"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.communicate(timeout=60)

    def _ask(self, *request: Any) -> Any:
        assert self._server.stdin is not None and self._server.stdout is not None
        if request:
            self._server.stdin.write(json.dumps(request) + "\n")
            self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def start(self, folder: Path, *arguments: object, stdout: str | None = None, stderr: str | None = None) -> int:
        """Run `precompute arguments` inside `folder`; its process id, which stays its own until `wait`.

        stdout, stderr: instead of `output` and `errors` a path, or "closed", or "broken pipe".
        """
        streams = stdout or str(self.output), stderr or str(self.errors)
        return self._ask(str(folder), list(map(str, arguments)), *streams)

    def wait(self, process: int) -> int:
        """Exit status of a process that was started, -N where signal N ended it."""
        return self._ask("wait", process)

    def run(self, folder: Path, *arguments: object, **streams: str) -> int:
        return self.wait(self.start(folder, *arguments, **streams))


def serve() -> None:
    import precompute.cli
    import precompute.extraction.run  # loads torch
    import precompute.training.head  # and scikit-learn

    def answer(value: object) -> None:
        sys.stdout.write(json.dumps(value) + "\n")
        sys.stdout.flush()

    gc.collect()
    gc.freeze()  # a collection in the child would touch, and so copy, every page of it
    answer("ready")
    for line in sys.stdin:
        match json.loads(line):
            case [
                "wait",
                process,
            ]:  # until then the dead process keeps its number, so that no late signal hits another one
                answer(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
            case [folder, arguments, output, errors]:
                process = os.fork()
                if process == 0:
                    _become(folder, arguments, output, errors)
                    _end(precompute.cli.main)
                answer(process)


def _become(folder: str, arguments: list[str], output: str, errors: str) -> None:
    os.chdir(folder)
    for number, path in enumerate((os.devnull, output, errors)):
        if path == "closed":
            os.close(number)
            setattr(sys, ("stdin", "stdout", "stderr")[number], None)  # as an interpreter finds it at its start
            continue
        if path == "broken pipe":
            reader, descriptor = os.pipe()
            os.close(reader)
        else:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(descriptor, number)
        os.close(descriptor)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where the tests run under nohup
    sys.argv = ["precompute", *arguments]


def _end(main: Callable[[], None]) -> None:
    """End as the console script would, but without taking down what torch has loaded, which takes half a second."""
    try:
        main()
    except SystemExit as ended:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        os._exit(ended.code if isinstance(ended.code, int) else 1)


if __name__ == "__main__":
    serve()
    os._exit(0)
