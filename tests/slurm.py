"""As much of Slurm as a batch script sees: `#SBATCH` lines, the environment of array tasks, signals, and requeueing.

What it does to a job is what slurmd and slurmctld do, by their documentation (sbatch, scancel, preempt.html):

- `time_limit`: `--signal=B:USR1@120` reaches the batch shell alone; the job goes on until it has ended.
- `preempt`: SIGCONT and SIGTERM to every process of the job, SIGKILL `grace` seconds later; then it starts again.
- `node_fails`: SIGKILL to every process at once; then it starts again, on another node.

A job that ends by itself is not started again, unless `scontrol requeue` has been called for it.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from conftest import ROOT

SHIM = """#!/bin/bash
export PYTHONPATH="{root}"
exec "{python}" -m precompute "$@"
"""
SCONTROL = """#!/bin/bash
[ "$1" = requeue ] && echo "$2" >> "{place}/requeued"
"""


def directives(script: Path) -> dict[str, str]:
    """The options of a batch script by name, such as {"array": "1-16", "requeue": ""}."""
    found = re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?", script.read_text(), re.MULTILINE)
    return {name: value.partition("#")[0] for name, value in found}


@dataclass
class Job:
    """One task of an array, or one job. restarts: how often it has been started again."""

    number: int
    script: Path
    environment: dict[str, str]
    log: Path
    restarts: int = 0
    process: subprocess.Popen[bytes] = field(init=False)

    def wait(self, seconds: float = 120) -> int:
        """Exit status of the batch shell, -N where signal N ended it."""
        return self.process.wait(seconds)


class FakeSlurm:
    """Runs batch scripts in `place`. cores: what SLURM_CPUS_PER_TASK is."""

    def __init__(self, place: Path, *, cores: int = 1) -> None:
        self._place, self._cores, self._jobs = place, cores, 100
        tools = place / "tools"
        tools.mkdir()
        for name, text in (("precompute", SHIM), ("scontrol", SCONTROL)):
            (tools / name).write_text(text.format(root=ROOT, python=sys.executable, place=place))
            (tools / name).chmod(0o755)
        self._path = f"{tools}:{os.environ['PATH']}"

    def array(self, script: Path, first: int, last: int, **environment: str) -> dict[int, Job]:
        """`sbatch --array=FIRST-LAST`: all tasks, started at once."""
        count = last - first + 1
        self._jobs += 1
        shared = {"ARRAY_JOB_ID": self._jobs, "ARRAY_TASK_COUNT": count, "ARRAY_TASK_MIN": first}
        shared |= {"ARRAY_TASK_MAX": last, "ARRAY_TASK_STEP": 1}
        return {
            task: self.job(script, **environment, **_slurm(**shared, ARRAY_TASK_ID=task))
            for task in range(first, last + 1)
        }

    def job(self, script: Path, **environment: str) -> Job:
        """`sbatch SCRIPT`, which runs at once."""
        self._jobs += 1
        job = Job(self._jobs, script, environment, self._place / f"job-{self._jobs}.log")
        self._start(job)
        return job

    def _start(self, job: Job) -> None:
        own = _slurm(JOB_ID=job.number, CPUS_PER_TASK=self._cores, RESTART_COUNT=job.restarts or None)
        with job.log.open("ab") as log:  # --open-mode=append
            job.process = subprocess.Popen(
                ["bash", str(job.script)],
                cwd=self._place,
                env={**os.environ, "PATH": self._path, **own, **job.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def time_limit(self, job: Job) -> int:
        """The time is nearly over: a signal to the batch shell. The status that it ended with."""
        assert directives(job.script)["signal"] == "B:USR1@120"
        job.process.send_signal(signal.SIGUSR1)
        return job.wait()

    def preempt(self, job: Job, *, grace: float, until: Callable[[], bool] = lambda: False) -> None:
        """A job of higher priority needs the node. until: nobody waits longer for what is done by then.

        A job whose work was done when the signal came ends with status 0, and Slurm has nothing to start again.
        """
        os.killpg(job.process.pid, signal.SIGCONT)
        os.killpg(job.process.pid, signal.SIGTERM)
        over = time.monotonic() + grace
        while time.monotonic() < over and job.process.poll() is None and not until():
            time.sleep(0.02)
        if job.process.poll() == 0:
            return
        assert job.process.poll() is None, "it has ended by itself, so Slurm would not start it again"
        self.node_fails(job)

    def node_fails(self, job: Job) -> None:
        """Nothing is left of it."""
        os.killpg(job.process.pid, signal.SIGKILL)
        job.wait()

    def requeue(self, job: Job) -> None:
        """What Slurm does after a preemption, a failed node, and `scontrol requeue`."""
        assert "requeue" in directives(job.script)
        job.restarts += 1
        self._start(job)

    def requeued(self) -> list[str]:
        """The jobs for which `scontrol requeue` was called."""
        asked = self._place / "requeued"
        return asked.read_text().split() if asked.exists() else []


def _slurm(**values: object) -> dict[str, str]:
    return {f"SLURM_{name}": str(value) for name, value in values.items() if value is not None}
