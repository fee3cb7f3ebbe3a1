"""One command, one answer: `scripts/check_repeat.py` in its smallest form."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, make_photos


@pytest.mark.slow
@pytest.mark.daily(2)
def test_a_command_gives_one_answer_killed_or_not_on_busy_cores(tmp_path: Path) -> None:
    """`auto` is not pinned here: engine and precision are chosen anew in each of the processes."""
    make_photos(tmp_path / "photos", per_class=12)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PRECOMPUTE_")}
    done = subprocess.run(
        [
            sys.executable,
            ROOT / "scripts/check_repeat.py",
            "photos",
            "-b",
            "tiny",
            "--weights",
            "DEFAULT",
            "--trials",
            "6",
        ],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "6 trials, 1 answer\n" in done.stdout
