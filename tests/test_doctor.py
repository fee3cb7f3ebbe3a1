"""`precompute doctor`: what it says of real packages, folders and networks, and of some that are broken."""

from __future__ import annotations

import json
import os
import re
import signal
import tomllib
from pathlib import Path

import click
import pytest
from conftest import ROOT, run_command
from jsonschema import Draft202012Validator

from precompute import Diagnosis, Finding
from precompute.cli import cli
from precompute.cli._streams import Terminal
from precompute.cli.doctor import _print, _settings
from precompute.diagnosis import devices, engines, folders, variables
from precompute.diagnosis.finding import NOTE, OK, PROBLEM, guarded
from precompute.diagnosis.packages import (
    EXTRACT,
    EXTRAS,
    HEADS,
    Installed,
    bounds_in,
    core,
    extras,
    lower_bounds,
    numbers,
)
from precompute.diagnosis.probing import import_errors, load_error
from precompute.schemas import schema_of
from precompute.system import cores

NOT_FOR_USERS = {"dev", "docs", "test"}

BROKEN = {
    "without_a_library": ("raise ImportError('libgone.so: cannot open')", "ImportError: libgone.so: cannot open"),
    "that_exits": ("raise SystemExit('no licence')", "SystemExit: no licence"),
    "that_interrupts": ("raise KeyboardInterrupt", "KeyboardInterrupt: no reason given"),
    "that_ends_it": ("import os; os._exit(3)", "it ended the interpreter with status 3"),
    "that_crashes": (
        f"import os; os.kill(os.getpid(), {int(signal.SIGSEGV)})",
        "it crashed the interpreter (SIGSEGV)",
    ),
    "that_talks": ("import os; os.write(1, b'{}\\n'); print('hello')", None),
}


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, (code, _) in BROKEN.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_package_may_fail_in_any_way(broken: Path) -> None:
    found = import_errors(["json", *BROKEN, "no_such_package", "csv"])
    assert found == {
        "json": None,
        **{name: said for name, (_, said) in BROKEN.items()},
        "no_such_package": "ModuleNotFoundError: No module named 'no_such_package'",
        "csv": None,
    }


def test_what_a_look_raises_is_a_note() -> None:
    def look() -> list[Finding]:
        raise SystemExit("no licence")

    (found,) = guarded("extras", look)
    assert (found.section, found.status) == ("extras", NOTE)
    assert "SystemExit: no licence" in found.text


def test_the_extras_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = project["optional-dependencies"]
    assert EXTRAS.keys() == named.keys() - NOT_FOR_USERS
    for name, extra in EXTRAS.items():
        assert {*extra.packages} == {re.split(r"[\[>]", one)[0] for one in named[name]}, name
    assert {*EXTRACT, *HEADS} == {one.split(">")[0] for one in project["dependencies"]}


def packages(versions: dict[str, str], errors: dict[str, str] | None = None) -> Installed:
    """An environment with these packages and no others."""
    names = [*EXTRACT, *HEADS, *(name for extra in EXTRAS.values() for name in extra.packages)]
    given = {name: versions.get(name) for name in names}
    lowest = {
        "": {"torch": "2.6"},
        "hf": {"huggingface-hub": "1.31"},
        "open-clip": {"huggingface-hub": "0.28", "open_clip_torch": "2.32", "timm": "1.0.15"},
        "timm": {"huggingface-hub": "0.28", "timm": "1.0.15"},
    }
    return Installed(given, lowest, {name: (errors or {}).get(name) for name in versions})


