"""The pipelines of examples/ as their tools run them: a broken photo fails the step, no row is lost, a rerun is free.

Folders have names with blanks, and runs are killed.

`scripts/test_pipelines` installs Snakemake and DVC beside precompute; PRECOMPUTE_PIPELINES_BIN names their folder.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from conftest import ROOT, make_image, make_photos, rows_there, run_command

from precompute import open_cache

FOLDER = os.environ.get("PRECOMPUTE_PIPELINES_BIN")
BROKEN = "photos/train/cats/broken.jpg"
FILES = ("photos.h5", "new.h5", "head.safetensors", "scores.json", "predictions.csv")


def tool(name: str) -> str:
    """Where it is; skips where it is nowhere, and fails where it is missing in the folder that was named."""
    found = shutil.which(name, path=FOLDER) if FOLDER and name != "make" else shutil.which(name)
    if found is None and FOLDER and name != "make":
        pytest.fail(f"{name} is not in {FOLDER}, the folder that PRECOMPUTE_PIPELINES_BIN names")
    if found is None:
        hint = "apt install make" if name == "make" else "run scripts/test_pipelines"
        pytest.skip(f"needs {name}, which is not installed: {hint}")
    return found


@dataclass
class Pipeline:
    """An example in a folder of its own, with photos beside it.

    command: what runs it · skipping: the same for a user who goes on without photos that cannot be read, with the
    folders of the photos · unlock: what the docs want first after a kill.
    """

    folder: Path
    command: list[str]
    skipping: Callable[[str, str], list[str]]
    unlock: list[str]
    environment: dict[str, str]
    output: str = ""
    calls: list[str] = field(default_factory=list)

    def run(self, command: list[str] | None = None) -> int:
        """Its exit status; afterwards `calls` are the commands of precompute that it ran, `output` what was printed."""
        log = self.folder / "calls"
        log.write_text("")
        done = subprocess.run(
            command or self.command,
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        self.output, self.calls = done.stdout, log.read_text().split()
        return done.returncode

    def killed(self) -> None:
        """A run that is killed, with all that it has started, as its first command has done its work."""
        hold, held = self.folder / "hold", self.folder / "held"
        hold.touch()
        with subprocess.Popen(
            self.command,
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as running:
            try:
                until = time.monotonic() + 120
                while not held.exists() and running.poll() is None and time.monotonic() < until:
                    time.sleep(0.05)
                assert held.exists()
                assert running.poll() is None
            finally:
                os.killpg(running.pid, signal.SIGKILL)
        hold.unlink()

    def runs_that_computed(self, cache: str = "photos.h5") -> int:
        """How many runs have added rows to the feature file: those that computed nothing leave no record."""
        return len(open_cache(self.folder / cache).provenance)

    def to_read(self) -> tuple[int, int]:
        """Of how many photos rows are kept, and how many the next run would read."""
        done = run_command(self.folder, "extract", "photos", "-b", "tiny", "-o", "photos.h5", "--dry-run", "--json")
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        return told["reused"], told["to_read"]

    def written(self) -> dict[str, int]:
        """When each result was last written, by its name."""
        return {name: (self.folder / name).stat().st_mtime_ns for name in FILES}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A PATH on which `precompute` is this one, and folders of its own for what the tools keep; nothing is reported."""
    shim = tmp_path / "bin" / "precompute"
    shim.parent.mkdir()
    run = f'"{sys.executable}" -m precompute "$@"'
    shim.write_text(
        f'#!/bin/sh\necho "$1" >> calls\n[ -e hold ] || exec {run}\n{run} || exit\ntouch held; exec sleep 300\n'
    )
    shim.chmod(0o755)
    home = tmp_path / "home"
    home.mkdir()
    folders = (
        "HOME",
        "XDG_CACHE_HOME",
        "XDG_CONFIG_HOME",
        "XDG_DATA_HOME",
        "DVC_SITE_CACHE_DIR",
        "DVC_GLOBAL_CONFIG_DIR",
    )
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "MAKE", "SNAKEMAKE"))},
        **dict.fromkeys(folders, str(home)),
        "PATH": os.pathsep.join(filter(None, (str(shim.parent), FOLDER, os.environ.get("PATH")))),
        "PYTHONPATH": str(ROOT),
        "DVC_NO_ANALYTICS": "1",
        "CI": "true",  # DVC looks for no newer release
    }


