"""A training of a tail that is killed goes on where it was, to the same file; its checkpoint is believed in nothing."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, make_photos

from precompute import extract
from precompute.cache.lock import lock_path
from precompute.errors import HeadError, HeadFormatError, HeadMismatchError, Stopped
from precompute.finetuning.checkpoint import CHECKPOINT_FORMAT, SUFFIX
from precompute.finetuning.fine_tune import fine_tune
from precompute.finetuning.tail_file import load_tail
from precompute.heads.persistence.encoding import decode, encoded

OPTIONS: dict[str, Any] = {"epochs": 4, "batch_size": 2, "dropout": 0.2, "checkpoint_seconds": 1e-6}
STEPS = 10  # of an epoch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """deep.h5, and whole.safetensors, whose training nobody interrupted."""
    place = tmp_path_factory.mktemp("tail_kills")
    make_photos(place / "photos", per_class=10)
    extract(place / "photos", place / "deep.h5", backbone="tiny", layer="body.3", views=2, augment="flip,crop")
    fine_tune(place / "deep.h5", place / "whole.safetensors", **OPTIONS)
    return place


def command(out: str) -> list[str]:
    options = [f"--{name.replace('_', '-')}={value}" for name, value in OPTIONS.items()]
    return [sys.executable, "-m", "precompute", "fine-tune", "deep.h5", "-o", out, *options]


def state_of(checkpoint: Path) -> dict[str, Any]:
    """What the checkpoint that is there says; epoch 0 where there is none."""
    try:
        with checkpoint.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    except FileNotFoundError:
        return {"epoch": 0, "step": 0}
    state: dict[str, Any] = json.loads(header["__metadata__"]["state"])
    return state


def interrupt(folder: Path, out: str, signum: int, when: Callable[[], bool]) -> int:
    """Start the command in a process of its own, send `signum` once `when()`, and return its exit status."""
    process = subprocess.Popen(
        command(out),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    while process.poll() is None and not when():
        time.sleep(0.002)
    process.send_signal(signum)
    return process.wait(timeout=120)


@pytest.mark.parametrize(
    ("signum", "moments"),
    [
        (signal.SIGKILL, [(2, 5)]),
        pytest.param(signal.SIGKILL, [(1, 1), (1, 9), (2, 0), (2, 6), (3, 2), (4, 9)], marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, [(2, 4)], marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, [(2, 4)], marks=pytest.mark.slow),
    ],
    ids=["once", "six times", "asked to end", "ctrl-c"],
)
@pytest.mark.daily(3)
def test_a_training_killed_within_an_epoch_gives_the_same_file(
    folder: Path, tmp_path: Path, signum: int, moments: list[tuple[int, int]]
) -> None:
    """Byte for byte, in processes of their own: those that are killed, and the one that ends the work."""
    out = f"{tmp_path.name}.safetensors"
    checkpoint = folder / f"{out}{SUFFIX}"
    for moment in moments:

        def reached(moment: tuple[int, int] = moment) -> bool:
            state = state_of(checkpoint)
            return (state["epoch"], state["step"]) >= moment

        status = interrupt(folder, out, signum, reached)
        assert status == (-signal.SIGKILL if signum == signal.SIGKILL else 128 + signum)
        assert not (folder / out).exists()
        state = state_of(checkpoint)
        assert (state["epoch"], state["step"]) >= moment
    done = subprocess.run(
        command(out), cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (folder / out).read_bytes() == (folder / "whole.safetensors").read_bytes()
    assert [path.name for path in folder.glob(f"{out}*")] == [out]


@pytest.mark.slow
@pytest.mark.daily(2)
def test_kills_at_any_time_change_nothing(folder: Path) -> None:
    """Also while it loads, fits the linear head, writes a checkpoint, scores or writes the file."""
    rng = random.Random(0)
    for number in range(4):
        out = f"random{number}.safetensors"
        while not (folder / out).exists():
            end = time.monotonic() + rng.uniform(1, 8)
            interrupt(folder, out, signal.SIGKILL, lambda end=end: time.monotonic() > end)
        assert (folder / out).read_bytes() == (folder / "whole.safetensors").read_bytes()


class StopAfter:
    """The `stop` of a training that is asked to end after so many steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def __call__(self) -> int:
        self.left -= 1
        return signal.SIGTERM if self.left < 0 else 0


def stopped(folder: Path, out: Path, steps: int = 13, **options: Any) -> Path:
    """The checkpoint of a training that was stopped."""
    with pytest.raises(Stopped):
        fine_tune(folder / "deep.h5", out, stop=StopAfter(steps), **{**OPTIONS, **options})
    return Path(f"{out}{SUFFIX}")


@pytest.fixture(scope="module")
def begun(folder: Path) -> Path:
    """The checkpoint of a training that was stopped in its second epoch."""
    return stopped(folder, folder / "begun.safetensors")


def copied(begun: Path, out: Path) -> Path:
    """The same for another output."""
    return Path(shutil.copy(begun, f"{out}{SUFFIX}"))


@pytest.mark.rotates(5)
@pytest.mark.parametrize("steps", [0, 9, 10, 11, 39])
def test_a_training_that_is_asked_to_stop_goes_on(folder: Path, tmp_path: Path, steps: int) -> None:
    out = tmp_path / "a.safetensors"
    checkpoint = stopped(folder, out, steps, checkpoint_seconds=1e9)
    assert not out.exists()
    assert checkpoint.exists()
    losses: list[float] = []
    fine_tune(folder / "deep.h5", out, watch=lambda epoch, step, loss: losses.append(loss), **OPTIONS)
    assert len(losses) < 4 * STEPS
    assert out.read_bytes() == (folder / "whole.safetensors").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


