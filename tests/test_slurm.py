"""The batch scripts of docs/slurm under a Slurm that signals, kills and requeues: they join to the file of one run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, Command, make_photos, rows_there, run_python
from slurm import FakeSlurm, Job, directives
from test_parts import columns_equal

from precompute import extract, open_cache, verify
from precompute.cache.lock import WriteLock
from precompute.cli._job_array import check_array
from precompute.errors import CacheError, UsageError

ENDS = ("SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX")
SCRIPTS = ROOT / "docs" / "slurm"
pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="batch scripts are bash's")


class Cluster:
    """A fake Slurm over a folder of photos, for one array of `parts` and the job that joins them."""

    def __init__(self, place: Path, *, parts: int, per_class: int) -> None:
        self.place, self.parts = place, parts
        make_photos(place / "photos", per_class=per_class)
        (place / "photos" / "val" / "cats" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
        self.asked = {"BACKBONE": "tiny", "PARTS": str(parts), "OPTIONS": "--batch-size 2"}
        self.slurm = FakeSlurm(place)

    def extract(self) -> dict[int, Job]:
        return self.slurm.array(SCRIPTS / "extract.sbatch", 1, self.parts, **self.asked)

    def part(self, task: int) -> Path:
        return self.place / "parts" / f"part-{task}.h5"

    def rows(self, task: int) -> int:
        return rows_there(self.part(task).with_name(f"part-{task}.h5.partial"))

    def wait_for_rows(self, task: int, job: Job, rows: int) -> None:
        while self.rows(task) < rows:
            assert job.process.poll() is None, job.log.read_text()
            time.sleep(0.002)

    def check_left(self, task: int) -> int:
        """Rows of the file in progress, each of which is whole; none of the finished one."""
        assert not self.part(task).exists()
        partial = open_cache(self.part(task).with_name(f"part-{task}.h5.partial"))
        assert not len(verify(partial).damaged)
        return int(partial.ok.sum())

    def join(self) -> str:
        """What the job that joins has printed."""
        job = self.slurm.job(SCRIPTS / "join.sbatch", **self.asked)
        assert job.wait() == 0, job.log.read_text()
        return job.log.read_text()

    def check_joined(self) -> None:
        told = self.join()
        assert "nothing new" in told, told  # 0 computed
        options = {"backbone": "tiny", "batch_size": 2}
        extract(self.place / "photos", self.place / "whole.h5", **options)
        columns_equal(self.place / "photos.h5", self.place / "whole.h5")
        assert [path.name for path in self.place.glob("photos.h5*")] == ["photos.h5"]
        assert len(list((self.place / "parts").iterdir())) == self.parts


def reused(job: Job) -> int:
    """How many rows the last run of a job has found, by its log."""
    lines = [line for line in job.log.read_text().splitlines() if line.startswith("reused")]
    return int(lines[-1].split()[1].replace(",", "")) if lines else 0


@pytest.mark.rotates(3)
@pytest.mark.parametrize("how", ["time limit", "preemption", "failed node"])
def test_a_task_that_is_requeued_goes_on_and_the_parts_join_to_the_file_of_one_run(how: str, tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, parts=2, per_class=60)
    jobs = cluster.extract()
    stopped = jobs[1]
    cluster.wait_for_rows(1, stopped, 2)
    match how:
        case "time limit":
            assert cluster.slurm.time_limit(stopped) == 128 + signal.SIGTERM
        case "preemption":
            cluster.slurm.preempt(stopped, grace=30, until=lambda: "Stopped with" in stopped.log.read_text())
        case _:
            cluster.slurm.node_fails(stopped)
    kept = cluster.check_left(1)
    # After the other two it is Slurm that starts the job again
    assert cluster.slurm.requeued() == ([str(stopped.number)] if how == "time limit" else [])
    cluster.slurm.requeue(stopped)
    assert [job.wait() for job in jobs.values()] == [0, 0], [job.log.read_text() for job in jobs.values()]
    assert reused(stopped) == kept >= 2
    cluster.check_joined()


@pytest.mark.slow
def test_four_tasks_that_are_killed_again_and_again(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, parts=4, per_class=150)
    jobs, times = cluster.extract(), 0
    for round_number in range(4):
        for task, job in jobs.items():
            before = cluster.rows(task)
            while job.process.poll() is None and cluster.rows(task) < before + 2 * (1 + round_number):
                time.sleep(0.002)
            if job.process.poll() is not None:
                assert job.wait() == 0, job.log.read_text()
                continue
            times += 1
            match (task + round_number) % 3:
                case 0:
                    cluster.slurm.time_limit(job)
                case 1:
                    told = job.log.read_text().count("Stopped ")
                    ended = lambda job=job, told=told: job.log.read_text().count("Stopped ") > told  # noqa: E731
                    cluster.slurm.preempt(job, grace=30, until=ended)
                case _:
                    cluster.slurm.node_fails(job)
            if cluster.part(task).exists():
                continue
            assert cluster.check_left(task) >= before
        for task, job in jobs.items():
            if job.process.poll() is not None and not cluster.part(task).exists():
                cluster.slurm.requeue(job)
    assert [job.wait() for job in jobs.values()] == [0] * 4, [job.log.read_text() for job in jobs.values()]
    print(f"{times} stops and kills")  # noqa: T201 - what the proof is about
    assert times >= 4
    cluster.check_joined()


@pytest.mark.slow
@pytest.mark.daily(2)
def test_a_batch_that_does_not_end_is_given_up_in_time(tmp_path: Path) -> None:
    """A forward pass of minutes: the process is gone before Slurm's KillWait of 30 seconds is over."""
    make_photos(tmp_path / "photos")
    (tmp_path / "stuck.py").write_text(
        "import time\nfrom pathlib import Path\nimport torch\n"
        "passes = []\n"
        "def stuck(images):\n"
        "    passes.extend(Path().glob('a.h5.partial'))\n"
        "    if len(passes) > 5:\n"
        "        Path('stuck').touch()\n"
        "        time.sleep(600)\n"
        "    return images\n"
        "torch.fx.wrap('stuck')\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.scale = torch.nn.Parameter(torch.ones(3))\n"
        "    def forward(self, images):\n"
        "        return stuck(images).mean((2, 3)) * self.scale\n"
        "def make():\n"
        "    return Net()\n"
    )
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "precompute",
            "extract",
            "photos",
            "-b",
            "stuck:make",
            "-o",
            "a.h5",
            "--batch-size",
            "2",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    while not (tmp_path / "stuck").exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    kept = rows_there(tmp_path / "a.h5.partial")
    assert kept > 0
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)  # the shell's, beside Slurm's
    _, told = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert "Stopped by SIGTERM" in told
    assert rows_there(tmp_path / "a.h5.partial") == kept


