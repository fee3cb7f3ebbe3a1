"""Options from variables and from a file: which goes before which, for every option of every command; and mistakes."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
from conftest import ROOT, Command
from test_json_errors import NEEDED, error_in

from precompute.cli import asks_for, asks_for_json, cli
from precompute.cli._config import COMMON, LIBRARY, is_common, is_flag, settings_of, variables_of
from precompute.cli._streams import Terminal

CANDIDATES = (
    *(("3", "5"), ("0.25", "0.75"), ("1/4", "2/4"), ("0.1,0.2,0.3", "0.4,0.5,0.6"), ("12,3", "4")),
    *(("one", "two"), ("s3://bucket/a", "b c")),
)
"""Pairs of values, of which each option admits one at least."""


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("PRECOMPUTE_") and name not in LIBRARY:
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def parsed(name: str, *arguments: str) -> dict[str, Any]:
    """The parameters that a command would run with."""
    root = click.Context(cli, info_name="precompute", obj=Terminal())
    with root, cli.commands[name].make_context(name, list(arguments), parent=root) as ctx:
        return dict(ctx.params)


def others_needed(name: str, key: str) -> list[str]:
    """The arguments that `name` needs at least, less the one under test."""
    words, rest = [], list(NEEDED.get(name, ()))
    options = {word: key for key, one in settings_of(cli.commands[name]).items() for word in one.opts}
    while rest:
        word = rest.pop(0)
        taken = [word, rest.pop(0)] if word.startswith("-") else [word]
        if options.get(word) != key:
            words += taken
    return words


def values_of(parameter: click.Parameter) -> tuple[str, str]:
    """Two different values that the parameter admits."""
    if isinstance(parameter.type, click.Choice):
        # a command with a single choice has a default of None to differ from
        return str(parameter.type.choices[-1]), str(parameter.type.choices[0])
    for pair in CANDIDATES:
        try:
            for text in pair:
                parameter.type.convert(text, parameter, None)
        except click.BadParameter:
            continue
        if parameter.name != "part" or "/" in pair[0]:
            return pair
    raise AssertionError(f"{parameter.opts}: add a value of its kind to CANDIDATES")


def as_toml(parameter: click.Parameter, text: str) -> str:
    """A value as a person would write it."""
    kind = parameter.type
    number = isinstance(kind, click.types.IntParamType | click.types.FloatParamType)
    one = text if number else json.dumps(text)
    return f"[{one}]" if parameter.nargs == -1 or getattr(parameter, "multiple", False) else one


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_option_can_be_set_by_a_flag_a_variable_and_the_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, parameter in settings_of(cli.commands[name]).items():
        variable, needed = variables_of(name, key)[0], others_needed(name, key)
        assert re.fullmatch("PRECOMPUTE_[A-Z0-9_]+", variable)
        file = tmp_path / "run.toml"
        if isinstance(parameter, click.Argument):  # on the command line it stands in its place among the others
            _argument(name, key, parameter, file, monkeypatch)
            continue
        word = max(parameter.opts, key=len)
        if is_flag(parameter):
            by_flag = parsed(name, *needed, word)
            file.write_text(f"[{name}]\n{key} = true\n")
            assert parsed(name, *needed, "--config", "run.toml") == by_flag != parsed(name, *needed), key
            monkeypatch.setenv(variable, "0")  # before the file
            assert parsed(name, *needed, "--config", "run.toml") == parsed(name, *needed), key
            monkeypatch.setenv(variable, "yes")
            assert parsed(name, *needed) == by_flag, key
            monkeypatch.delenv(variable)
            continue
        first, second = values_of(parameter)
        by_flag, other = parsed(name, *needed, word, first), parsed(name, *needed, word, second)
        file.write_text(f"[{name}]\n{key} = {as_toml(parameter, first)}\n")
        assert parsed(name, *needed, "--config", "run.toml") == by_flag, key
        many = getattr(parameter, "multiple", False)
        monkeypatch.setenv(variable, shlex.quote(second) if many else second)
        assert parsed(name, *needed, "--config", "run.toml") == other, key  # the variable before the file
        assert parsed(name, *needed, "--config", "run.toml", word, first) == by_flag, key  # the flag before both
        monkeypatch.delenv(variable)


def _argument(name: str, key: str, parameter: click.Parameter, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arguments that are all in the file, or all in variables, are as on the command line."""
    arguments = {k: p for k, p in settings_of(cli.commands[name]).items() if isinstance(p, click.Argument)}
    rest = others_needed(name, "")
    flags = [word for at, word in enumerate(rest) if word.startswith("-") or (at and rest[at - 1].startswith("-"))]
    values = {k: f"{k} file" for k in arguments}
    by_flag = parsed(name, *flags, *values.values())
    lines = [f"{k} = {as_toml(p, values[k])}" for k, p in arguments.items()]
    file.write_text(f"[{name}]\n" + "\n".join(lines) + "\n")
    assert parsed(name, *flags, "--config", file.name) == by_flag
    for k, p in arguments.items():
        monkeypatch.setenv(variables_of(name, k)[0], shlex.quote(values[k]) if p.nargs == -1 else values[k])
    assert parsed(name, *flags) == by_flag
    assert by_flag[str(parameter.name)] in (values[key], (values[key],))
    for k in arguments:
        monkeypatch.delenv(variables_of(name, k)[0])