@pytest.fixture(params=["make", "snakemake", "dvc"])
def pipeline(request: pytest.FixtureRequest, tmp_path: Path, environment: dict[str, str]) -> Pipeline:
    name: str = request.param
    program = tool(name)
    folder = tmp_path / "project"
    shutil.copytree(ROOT / "examples" / name, folder)
    make_photos(folder / "photos")
    (folder / "new-photos").mkdir()
    for number in range(3):
        make_image(100 + number).save(folder / "new-photos" / f"{number}.jpg")
    commands = {
        "make": [program],
        "snakemake": [program, "--cores", "1", "--rerun-incomplete"],
        "dvc": [program, "repro"],
    }
    if name == "dvc":
        for words in (("init", "--no-scm"), ("config", "core.analytics", "false")):
            subprocess.run([program, *words], cwd=folder, env=environment, check=True, capture_output=True, timeout=300)

    def skipping(photos: str, new: str) -> list[str]:
        if name == "dvc":
            file = folder / "dvc.yaml"
            text = file.read_text()
            for old, value in (
                ('skip: ""', "skip: --allow-skipped"),
                ("photos: photos", f"photos: {photos}"),
                ("new: new-photos", f"new: {new}"),
            ):
                assert text.count(old) == 1
                text = text.replace(old, value)
            file.write_text(text)
        more = {
            "make": ["SKIP=--allow-skipped", f"PHOTOS={photos}", f"NEW={new}"],
            "snakemake": ["--config", "allow_skipped=true", f"photos={photos}", f"new={new}"],
            "dvc": [],
        }
        return commands[name] + more[name]

    unlock = [program, "--unlock"] if name == "snakemake" else []
    return Pipeline(folder, commands[name], skipping, unlock, environment)


@pytest.mark.parametrize("file", ["make/Makefile", "snakemake/Snakefile", "dvc/dvc.yaml"])
def test_the_docs_show_the_files_that_run(file: str) -> None:
    text = (ROOT / "examples" / file).read_text()
    assert f"`examples/{file}`:\n\n```" in (page := (ROOT / "docs/pipelines.md").read_text())
    assert f"\n{text}```\n" in page
    if file.startswith("snakemake"):  # as the tests below call it
        for shown in (text, (ROOT / "docs/howto/snakemake.md").read_text()):
            assert "snakemake --cores 1 --rerun-incomplete" in shown
            assert "snakemake --unlock" in shown


@pytest.mark.slow
def test_a_pipeline_fails_keeps_its_rows_and_reruns_for_free(pipeline: Pipeline) -> None:
    broken = pipeline.folder / BROKEN
    broken.write_bytes(b"no photo at all")
    assert pipeline.run() != 0
    assert "exit" in pipeline.output or "Error 3" in pipeline.output
    assert "train-head" not in pipeline.calls
    assert rows_there(pipeline.folder / "photos.h5") == 24  # the first run of all has failed, and no row is lost

    assert pipeline.run() != 0  # it fails for as long as the photo is there,
    assert pipeline.runs_that_computed() == 1  # and computes nothing again

    broken.unlink()
    assert pipeline.run() == 0, pipeline.output
    assert pipeline.runs_that_computed() == 1
    assert {"extract", "train-head", "predict"} == set(pipeline.calls)
    predictions = (pipeline.folder / "predictions.csv").read_text().splitlines()
    assert predictions[0] == "id,class,probability"
    assert [line.split(",")[0] for line in predictions[1:]] == ["0.jpg", "1.jpg", "2.jpg"]

    before = pipeline.written()
    assert pipeline.run() == 0
    assert set(pipeline.calls) <= {"extract"}  # make asks precompute itself what has changed
    assert pipeline.written() == before
    assert (pipeline.runs_that_computed(), pipeline.runs_that_computed("new.h5")) == (1, 1)

    make_image(1000).save(pipeline.folder / "photos/train/dogs/one-more.jpg")
    assert pipeline.to_read() == (24, 1)
    assert pipeline.run() == 0
    assert rows_there(pipeline.folder / "photos.h5") == 25
    assert pipeline.runs_that_computed() == 2
    assert {"train-head", "predict"} <= set(pipeline.calls)


@pytest.mark.slow
def test_a_pipeline_goes_on_after_it_was_killed(pipeline: Pipeline) -> None:
    pipeline.killed()
    if pipeline.unlock:
        assert pipeline.run(pipeline.unlock) == 0, pipeline.output
    assert pipeline.run() == 0, pipeline.output
    assert {"train-head", "predict"} <= set(pipeline.calls)
    assert (pipeline.runs_that_computed(), pipeline.runs_that_computed("new.h5")) == (1, 1)  # no row is lost


@pytest.mark.slow
def test_a_pipeline_goes_on_without_a_broken_photo_where_that_is_asked_for(pipeline: Pipeline) -> None:
    for name in (BROKEN, "new-photos/broken.jpg"):
        (pipeline.folder / name).write_bytes(b"no photo at all")
    (pipeline.folder / "photos").rename(pipeline.folder / "my photos")
    (pipeline.folder / "new-photos").rename(pipeline.folder / "photos of today")
    command = pipeline.skipping("my photos", "photos of today")
    assert pipeline.run(command) == 0, pipeline.output
    assert rows_there(pipeline.folder / "photos.h5") == 24
    assert len((pipeline.folder / "predictions.csv").read_text().splitlines()) == 1 + 3

    before = pipeline.written()
    assert pipeline.run(command) == 0
    assert set(pipeline.calls) <= {"extract"}
    assert pipeline.written() == before
