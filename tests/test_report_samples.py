"""What a report shows of its samples: each modality, hostile names, and samples that moved, changed or broke."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import wave
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Command, make_image
from modalities import Samples
from PIL import Image
from test_report import made

from precompute import extract, open_cache, report, train_head
from precompute.errors import SourceError, UsageError
from precompute.reports.commands import shortened
from precompute.reports.feature_map import LEAST, axes_of, draw_map, stratified
from precompute.reports.media import LETTERS, RATE, SECONDS, SIDE, shared_out
from precompute.reports.places import Places, readable
from precompute.reports.results import read_results

HOSTILE = ["<script>alert(1)</script>", "a\"'&<b>", "line\nend", "\u202eright to left", "</script><!--", "tab\t"]


def shown(document: dict[str, Any]) -> dict[str, str]:
    """What is shown, by id."""
    ids = document["samples"]["id"]
    return {ids[int(place)]: value for place, value in document["media"]["of"].items()}


def test_each_modality_is_shown_as_itself(samples: Samples, tmp_path: Path) -> None:
    samples.extract(tmp_path / "c.h5")
    train_head(tmp_path / "c.h5", tmp_path / "h.safetensors", head="knn", k=3)
    found = made(tmp_path, tmp_path / "c.h5", tmp_path / "h.safetensors")
    assert found["unit"]["plural"] == samples.kind.unit
    assert sorted(shown(found)) == samples.names()
    for name, value in shown(found).items():
        data = samples.read(name)
        if found["modality"] == "text":
            text = data.decode()
            assert value == (text if len(text) <= LETTERS else text[: LETTERS - 1] + "…")
            continue
        content = io.BytesIO(base64.b64decode(value.partition(",")[2]))
        if found["modality"] == "audio":
            with wave.open(content) as clip:
                assert (clip.getnchannels(), clip.getsampwidth(), clip.getframerate()) == (1, 2, RATE)
                assert 0 < clip.getnframes() <= RATE * SECONDS
        else:
            assert Image.open(content).format == "JPEG"


def test_hostile_names_pass_through_unharmed(tmp_path: Path) -> None:
    for number in range(24):
        name = HOSTILE[number % len(HOSTILE)].replace("/", "\u2215")
        place = tmp_path / "photos" / f"class {name}"
        place.mkdir(parents=True, exist_ok=True)
        make_image(number).save(place / f"{number} {name}.png")
    odd = os.fsencode(tmp_path / "photos" / f"class {HOSTILE[2]}") + b"/\xff.png"
    make_image(99).save(tmp_path / "odd.png")
    os.rename(os.fsencode(tmp_path / "odd.png"), odd)
    extract(tmp_path / "photos", tmp_path / "c.h5", backbone="tiny")
    head = tmp_path / "<img src=x onerror=alert(1)>.safetensors"
    train_head(tmp_path / "c.h5", head, C=1.0)
    found = made(tmp_path, tmp_path / "c.h5", head)
    cache = open_cache(tmp_path / "c.h5")
    assert found["classes"] == sorted(cache.classes)
    assert set(found["samples"]["id"]) == {readable(os.fsencode(name)) for name in cache.ids}
    assert "class line\nend/\\udcff.png" in found["samples"]["id"]
    assert len(shown(found)) == 25
    page = (tmp_path / "report.html").read_text()
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert page.count("</script>") == 2


@pytest.fixture
def cache(photos: Path, tmp_path: Path) -> Path:
    extract(photos, tmp_path / "c.h5", backbone="tiny")
    return tmp_path / "c.h5"


def test_a_source_that_moved_is_asked_for(cache: Path, photos: Path, tmp_path: Path) -> None:
    assert len(shown(made(tmp_path, cache))) == 24
    photos.rename(tmp_path / "elsewhere")
    found = made(tmp_path, cache, map="none")
    assert found["notes"] == []  # nothing was to be shown
    found = made(tmp_path, cache)
    assert shown(found) == {}
    (note,) = found["notes"]
    assert "no longer where the cache was made from, in photos" in note
    assert "--source SOURCE" in note
    assert str(tmp_path) not in note
    assert len(shown(made(tmp_path, cache, source=tmp_path / "elsewhere"))) == 24
    with pytest.raises(SourceError):
        report(cache, (), tmp_path / "report.html", source=tmp_path / "nowhere")


def test_samples_that_changed_or_broke_are_not_shown(cache: Path, photos: Path, tmp_path: Path) -> None:
    status = os.stat(photos / "train/cats/1.png")
    make_image(77).save(photos / "train/cats/1.png")  # another picture
    os.utime(photos / "train/cats/1.png", ns=(status.st_atime_ns, status.st_mtime_ns))
    (photos / "train/dogs/0.jpg").unlink()
    os.mkfifo(photos / "train/dogs/0.jpg")
    (photos / "val/cats/0.jpg").unlink()
    (photos / "val/cats/2.jpg").write_bytes(b"no picture")
    found = made(tmp_path, cache)
    gone = {"train/cats/1.png", "train/dogs/0.jpg", "val/cats/0.jpg", "val/cats/2.jpg"}
    assert {name for name in found["samples"]["id"] if name not in shown(found)} == gone
    assert found["notes"] == [
        "2 of 24 images have changed since their features were computed, and are not shown",
        "1 of 24 images are no longer in the source, and are not shown",
        "1 of 24 images cannot be read, and are not shown (UNREADABLE)",
    ]


def test_a_stranger_s_cache_reaches_nothing_outside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    secret = tmp_path / "secret.png"
    make_image(1).save(secret)
    for number in range(12):
        make_image(number + 5).save(tmp_path / "photos" / f"{number}.png")
    (tmp_path / "list.csv").write_text(
        "path,id\n" + "".join(f"photos/{n}.png,{n}.png\n" for n in range(12)) + "secret.png,../secret.png\n"
    )
    extract(tmp_path / "list.csv", tmp_path / "c.h5", backbone="tiny")
    assert "../secret.png" in shown(made(tmp_path, tmp_path / "c.h5"))  # the table names it
    assert "../secret.png" not in shown(made(tmp_path, tmp_path / "c.h5", source=tmp_path / "photos"))


def test_rows_without_features_are_said(tmp_path: Path, photos: Path) -> None:
    (photos / "train/cats/0.jpg").write_bytes(b"broken")
    extract(photos, tmp_path / "c.h5", backbone="tiny")
    found = made(tmp_path, tmp_path / "c.h5", thumbnails=0)
    assert found["counts"]["failed"] == 1
    assert found["map"]["of"] == 23
    assert any("1 of 24 images have no features" in note for note in found["notes"])


def test_large_pictures_become_small(tmp_path: Path) -> None:
    for number in range(4):
        exif = Image.Exif()
        exif[0x010E] = "a secret description"
        exif[0x0112] = 6  # lies on its side
        make_image(number, (900, 600)).save(tmp_path / f"{number}.jpg", exif=exif, comment=b"a secret comment")
        shutil.copy(tmp_path / f"{number}.jpg", tmp_path / f"{number}b.jpg")
    extract(tmp_path, tmp_path / "c.h5", backbone="tiny")
    found = shown(made(tmp_path, tmp_path / "c.h5", map="none"))
    assert len(found) == 8
    for value in found.values():
        data = base64.b64decode(value.partition(",")[2])
        assert b"secret" not in data
        picture = Image.open(io.BytesIO(data))
        assert max(picture.size) == SIDE
        assert picture.height > picture.width  # upright


def test_a_budget_is_shared_out_in_turn() -> None:
    streams = [(2, iter([1, 2, 3, 4])), (1, iter([2, 10, 11])), (1, iter([]))]
    assert shared_out(streams, 5) == [1, 2, 10, 3, 4]
    assert shared_out([(1, iter(range(3)))], 9) == [0, 1, 2]
    assert shared_out([(1, iter(range(3)))], 0) == []


def test_a_stratified_sample_keeps_the_shares() -> None:
    strata = np.repeat([0, 1, 2], [700, 200, 100])
    chosen = stratified(strata, 100, 3)
    assert np.bincount(strata[chosen]).tolist() == [70, 20, 10]
    assert (np.diff(chosen) > 0).all()
    assert stratified(strata, 100, 3).tolist() == chosen.tolist()
    assert stratified(strata, 2000, 3).tolist() == list(range(1000))


def groups_of_points(n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    label = np.arange(n) % 3
    return (rng.normal(size=(n, 40)) + 9 * np.eye(40)[label]).astype(np.float32), label


@pytest.mark.parametrize("kind", ["auto", pytest.param("all", marks=pytest.mark.slow)])
def test_a_map_keeps_neighbours_together(kind: str) -> None:
    if kind == "all":
        pytest.importorskip("openTSNE", reason="needs the extra `map`")
    X, label = groups_of_points(120)
    X[5] = np.nan
    found = draw_map(X, np.arange(120), lambda rows: label[rows], kind=kind, seed=1)
    again = draw_map(X, np.arange(120), lambda rows: label[rows], kind=kind, seed=1)
    assert found is not None
    assert again is not None
    np.testing.assert_array_equal(found.xy, again.xy)
    assert found.left_out == 1
    assert 5 not in found.rows
    apart = ((found.xy[:, None] - found.xy[None]) ** 2).sum(axis=2)
    np.fill_diagonal(apart, np.inf)
    assert (label[found.rows][apart.argmin(axis=1)] == label[found.rows]).all()
    x, y = axes_of(found.xy)
    assert {int(x.min()), int(x.max()), int(y.min()), int(y.max())} >= {0, 65535}
    assert draw_map(X[:LEAST], np.arange(LEAST - 1), lambda rows: label[rows], kind=kind, seed=1) is None


def test_features_of_which_no_map_can_be_made() -> None:
    X = np.ones((30, 1), np.float32)
    assert draw_map(X, np.arange(30), lambda rows: rows * 0, kind="auto", seed=0) is None
    X[3] = 2  # one component
    found = draw_map(X, np.arange(30), lambda rows: rows * 0, kind="auto", seed=0)
    assert found is not None
    assert np.isfinite(found.xy).all()


def test_places_are_given_out_in_order(cache: Path) -> None:
    places = Places(open_cache(cache))
    assert places.of(np.array([7, 3, 7])).tolist() == [0, 1, 0]
    assert places.of(np.array([2, 3])).tolist() == [2, 1]
    assert places.rows.tolist() == [7, 3, 2]
    assert [places.ids()[0]] == [open_cache(cache).ids[7]]


@pytest.mark.parametrize(
    ("path", "short"),
    [
        ("/home/me/photos/", "photos"),
        ("photos/new", "photos/new"),
        ("../photos", "photos"),
        ("s3://user:secret@bucket/a?sig=secret", "s3://bucket/a"),
        ("timm:/models/one", "timm:one"),
        ("hf:org/name", "hf:org/name"),
    ],
)
def test_paths_are_shortened(path: str, short: str) -> None:
    assert shortened(path) == short


CURVE = {
    "task": "classes",
    "metric": "accuracy",
    "name": "c",
    "unit": "images",
    "chance": 0.5,
    "points": [{"shots": 1, "accuracy": 0.6, "interval": [0.5, 0.7]}, {"shots": 2, "accuracy": 0.7, "interval": None}],
}


def test_curves_of_few_shot(cache: Path, precompute: Command, tmp_path: Path) -> None:
    done = precompute("few-shot", cache, "--shots", "1,3", "--draws", 2, "--json")
    (tmp_path / "few.json").write_text(done.stdout)
    found = made(tmp_path, cache, results=[tmp_path / "few.json"], map="none")
    (curve,) = found["curves"]
    points = json.loads(done.stdout)["curves"][0]["points"]
    assert [line["name"] for line in curve["lines"]] == ["c"]
    assert curve["lines"][0]["points"] == [[p["shots"], p["accuracy"], *p["interval"]] for p in points]
    assert curve["by_chance"] == 0.5


def test_curves_of_depth_and_rank(tmp_path: Path) -> None:
    point = {"method": "head", "shots": 5, "labels": 10, "score": 0.7, "interval": [0.6, 0.8]}
    (tmp_path / "d.json").write_text(
        json.dumps(
            {
                "backbone": "tiny",
                "n_classes": 2,
                "methods": [{"name": "head", "pretrained": True}, {"name": "pixels", "pretrained": False}],
                "points": [point, {**point, "shots": "all", "labels": 40}, {**point, "method": "pixels", "score": 0.5}],
                "standings": [],
                "verdict": "Train a head.",
            }
        )
    )
    found = read_results(tmp_path / "d.json")
    assert [(line["name"], line["dashed"]) for line in found["lines"]] == [("head", False), ("pixels", True)]
    assert [point[0] for point in found["lines"][0]["points"]] == [5, 20]
    candidate = {"name": "resnet18 avgpool", "score": 0.9, "interval": [0.8, 0.95], "group": 1}
    (tmp_path / "r.json").write_text(json.dumps({"metric": "r2", "candidates": [candidate, {**candidate, "group": 2}]}))
    ranked = read_results(tmp_path / "r.json")
    assert (ranked["y"], [line["dashed"] for line in ranked["lines"]]) == ("R2", [False, True])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "[" * 100_000,
        '{"curves": []}',
        '{"curves": [7]}',
        json.dumps({"curves": [CURVE] * 100}),
        json.dumps({"curves": [{**CURVE, "points": [{"shots": "many", "accuracy": 1}]}]}),
        json.dumps({"curves": [{**CURVE, "points": [{"shots": 1, "accuracy": True}]}]}),
        json.dumps({"curves": [{**CURVE, "points": [{"shots": 1, "accuracy": 0.5, "interval": [1]}]}]}),
        json.dumps({"curves": [CURVE]}).replace("0.6", "NaN"),
        json.dumps({"curves": [CURVE]}).replace("0.6", "1e999"),
        json.dumps({"curves": [CURVE]}).replace("0.6", "1" + "0" * 5000),
        json.dumps({"standings": [], "n_classes": 0, "points": [], "methods": []}),
        json.dumps({"candidates": [{}], "metric": 3}),
        json.dumps({"error": {"message": "no such cache"}}),
    ],
    ids=lambda text: text[:30],
)
def test_results_that_are_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UsageError) as caught:
        read_results(tmp_path / "x.json")
    assert "x.json" in caught.value.message
    assert len(caught.value.message) < 600
    assert "--json" in caught.value.hint


def test_results_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with open(tmp_path / "large", "wb") as file:
        file.truncate(2**30)
    for name in ("pipe", "large", "missing", "."):
        with pytest.raises(UsageError):
            read_results(tmp_path / name)


def test_words_of_a_budget_cover_every_use(cache: Path, tmp_path: Path) -> None:
    train_head(cache, tmp_path / "h.safetensors", C=1e-3)
    found = made(tmp_path, cache, tmp_path / "h.safetensors", thumbnails=6)
    (scored,) = found["heads"][0]["scored"]
    mistakes = {scored["items"]["place"][item] for item in scored["mistakes"]}
    on_map = set(map(int, found["media"]["of"])) - mistakes
    assert len(found["media"]["of"]) == 6
    used = Counter("mistake" if int(place) in mistakes else "other" for place in found["media"]["of"])
    assert used["other"] >= 1 or not on_map