def test_extras_complete_or_not() -> None:
    there = {
        "torch": "2.14.0+cpu",
        "soundfile": "0.14",
        "timm": "1.0.9",
        "huggingface-hub": "2.0",
        "openvino": "2026.1",
    }
    found = {one.name: one for one in extras(packages(there, {"openvino": "OSError: gone"}))}
    assert found["s3"].status == NOTE
    assert found["s3"].hint == "pip install 'precompute[s3]'"
    assert "object stores" in found["s3"].text
    assert "soxr is missing" in found["audio"].text
    assert found["timm"].text.endswith("older than what is tested: timm>=1.0.15")
    assert found["openvino"].status == PROBLEM  # `auto` would look at it in every run
    assert "OSError: gone" in found["openvino"].text
    assert "pip uninstall openvino" in found["openvino"].hint
    assert "not complete" in found["open_clip"].text
    hub = {"huggingface-hub": "0.36", "timm": "1.0.15", "open_clip_torch": "2.32"}  # too old for hf alone
    hf = dict.fromkeys(("transformers", "tokenizers", "datasets", "pyarrow"), "99")
    found = {one.name: one for one in extras(packages({**hub, **hf}))}
    assert (found["timm"].status, found["open_clip"].status) == (OK, OK)
    assert found["hf"].text.endswith("older than what is tested: huggingface-hub>=1.31")
    found = {one.name: one for one in extras(packages({**hub, "open_clip_torch": "2.31"}))}
    assert found["open_clip"].text.endswith("older than what is tested: open_clip_torch>=2.32")
    complete = packages({"soundfile": "0.14", "soxr": "1.0"})
    assert {one.name: one.status for one in extras(complete)}["audio"] == OK


def test_core_packages() -> None:
    versions = dict.fromkeys((*EXTRACT, *HEADS), "99")
    assert {one.status for one in core(packages(versions))} == {OK}
    found = {one.name: one for one in core(packages({**versions, "torch": "2.5.9+cu118"}))}
    assert (found["torch"].status, found["torch"].hint) == (NOTE, "pip install --upgrade 'torch>=2.6'")
    found = {one.name: one for one in core(packages({"torch": "2.14"}, {"torch": "ImportError: no libc10"}))}
    assert (found["torch"].status, found["h5py"].status, found["scikit-learn"].status) == (PROBLEM, PROBLEM, NOTE)
    assert "cannot be loaded: ImportError: no libc10" in found["torch"].text


def test_versions() -> None:
    assert numbers("2.14.0+cpu") == numbers("2.14") < numbers("2.14.1") < numbers("2.15rc1")
    assert numbers("") == numbers("unknown") == ()