@pytest.mark.rotates(6)
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"learning_rate": 1e-3}, "settings.learning_rate"),
        ({"seed": 1}, "settings.seed"),
        ({"epochs": 5}, "settings.epochs"),
        ({"plain_view": True}, "views"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(
    folder: Path, begun: Path, tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    out = tmp_path / "a.safetensors"
    checkpoint = copied(begun, out)
    before = checkpoint.read_bytes()
    options = {**OPTIONS, **change}
    with pytest.raises(HeadMismatchError, match=f"another training .*\n{named}") as caught:
        fine_tune(folder / "deep.h5", out, **options)
    assert "--overwrite" in caught.value.hint
    assert checkpoint.read_bytes() == before
    fine_tune(folder / "deep.h5", out, overwrite=True, **options)
    assert load_tail(out).fitted.settings["epochs"] == options["epochs"]
    assert not checkpoint.exists()


@pytest.mark.rotates(6)
def test_overwrite_goes_on_from_its_own_checkpoint(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    out.write_text("somebody's")
    stopped(folder, out, overwrite=True)
    steps: list[int] = []
    fine_tune(folder / "deep.h5", out, overwrite=True, watch=lambda epoch, step, loss: steps.append(step), **OPTIONS)
    assert len(steps) == 4 * STEPS - 13
    assert out.read_bytes() == (folder / "whole.safetensors").read_bytes()


@pytest.mark.rotates(3)
def test_a_damaged_checkpoint_is_refused(folder: Path, begun: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    checkpoint = copied(begun, out)
    blob = checkpoint.read_bytes()
    for damaged in (
        blob[:-1],
        blob + b"\0",
        blob[: len(blob) // 2],
        blob[:-9] + bytes([blob[-9] ^ 1]) + blob[-8:],
        b"",
    ):
        checkpoint.write_bytes(damaged)
        with pytest.raises(HeadFormatError, match="checkpoint .* is damaged"):
            fine_tune(folder / "deep.h5", out, **OPTIONS)
    fine_tune(folder / "deep.h5", out, overwrite=True, **OPTIONS)
    assert out.read_bytes() == (folder / "whole.safetensors").read_bytes()


@pytest.mark.rotates(3)
@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("state", {"epoch": 0}),
        ("state", {"epoch": 10**30}),
        ("state", {"step": -1}),
        ("state", {"history": []}),
        ("state", {"sums": [1, 2]}),
        ("state", {"linear": {}}),
        ("state", {"linear": {"names": 3, "mean": 0, "scale": 1, "chosen": {}}}),
        ("state", {"best_epoch": 4}),
        ("now.output.weight", None),
        ("best.output.weight", None),
        ("first.output.weight", None),
        ("linear.bias", None),
        ("linear.weight", "transposed"),
        ("now.output.weight", "transposed"),
        ("more.output.weight", "added"),
    ],
)
def test_a_forged_checkpoint_behind_a_right_digest_is_refused(
    folder: Path, begun: Path, tmp_path: Path, place: str, value: Any
) -> None:
    out = tmp_path / "a.safetensors"
    checkpoint = copied(begun, out)
    with checkpoint.open("rb") as file:
        arrays, strings = decode(file, checkpoint.stat().st_size, CHECKPOINT_FORMAT)
    strings = {name: strings[name] for name in ("training", "state")}
    if place == "state":
        strings["state"] = json.dumps({**json.loads(strings["state"]), **value})
    elif value is None:
        del arrays[place]
    elif value == "added":
        arrays[place] = arrays["now.output.weight"]
    else:
        arrays[place] = arrays[place].T.copy()
    checkpoint.write_bytes(b"".join(encoded(arrays, strings, CHECKPOINT_FORMAT)))
    with pytest.raises(HeadFormatError, match="checkpoint .* is damaged"):
        fine_tune(folder / "deep.h5", out, **OPTIONS)


@pytest.mark.rotates(3)
def test_what_is_not_a_checkpoint_is_left_alone_and_never_run(folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "was run"

    class Hostile:
        def __reduce__(self) -> Any:
            return Path.touch, (marker,)

    out = tmp_path / "a.safetensors"
    for name in (SUFFIX, f"{SUFFIX}.new"):
        other = Path(f"{out}{name}")
        other.write_bytes(pickle.dumps(Hostile()))
        for overwrite in (False, True):
            with pytest.raises(HeadError, match="was not made by precompute"):
                fine_tune(folder / "deep.h5", out, overwrite=overwrite, **OPTIONS)
        assert other.read_bytes() == pickle.dumps(Hostile())
        other.unlink()
    assert not marker.exists()


@pytest.mark.rotates(3)
def test_what_a_kill_leaves_behind_is_replaced(folder: Path, begun: Path, tmp_path: Path) -> None:
    """A next checkpoint that was truncated, and a lock that nobody holds."""
    out = tmp_path / "a.safetensors"
    whole = copied(begun, out).read_bytes()
    Path(f"{out}{SUFFIX}.new").write_bytes(whole[:100_000])
    Path(lock_path(str(out))).write_text('{"pid": 1, "host": "x", "since": "y"}')
    fine_tune(folder / "deep.h5", out, **OPTIONS)
    assert out.read_bytes() == (folder / "whole.safetensors").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
