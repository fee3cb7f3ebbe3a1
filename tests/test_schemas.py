"""What `--json` prints is as its schema says: every command, over tasks and modalities, results and errors."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from conftest import ROOT, Command, make_photos
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from sounds import make_clips

from precompute import open_cache
from precompute.cli import cli
from precompute.errors import UsageError
from precompute.schemas import schema_names, schema_of

Run = Callable[..., Any]
PARTS = json.loads((ROOT / "precompute/schemas/parts.json").read_text())
OPTIONAL = {"labels", "thresholds", "repaired", "source", "head", "report"}
"""Members that only some outputs of a command have."""


def complaint(name: str, value: Any) -> str | None:
    """The first thing that is not as the schema of `name` says."""
    error = best_match(Draft202012Validator(schema_of(name)).iter_errors(value))
    return None if error is None else f"{error.json_path}: {error.message}"


@pytest.fixture
def run(precompute: Command) -> Run:
    """A command with --json, whose output is as its schema says, and would not be with a member more or less."""

    def checked(name: str, *arguments: object, status: int = 0) -> Any:
        done = precompute(name, *arguments, "--json")
        assert done.returncode == status, done.stderr
        value = json.loads(done.stdout)
        assert complaint(name, value) is None
        if name == "schema":  # which may say anything of others
            return value
        assert complaint(name, {**value, "unheard_of": 1}) is not None
        for member in set(value) - OPTIONAL:
            assert complaint(name, {key: one for key, one in value.items() if key != member}) is not None, member
        return value

    return checked


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """24 photos with labels, of which a photo has several, and a number each; below photos/."""
    make_photos(tmp_path / "photos")
    names = sorted(path.relative_to(tmp_path).as_posix() for path in (tmp_path / "photos").rglob("*.*g"))
    with (tmp_path / "table.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(("path", "label", "split", "tags", "size"))
        for number, name in enumerate(names):
            tags = ";".join(tag for tag, every in (("even", 2), ("third", 3)) if number % every == 0)
            lines.writerow((name, name.split("/")[2], name.split("/")[1], tags, number + 0.5))
    return tmp_path / "table.csv"


# The files themselves


def test_every_command_has_a_schema() -> None:
    with_json = {
        name for name, command in cli.commands.items() if any("--json" in option.opts for option in command.params)
    }
    missing = with_json - set(schema_names())
    assert not missing, f"write precompute/schemas/{min(missing)}.json, and test it here"
    assert set(schema_names()) == {*with_json, "error"}


def objects(schema: Any) -> Iterator[dict[str, Any]]:
    """Every schema inside `schema`, itself included."""
    if isinstance(schema, dict):
        if {"type", "$ref", "anyOf", "enum", "const"} & schema.keys():
            yield schema
        for value in schema.values():
            yield from objects(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from objects(value)


@pytest.mark.parametrize("name", schema_names())
def test_a_schema_is_strict_described_and_stands_alone(name: str) -> None:
    schema = schema_of(name)
    Draft202012Validator.check_schema(schema)
    assert schema["description"]
    assert "parts.json" not in json.dumps(schema)
    for one in objects(schema):
        if one.get("type") != "object" or "properties" not in one:
            continue
        assert isinstance(one["additionalProperties"], bool)
        for member, inner in one["properties"].items():
            referred = PARTS["$defs"].get(str(inner.get("$ref")).rpartition("/")[2], {})
            assert inner.get("description") or referred.get("description"), member
            assert member not in ("type", "enum", "items") or "description" in inner


def test_every_part_is_used() -> None:
    used = {part for name in schema_names() for part in schema_of(name).get("$defs", {})}
    assert used == set(PARTS["$defs"])


def test_what_has_no_schema_is_said(precompute: Command) -> None:
    with pytest.raises(UsageError, match="No output is called 'parts'"):
        schema_of("parts")
    done = precompute("schema", "extrct", "--json")
    assert done.returncode == 2
    assert complaint("error", json.loads(done.stdout)) is None
    assert "train-head" in json.loads(done.stdout)["error"]["hint"]


def test_a_schema_is_an_output_too(run: Run, precompute: Command) -> None:
    assert (
        run("schema", "train-head") == schema_of("train-head") == json.loads(precompute("schema", "train-head").stdout)
    )


# Images and classes


def test_features(run: Run, photos: Path) -> None:
    (photos / "train/cats/broken.jpg").write_bytes(b"no photo")
    run("extract", "photos", "-b", "tiny", "-o", "a.h5", "--dry-run")
    assert run("extract", "photos", "-b", "tiny", "-o", "a.h5", status=3)["failed"][0]["reason"] == "UNDECODABLE"
    assert run("extract", "photos", "-b", "tiny", "-o", "a.h5", "--allow-skipped")["stages"] is None
    run("plan", "photos", "-b", "tiny")
    assert run("info", "a.h5")["status"] == {"OK": 24, "UNDECODABLE": 1}
    run(
        "extract",
        "photos/val",
        "-b",
        "tiny",
        "--layer",
        "body.3:mean",
        "--layer",
        "embed.4",
        "--views",
        2,
        "--augment",
        "flip",
        "-o",
        "b.h5",
    )
    assert run("info", "a.h5", "b.h5")["same"] is False
    run("export", "a.h5", "-o", "a.npz")
    run("import", "a.npz", "-o", "c.h5")
    run("info", "c.h5")


def test_verifying(run: Run, photos: Path, tmp_path: Path) -> None:
    run("extract", "photos", "-b", "tiny", "-o", "a.h5")
    run("verify", "a.h5")
    (photos / "val/cats/0.jpg").unlink()
    assert run("verify", "a.h5", "--source", "photos", status=1)["source"]["gone"] == ["val/cats/0.jpg"]
    cache = open_cache(tmp_path / "a.h5")
    row = bytes(cache.features()[3].tobytes())
    whole = (tmp_path / "a.h5").read_bytes()
    (tmp_path / "a.h5").write_bytes(whole.replace(row, bytes(len(row)), 1))
    assert run("verify", "a.h5", status=1)["damaged"]
    assert run("verify", "a.h5", "--source", "photos", "--repair", status=1)["repaired"]["computed"] == 1


HEADS: dict[str, tuple[object, ...]] = {
    "logistic": (),
    "ridge": (),
    "knn": (),
    "centroid": ("--metric", "mahalanobis"),
    "mlp": ("--max-epochs", 2),
    "selected": ("--layer", "all"),
}


@pytest.mark.rotates(3)
@pytest.mark.parametrize("head", HEADS)
def test_heads(run: Run, precompute: Command, photos: Path, head: str) -> None:
    layers = ("--layer", "body:mean", "--layer", "embed.4") if head == "selected" else ()
    assert precompute("extract", "photos", "-b", "tiny", *layers, "-o", "a.h5").returncode == 0
    assert run("train-head", "a.h5", "--head", head, *HEADS[head], "-o", "a.safetensors")["head"] == head
    run("info", "a.safetensors")
    run("predict", "a.safetensors", "a.h5")


def test_classes(run: Run, precompute: Command, photos: Path) -> None:
    assert precompute("extract", "photos", "-b", "tiny", "-o", "a.h5").returncode == 0
    run("train-head", "a.h5", "--calibrate", "--groups", r"(\d)\.", "-o", "a.safetensors")
    run("train-head", "a.h5", "--head", "knn", "-o", "b.safetensors")
    run("info", "a.safetensors")
    (photos / "val/cats/broken.jpg").write_bytes(b"no photo")
    assert len(run("predict", "a.safetensors", "b.safetensors", "photos/val", status=3)["heads"]) == 2
    run("predict", "a.safetensors", "photos/val", "--allow-skipped")
    run("compare", "a.safetensors", "b.safetensors", "a.h5")
    run("few-shot", "a.h5", "--shots", "1,2", "--draws", 2)
    run("export-head", "a.safetensors", "-o", "a.joblib")


@pytest.mark.slow
def test_reports(run: Run, precompute: Command, photos: Path) -> None:
    assert precompute("extract", "photos", "-b", "tiny", "-o", "a.h5").returncode == 0
    trained = run("train-head", "a.h5", "-o", "a.safetensors", "--report", "a.html")
    assert trained["report"]["heads"] == ["a.safetensors"]
    assert run("report", "a.h5", "a.safetensors", "-o", "b.html", "--map", "none")["pictures"]


# Other tasks


@pytest.mark.rotates(2)
@pytest.mark.parametrize("task", ["labels", "number"])
def test_labels_and_numbers(run: Run, precompute: Command, table: Path, task: str) -> None:
    column = {"labels": "tags", "number": "size"}[task]
    keep = ("--keep-column", "tags", "--keep-column", "size")
    assert precompute("extract", "table.csv", "-b", "tiny", "-o", "a.h5", *keep).returncode == 0
    target = ("--label-column", column, "--task", task)
    for head, name in (("ridge", "a"), ("knn", "b")):
        assert run("train-head", "a.h5", *target, "--head", head, "-o", f"{name}.safetensors")["task"] == task
    run("info", "a.safetensors")
    assert run("predict", "a.safetensors", "a.h5")["scores"] is not None
    assert run("predict", "a.safetensors", "photos/val")["scores"] is None
    run("compare", "a.safetensors", "b.safetensors", "a.h5")
    run("few-shot", "a.h5", *target, "--head", "ridge", "--shots", "2", "--draws", 1)
    assert run("info", "a.h5")["columns"] == ["size", "tags"]


# Other modalities


def texts(run: Run, tmp_path: Path) -> None:
    lines = [
        (f"{word} {number} {word}s", word, split)
        for split in ("train", "val")
        for word in ("cat", "dog")
        for number in range(6)
    ]
    with (tmp_path / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label", "split"), *lines])
    assert run("extract", "t.csv", "-b", "ngram-hash", "-o", "t.h5")["unit"] == "texts"
    run("plan", "t.csv", "-b", "ngram-hash")
    run("train-head", "t.h5", "-o", "t.safetensors")
    run("predict", "t.safetensors", "t.csv")
    run("verify", "t.h5", "--source", "t.csv")


def clips(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("soundfile", reason="pip install 'precompute[audio]'")
    pytest.importorskip("soxr", reason="pip install 'precompute[audio]'")
    make_clips(tmp_path / "clips")
    assert run("extract", "clips", "-b", "mel-statistics", "--windows", "keep", "--max-seconds", 3, "-o", "c.h5")[
        "windows"
    ]
    run("plan", "clips", "-b", "mel-statistics")
    assert run("info", "c.h5")["unit"] == "clips"
    run("train-head", "c.h5", "--average-views", "-o", "c.safetensors")
    run("predict", "c.safetensors", "clips/val")


@pytest.mark.rotates(2)
@pytest.mark.parametrize("modality", [texts, clips], ids=lambda modality: modality.__name__)
def test_other_modalities(run: Run, tmp_path: Path, modality: Callable[[Run, Path], None]) -> None:
    modality(run, tmp_path)


# Whole networks, choices, lists


@pytest.mark.slow
def test_tails(run: Run, precompute: Command, photos: Path) -> None:
    assert precompute("extract", "photos", "-b", "tiny", "--layer", "body", "-o", "deep.h5").returncode == 0
    assert run("fine-tune", "deep.h5", "--epochs", 1, "-o", "tail.safetensors")["skipped"] == 0
    assert run("info", "tail.safetensors")["tail"]["epochs"] == 1
    run("predict", "tail.safetensors", "photos/val")
    run("export-head", "tail.safetensors", "-o", "net.pth")
    assert run("fine-tune", "photos", "-b", "tiny", "--cut", "auto")["cuts"]


@pytest.mark.slow
def test_whole_networks(run: Run, photos: Path) -> None:
    (photos / "train/cats/broken.jpg").write_bytes(b"no photo")
    run("fine-tune", "photos", "-b", "tiny", "--epochs", 1, "-o", "full.safetensors", status=3)
    assert run("info", "full.safetensors")["kind"] == "whole network"


@pytest.mark.rotates(2)
@pytest.mark.parametrize("command", ["rank", "depth"])
def test_choices(run: Run, photos: Path, command: str) -> None:
    if command == "rank":
        found = run("rank", "photos", "-b", "tiny", "-b", "tiny=random:1")
        assert [one["behind"] is None for one in found["candidates"]] == [True, False]
    else:
        run("depth", "photos", "-b", "tiny", "-o", "d", "--shots", "2,all", "--draws", 2, "--methods", "pixels,head")


def test_backbones(run: Run) -> None:
    assert len(run("backbones", "resnet18")["backbones"]) == 1
    for name in ("tiny", "ngram-hash", "mel-statistics"):
        run("backbones", name)
    run("backbones", "tiny", "--layers")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["digits", "text", "audio"])
def test_demos(run: Run, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    if kind == "audio":
        pytest.importorskip("soundfile", reason="pip install 'precompute[audio]'")
        pytest.importorskip("soxr", reason="pip install 'precompute[audio]'")
    monkeypatch.setattr(f"precompute.demo{'.audio' if kind == 'audio' else ''}.DRAWS", 2)
    run("demo", *([] if kind == "digits" else [f"--{kind}"]))


# Errors


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("extract", "nowhere", "-b", "tiny", "-o", "a.h5"), 1),
        (("extract", "--no-such-option"), 2),
        (("train-head", "nowhere.h5"), 1),
        (("no-such-command",), 2),
    ],
    ids=str,
)
def test_errors(precompute: Command, arguments: tuple[str, ...], status: int) -> None:
    done = precompute(*arguments, "--json")
    assert done.returncode == status
    assert complaint("error", json.loads(done.stdout)) is None
    assert all(complaint(name, json.loads(done.stdout)) for name in schema_names() if name != "error")


def test_no_option_prints_other_json() -> None:
    """Where a command could print JSON in another way, that would need a schema as well."""
    options = {name for command in cli.commands.values() for one in command.params for name in one.opts}
    assert {name for name in options if "json" in name} == {"--json"}
    formats = [
        one for one in cli.commands["predict"].params if isinstance(one.type, click.Choice) and one.name == "style"
    ]
    assert [list(one.type.choices) for one in formats] == [["table", "csv", "jsonl"]]
