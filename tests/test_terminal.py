"""A run outlives its terminal: streams that are closed, full or left by their reader never end the work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, make_photos
from forks import Forks

from precompute import open_cache, verify
from precompute.cli._streams import hold_descriptors

EXTRACT = ("extract", "photos", "-b", "tiny", "-o", "a.h5")
LOST = "The result could not be printed: "
FULL, CLOSED, PIPE = "/dev/full", "closed", "broken pipe"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Path:
    """Photos, made.h5 of them, and a head."""
    place = tmp_path_factory.mktemp("terminal")
    make_photos(place / "photos")
    assert forks.run(place, "extract", "photos", "-b", "tiny", "-o", "made.h5") == 0, forks.errors.read_text()
    assert forks.run(place, "train-head", "made.h5", "-o", "made.safetensors") == 0, forks.errors.read_text()
    return place


def is_whole(path: Path) -> bool:
    return verify(open_cache(path)).whole and not os.path.lexists(f"{path}.partial")


@pytest.mark.rotates(4)
@pytest.mark.parametrize(
    ("lost", "stream", "as_json"),
    [
        *(("stdout", stream, []) for stream in (CLOSED, FULL, PIPE)),
        *(("stderr", stream, []) for stream in (CLOSED, FULL, PIPE)),
        *(("both", stream, []) for stream in (CLOSED, FULL, PIPE)),
        ("stdout", FULL, ["--json"]),
        ("stderr", FULL, ["--json"]),
    ],
)
def test_an_extraction_finishes_its_file(
    forks: Forks, folder: Path, lost: str, stream: str, as_json: list[str]
) -> None:
    (folder / "a.h5").unlink(missing_ok=True)
    streams = {name: stream for name in ("stdout", "stderr") if lost in (name, "both")}
    status = forks.run(folder, *EXTRACT, *as_json, **streams)
    assert is_whole(folder / "a.h5")
    assert status == (0 if lost == "stderr" else 1)
    if lost == "stdout":
        assert LOST in forks.errors.read_text()
        assert forks.errors.read_text().endswith("a.h5 is finished.\n")
        assert "Traceback" not in forks.errors.read_text()
    if lost == "stderr":
        said = forks.output.read_text()
        if as_json:
            assert json.loads(said)["rows"] == 24
        else:
            assert "24 images in 2 classes" in said
            assert ("could not be printed on stderr" in said) == (stream != PIPE)


@pytest.mark.slow
def test_a_cache_never_gets_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    """What libraries and this command print to descriptors 1 and 2 would land in it."""
    make_photos(tmp_path / "photos")
    command = f"exec {sys.executable} -m precompute {' '.join(EXTRACT)} 0<&- 1>&- 2>&-"
    done = subprocess.run(
        ["/bin/sh", "-c", command], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=300, check=False
    )
    assert done.returncode == 1
    assert is_whole(tmp_path / "a.h5")


def test_closed_descriptors_are_held() -> None:
    process = os.fork()
    if process == 0:
        os.closerange(0, 3)
        hold_descriptors()
        held = [
            os.readlink(f"/proc/self/fd/{number}") if os.path.exists("/proc") else os.devnull for number in range(3)
        ]
        os._exit(0 if held == [os.devnull] * 3 and os.get_inheritable(2) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0


COMMANDS = {
    "train-head": ("made.h5", "-o", "b.safetensors"),
    "predict": ("made.safetensors", "photos"),
    "few-shot": ("made.h5", "--shots", "1", "--draws", "1"),
    "compare": ("made.safetensors", "made.safetensors", "made.h5"),
    "verify": ("made.h5", "--source", "photos"),
    "info": ("made.h5",),
    "plan": ("photos", "-b", "tiny"),
    "export-head": ("made.safetensors", "-o", "b.joblib"),
    "backbones": ("resnet18",),
}


@pytest.mark.rotates(3)
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_that_its_result_is_lost(forks: Forks, folder: Path, name: str) -> None:
    arguments = COMMANDS[name]
    assert forks.run(folder, name, *arguments, stdout=FULL) == 1
    told = forks.errors.read_text()
    assert f"{LOST}No space left on device." in told
    assert "Traceback" not in told
    assert "bug in precompute" not in told
    if "-o" in arguments:
        assert f"{arguments[-1]} is finished." in told
        (folder / arguments[-1]).unlink()
    assert forks.run(folder, name, *arguments, "--json", stderr=FULL) == 0
    assert isinstance(json.loads(forks.output.read_text()), dict)


def test_a_reader_that_goes_away_ends_a_listing_quietly(forks: Forks, folder: Path) -> None:
    assert forks.run(folder, "backbones", "alex*", stdout=PIPE) == 1
    assert forks.errors.read_text() == ""


def test_an_error_that_stderr_cannot_take_goes_to_stdout(forks: Forks, folder: Path) -> None:
    assert forks.run(folder, "info", "nowhere.h5", stderr=CLOSED) == 1
    assert "nowhere.h5 does not exist" in forks.output.read_text()
    assert forks.run(folder, "predict", "nowhere", "photos", "--format", "csv", stderr=CLOSED) == 1
    assert forks.output.read_text() == ""  # whoever reads CSV gets CSV


@pytest.mark.rotates(3)
def test_names_that_the_stream_has_no_letters_for_are_escaped(folder: Path) -> None:
    (folder / "caf\u00e9.h5").write_bytes((folder / "made.h5").read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "precompute", "info", "caf\u00e9.h5"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"caf\\xe9.h5")


@pytest.mark.rotates(3)
def test_what_a_backbone_of_the_user_prints_stays_out_of_the_json(
    photos: Path, tmp_path: Path, precompute: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    (tmp_path / "chatty.py").write_text(
        "from precompute.backbones.tiny import tiny\ndef make():\n    print('loading my model')\n    return tiny()\n"
    )
    done = precompute("extract", "photos", "-b", "chatty:make", "--crop", "32", "-o", "a.h5", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == 24
    assert "loading my model" in done.stderr
