"""Processes that read and decode: the file is that of threads, whoever is killed, and nobody is left behind."""

from __future__ import annotations

import gc
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, list_images, rows_there, run_python
from contracts import ExecutorContract
from crashing import EXIT, KILL, KILL_ONCE, NOTHING, RAISE, SEGFAULT, SLOW, Crashing, Numbers
from lengths import text_of
from modalities import SOUND, Samples
from sounds import sound, wav
from test_extraction import assert_same

from precompute import extract, load_backbone, open_cache
from precompute.engines.base import Engine, EngineChoice, buffers_of, fill
from precompute.engines.choice import Decision
from precompute.engines.devices import make_engine
from precompute.errors import PrecomputeError, SourceError, Stopped, UsageError
from precompute.extraction.executors import launcher
from precompute.extraction.executors.base import Executor, Work
from precompute.extraction.executors.processes import ProcessExecutor
from precompute.inputs.kinds import files_of
from precompute.sources.registry import open_source

pytestmark = pytest.mark.rotates(30)  # each test starts processes that load torch

BACKBONE = "crashing:make_network"


def started_by(process: int, role: bytes) -> list[int]:
    """Running processes of executors that `process` has started."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):  # it has ended meanwhile
            if entry.name.isdecimal():
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if int(parent) == process and state != "Z" and role in words and b"-I" in words:
                    found.append(int(entry.name))
    return sorted(found)


def launchers(process: int | None = None) -> list[int]:
    """Those that are forked into others."""
    return started_by(process or os.getpid(), b"serve")


def children(process: int | None = None) -> list[int]:
    """Those that read and decode for `process`, by default this one."""
    forked = [one for starts in launchers(process) for one in started_by(starts, b"serve")]
    return sorted(forked + started_by(process or os.getpid(), b"worker"))


def runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(true: Callable[[], object], seconds: float = 60) -> bool:
    until = time.monotonic() + seconds
    while not true() and time.monotonic() < until:
        time.sleep(0.01)
    return bool(true())


@pytest.fixture(autouse=True)
def nobody_is_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setenv("CRASHING", str(tmp_path))
    monkeypatch.syspath_prepend(str(ROOT / "tests"))
    yield
    gc.collect()
    assert launchers() == children() == []


def numbers(count: int, what: dict[int, int] | None = None, *, others: int = NOTHING) -> Numbers:
    values = np.full(count, others)
    for row, value in (what or {}).items():
        values[row] = value
    return Numbers(values)


def run(source: Any, out: Path, **options: Any) -> Any:
    return extract(source, out, backbone=BACKBONE, batch_size=4, precision="fp32", **options)


# The file is that of threads


def test_the_file_is_that_of_threads(samples: Samples, tmp_path: Path) -> None:
    """With samples that are broken, and one that is there twice; several runs of one executor."""
    names = samples.names()
    for name, (data, _) in samples.kind.broken().items():
        samples.write(name, data)
    samples.copy(names[3], f"train/cats/z{Path(names[3]).suffix}")
    threads = samples.extract(tmp_path / "threads.h5", batch_size=4)
    with ProcessExecutor(2) as executor:
        for out in ("one.h5", "two.h5"):
            made = samples.extract(tmp_path / out, batch_size=4, executor=executor)
            assert (made.computed, made.copied, made.failures) == (threads.computed, threads.copied, threads.failures)
            assert made.failures and made.copied
            assert_same(open_cache(tmp_path / out), open_cache(tmp_path / "threads.h5"))


def test_views_are_those_of_threads(photos: Path, tmp_path: Path) -> None:
    options = {"backbone": "tiny", "views": 3, "augment": "flip,crop,color", "batch_size": 4}
    extract(photos, tmp_path / "threads.h5", **options)
    with ProcessExecutor(2) as executor:
        extract(photos, tmp_path / "a.h5", executor=executor, **options)
    assert_same(open_cache(tmp_path / "a.h5"), open_cache(tmp_path / "threads.h5"))


def test_clips_of_more_windows_than_a_slot_has_places_are_those_of_threads(tmp_path: Path) -> None:
    SOUND.check_extra()
    (tmp_path / "clips").mkdir()
    for seed, seconds in enumerate((30, 0.3, 45, 2, 8)):
        (tmp_path / f"clips/{seed}.wav").write_bytes(wav(sound(seed, seconds)))
    options = {"backbone": "mel-statistics", "batch_size": 4}
    extract(tmp_path / "clips", tmp_path / "threads.h5", **options)
    with ProcessExecutor(2) as executor:
        extract(tmp_path / "clips", tmp_path / "a.h5", executor=executor, **options)
    assert_same(open_cache(tmp_path / "a.h5"), open_cache(tmp_path / "threads.h5"))


class TestLengths(ExecutorContract):
    """The contract, where samples have three lengths."""

    @pytest.fixture
    def executor(self) -> Any:
        with ProcessExecutor(2) as executor:
            yield executor

    @pytest.fixture
    def work(self, tmp_path: Path) -> Work:
        folder = tmp_path / "photos"  # the contract's name for its samples
        folder.mkdir()
        for number in range(24):
            (folder / f"{number:02}.txt").write_text(text_of(number))
        (folder / f"{self.BROKEN:02}.txt").write_bytes(b"")
        (folder / "20.txt").write_text(text_of(10))
        backbone = load_backbone("lengths:make_attention")
        choice = EngineChoice("torch", "cpu", "fp32", 4)
        engine = make_engine(backbone.module, backbone.preprocess, choice, identity=None)
        return Work(open_source(folder, files_of("text")), backbone, Decision(choice, engine, "float32"))


# Processes stay


def work_of(photos: Path) -> Work:
    backbone = load_backbone("tiny")
    choice = EngineChoice("torch", "cpu", "fp32", 4)
    engine = make_engine(backbone.module, backbone.preprocess, choice, identity=None)
    return Work(list_images(photos), backbone, Decision(choice, engine, "float32"))


def rows_of(executor: Executor, work: Work, rows: range) -> list[int]:
    blocks = executor.blocks(work, np.array(rows))
    return sorted(item.row for block in blocks for item in block.decoded)


def test_processes_stay_for_the_next_rows_of_the_same_work(photos: Path) -> None:
    work, executor, threads = work_of(photos), ProcessExecutor(2), threading.active_count()
    assert rows_of(executor, work, range(1)) == [0]
    (first,) = children()  # one for so few rows
    assert rows_of(executor, work, range(24)) == list(range(24))
    both = children()
    assert first in both and len(both) == 2
    for start in range(0, 24, 5):
        rows = range(start, min(start + 5, 24))
        assert rows_of(executor, work, rows) == list(rows)
    assert children() == both
    assert threading.active_count() == threads
    os.kill(both[0], signal.SIGKILL)  # between two runs
    assert rows_of(executor, work, range(24)) == list(range(24))
    assert both[1] in children()
    assert rows_of(executor, work_of(photos), range(24)) == list(range(24))
    assert not set(both) & set(children())
    executor.close()
    assert children() == []
    assert rows_of(executor, work, range(3)) == [0, 1, 2]
    del executor
    gc.collect()
    assert children() == []


def test_a_run_that_is_closed_early_ends_its_processes(photos: Path) -> None:
    work, executor, threads = work_of(photos), ProcessExecutor(2), threading.active_count()
    blocks = executor.blocks(work, np.arange(24))
    next(blocks)
    blocks.close()
    assert threading.active_count() == threads
    assert rows_of(executor, work, range(24)) == list(range(24))


# Processes die


def test_workers_killed_in_the_middle_of_a_run_cost_nothing(tmp_path: Path) -> None:
    source = numbers(300, others=SLOW)
    run(source, tmp_path / "threads.h5")
    killed, blocks = list[int](), count()

    def kill() -> int:
        if next(blocks) in (5, 25, 45):  # not two of them at one sample
            killed.append(children()[0])
            os.kill(killed[-1], signal.SIGKILL)
        return 0

    with ProcessExecutor(2) as executor:
        made = run(source, tmp_path / "a.h5", executor=executor, stop=kill)
    assert len(killed) == 3
    assert made.computed == 300
    assert_same(open_cache(tmp_path / "a.h5"), open_cache(tmp_path / "threads.h5"))


def test_a_sample_at_which_a_process_was_killed_once_is_done_again(tmp_path: Path, monkeypatch: Any) -> None:
    source = numbers(60, {7: KILL_ONCE, 8: KILL_ONCE, 40: KILL_ONCE})
    with ProcessExecutor(2) as executor:
        run(source, tmp_path / "a.h5", executor=executor)
    monkeypatch.delenv("CRASHING")
    run(source, tmp_path / "threads.h5")
    assert_same(open_cache(tmp_path / "a.h5"), open_cache(tmp_path / "threads.h5"))


def test_a_sample_that_crashes_its_decoder_is_undecodable_and_the_others_are_there(
    tmp_path: Path, monkeypatch: Any
) -> None:
    crashes = [7, 31, 32, 59]
    source = numbers(60, dict.fromkeys(crashes, SEGFAULT))
    with ProcessExecutor(2) as executor:
        made = run(source, tmp_path / "a.h5", executor=executor)
    assert made.failures == {"UNDECODABLE": len(crashes)}
    monkeypatch.delenv("CRASHING")
    whole = run(source, tmp_path / "whole.h5")
    ours, theirs = open_cache(tmp_path / "a.h5"), open_cache(tmp_path / "whole.h5")
    assert whole.computed == 60
    assert np.flatnonzero(~ours.ok).tolist() == crashes
    assert ours.features()[ours.ok].tobytes() == theirs.features()[ours.ok].tobytes()
    assert np.array_equal(ours.column("samples/digest"), theirs.column("samples/digest"))


@pytest.mark.parametrize(("what", "how"), [(KILL, "SIGKILL"), (EXIT, "exit status 3")])
@pytest.mark.daily(2)
def test_a_sample_at_which_processes_are_killed_twice_ends_the_run_with_its_name(
    what: int, how: str, tmp_path: Path, monkeypatch: Any
) -> None:
    source = numbers(60, {41: what})
    with ProcessExecutor(2) as executor, pytest.raises(PrecomputeError, match=f"row 000041 .{how}") as caught:
        run(source, tmp_path / "a.h5", executor=executor)
    assert "Everything computed so far is kept" in str(caught.value)
    monkeypatch.delenv("CRASHING")
    made = run(source, tmp_path / "a.h5")
    assert made.reused > 0 and made.reused + made.computed == 60
    run(source, tmp_path / "whole.h5")
    assert_same(open_cache(tmp_path / "a.h5"), open_cache(tmp_path / "whole.h5"))


def test_where_processes_are_not_forked_each_is_started_for_itself(tmp_path: Path, monkeypatch: Any) -> None:
    """As on macOS."""
    monkeypatch.setattr(launcher, "FORKS", False)
    source = numbers(60, {7: KILL_ONCE, 8: SEGFAULT, 40: KILL_ONCE})
    with ProcessExecutor(2) as executor:
        made = run(source, tmp_path / "a.h5", executor=executor)
        assert launchers() == []
        assert len(children()) == 2
        with pytest.raises(PrecomputeError, match=r"row 000001 .SIGKILL"):
            run(numbers(60, {1: KILL}), tmp_path / "b.h5", executor=executor)
        assert children() == []
    assert (made.computed, made.failures) == (59, {"UNDECODABLE": 1})
    executor = ProcessExecutor(2)
    run(numbers(60), tmp_path / "c.h5", executor=executor)
    del executor  # with processes that are idle


def test_without_the_process_that_starts_others_a_run_goes_on_until_one_is_needed(tmp_path: Path) -> None:
    def kill() -> int:
        for one in launchers():
            os.kill(one, signal.SIGKILL)
        return 0

    with ProcessExecutor(2) as executor:
        assert run(numbers(200, others=SLOW), tmp_path / "a.h5", executor=executor, stop=kill).computed == 200
        with pytest.raises(PrecomputeError, match="ended .with the one that starts them"):
            run(numbers(200, {150: KILL_ONCE}, others=SLOW), tmp_path / "b.h5", executor=executor, stop=kill)
        assert run(numbers(200), tmp_path / "b.h5", executor=executor).computed > 0


DRIVER = """
import signal, sys
from crashing import SLOW
from precompute.errors import Stopped
from precompute.extraction.executors.processes import ProcessExecutor
from test_processes import numbers, run
from pathlib import Path