def test_a_join_computes_nothing_and_names_what_is_missing(
    tmp_path: Path, precompute: Command, tiny_made_once: None
) -> None:
    photos = make_photos(tmp_path / "photos")
    made = [tmp_path / f"part-{number}.h5" for number in (1, 2, 3)]
    for number, path in enumerate(made[:2], 1):
        extract(photos, path, backbone="tiny", part=f"{number}/3")
    with pytest.raises(CacheError, match=r"8 of 24 samples are in none .* No file holds part 3 of 3\.") as failed:
        extract(photos, tmp_path / "all.h5", backbone="tiny", reuse=made[:2], join=True)
    assert "val/dogs" in str(failed.value)
    assert not list(tmp_path.glob("all.h5*"))
    extract(photos, made[2], backbone="tiny", part="3/3")
    (photos / "train" / "cats" / "0.jpg").write_bytes((photos / "train" / "cats" / "2.jpg").read_bytes() + b"more")
    with pytest.raises(CacheError, match=r"1 of 24 samples .*: train/cats/0.jpg\."):
        extract(photos, tmp_path / "all.h5", backbone="tiny", reuse=made, join=True)
    extract(photos, made[0], backbone="tiny", part="1/3")
    assert extract(photos, tmp_path / "all.h5", backbone="tiny", reuse=made, join=True).computed == 0
    for wrong in ({}, {"reuse": made, "part": "1/3"}):
        with pytest.raises(UsageError, match="takes all samples"):
            extract(photos, tmp_path / "other.h5", backbone="tiny", join=True, **wrong)
    assert precompute("extract", "photos", "-b", "tiny", "-o", "b.h5", "--join").returncode == 2


