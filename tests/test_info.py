"""`precompute info`: heads, and what a run has recorded of itself."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Command

import precompute
from precompute import extract, open_cache

HEADS = ("logistic", "mlp", "knn", "ridge", "centroid")


@pytest.fixture
def cache(photos: Path, tmp_path: Path) -> Path:
    extract(photos, tmp_path / "a.h5", backbone="tiny")
    return tmp_path / "a.h5"


@pytest.mark.rotates(3)
@pytest.mark.parametrize("kind", HEADS)
def test_a_head_is_shown(precompute: Command, cache: Path, kind: str) -> None:
    assert precompute("train-head", cache, "--head", kind, "-o", "a.safetensors").returncode == 0
    done = precompute("info", "a.safetensors", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["classes"] == ["cats", "dogs"]
    assert told["n_features"] == 128
    assert told["spec"]["backbone"] == "tiny"
    assert told["key"] == open_cache(cache).key
    assert told["training"]["cache"] == "a.h5"
    assert 0 <= told["training"]["scores"]["val"]["accuracy"] <= 1
    shown = precompute("info", "a.safetensors").stdout
    for words in (told["kind"], "cats, dogs", "tiny", told["layer"], "128 features", "12 images, accuracy"):
        assert words in shown


def test_a_head_of_numbers_is_shown(precompute: Command, tmp_path: Path) -> None:
    from precompute.heads import RidgeRegressionHead, save_head

    X = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    save_head(tmp_path / "a.safetensors", RidgeRegressionHead(alpha=1.0).fit(X, X[:, 0]), metadata={"training": 3})
    told = json.loads(precompute("info", "a.safetensors", "--json").stdout)
    assert (told["kind"], told["classes"], told["training"]) == ("RidgeRegressionHead", [], {})
    assert "RidgeRegressionHead" in precompute("info", "a.safetensors").stdout


def test_a_damaged_head_is_refused(precompute: Command, cache: Path, tmp_path: Path) -> None:
    precompute("train-head", cache, "-o", "a.safetensors")
    data = bytearray((tmp_path / "a.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "a.safetensors").write_bytes(data)
    done = precompute("info", "a.safetensors", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["type"] == "HeadFormatError"


@pytest.mark.rotates(3)
def test_heads_are_not_compared_here(precompute: Command, cache: Path) -> None:
    precompute("train-head", cache, "-o", "a.safetensors")
    done = precompute("info", "a.safetensors", cache)
    assert done.returncode == 2
    assert "precompute compare" in done.stderr


def test_a_pipe_is_not_waited_for(precompute: Command, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    done = precompute("info", "pipe")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


@pytest.mark.rotates(3)
def test_names_in_a_head_cannot_write_to_the_terminal(precompute: Command, cache: Path, tmp_path: Path) -> None:
    from precompute.heads import load_head, save_head

    precompute("train-head", cache, "-o", "a.safetensors")
    head = load_head(tmp_path / "a.safetensors").head
    evil = "\x1b[2J"
    save_head(
        tmp_path / "b.safetensors",
        head,
        metadata={"layer": evil, "spec": {"backbone": evil}, "training": {"cache": evil, "rows": {evil: evil}}},
    )
    done = precompute("info", "b.safetensors")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout


@pytest.mark.rotates(3)
@pytest.mark.parametrize(("kind", "name"), [("logistic", "chosen"), ("knn", "settings"), ("centroid", "settings")])
def test_only_what_was_chosen_is_called_so(precompute: Command, cache: Path, kind: str, name: str) -> None:
    lines = precompute("train-head", cache, "--head", kind).stdout.splitlines()
    found = [line for line in lines if line.startswith(("chosen", "settings"))]
    assert len(found) == 1
    assert found[0].startswith(name)
    assert "nothing" not in found[0]


def test_the_arguments_of_the_program_around_it_stay_out(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A feature file is made to be shared; a host's command line may hold its secrets."""
    monkeypatch.setattr(sys, "argv", ["host.py", "--token", "s3cr3t-of-the-host"])
    transform = {"mean": np.array([0.5, 0.5, 0.5])}
    extract(photos, tmp_path / "a.h5", backbone="tiny", transform=transform, on_error="stop")
    assert b"s3cr3t" not in (tmp_path / "a.h5").read_bytes()
    options = open_cache(tmp_path / "a.h5").provenance[-1]["options"]
    assert options["backbone"] == "tiny"
    assert options["transform"] == {"mean": [0.5, 0.5, 0.5]}


@pytest.mark.rotates(3)
def test_the_command_of_a_run_can_be_repeated(precompute: Command, photos: Path, tmp_path: Path) -> None:
    options = ("-b", "tiny", "--weights", "random:3", "--mean", "0.1,0.2,0.3", "--fast-decode", "--batch-size", "5")
    assert precompute("extract", "photos", *options, "-o", "a.h5").returncode == 0
    line = next(line for line in precompute("info", "a.h5").stdout.splitlines() if line.startswith("last run"))
    words = shlex.split(line.removeprefix("last run"))
    assert words[:2] == ["precompute", "extract"]
    assert precompute(*words[1:], "-o", "b.h5").returncode == 0
    assert open_cache(tmp_path / "a.h5").key == open_cache(tmp_path / "b.h5").key


@pytest.mark.rotates(3)
def test_the_learning_curve_is_public(cache: Path) -> None:
    curve: Callable[..., list[precompute.FewShotCurve]] = precompute.few_shot
    (found,) = curve([cache], shots=(1, 2), draws=2)
    assert isinstance(found, precompute.FewShotCurve)
    assert [point.shots for point in found.points] == [1, 2]