found = []
for signum in map(int, sys.argv[2:]):
    signal.signal(signum, lambda signum, frame: found.append(signum))
try:
    run(numbers(2000, others=SLOW), Path(sys.argv[1]), executor=ProcessExecutor(2), stop=lambda: found and found[0])
except Stopped as stopped:
    sys.exit(stopped.exit_code)
"""


def interrupted(out: Path, signum: int, handled: list[int], *, group: bool) -> int:
    """Start a run in a process of its own, and send `signum` in the middle, to it or to all; its exit status.

    Then its processes have gone, and the run can go on.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(out), *map(str, handled)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])},
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    partial = out.with_name(f"{out.name}.partial")
    assert wait_until(lambda: process.poll() is not None or rows_there(partial) >= 40, 120)
    workers = children(process.pid)
    assert len(workers) == 2
    workers += launchers(process.pid)
    (os.killpg if group else os.kill)(process.pid, signum)
    status = process.wait(timeout=60)
    assert wait_until(lambda: not any(map(runs, workers)))
    assert 40 <= rows_there(partial) < 2000
    return status


@pytest.mark.parametrize(
    ("signum", "handled", "group", "status"),
    [
        (signal.SIGKILL, [], False, -signal.SIGKILL),
        (signal.SIGTERM, [], False, -signal.SIGTERM),
        (signal.SIGINT, [], True, None),  # KeyboardInterrupt
        (signal.SIGINT, [signal.SIGINT], True, 128 + signal.SIGINT),
        (signal.SIGTERM, [signal.SIGTERM], True, 128 + signal.SIGTERM),
    ],
)
@pytest.mark.daily(3)
def test_a_driver_that_ends_leaves_nobody_behind_and_the_next_goes_on(
    signum: int, handled: list[int], group: bool, status: int | None, tmp_path: Path, monkeypatch: Any
) -> None:
    found = interrupted(tmp_path / "a.h5", signum, handled, group=group)
    assert found == status if status is not None else found != 0
    monkeypatch.delenv("CRASHING")
    source = numbers(2000, others=SLOW)
    made = run(source, tmp_path / "a.h5")
    assert made.reused >= 40
    run(source, tmp_path / "whole.h5")
    assert_same(open_cache(tmp_path / "a.h5"), open_cache(tmp_path / "whole.h5"))