def test_an_array_from_0_is_refused_in_all_of_its_tasks(
    tmp_path: Path, precompute: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_photos(tmp_path / "photos")
    for task in range(4):
        for name, value in (("ID", task), ("MIN", 0), ("MAX", 3), ("COUNT", 4)):
            monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
        done = precompute("extract", "photos", "-b", "tiny", "-o", "a.h5", "--shard", f"{task}/4", "--json")
        assert done.returncode == 2
        assert "--array=1-" in json.loads(done.stdout)["error"]["hint"]
    assert not list(tmp_path.glob("a.h5*"))


def test_what_else_an_array_may_be_is_allowed() -> None:
    """Parts that are submitted again, numbers of another base that are corrected, an array about something else."""
    check_array("3/16", {})
    for part, task, least, most in (("3/16", 3, 3, 7), ("4/4", 3, 0, 3), ("2/4", 2, 0, 9), ("1/4", 1, 1, 4)):
        check_array(part, dict(zip(("SLURM_ARRAY_TASK_ID", *ENDS), map(str, (task, least, most)), strict=True)))


def test_cores_are_those_of_the_job() -> None:
    code = "import os\nfrom precompute.system import cores\nprint(cores(), len(os.sched_getaffinity(0)))"
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("processes are not bound to cores here")
    for given, expected in (("1", 1), ("100000", None), ("0", None), ("", None)):
        done = run_python(code, SLURM_CPUS_PER_TASK=given)
        found, bound = map(int, done.stdout.split())
        assert found == (expected or bound), done.stderr


HOLDER = (
    "import fcntl, os, sys, time\n"
    "descriptor = os.open(sys.argv[1], os.O_RDWR)\n"
    "fcntl.flock(descriptor, fcntl.LOCK_EX)\n"
    "print('held', flush=True)\n"
    "time.sleep(600)\n"
)


def test_a_lock_that_a_node_has_left_is_no_obstacle(tmp_path: Path) -> None:
    """Its file names another host. Where a server still holds it for that one, it is waited for."""
    lock = tmp_path / "a.h5.precompute.lock"
    lock.write_text('{"pid": 17, "host": "node-that-is-gone", "since": "2026-01-01T00:00:00+00:00"}')
    with WriteLock(str(tmp_path / "a.h5")):
        assert "node-that-is-gone" not in lock.read_text()
    lock.write_text('{"pid": 17, "host": "node-that-is-gone", "since": "2026-01-01T00:00:00+00:00"}')
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(lock)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        timer = subprocess.Popen(["bash", "-c", f"sleep 1; kill -KILL {holder.pid}"])
        with WriteLock(str(tmp_path / "a.h5")):
            assert holder.wait(60) == -signal.SIGKILL
        timer.wait()


def test_the_scripts_say_what_the_page_says() -> None:
    asked = directives(SCRIPTS / "extract.sbatch")
    assert asked["signal"].startswith("B:USR1@")
    assert asked["array"] == "1-16"
    assert "requeue" in asked
    page = (ROOT / "docs" / "slurm.md").read_text()
    for name in ("extract.sbatch", "join.sbatch", "submit.sh"):
        assert (SCRIPTS / name).read_text() in page
        assert subprocess.run(["bash", "-n", str(SCRIPTS / name)], check=False).returncode == 0


def test_a_join_takes_the_precision_of_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They were made on nodes with a GPU; the join runs where there is none, and is not told."""
    monkeypatch.delenv("PRECOMPUTE_PRECISION")
    photos = make_photos(tmp_path / "photos")
    made = [tmp_path / f"part-{number}.h5" for number in (1, 2)]
    for number, path in enumerate(made, 1):
        extract(photos, path, backbone="tiny", engine="torch", precision="bf16", part=f"{number}/2")
    joined = extract(photos, tmp_path / "all.h5", backbone="tiny", reuse=made, join=True)
    assert (joined.computed, open_cache(tmp_path / "all.h5").spec["precision"]) == (0, "bf16")
