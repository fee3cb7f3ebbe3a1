"""scripts/check_gpu.sh in its smallest form, on the CPU, so that it is known to work before it meets a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

SECTIONS = ["device", "photos", "tests", "features", "forward", "decode", "head", "memory", "end_to_end", "verdict"]


def check_gpu(out: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ROOT / "scripts" / "check_gpu.sh"), "-o", str(out), "--quick", "--backbones", "tiny", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHON": sys.executable, **environment},
        timeout=3600,
        check=False,
    )


def found(out: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((out / "check_gpu.json").read_text())
    return result


@pytest.mark.slow
@pytest.mark.daily(3)
def test_every_section_runs_on_a_cpu(tmp_path: Path) -> None:
    done = check_gpu(tmp_path / "out", "--device", "cpu", "--seconds", "3000")
    assert done.returncode == 0, done.stdout + done.stderr
    sections = found(tmp_path / "out")["sections"]
    assert list(sections) == SECTIONS
    for name, section in sections.items():
        assert (section["status"], section["errors"]) == ("done", []), name
        assert section["rows"] or section["skipped"], name
    table = (tmp_path / "out" / "check_gpu.md").read_text()
    assert all(section["title"] in table for section in sections.values())
    assert [row["why"] for row in sections["memory"]["skipped"]] == ["needs a CUDA device"]


@pytest.mark.slow
def test_what_goes_wrong_is_recorded_and_the_rest_runs(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    arguments = ("--device", "cpu", "--photos", str(tmp_path / "empty"), "--sections", "features,head")
    done = check_gpu(tmp_path / "out", *arguments)
    assert done.returncode == 1
    sections = found(tmp_path / "out")["sections"]
    assert "there is no JPEG" in sections["photos"]["errors"][0]["error"]
    assert "Traceback" in sections["photos"]["errors"][0]["traceback"]
    assert sections["features"]["errors"]
    assert sections["head"]["rows"]
    assert not sections["head"]["errors"]
    assert sections["forward"]["status"] == "skipped"


@pytest.mark.slow
def test_a_section_that_hangs_or_crashes_loses_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import hanging\n"
        "from check_gpu import running\n"
        "from check_gpu.settings import Settings\n"
        "running.GRACE_SECONDS = 0.0\n"
        "settings = Settings('cpu', True, (), None, None, '.')\n"
        "for measure, seconds in ((hanging.hang, 3.0), (hanging.crash, 30.0)):\n"
        "    found = running.run(measure, 'a', settings, seconds, lambda kind, row: None)\n"
        "    print(found.status, len(found.rows), len(found.errors))\n"
    )
    (tmp_path / "hanging.py").write_text(
        "import os, time\n"
        "def hang(settings, report):\n"
        "    report.row('before')\n"
        "    time.sleep(100)\n"
        "def crash(settings, report):\n"
        "    report.row('before')\n"
        "    os.abort()\n"
    )
    path = os.pathsep.join((str(tmp_path), str(ROOT), str(ROOT / "scripts")))
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        timeout=100,
        check=False,
    )
    assert done.stdout.splitlines() == ["killed 1 1", "crashed 1 1"], done.stderr


@pytest.mark.slow
def test_without_the_device_that_was_asked_for_nothing_is_measured(tmp_path: Path) -> None:
    done = check_gpu(tmp_path / "out", "--device", "cuda", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 1
    assert "torch finds no CUDA device" in done.stdout
    assert list(found(tmp_path / "out")["sections"]) == ["device"]