def test_a_run_is_stopped_as_one_of_threads(tmp_path: Path, monkeypatch: Any) -> None:
    source, asked = numbers(200, others=SLOW), list[int]()

    def stop() -> int:
        asked.append(0)
        return signal.SIGTERM if len(asked) > 5 else 0

    with ProcessExecutor(2) as executor, pytest.raises(Stopped):
        run(source, tmp_path / "a.h5", executor=executor, stop=stop)
    monkeypatch.delenv("CRASHING")
    made = run(source, tmp_path / "a.h5")
    assert 0 < made.reused < 200


def test_a_source_that_goes_away_in_the_middle_ends_the_run_as_with_threads(tmp_path: Path) -> None:
    texts, away, asked = tmp_path / "texts", tmp_path / "away", list[int]()
    texts.mkdir()
    for number in range(1500):
        (texts / f"{number:04}.txt").write_text(f"text {number}")
    options = {"backbone": "ngram-hash", "batch_size": 4}

    def stop() -> int:
        asked.append(0)
        if len(asked) == 3:
            texts.rename(away)
        return 0

    with ProcessExecutor(2) as executor:
        with pytest.raises(SourceError, match="disappeared while it was being read"):
            extract(texts, tmp_path / "a.h5", executor=executor, stop=stop, **options)
        away.rename(texts)
        made = extract(texts, tmp_path / "a.h5", executor=executor, **options)
    assert made.reused > 0 and not made.failures
    extract(texts, tmp_path / "whole.h5", **options)
    assert_same(open_cache(tmp_path / "a.h5"), open_cache(tmp_path / "whole.h5"))


