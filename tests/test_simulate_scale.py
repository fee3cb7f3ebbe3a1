"""The simulation of many actors runs, and its driver writes what the stand-ins offer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT


@pytest.mark.slow
@pytest.mark.daily(2)
def test_two_stand_ins(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'precompute[ray]'")
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "scripts" / "simulate_scale.py"), "--actors", "2", "--seconds", "2"),
            *("--rate", "200", "--rows", "20000", "--store", "100000000"),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = [[word.strip() for word in line.split("|")[1:-1]] for line in done.stdout.splitlines()[2:]]
    assert [row[0] for row in rows] == ["2"]
    assert all(float(row[2].replace(",", "")) > 0 for row in rows)
