"""`--json` is one object on stdout, whatever goes wrong; and what goes wrong is named for what it is."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from conftest import Command

from precompute.cli import asks_for_json, cli, main
from precompute.cli._failures import failure_of
from precompute.errors import UsageError
from precompute.heads import MLPHead

# What each command needs at least, as values that lead nowhere
NEEDED = {
    "extract": ("nowhere", "-b", "tiny", "-o", "a.h5"),
    "plan": ("nowhere", "-b", "tiny"),
    "rank": ("nowhere", "-b", "tiny"),
    "train-head": ("nowhere.h5",),
    "fine-tune": ("nowhere.h5",),
    "few-shot": ("nowhere.h5",),
    "depth": ("nowhere", "-b", "tiny", "-o", "d"),
    "compare": ("a.safetensors", "b.safetensors", "nowhere.h5"),
    "report": ("nowhere.h5", "-o", "a.html"),
    "predict": ("nowhere.safetensors", "nowhere"),
    "export": ("nowhere.h5", "-o", "a.npz"),
    "import": ("nowhere.npz", "-o", "a.h5"),
    "export-head": ("nowhere.safetensors", "-o", "a.joblib"),
    "info": ("nowhere.h5",),
    "verify": ("nowhere.h5",),
    "backbones": ("no-such-thing",),
    "doctor": (),
    "schema": ("no-such-command",),
    "demo": (),
}


def error_in(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """The one object on stdout, which names an error."""
    told = json.loads(done.stdout)
    assert set(told) == {"error"}
    assert set(told["error"]) == {"type", "message", "hint"}
    assert all(isinstance(value, str) for value in told["error"].values())
    assert told["error"]["message"]
    assert "Traceback" not in done.stderr
    return told["error"]


def misuses() -> list[list[str]]:
    """All that click can find wrong with each command."""
    found = [["no-such-command", "--json"], ["--no-such-option", "info", "a.h5", "--json"], ["--json", "info", "a.h5"]]
    for name, command in cli.commands.items():
        needed = NEEDED[name]
        found.append([name, *needed, "--json", "--no-such-option"])
        if name not in ("predict", "report"):  # which take any number of heads
            found.append([name, "--json", *needed, *["one-too-many"] * (10 if name == "compare" else 3)])
        if needed:
            found.append([name, "--json", *needed[1:]])  # an argument is missing
        for option in command.params:
            if not isinstance(option, click.Option) or option.is_flag:
                continue
            if option.required:
                place = next(place for place, word in enumerate(needed) if word in option.opts)
                found.append([name, *needed[:place], *needed[place + 2 :], "--json"])
            if not isinstance(option.type, click.types.StringParamType | click.Path):
                found.append([name, *needed, option.opts[-1], "no such value", "--json"])
            found.append([name, *needed, "--json", option.opts[-1]])  # its value is missing
    # few-shot takes any number of caches, info two; backbones has a pattern that may be left out
    return [words for words in found if words[:2] != ["few-shot", "--json"] and words != ["backbones", "--json"]]


@pytest.mark.rotates(3)
@pytest.mark.parametrize("arguments", misuses(), ids=" ".join)
def test_wrong_usage_is_one_object_too(precompute: Command, tmp_path: Path, arguments: list[str]) -> None:
    done = precompute(*arguments)
    assert done.returncode == 2, done.stderr
    assert error_in(done)["type"] == "UsageError"
    assert "Error: " in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [name for name in NEEDED if name not in ("demo", "doctor", "schema")])
def test_what_is_not_there_is_one_object(precompute: Command, name: str) -> None:
    done = precompute(name, *NEEDED[name], "--json")
    assert done.returncode == 1
    assert error_in(done)["type"].endswith("Error")


def test_help_stays_text(precompute: Command) -> None:
    for arguments in (("extract", "--json", "--help"), ("extract", "--help", "--json"), ("--help",)):
        done = precompute(*arguments)
        assert done.returncode == 0
        assert done.stdout.startswith("Usage: precompute")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["info", "--json", "a.h5"], True),
        (["info", "a.h5", "--", "--json"], False),
        (["extract", "photos", "--weights", "--json"], False),
        (["extract", "photos", "-b", "--json"], False),
        (["extract", "photos", "-b", "--json", "--json"], True),
        (["extract", "photos", "--weights=x", "--json"], True),
        (["train-head", "--search", "--json"], True),
        ([], False),
    ],
)
def test_json_is_asked_for_as_an_option(arguments: list[str], expected: bool) -> None:
    assert asks_for_json(arguments) == expected


@pytest.mark.parametrize(
    ("error", "kind", "status"),
    [
        (MemoryError(), "MemoryError", 1),
        (KeyboardInterrupt(), "Stopped", 130),
        (click.Abort(), "Stopped", 130),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), "MemoryError", 1),
        (RuntimeError("std::bad_alloc"), "MemoryError", 1),
        (RuntimeError("can't start new thread"), "RuntimeError", 1),
        (OSError(24, "Too many open files", "a.jpg"), "OSError", 1),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "ImportError", 1),
    ],
    ids=str,
)
def test_limits_are_no_mistakes(error: BaseException, kind: str, status: int) -> None:
    found = failure_of(error)
    assert (found.kind, found.status) == (kind, status)
    assert "bug in precompute" not in found.text
    assert found.hint


@pytest.mark.parametrize(
    "take",
    [lambda: torch.empty(2**60), lambda: np.empty(2**58), lambda: bytearray(2**60)],
    ids=["torch", "numpy", "Python"],
)
def test_memory_that_is_not_there_is_told_as_such(take: Callable[[], Any]) -> None:
    with pytest.raises((MemoryError, RuntimeError)) as refused:
        take()
    assert failure_of(refused.value).kind == "MemoryError"


def test_a_mistake_is_told_as_one() -> None:
    assert "bug in precompute" in failure_of(RuntimeError("an index is out of range")).text
    assert "bug in precompute" in failure_of(ImportError("cannot import name 'x' from 'precompute'")).text


@pytest.fixture
def features(precompute: Command, photos: Path) -> str:
    assert precompute("extract", "photos", "-b", "tiny", "-o", "a.h5").returncode == 0
    return "a.h5"


@pytest.mark.parametrize("hidden", ["100000000000", "16,100000000000,16", "9" * 30])
def test_a_network_beyond_the_memory_is_refused(precompute: Command, features: str, hidden: str) -> None:
    done = precompute("train-head", features, "--head", "mlp", "--hidden", hidden, "--json")
    assert done.returncode == 2
    error = error_in(done)
    assert error["type"] == "UsageError"
    assert "GiB of memory" in error["message"]


def test_the_head_itself_refuses_it_as_well() -> None:
    X = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    with pytest.raises(UsageError, match="GiB of memory"):
        MLPHead(hidden=(10**11,)).fit(X, np.arange(20) % 2)


@pytest.mark.parametrize("seed", ["1e23", "-1", "1.5", str(10**23), str(2**63), "9" * 5000, "\u00b2"])
def test_seeds_that_no_generator_takes(precompute: Command, photos: Path, seed: str) -> None:
    done = precompute("extract", "photos", "-b", "tiny", "--weights", f"random:{seed}", "-o", "a.h5", "--json")
    assert done.returncode == 1
    assert error_in(done)["type"] == "WeightsError"
    assert len(done.stderr) < 500


@pytest.mark.parametrize("name", NEEDED)
def test_a_working_folder_that_is_gone(
    name: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where all paths are absolute: some libraries end the process there without a word."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    arguments = [str(photos) if word == "nowhere" else word for word in NEEDED[name]]
    monkeypatch.setattr(sys, "argv", ["precompute", name, *arguments, "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert json.loads(capsys.readouterr().out)["error"]["message"] == "The working folder no longer exists."


@pytest.mark.parametrize("seconds", ["nan", "inf", "-1", "0", "soon"])
def test_a_time_budget_is_a_positive_number(precompute: Command, seconds: str) -> None:
    done = precompute("train-head", "nowhere.h5", "--time-budget", seconds, "--json")
    assert done.returncode == 2
    assert "--time-budget" in error_in(done)["message"]