def test_no_two_options_share_a_variable() -> None:
    seen = dict.fromkeys(("PRECOMPUTE_CONFIG", "PRECOMPUTE_DEBUG", *LIBRARY), "")
    for name, command in cli.commands.items():
        for key in settings_of(command):
            own = variables_of(name, key)[0]
            assert own not in seen, f"{own}: {seen[own]} and {name} {key}"
            seen[own] = f"{name} {key}"
    common = {variable for key in COMMON for variable in variables_of("", key)}
    assert not common & seen.keys()
    for key in COMMON:
        assert any(is_common(name, key) and key in settings_of(command) for name, command in cli.commands.items())


def test_common_values_hold_for_all_commands_and_come_after_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run.toml").write_text('device = "cuda:1"\nseed = 5\n[predict]\ndevice = "cuda:2"\n')
    assert parsed("extract", *NEEDED["extract"], "--config", "run.toml")["device"] == "cuda:1"
    assert parsed("predict", *NEEDED["predict"], "--config", "run.toml")["device"] == "cuda:2"
    assert parsed("rank", *NEEDED["rank"], "--config", "run.toml")["seed"] == 5
    monkeypatch.setenv("PRECOMPUTE_DEVICE", "cuda:3")
    assert parsed("predict", *NEEDED["predict"], "--config", "run.toml")["device"] == "cuda:3"
    monkeypatch.setenv("PRECOMPUTE_PREDICT_DEVICE", "cuda:4")
    assert parsed("predict", *NEEDED["predict"], "--config", "run.toml")["device"] == "cuda:4"
    # a ridge head admits no --device, so that a value for all commands would be an error there
    assert parsed("train-head", "a.h5", "--config", "run.toml")["device"] is None
    monkeypatch.setenv("PRECOMPUTE_WORKERS", "2")
    assert parsed("extract", *NEEDED["extract"])["workers"] == 2
    assert parsed("predict", *NEEDED["predict"])["workers"] is None  # SOURCE may be a cache, of which nothing is read
    monkeypatch.setenv("PRECOMPUTE_PREDICT_WORKERS", "3")
    assert parsed("predict", *NEEDED["predict"])["workers"] == 3


