"""Section: the tests that need a CUDA device, by pytest."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

from check_gpu.running import Report
from check_gpu.settings import Settings

ROOT = Path(__file__).resolve().parent.parent.parent
MARK = "cuda.is_available"
TAIL = 12_000  # characters
PROCESSES = 4  # each with a CUDA context of its own


def measure(settings: Settings, report: Report) -> None:
    # What mentions the check for CUDA; of those files `-k cuda` takes the tests and files whose names say so
    files = sorted(path for path in (ROOT / "tests").glob("test_*.py") if MARK in path.read_text(encoding="utf-8"))
    result = Path(settings.place, "tests.xml")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "check_gpu.failures", "-q"]
    command += [
        "-k",
        "cuda",
        "-m",
        "slow or not slow",
        "-W",
        "default",
        "--tb=short",
        "--durations=5",
        "--show-capture=no",
    ]
    command += [f"--junitxml={result}", *map(str, files)]
    if find_spec("xdist") is not None and settings.cores >= 2 * PROCESSES:
        command += ["-n", str(PROCESSES), "--dist", "loadfile"]
    limit = max(5.0, report.left)
    try:
        done = subprocess.run(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=limit, check=False
        )
        output, status = done.stdout, done.returncode
    except subprocess.TimeoutExpired as expired:
        output, status = expired.stdout or b"", -1
    tail = output.decode(errors="replace")[-TAIL:]
    counts = _counts(result)
    report.row("pytest", status=status, **counts, files=" ".join(path.name for path in files), tail=tail)
    if status == -1:
        report.error("pytest", f"not done after {limit:.0f} s", tail)
    elif status:
        report.error("pytest", f"exit status {status}", tail)


def _counts(result: Path) -> dict[str, int]:
    if not result.exists():
        return {}
    suites = list(ElementTree.parse(result).getroot().iter("testsuite"))
    names = ("tests", "failures", "errors", "skipped")
    return {name: sum(int(suite.get(name, 0)) for suite in suites) for name in names}