# What cannot be


class Unsendable(Numbers):
    def __init__(self) -> None:
        super().__init__(np.zeros(10, int))
        self.read_it = lambda row: row


def test_a_source_that_cannot_be_sent_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with ProcessExecutor(2) as executor, pytest.raises(UsageError, match="The source numbers cannot be sent") as caught:
        run(Unsendable(), tmp_path / "a.h5", executor=executor)
    assert "Let threads read and decode" in str(caught.value)
    assert children() == []


def test_a_class_of_the_script_itself_cannot_be_loaded_elsewhere(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from crashing import Numbers; from test_processes import run\n"
        "from precompute.extraction.executors.processes import ProcessExecutor\n"
        "class Own(Numbers): pass\n"
        f"run(Own([0] * 10), Path({str(tmp_path / 'a.h5')!r}), executor=ProcessExecutor(2))"
    )
    done = run_python(code, PYTHONPATH=os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
    assert (
        "UsageError: The source numbers cannot be sent to other processes: Own is defined in the script" in done.stderr
    )


def test_errors_of_samples_come_back_with_their_words(tmp_path: Path) -> None:
    with ProcessExecutor(2) as executor:
        made = run(numbers(20, {3: RAISE}), tmp_path / "a.h5", executor=executor)
    assert made.failures == {"UNDECODABLE": 1}
    assert "it says so" in str(made)


# Memory


class Slow(Engine):
    """Takes its time, so that samples would pile up."""

    depth = 2

    def __init__(self, example: tuple[torch.Tensor, ...]) -> None:
        super().__init__(EngineChoice("torch", "cpu", "fp32", 32))
        self._buffers, self._counts = buffers_of(example, 32), list[int]()

    def start(self, samples: Any) -> None:
        fill(self._buffers, samples)
        self._counts.append(len(samples))

    def finish(self) -> tuple[np.ndarray, ...]:
        time.sleep(0.03)
        return (np.zeros((self._counts.pop(0), 4), np.float32),)


def memory_of(process: int) -> int:
    """Bytes in memory, shared ones too."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * resource.getpagesize()


def test_memory_does_not_grow_with_the_number_of_rows() -> None:
    """Those of the longer run would take 900 MB."""
    backbone, width = load_backbone(BACKBONE), 40_000
    object.__setattr__(backbone, "preprocess", Crashing(width))
    engine = Slow(backbone.preprocess.example())
    most = list[int]()
    with ProcessExecutor(2) as executor:
        for count in (1500, 6000):
            work = Work(numbers(count), backbone, Decision(engine.choice, engine, "float32"))
            seen = 0
            for block in executor.blocks(work, np.arange(count)):
                if seen <= count / 2 < seen + len(block) or seen <= 1200 < seen + len(block):
                    most.append(sum(map(memory_of, [os.getpid(), *children()])))
                seen += len(block)
            assert seen == count
    assert max(most) < min(most) + 64 * 2**20