def test_lower_bounds_are_by_extra() -> None:
    """What `timm` needs of a package is not what `hf` needs of it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = project["optional-dependencies"]
    lines = [*project["dependencies"], *(f'{one}; extra == "{name}"' for name in named for one in named[name])]
    found = bounds_in(lines)
    for name, wanted in {"": project["dependencies"], **{name: named[name] for name in EXTRAS}}.items():
        bounds = dict(re.sub(r"\[.*?\]", "", one).split(">=") for one in wanted)
        assert found[name.replace("_", "-")] == bounds, name
    assert found["timm"]["huggingface-hub"] != found["hf"]["huggingface-hub"]
    assert lower_bounds()[""]["torch"]


def test_this_machine() -> None:
    found = {one.name: one for one in devices.processor()}
    assert found["processor"].details["cores"] == cores()
    assert found["memory"].details["bytes"] > 0
    assert {one.status for one in devices.accelerators()} <= {OK, NOTE}
    assert {one.name for one in folders.limits()} == {"open files", "shared memory"}


CUDA_12_6 = ("sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90", "compute_90")


@pytest.mark.parametrize(
    ("major", "minor", "architectures", "runs"),
    [
        (8, 9, CUDA_12_6, True),  # RTX 4090, L4, L40S: by sm_86
        (8, 6, CUDA_12_6, True),
        (6, 1, CUDA_12_6, True),
        (12, 0, CUDA_12_6, True),  # by PTX
        (3, 7, CUDA_12_6, False),
        (12, 0, CUDA_12_6[:-1], False),
        (8, 0, ("sm_86", "compute_86"), False),
        (7, 5, ("sm_80",), False),
        (10, 0, ("sm_90a",), False),
        (9, 0, ("sm_90a",), True),
        (10, 3, ("sm_100a",), False),
        (10, 3, ("sm_100f",), True),
        (12, 1, ("sm_120",), True),
        (12, 0, ("sm_90", "compute_90a"), False),
        (9, 4, ("gfx90a", "gfx942"), True),
        (9, 0, (), False),
    ],
)
def test_whether_a_build_runs_on_a_gpu(major: int, minor: int, architectures: tuple[str, ...], runs: bool) -> None:
    assert devices.has_code_for(major, minor, architectures) == runs


def test_the_engine_is_that_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRECOMPUTE_ENGINE", "torch")
    monkeypatch.setenv("PRECOMPUTE_PRECISION", "fp32")
    found = {one.name: one for one in engines.chosen()}
    first = found["auto"].details["candidates"][0]
    assert (first["engine"], first["precision"]) == ("torch", "fp32")
    assert found["PRECOMPUTE_ENGINE"].status == NOTE
    monkeypatch.setenv("PRECOMPUTE_ENGINE", "onnx")
    (only,) = engines.chosen()
    assert only.status == PROBLEM
    assert "'onnx'" in only.text


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    place = tmp_path / "torch" / "hub" / "checkpoints"
    place.mkdir(parents=True)
    (place / "a.pth").write_bytes(b"12345")
    (place / "link.pth").symlink_to(place / "a.pth")
    found = {one.name: one for one in folders.kept()}["weights of torchvision"]
    assert (found.details["files"], found.details["bytes"]) == (1, 5)
    assert found.details["path"] == str(place)

    for name in ("", "results.h5", "there.h5"):
        (tmp_path / "there.h5").write_bytes(b"")
        before = sorted(tmp_path.iterdir())
        (one,) = folders.output(str(tmp_path / name))
        assert one.status != PROBLEM
        assert "with lock, reservation and rename" in one.text
        assert sorted(tmp_path.iterdir()) == before
    (one,) = folders.output(str(tmp_path / "gone"))
    assert (one.status, one.hint) == (PROBLEM, f"Make it: mkdir -p {tmp_path / 'gone'}")


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc, where nobody can make a file")
def test_a_folder_that_cannot_be_written() -> None:
    (one,) = folders.output("/proc/self")
    assert one.status == PROBLEM
    assert "a feature file cannot be written there" in one.text


def test_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("PRECOMPUTE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_ADDRESS", "ray://me:s3cret@host:10001")
    monkeypatch.setenv("PRECOMPUTE_EXTRACT_ROOT", "s3://me:s3cret@host/a")
    monkeypatch.setenv("PRECOMPUTE_DEVICE", "cpu")
    monkeypatch.setenv("PRECOMPUTE_EXTRACT_BATCHSIZE", "s3cret")
    root = click.Context(cli, info_name="precompute")
    ours = {one.name: one for one in _settings(click.Context(cli.commands["doctor"], parent=root))}
    assert ours["PRECOMPUTE_DEVICE"].text == "cpu (device of all commands)"
    assert ours["PRECOMPUTE_EXTRACT_ROOT"].text == "s3://host/a (root of extract)"
    unknown = ours["PRECOMPUTE_EXTRACT_BATCHSIZE"]
    assert (unknown.status, unknown.hint) == (NOTE, "Did you mean PRECOMPUTE_EXTRACT_BATCH_SIZE?")
    found = {one.name: one for one in variables.known()}
    assert found["RAY_ADDRESS"].text.startswith("ray://host:10001 ")
    assert "s3cret" not in json.dumps(Diagnosis((*ours.values(), *found.values())).to_dict())


def test_variables_with_values_that_their_command_refuses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wrong = {
        "PRECOMPUTE_EXTRACT_BATCH_SIZE": ("many", PROBLEM, "'many' is not a valid integer (batch-size of extract)"),
        "PRECOMPUTE_EXTRACT_DEVICE": ("cuda:99", PROBLEM, "The device 'cuda:99' cannot be used here"),
        "PRECOMPUTE_DEVICE": ("no such", NOTE, "The device 'no such' cannot be used here"),  # that of extract holds
        "PRECOMPUTE_EXTRACT_OVERWRITE": ("maybe", PROBLEM, "is neither true nor false (overwrite of extract)"),
        "PRECOMPUTE_EXTRACT_LAYER": ("'a b", PROBLEM, "cannot be taken apart"),
        "PRECOMPUTE_EXTRACT_MEAN": ("1,2", PROBLEM, "is not three numbers"),
        "PRECOMPUTE_WORKERS": ("2.5", PROBLEM, "(workers of all commands)"),
        "PRECOMPUTE_SEED": ("x", NOTE, "(seed of all commands)"),  # extract has none
        "PRECOMPUTE_RANK_SEED": ("-1", NOTE, "(seed of rank)"),
        "PRECOMPUTE_TRAIN_HEAD_HIDDEN": ("a", NOTE, "(hidden of train-head)"),
    }
    right = {
        "PRECOMPUTE_EXTRACT_LIMIT": "5",
        "PRECOMPUTE_EXTRACT_REHASH": "no",
        "PRECOMPUTE_EXTRACT_REUSE": "a.h5 'b c.h5'",
        "PRECOMPUTE_PREDICT_HEADS": "a b",
        "PRECOMPUTE_DEMO_TEXT": "1",
        "PRECOMPUTE_PREDICT_DEVICE": "cuda:99",  # perhaps for a machine that has it
        "PRECOMPUTE_EXECUTOR": "local",
    }
    for name in [name for name in os.environ if name.startswith("PRECOMPUTE_")]:
        monkeypatch.delenv(name)
    for name, text in [*((name, text) for name, (text, _, _) in wrong.items()), *right.items()]:
        monkeypatch.setenv(name, text)
    root = click.Context(cli, info_name="precompute")
    here = click.Context(cli.commands["doctor"], parent=root)
    found = {one.name: one for one in _settings(here)}
    assert found.keys() == wrong.keys() | right.keys()
    for name, (_, status, said) in wrong.items():
        assert (found[name].status, said in found[name].text) == (status, True), found[name]
        assert found[name].hint
    assert {found[name].status for name in right} == {OK}
    broken = {one.name: one for one in _settings(here, torch=False)}
    assert broken["PRECOMPUTE_EXTRACT_DEVICE"].status == OK  # nothing is tried with a torch that cannot be loaded
    monkeypatch.delenv("PRECOMPUTE_EXTRACT_DEVICE")
    assert {one.name: one.status for one in _settings(here)}["PRECOMPUTE_DEVICE"] == PROBLEM


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://u:p/w@host/x?X-Amz-Signature=SECRET", "https://host/x"),
        ("ray://u:pa@ss@h:1", "ray://h:1"),
        ("s3://key:sec/ret@host/b", "s3://host/b"),
        ("https://u:p?w@host/x", "https://host/x"),
        ("s3://bucket/photos", "s3://bucket/photos"),
        ("photos@home/what?.jpg", "photos@home/what?.jpg"),
    ],
)
def test_secrets_in_addresses_are_not_shown(address: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setenv("PRECOMPUTE_EXTRACT_ROOT", address)
    monkeypatch.setenv("PRECOMPUTE_EXTRACT_POOLING", address)
    root = click.Context(cli, info_name="precompute")
    ours = {one.name: one for one in _settings(click.Context(cli.commands["doctor"], parent=root))}
    assert ours["PRECOMPUTE_EXTRACT_ROOT"].text == f"{shown} (root of extract)"
    found = {one.name: one for one in variables.known()}
    assert found["RAY_ADDRESS"].details == {"value": shown}
    told = json.dumps(Diagnosis((*ours.values(), *found.values())).to_dict())
    with pytest.raises(click.BadParameter) as caught, click.Context(cli, obj=Terminal()) as root:
        cli.commands["extract"].make_context("extract", ["photos", "-b", "tiny", "-o", "a.h5"], parent=root)
    for secret in {"p/w", "SECRET", "pa@ss", "sec/ret", "p?w", "u:"} if address != shown else ():
        assert secret not in told + caught.value.message


def test_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    found = Diagnosis(
        (
            Finding("devices", "GPU", OK, "none\x1b[2J"),
            Finding("extras", "s3", NOTE, "not installed", "pip install 'precompute[s3]'"),
            Finding("folders", "output", PROBLEM, "no\nplace", "Make room."),
        )
    )
    assert not found.healthy
    Draft202012Validator(schema_of("doctor")).validate(found.to_dict())
    _print(found)
    assert capsys.readouterr().out == (
        "Devices\n  ok       GPU     none\\x1b[2J\n"
        "\nExtras\n  note     s3      not installed\n                   -> pip install 'precompute[s3]'\n"
        "\nFolders\n  PROBLEM  output  no\n                   place\n                   -> Make room.\n"
        "\n1 problem would stop `precompute extract`: output.\n"
    )
    _print(Diagnosis(found.findings[:2]))
    assert "Nothing was found that would stop" in capsys.readouterr().out


@pytest.mark.slow
def test_whether_weights_are_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert load_error("tiny", "DEFAULT")["error"] is None
    missing = load_error("mobilenet_v2", "DEFAULT")
    assert "not on this machine" in missing["error"]
    assert "Three options" in missing["hint"]
    assert "resnet1" in load_error("resnet1", "DEFAULT")["error"]
    (tmp_path / "a.pth").write_bytes(b"no weights")
    assert "a.pth" in load_error("mobilenet_v2", str(tmp_path / "a.pth"))["error"]


@pytest.mark.slow
def test_weights_that_are_there(mobilenet_weights: Path) -> None:
    found = load_error("mobilenet_v2", str(mobilenet_weights))
    assert found["error"] is None
    assert found["file"]["path"] == str(mobilenet_weights)


@pytest.mark.slow
def test_doctor_over_a_broken_extra(tmp_path: Path) -> None:
    """The whole command, where packages raise, end or crash the interpreter."""
    for name, code in (
        ("timm", BROKEN["that_crashes"][0]),
        ("matplotlib", BROKEN["that_exits"][0]),
        ("soxr", BROKEN["without_a_library"][0]),
    ):
        (tmp_path / "broken" / name).mkdir(parents=True)
        (tmp_path / "broken" / name / "__init__.py").write_text(code)
    env = {"PYTHONPATH": f"{tmp_path / 'broken'}{os.pathsep}{ROOT}"}
    done = run_command(tmp_path, "doctor", ".", "-b", "tiny", "--json", env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    Draft202012Validator(schema_of("doctor")).validate(told)
    assert told["healthy"]
    found = {(one["section"], one["name"]): one for one in told["findings"]}
    assert "crashed the interpreter (SIGSEGV)" in found["extras", "timm"]["text"]
    assert "SystemExit: no licence" in found["extras", "plot"]["text"]
    assert "libgone.so" in found["extras", "audio"]["text"]
    assert found["weights", "tiny"]["status"] == OK
    assert found["folders", "output"]["status"] != PROBLEM


@pytest.mark.slow
def test_doctor_where_an_extraction_would_stop(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "broken" / "openvino").mkdir(parents=True)
    (tmp_path / "broken" / "openvino" / "__init__.py").write_text(BROKEN["without_a_library"][0])
    env = {"PYTHONPATH": f"{tmp_path / 'broken'}{os.pathsep}{ROOT}"}
    done = run_command(tmp_path, "doctor", "gone", env=env)
    assert done.returncode == 1
    assert "2 problems would stop `precompute extract`: openvino, output." in done.stdout
    stopped = run_command(tmp_path, "extract", "photos", "-b", "tiny", "-o", "a.h5", env=env)
    assert stopped.returncode == 1  # as doctor said
    assert "libgone.so" in stopped.stderr