def test_of_two_that_exclude_each_other_the_nearer_one_holds(
    precompute: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run.toml").write_text("json = true\n[demo]\naudio = true\n")
    (tmp_path / "csv.toml").write_text('[predict]\nformat = "csv"\n')
    needed = NEEDED["predict"]

    def shown(*words: str) -> tuple[bool, str]:
        found = parsed("predict", *needed, *words)
        return found["as_json"], found["style"]

    assert shown("--config", "run.toml") == (True, "table")
    assert shown("--config", "run.toml", "--format", "csv") == (False, "csv")
    assert shown("--config", "csv.toml", "--json") == (True, "table")
    assert parsed("demo", "--config", "run.toml")["kind"] == "audio"
    assert parsed("demo", "--config", "run.toml", "--text")["kind"] == "text"
    with monkeypatch.context() as patch:
        patch.setenv("PRECOMPUTE_DEMO_TEXT", "1")
        assert parsed("demo", "--config", "run.toml")["kind"] == "text"
        assert parsed("demo", "--config", "run.toml", "--audio")["kind"] == "audio"
        patch.setenv("PRECOMPUTE_PREDICT_FORMAT", "jsonl")
        assert shown("--config", "run.toml") == (False, "jsonl")
    monkeypatch.setenv("PRECOMPUTE_JSON", "1")
    assert shown("--format", "csv") == (False, "csv")
    assert shown("--config", "csv.toml") == (True, "table")  # a variable goes before the file
    done = precompute("predict", *needed, "--format", "csv")
    assert (done.returncode, done.stdout) == (1, "")  # the error too is none in JSON
    assert asks_for_json(["predict", *needed])
    assert not asks_for_json(["predict", *needed, "--format=csv"])
    both = precompute("predict", *needed, "--json", "--format", "csv")
    assert both.returncode == 2
    assert "exclude each other" in error_in(both)["message"]


def test_where_the_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seed in (("a", 1), ("b", 2), ("c", 3)):
        (tmp_path / f"{name}.toml").write_text(f"seed = {seed}\n")

    def seed(*before: str, behind: tuple[str, ...] = ()) -> int:
        with cli.make_context("precompute", [*before, "rank"], obj=Terminal()) as root:
            made = cli.commands["rank"].make_context("rank", [*NEEDED["rank"], *behind], parent=root)
            return int(made.params["seed"])

    monkeypatch.setenv("PRECOMPUTE_CONFIG", "a.toml")
    assert seed() == 1
    assert seed("--config", "b.toml") == 2
    assert seed("--config", "b.toml", behind=("--config", "c.toml")) == 3


def test_lists_in_variables_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRECOMPUTE_EXTRACT_LAYER", "layer3:mean 'layer 4'")
    assert parsed("extract", *NEEDED["extract"])["layer"] == ("layer3:mean", "layer 4")
    (tmp_path / "run.toml").write_text(
        '[extract]\nreuse = "one.h5"\nmean = [0.5, 0.5, 0.25]\naugment = ["flip", "crop"]\n'
        '[train-head]\nhidden = [64, 32]\n[few-shot]\nshots = [1, 5]\n[depth]\nshots = [1, "all"]\n'
        '[predict]\nheads = ["a.safetensors", "b.safetensors"]\nsource = "photos"\n'
    )
    found = parsed("extract", *NEEDED["extract"], "--config", "run.toml")
    assert (found["reuse"], found["mean"], found["augment"]) == (("one.h5",), (0.5, 0.5, 0.25), "flip,crop")
    assert parsed("train-head", "a.h5", "--config", "run.toml")["hidden"] == (64, 32)
    assert parsed("few-shot", "a.h5", "--config", "run.toml")["shots"] == (1, 5)
    assert parsed("depth", *NEEDED["depth"], "--config", "run.toml")["shots"] == (1, "all")
    found = parsed("predict", "--config", "run.toml")
    assert (found["heads"], found["source"]) == (("a.safetensors", "b.safetensors"), "photos")


WRONG = {
    'device = "cpu"\n[extract\n': "not TOML",
    "[extrat]\nlimit = 3\n": "[extract]",
    "[extract]\nbatch_size = 3\n": "Did you mean batch-size",
    "[extract]\nbatch-size = 3.5\n": "must be a whole number. Got a number with a fraction",
    '[extract]\nbatch-size = "s3cret"\n': "must be a whole number. Got text instead",
    "[extract]\nbatch-size = true\n": "must be a whole number. Got true or false",
    "[extract]\nbatch-size = [1]\n": "Got a list instead",
    "[extract]\nlimit = 2026-11-28\n": "Got a date or time instead",
    '[extract]\noverwrite = "s3cret"\n': "must be true or false. Got text",
    "[extract]\nweights = 5\n": "must be text in quotation marks",
    "[extract]\nlayer = [1]\n": "must be text in quotation marks",
    "[extract.layer]\na = 1\n": "Got a table instead",
    "[extract]\nconfig = 'b.toml'\n": "[extract] has no option config",
    "[train-head]\nnothing = 1\n": "[train-head] has no option nothing",
    "batch-size = 3\n": "is before the first table",
    "sed = 3\n": "Did you mean seed",
    "a = " + "[" * 5000: "not TOML",
    f"[extract]\nlimit = 0x{'f' * 9000}\n": "too long",
    f"[extract]\nlimit = {'9' * 9000}\n": "not TOML",
    "#" * 2**18 + "\n": "larger than",
}


@pytest.mark.parametrize(("text", "said"), WRONG.items(), ids=[text[:24] for text in WRONG])
def test_a_wrong_file_is_an_error_that_names_it(precompute: Command, tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "run.toml").write_text(text)
    done = precompute("extract", *NEEDED["extract"], "--config", "run.toml", "--json")
    assert done.returncode == 2
    error = error_in(done)
    assert error["type"] == "UsageError"
    assert "run.toml" in error["message"] or "too long" in error["message"]
    assert said in error["message"] + error["hint"]
    assert "s3cret" not in done.stdout + done.stderr
    assert precompute("extract", "--config", "run.toml", "--help").returncode == 0  # help is there all the same


def test_files_that_are_none(precompute: Command, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    for name, said in (
        ("pipe", "no ordinary file"),
        (".", "Is a directory"),
        ("gone", "No such file"),
        ("bytes", "not TOML"),
    ):
        done = precompute("backbones", "tiny", "--config", name)
        assert done.returncode == 2
        assert said in done.stderr
        assert name in done.stderr


def test_a_wrong_value_says_where_it_comes_from(
    precompute: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run.toml").write_text('[extract]\npooling = "s3://me:s3cret@host"\n')
    done = precompute("extract", *NEEDED["extract"], "--config", "run.toml")
    assert done.returncode == 2
    assert "It comes from pooling in [extract] of run.toml." in done.stderr
    assert "s3cret" not in done.stderr
    for variable, text, said in (
        ("PRECOMPUTE_EXTRACT_BATCH_SIZE", "many", "It comes from PRECOMPUTE_EXTRACT_BATCH_SIZE."),
        ("PRECOMPUTE_WORKERS", "many", "It comes from PRECOMPUTE_WORKERS."),
        ("PRECOMPUTE_EXTRACT_OVERWRITE", "s3cret", "PRECOMPUTE_EXTRACT_OVERWRITE is neither true nor false."),
        ("PRECOMPUTE_EXTRACT_LAYER", "'s3cret", "PRECOMPUTE_EXTRACT_LAYER cannot be taken apart"),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(variable, text)
            done = precompute("extract", *NEEDED["extract"])
        assert done.returncode == 2
        assert said in done.stderr
        assert "s3cret" not in done.stderr


def test_errors_are_json_where_a_variable_or_the_file_asks_for_it(
    precompute: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run.toml").write_text("[info]\njson = true\n")
    (tmp_path / "all.toml").write_text("json = true\n")
    assert error_in(precompute("info", "no.h5", "--config", "run.toml"))["type"] == "CacheFormatError"
    assert error_in(precompute("info", "--config=run.toml", "no.h5", "--no-such-option"))["type"] == "UsageError"
    assert error_in(precompute("--config", "all.toml", "info", "no.h5"))["type"] == "CacheFormatError"
    assert precompute("verify", "no.h5", "--config", "run.toml").stdout == ""
    monkeypatch.setenv("PRECOMPUTE_INFO_JSON", "0")  # before the file
    assert precompute("info", "no.h5", "--config", "run.toml").stdout == ""
    assert not asks_for_json(["info", "no.h5", "--config", "run.toml"])
    monkeypatch.setenv("PRECOMPUTE_JSON", "1")
    assert error_in(precompute("verify", "no.h5"))["type"] == "CacheFormatError"
    assert error_in(precompute("no-such-command"))["type"] == "UsageError"
    assert not asks_for("debug", [])
    monkeypatch.setenv("PRECOMPUTE_DEBUG", "1")
    assert asks_for("debug", ["info"])
    assert "Traceback" in precompute("verify", "no.h5").stderr


def test_a_command_without_arguments_runs_on_what_is_set(precompute: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    assert precompute("info").returncode == 2
    assert "Usage: precompute info" in precompute("info").stderr
    monkeypatch.setenv("PRECOMPUTE_INFO_CACHES", "'no such.h5'")
    assert "no such.h5" in precompute("info").stderr
    monkeypatch.delenv("PRECOMPUTE_INFO_CACHES")
    monkeypatch.setenv("PRECOMPUTE_JSON", "1")
    assert "Usage: precompute info" in precompute("info").stderr


@pytest.mark.rotates(2)
def test_a_run_from_a_file_is_the_run_from_flags(
    precompute: Command, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file of docs/configuration.md; keys and records are those of flags."""
    text = (ROOT / "docs" / "configuration.md").read_text()
    toml = re.search(r"```toml\n(.*?)```", text, re.DOTALL)
    assert toml is not None
    (tmp_path / "run.toml").write_text(toml[1])
    for command in ("extract", "train-head"):
        done = precompute(command, "--config", "run.toml")
        assert done.returncode == 0, done.stderr
    with monkeypatch.context() as patch:
        patch.setenv("PRECOMPUTE_CONFIG", "run.toml")
        patch.setenv("PRECOMPUTE_JSON", "1")
        done = precompute("predict")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["predictions"]) == 12
    with monkeypatch.context() as patch:  # what holds for all commands stops none of them
        values = {"allow-skipped": "1", "device": "cpu", "executor": "local", "json": "1", "seed": "5", "workers": "2"}
        assert values.keys() == {*COMMON}
        for key, value in values.items():
            patch.setenv(variables_of("", key)[0], value)
        done = precompute("predict", "photos.safetensors", "photos.h5")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["predictions"]) == 24
    flags = ("extract", "photos", "-b", "tiny", "--batch-size", "16", "--device", "cpu", "--allow-skipped")
    assert precompute(*flags, "-o", "b.h5").returncode == 0
    by_file, by_flags = (json.loads(precompute("info", name, "--json").stdout) for name in ("photos.h5", "b.h5"))
    assert by_file["key"] == by_flags["key"]
    options = [one["provenance"][0]["options"] for one in (by_file, by_flags)]
    assert options[0] == options[1]
