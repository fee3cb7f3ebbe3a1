"""Where calls of Linux are missing, as on macOS, everything works all the same: they are really taken away."""

from __future__ import annotations

import json
import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, make_photos, run_command, run_python
from small_disks import CannotMount, SmallDisk
from test_extraction import assert_same
from torch.utils._python_dispatch import TorchDispatchMode

from precompute import load_backbone, open_cache, system, verify
from precompute.engines.base import EngineChoice
from precompute.engines.devices import make_engine
from precompute.engines.machine import Machine
from precompute.errors import CacheFormatError
from precompute.heads import MLPHead

MISSING = {os: ("posix_fallocate", "fdatasync", "sched_getaffinity"), mmap: ("MADV_HUGEPAGE",)}
SITE = "\n".join(
    f"import {module.__name__}\nif hasattr({module.__name__}, {name!r}): del {module.__name__}.{name}"
    for module, names in MISSING.items()
    for name in names
)
"""Every Python that finds this as sitecustomize lacks them from its start on."""


@pytest.fixture
def without(tmp_path: Path) -> dict[str, str]:
    """An environment in which Python lacks them."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE)
    environment = {"PYTHONPATH": f"{tmp_path / 'site'}{os.pathsep}{ROOT}"}
    asked = "import os, mmap; print(hasattr(os, 'fdatasync'), hasattr(mmap, 'MADV_HUGEPAGE'))"
    found = subprocess.check_output([sys.executable, "-c", asked], env={**os.environ, **environment})
    assert found == b"False False\n"
    return environment


@pytest.fixture
def taken_away(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, names in MISSING.items():
        for name in names:
            monkeypatch.delattr(module, name, raising=False)


def rows_done(path: Path) -> int:
    try:
        return int(open_cache(path).ok.sum())
    except CacheFormatError:  # not there yet
        return 0


@pytest.mark.slow
def test_everything_works_without_them(tmp_path: Path, without: dict[str, str]) -> None:
    make_photos(tmp_path / "photos", per_class=60)
    command = ["extract", "photos", "-b", "tiny", "--batch-size", "4", "-o"]
    process = subprocess.Popen(
        [sys.executable, "-m", "precompute", *command, "a.h5"],
        cwd=tmp_path,
        env={**os.environ, **without},
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and rows_done(tmp_path / "a.h5.partial") < 20:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    left = os.stat(tmp_path / "a.h5.partial")
    assert left.st_blocks * 512 >= left.st_size, "its space was not reserved"
    kept = rows_done(tmp_path / "a.h5.partial")
    assert 20 <= kept < 240

    def run(*arguments: object) -> Any:
        done = run_command(tmp_path, *arguments, "--json", env=without)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    assert run(*command, "a.h5")["reused"] == kept
    assert run("verify", "a.h5", "--source", "photos")["damaged"] == []
    run("train-head", "a.h5", "-o", "head.safetensors")
    assert run("predict", "head.safetensors", "photos/val")["n"] == 120

    done = run_command(tmp_path, *command, "whole.h5")  # with all of them, and uninterrupted
    assert done.returncode == 0, done.stderr
    assert_same(open_cache(tmp_path / "a.h5"), open_cache(tmp_path / "whole.h5"))
    assert not len(verify(open_cache(tmp_path / "a.h5")).damaged)


@pytest.mark.usefixtures("taken_away")
@pytest.mark.parametrize("content", [b"", b"abc", bytes(3 * 2**20) + b"end"], ids=["empty", "short", "with a hole"])
def test_reserving_keeps_what_is_there_and_fills_the_holes(tmp_path: Path, content: bytes) -> None:
    path, size = tmp_path / "a", 2**22 + 7
    with open(path, "w+b") as file:
        file.truncate(len(content))
        file.seek(max(0, len(content) - 3))
        file.write(content[-3:])
        file.flush()
        system.reserve(file.fileno(), size)
        system.sync_data(file.fileno())
    assert path.read_bytes() == content.ljust(size, b"\0")
    assert path.stat().st_blocks * 512 >= size


@pytest.mark.usefixtures("taken_away")
def test_reserving_on_a_full_disk_fails_as_the_system_does(tmp_path: Path) -> None:
    try:
        with (
            SmallDisk("tmpfs", tmp_path, size=2**20) as disk,
            open(disk.path / "a", "w+b") as file,
            pytest.raises(OSError, match="No space left"),
        ):
            system.reserve(file.fileno(), 2**21)
    except CannotMount as error:
        pytest.skip(f"cannot mount tmpfs: {error}")


@pytest.mark.usefixtures("taken_away")
def test_cores_and_memory_are_known_without_them() -> None:
    assert system.cores() == os.cpu_count()
    assert 0 < system.peak_memory() < system.physical_memory()


def test_a_program_confined_to_one_core_counts_one() -> None:
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system binds no process to cores")
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    code += "from precompute.system import cores; print(cores())"
    assert run_python(code).stdout == "1\n"


class WithoutFloat64(TorchDispatchMode):
    """Torch as on Apple's GPUs, where no tensor may be of float64."""

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.dtype == torch.float64:
            raise TypeError(f"{func} would need float64, which this device lacks")
        return result


def test_the_mlp_needs_no_float64_of_its_device() -> None:
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(120, 5)).astype(np.float32), np.arange(120) % 3
    options = {"hidden": (8,), "batch_norm": True, "mixup": 0.2, "max_epochs": 3, "class_weight": "balanced"}
    with WithoutFloat64():
        head = MLPHead(**options).fit(X, y)
        proba = head.predict_proba(X)
    assert np.array_equal(proba, MLPHead(**options).fit(X, y).predict_proba(X))


@pytest.mark.rotates(3)
def test_nor_does_the_forward_pass() -> None:
    backbone = load_backbone("resnet18", weights="random", transform={"resize": 64, "crop": 64})
    choice = EngineChoice("torch", "cpu", "fp32", 2)
    engine = make_engine(backbone.module, backbone.preprocess, choice, identity=None)
    with WithoutFloat64():
        (features,) = engine([(torch.zeros(64, 64, 3, dtype=torch.uint8),)])
        assert features.shape == (1, 512)


def test_what_a_cpu_computes_in_says_nothing_about_another_device() -> None:
    machine = Machine(bf16=True)
    assert machine.computes("torch", "cpu", "bf16")
    assert not machine.computes("torch", "mps", "bf16")
