"""SIGINT, SIGTERM and SIGHUP end every command soon, with a line and the status that a shell expects."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, make_photos
from forks import Forks

from precompute.cli._signals import Interrupted, Signals

ENDING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
GO_ON = "Run the same command again to resume.\n"
MANY = 30_000  # names of one photo, so that listing them takes a while
ROWS = 2_000_000  # of a table, the same
LONG = {
    "extract": ("many", "-b", "tiny", "-o", "a.h5"),
    "extract of a table": ("many.csv", "-b", "ngram-hash", "-o", "a.h5"),
    "plan": ("many", "-b", "tiny"),
    "predict": ("made.safetensors", "many"),
    "verify": ("made.h5", "--source", "many"),
    "train-head": ("made.h5", "--head", "mlp", "--max-epochs", "10000000", "--patience", "10000000"),
    "few-shot": ("made.h5", "--draws", "10000000"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Path:
    """Photos, a cache and a head of them, a folder and a table that take long to list."""
    place = tmp_path_factory.mktemp("signals")
    make_photos(place / "photos")
    assert forks.run(place, "extract", "photos", "-b", "tiny", "-o", "made.h5") == 0, forks.errors.read_text()
    assert forks.run(place, "train-head", "made.h5", "-o", "made.safetensors") == 0, forks.errors.read_text()
    (place / "many.csv").write_text("text\n" + "".join(f"text {number}\n" for number in range(ROWS)))
    (place / "many").mkdir()
    for number in range(MANY):
        os.link(place / "photos/val/cats/0.jpg", place / f"many/{number}.jpg")
    return place


def wait_until_listening(process: int) -> None:
    """Until the process has handlers of its own."""
    while True:
        status = Path(f"/proc/{process}/status").read_text()
        caught = int(next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt")), 16)
        if caught >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.001)


@pytest.mark.rotates(6)
@pytest.mark.parametrize(
    ("name", "signum"),
    [*(("extract", signum) for signum in ENDING), *((name, signal.SIGTERM) for name in LONG if name != "extract")],
)
def test_a_signal_ends_a_command(forks: Forks, folder: Path, name: str, signum: signal.Signals) -> None:
    process = forks.start(folder, name.partition(" ")[0], *LONG[name])
    wait_until_listening(process)
    os.kill(process, signum)
    assert forks.wait(process) == 128 + signum
    told = forks.errors.read_text()
    assert told.endswith(f"Stopped by {signum.name}.\nFinished work is kept. {GO_ON}")
    assert "Traceback" not in told
    assert forks.output.read_text() == ""
    assert not list(folder.glob("a.h5*"))


def test_a_signal_that_a_library_made_its_own_error_of_is_a_signal(forks: Forks, folder: Path) -> None:
    """Seen: torch took the exception for a storage without a shape. Here it is a factory that does such a thing."""
    (folder / "swallowing.py").write_text(
        "import os, signal, time\n"
        "def make():\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        time.sleep(10)\n"
        "    except BaseException:\n"
        "        raise ValueError('could not determine the shape') from None\n"
    )
    assert forks.run(folder, "extract", "photos", "-b", "swallowing:make", "-o", "c.h5") == 128 + signal.SIGTERM
    assert forks.errors.read_text().startswith("Stopped by SIGTERM.\n")
    assert not list(folder.glob("c.h5*"))


@pytest.mark.rotates(3)
def test_a_signal_is_heard_while_libraries_load(folder: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "precompute", "extract", "photos", "-b", "tiny", "-o", "b.h5", "--json"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert json.loads(output)["error"]["type"] == "Stopped"
    assert "Traceback" not in errors
    assert not list(folder.glob("b.h5*"))


def test_what_is_ignored_stays_ignored() -> None:
    """For example SIGHUP under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals().interrupting(lambda _: None):
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_exception_that_gets_lost_does_not_keep_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python drops what is raised in a destructor; and a long call into a library keeps it waiting."""
    monkeypatch.setattr("precompute.cli._signals.PATIENCE", 0.01)
    gave_up: queue.Queue[int] = queue.Queue()
    with Signals().interrupting(gave_up.put):
        with contextlib.suppress(Interrupted):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        assert gave_up.get(timeout=60) == signal.SIGTERM


def test_a_signal_during_batches_is_only_noted(capsys: pytest.CaptureFixture[str]) -> None:
    signals = Signals()
    with signals.interrupting(lambda _: None):
        signals.batches_begin()
        os.kill(os.getpid(), signal.SIGTERM)
        while not signals():
            time.sleep(0.001)
        assert signals() == signal.SIGTERM
    assert "Stopping after the current batch" in capsys.readouterr().err


def test_a_batch_is_given_up_where_sigterm_leaves_it_little_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Schedulers kill some time after SIGTERM. Nobody else is in a hurry."""
    monkeypatch.setattr("precompute.cli._signals.PATIENCE", 0.01)
    for signum, last in ((signal.SIGTERM, 0.0), (signal.SIGINT, 0.0), (signal.SIGTERM, None)):
        gave_up: queue.Queue[int] = queue.Queue()
        signals = Signals()
        with signals.interrupting(gave_up.put):
            signals.batches_begin() if last is None else signals.batches_begin(last=last)
            os.kill(os.getpid(), signum)
            if (signum, last) == (signal.SIGTERM, 0.0):
                assert gave_up.get(timeout=60) == signal.SIGTERM
            else:
                with pytest.raises(queue.Empty):
                    gave_up.get(timeout=0.1)


def test_a_signal_that_comes_twice_at_once_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As from `timeout`, and from a batch script that hands on what Slurm has sent to all processes."""
    monkeypatch.setattr("precompute.cli._signals.ECHO", 600.0)
    signals = Signals()
    with signals.interrupting(lambda _: None):
        signals.batches_begin()
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
        assert signals() == signal.SIGTERM


def test_a_second_signal_ends_the_process_at_once(forks: Forks, folder: Path) -> None:
    (folder / "forever.py").write_text(
        "import time\nfrom pathlib import Path\nimport torch\n"
        "def wait(images):\n"
        "    if list(Path().glob('d.h5.partial')):\n"
        "        Path('waiting').touch()\n"
        "        time.sleep(600)\n"
        "    return images\n"
        "torch.fx.wrap('wait')\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.scale = torch.nn.Parameter(torch.ones(3))\n"
        "    def forward(self, images):\n"
        "        return wait(images).mean((2, 3)) * self.scale\n"
        "def make():\n"
        "    return Net()\n"
    )
    process = forks.start(folder, "extract", "photos", "-b", "forever:make", "-o", "d.h5")
    while not (folder / "waiting").exists():
        time.sleep(0.01)
    os.kill(process, signal.SIGINT)
    time.sleep(1.1)  # more than ECHO
    os.kill(process, signal.SIGINT)
    assert forks.wait(process) == 128 + signal.SIGINT
