"""The command line: help, exit statuses, messages, and exactly one JSON object where it is asked for."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
from conftest import ROOT, Command, make_image, run_python
from forks import Forks

from precompute import extract, open_cache
from precompute.cli import cli


def commands() -> list[str]:
    return sorted(cli.commands)


@pytest.mark.parametrize("name", commands())
def test_every_command_has_help_with_examples(name: str) -> None:
    command = cli.commands[name]
    assert command.help is not None
    assert re.search(rf"Examples:\n +precompute {name}", command.help)
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help or isinstance(parameter.type, click.Choice), f"{name} {parameter.opts}"


def test_the_reference_in_the_docs_is_that_of_the_commands() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "make_cli_docs.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_help_loads_few_modules() -> None:
    """The promise is one of CPU time; what keeps it is what is not imported, and that can be tested without a clock."""
    code = (
        "import sys; sys.argv = ['precompute', '--help']\n"
        "from precompute.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(len(sys.modules), file=sys.stderr)"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert int(done.stderr) < 250


@pytest.mark.rotates(3)
def test_the_whole_road_in_processes_of_their_own(forks: Forks, photos: Path, tmp_path: Path) -> None:
    assert forks.run(tmp_path, "extract", "photos", "-b", "tiny", "-o", "a.h5") == 0, forks.errors.read_text()
    assert "24 images in 2 classes (12 train, 12 val)" in forks.output.read_text()
    assert forks.run(tmp_path, "train-head", "a.h5", "-o", "a.safetensors") == 0, forks.errors.read_text()
    assert re.search(r"val, 12 images.*\n.*\n accuracy +\d", forks.output.read_text())
    assert forks.run(tmp_path, "predict", "a.safetensors", "photos/val") == 0, forks.errors.read_text()
    assert "cats/0.jpg" in forks.output.read_text()


@pytest.mark.rotates(3)
def test_a_run_prints_what_a_user_wants_to_know_and_the_next_command(precompute: Command, photos: Path) -> None:
    shutil.copytree(photos / "val", photos / "my val")
    done = precompute("extract", photos / "my val", "-b", "tiny", "-o", "my val.h5")
    assert done.returncode == 0, done.stderr
    names = [line.split()[0] for line in done.stdout.splitlines()]
    assert names == ["cache", "samples", "features", "computed", "skipped", "time", "next"]
    last = shlex.split(done.stdout.splitlines()[-1])[1:]
    assert last == ["precompute", "train-head", "my val.h5", "-o", "my val.safetensors"]
    trained = precompute(*last[1:])
    assert trained.returncode == 0, trained.stderr
    predicting = next(line for line in trained.stdout.splitlines() if line.startswith("next"))
    command = shlex.split(predicting)[2:]
    assert command == ["predict", "my val.safetensors", "new-samples"]
    assert precompute(*command[:-1], photos / "val").returncode == 0
    why = precompute("extract", photos / "val", "-b", "tiny", "-o", "b.h5", "--verbose").stdout
    assert {"chosen", "time"} <= {line.split()[0] for line in why.splitlines() if not line.startswith(" ")}
    assert "the bottleneck is" in why


def test_a_cache_without_labels_asks_for_some(precompute: Command, photos: Path) -> None:
    done = precompute("extract", photos / "val" / "cats", "-b", "tiny", "-o", "a.h5")
    assert "next      precompute train-head a.h5 --labels labels.csv -o a.safetensors" in done.stdout


def test_tables_are_printed(precompute: Command, photos: Path) -> None:
    precompute("extract", "photos", "-b", "tiny", "-o", "a.h5")
    for command, shown in (
        (("info", "a.h5"), "24 (24 ok)"),
        (("verify", "a.h5"), "24 of 24"),
        (("info", "a.h5", "a.h5"), "same settings"),
        (("backbones", "resnet18"), "69.8"),
        (("backbones", "resnet18", "--layers"), "layer4.1.relu_1"),
    ):
        done = precompute(*command)
        assert done.returncode == 0, done.stderr
        assert shown in done.stdout


@pytest.mark.rotates(3)
def test_json_is_one_object_and_nothing_else(precompute: Command, photos: Path) -> None:
    for command in (
        ("extract", "photos", "-b", "tiny", "-o", "a.h5"),
        ("train-head", "a.h5", "-o", "a.safetensors"),
        ("train-head", "a.h5", "--head", "mlp", "--max-epochs", "3"),
        ("train-head", "a.h5", "--head", "knn"),
        ("train-head", "a.h5", "--head", "ridge"),
        ("train-head", "a.h5", "--head", "centroid"),
        ("export-head", "a.safetensors", "-o", "a.joblib"),
        ("predict", "a.safetensors", "photos/val"),
        ("info", "a.h5"),
        ("info", "a.h5", "a.h5"),
        ("verify", "a.h5"),
        ("backbones", "tiny"),
        ("backbones", "tiny", "--layers"),
    ):
        done = precompute(*command, "--json")
        assert done.returncode == 0, done.stderr
        assert isinstance(json.loads(done.stdout), dict), command
    done = precompute("info", "no.h5", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["type"] == "CacheFormatError"


@pytest.mark.rotates(3)
def test_csv_and_json_lines(forks: Forks, precompute: Command, photos: Path) -> None:
    odd = os.fsencode(photos) + b"/val/dogs/odd\xff,\n.png"
    make_image(7).save(photos / "x.png")
    os.rename(photos / "x.png", odd)
    precompute("extract", "photos", "-b", "tiny", "-o", "a.h5")
    precompute("train-head", "a.h5", "-o", "a.safetensors")
    assert forks.run(photos.parent, "predict", "a.safetensors", "photos", "--format", "csv") == 0
    rows = list(csv.DictReader(io.StringIO(forks.output.read_bytes().decode(errors="surrogateescape"))))
    assert len(rows) == 25
    assert "val/dogs/odd\udcff,\n.png" in [row["id"] for row in rows]
    lines = precompute("predict", "a.safetensors", "photos", "--format", "jsonl").stdout.splitlines()
    told = [json.loads(line) for line in lines]
    assert [item["id"] for item in told] == [row["id"] for row in rows]
    assert {item["class"] for item in told} <= {"cats", "dogs"}


@pytest.mark.rotates(3)
def test_predictions_equal_those_from_the_cache(precompute: Command, photos: Path, tmp_path: Path) -> None:
    from precompute import load_head

    for dtype in ("float32", "float16"):
        precompute("extract", "photos", "-b", "tiny", "-o", f"{dtype}.h5", "--dtype", dtype)
        precompute("train-head", f"{dtype}.h5", "-o", f"{dtype}.safetensors")
        told = json.loads(precompute("predict", f"{dtype}.safetensors", "photos", "--json").stdout)
        cache = open_cache(tmp_path / f"{dtype}.h5")
        expected = load_head(tmp_path / f"{dtype}.safetensors").head.predict_proba(np.array(cache.features()))
        np.testing.assert_array_equal([item["probability"] for item in told["predictions"]], expected.max(axis=1))
        assert [item["id"] for item in told["predictions"]] == cache.ids


@pytest.mark.rotates(3)
def test_one_image_is_a_source_for_predict(precompute: Command, photos: Path) -> None:
    precompute("extract", "photos", "-b", "tiny", "-o", "a.h5")
    precompute("train-head", "a.h5", "-o", "a.safetensors")
    told = json.loads(precompute("predict", "a.safetensors", "photos/val/cats/0.jpg", "--json").stdout)
    assert [item["id"] for item in told["predictions"]] == ["0.jpg"]
    assert told["accuracy"] is None


@pytest.mark.rotates(6)
def test_a_log_gets_plain_lines_and_a_terminal_a_bar(precompute: Command, photos: Path) -> None:
    done = precompute("extract", "photos", "-b", "tiny", "-o", "a.h5")
    assert "extract: 24 of 24 samples" in done.stderr
    assert "\x1b" not in done.stderr + done.stdout
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "precompute", "extract", "photos", "-b", "tiny", "-o", "b.h5"],
        cwd=photos.parent,
        stderr=theirs,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"},
    )
    os.close(theirs)
    seen = b""
    while True:
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # the terminal is closed: the process has ended
            break
        if not chunk:
            break
        seen += chunk
    assert process.wait() == 0
    os.close(ours)
    assert b"24/24" in seen
    assert b"images/s" in seen


@pytest.mark.rotates(3)
def test_skipped_images_give_status_3(precompute: Command, photos: Path) -> None:
    (photos / "val/cats/broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    done = precompute("extract", "photos", "-b", "tiny", "-o", "a.h5")
    assert done.returncode == 3, done.stderr
    assert "val/cats/broken.jpg" in done.stderr
    assert "skipped" in done.stdout
    again = precompute("extract", "photos", "-b", "tiny", "-o", "a.h5")
    assert again.returncode == 3
    assert "val/cats/broken.jpg" in again.stderr
    stop = precompute("extract", "photos", "-b", "tiny", "-o", "b.h5", "--on-error", "stop")
    assert stop.returncode == 1
    assert "val/cats/broken.jpg" in stop.stderr


@pytest.mark.rotates(3)
def test_a_damaged_cache_fails_verify(precompute: Command, photos: Path, tmp_path: Path) -> None:
    precompute("extract", "photos", "-b", "tiny", "-o", "a.h5")
    cache = open_cache(tmp_path / "a.h5")
    column = cache.layout.columns[f"features/{cache.layers[0]}"]
    with open(tmp_path / "a.h5", "r+b") as file:
        file.seek(column.offset + 7 * column.row_bytes)
        file.write(b"\x00\x01\x02\x03")
    done = precompute("verify", "a.h5")
    assert done.returncode == 1
    assert f"Damaged: {cache.ids[7]}" in done.stderr


@pytest.mark.rotates(3)
def test_verify_holds_the_cache_against_its_images(precompute: Command, photos: Path, tmp_path: Path) -> None:
    precompute("extract", "photos", "-b", "tiny", "-o", "a.h5")
    assert precompute("verify", "a.h5", "--source", "photos").returncode == 0
    edited = photos / "val/cats/1.png"
    times = edited.stat().st_mtime_ns
    make_image(70).save(edited)
    os.utime(edited, ns=(times, times))
    (photos / "val/cats/3.png").rename(photos / "val/cats/odd\x1b[31m.png")
    done = precompute("verify", "a.h5", "--source", "photos")
    assert done.returncode == 1
    assert "Changed: val/cats/1.png" in done.stderr
    assert "Gone: val/cats/3.png" in done.stderr
    assert "New: val/cats/odd\\x1b[31m.png" in done.stderr
    told = json.loads(precompute("verify", "a.h5", "--source", "photos", "--json").stdout)
    assert told["whole"] is True
    assert told["source"]["changed"] == ["val/cats/1.png"]


TWO_CLASSES = {"train/cats": 4, "train/dogs": 4, "val/cats": 2, "val/dogs": 2}


def build(folder: Path, counts: dict[str, int]) -> None:
    seed = 0
    for place, number in counts.items():
        (folder / place).mkdir(parents=True)
        for index in range(number):
            seed += 1
            make_image(seed).save(folder / place / f"{index}.png")


@pytest.mark.rotates(3)
@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"cats": 5}, "one class, 'cats'"),
        ({"": 5}, "no labelled features"),
        ({**TWO_CLASSES, "val/birds": 2}, "without usable training images: birds"),
        ({"val/cats": 3, "val/dogs": 3}, "no usable images in train"),
        ({"cats": 1, "dogs": 1}, "too few images"),
    ],
)
def test_labels_nothing_can_be_learned_from(
    precompute: Command, tmp_path: Path, counts: dict[str, int], message: str
) -> None:
    build(tmp_path / "photos", counts)
    assert precompute("extract", "photos", "-b", "tiny", "-o", "a.h5").returncode == 0
    done = precompute("train-head", "a.h5", "-o", "a.safetensors")
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "a.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["extract", "nowhere", "-b", "tiny", "-o", "a.h5"], 1, "nowhere does not exist"),
        (["extract", "empty", "-b", "tiny", "-o", "a.h5"], 1, "holds no images"),
        (["extract", "photos/val/cats/0.jpg", "-b", "tiny", "-o", "a.h5"], 1, "0.jpg is a file"),
        (["extract", "texts", "-b", "tiny", "-o", "a.h5"], 1, "1 not images: readme.txt"),
        (["extract", "photos", "-b", "resnet81", "-o", "a.h5"], 1, "Close: resnet18"),
        (["extract", "photos", "-b", "tiny", "--layer", "embd.1", "-o", "a.h5"], 1, "Close: embed.1"),
        (["extract", "photos", "-b", "tiny", "--weights", "no.pth", "-o", "a.h5"], 1, "no.pth cannot be read"),
        (["extract", "photos", "-b", "tiny", "-o", "no/a.h5"], 1, "mkdir -p no"),
        (["extract", "photos", "-b", "tiny", "-o", "empty"], 1, "is a folder"),
        (["extract", "photos", "-b", "tiny", "-o", "texts/readme.txt"], 1, "left as it is"),
        (["extract", "photos", "-b", "tiny", "-o", "a.h5", "--device", "cuda:99"], 1, "cannot be used here"),
        (["extract", "photos", "-b", "tiny", "-o", "a.h5", "--crop", "0"], 1, "crop must be"),
        (["extract", "photos", "-b", "tiny", "-o", "a.h5", "--limit", "0"], 2, "limit must be at least 1"),
        (["extract", "photos", "-o", "a.h5"], 2, "Missing option '-b'"),
        (["extract", "photos", "-b", "tiny", "-o", "a.h5", "--mean", "1,2"], 2, "three numbers"),
        (["train-head", "nowhere.h5"], 1, "does not exist"),
        (["train-head", "texts/readme.txt"], 1, "not an HDF5 file"),
        (["train-head", "nowhere.h5", "--dropout", "0.1"], 2, "does not belong to --head logistic"),
        (["train-head", "nowhere.h5", "--head", "knn", "--C", "1"], 2, "--C does not belong to --head knn"),
        (["train-head", "nowhere.h5", "--head", "ridge", "--k", "1"], 2, "--k does not belong to --head ridge"),
        (["train-head", "nowhere.h5", "--head", "centroid", "--alpha", "1"], 2, "does not belong to --head centroid"),
        (
            ["train-head", "nowhere.h5", "--head", "ridge", "--device", "cpu"],
            2,
            "--device does not belong to --head ridge",
        ),
        (["export-head", "nowhere.safetensors", "-o", "a.joblib"], 1, "cannot be read"),
        (["export-head", "texts/readme.txt", "-o", "a.joblib"], 1, "not a whole head file"),
        (["export-head", "nowhere.safetensors"], 2, "--output"),
        (["predict", "texts/readme.txt", "photos"], 1, "readme.txt"),
        (["predict", "nowhere.safetensors", "photos"], 1, "nowhere.safetensors"),
        (["info"], 2, ""),
        (["verify", "texts/readme.txt"], 1, "not an HDF5 file"),
        (["backbones", "no-such-thing"], 1, "no-such-thing"),
        (["no-such-command"], 2, "No such command"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_gets_one_clear_message(
    precompute: Command, photos: Path, tmp_path: Path, arguments: list[str], status: int, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/readme.txt").write_text("not an image")
    before = sorted(tmp_path.rglob("*"))
    done = precompute(*arguments)
    assert done.returncode == status, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout
    assert sorted(tmp_path.rglob("*")) == before  # nothing lost, nothing left half-made


def test_debug_shows_the_traceback(precompute: Command) -> None:
    assert "Traceback" in precompute("--debug", "info", "no.h5").stderr


@pytest.mark.rotates(3)
def test_a_user_backbone_must_be_confirmed_to_predict(precompute: Command, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "mynet.py").write_text(
        "import torch\n"
        "def make():\n"
        "    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 5, stride=4), torch.nn.ReLU(),\n"
        "        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 5))\n"
    )
    done = precompute("extract", "photos", "-b", "mynet:make", "--resize", "32", "--crop", "32", "-o", "a.h5")
    assert done.returncode == 0, done.stderr
    assert open_cache(tmp_path / "a.h5").features().shape == (24, 8)
    precompute("train-head", "a.h5", "-o", "a.safetensors")
    refused = precompute("predict", "a.safetensors", "photos")
    assert refused.returncode == 1
    assert "-b mynet:make" in refused.stderr
    assert precompute("predict", "a.safetensors", "photos", "-b", "mynet:make").returncode == 0


def test_info_tells_of_what_only_a_stranger_would_write(photos: Path, tmp_path: Path, precompute: Command) -> None:
    """A status of the future, and a number that JSON does not have."""
    extract(photos, tmp_path / "a.h5", backbone="tiny")
    columns = open_cache(tmp_path / "a.h5").layout.columns
    data = bytearray((tmp_path / "a.h5").read_bytes())
    data[columns["samples/status"].offset] = 200
    start = columns["provenance"].offset
    data[start : start + 30] = b'{"a": 1}\n{"b": 1e999}\n{"c": 1}\n'[:30]
    (tmp_path / "a.h5").write_bytes(data)
    done = precompute("info", "a.h5", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["status"] == {"OK": 23, "UNKNOWN_200": 1}
    assert told["provenance"] == [{"a": 1}]
    assert precompute("info", "a.h5").returncode == 0
