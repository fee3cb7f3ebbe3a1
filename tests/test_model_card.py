"""Model cards: what a head was trained on and how good it is, from its file alone; strangers' names stay text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Command

from precompute.errors import HeadError
from precompute.reports.card import write_card
from precompute.reports.markdown import escaped

HOSTILE = [
    "<script>alert(1)</script>",
    "a|b",
    "](https://evil.invalid)",
    "![x](y)",
    "---\nlicense: mit",
    "`rm -rf`",
    "\u202etxt.exe",
    "# heading",
    "www.evil.invalid",
    "{{ config }}",
]


def metadata(**changes: Any) -> dict[str, Any]:
    scores = {
        "n": 20,
        "accuracy": 0.95,
        "accuracy_interval": [0.76, 0.99],
        "macro_f1": 0.9,
        "intervals": {"macro_f1": [0.7, 1.0]},
        "calibration_error": 0.03,
        "calibration_error_by_chance": 0.05,
        "per_class": [{"images": 2, "precision": 1.0, "recall": 0.5, "recall_interval": [0.1, 0.9]} for _ in HOSTILE],
    }
    training = {
        "task": "classes",
        "classes": HOSTILE,
        "rows": {"train": 1200, "val": 20},
        "scores": {"val": scores},
        "calibration": {"fitted_on": "val"},
        "notes": [
            "3 images of val are byte-identical to training images: its score flatters",
            "a note",
            "9 of 20 samples are in /home/somebody/my tables/l.csv, which has 12 rows",
        ],
        "unit": "images",
        "cache": "/home/somebody/photos.h5",
    }
    spec = {"backbone": "resnet18", "weights": "ab" * 32, "precision": "fp32", "storage": "float16", "transform": {}}
    source = {"kind": "file", "path": "/home/somebody/weights/resnet18.pth"}
    return {"spec": spec, "layer": "avgpool", "weights_source": source, "training": training, **changes}


def card_of(folder: Path, **changes: Any) -> str:
    write_card(folder / "card.md", metadata(**changes), kind="head", file_name="photos.safetensors", overwrite=True)
    return (folder / "card.md").read_text()


def front_matter(text: str) -> dict[str, Any]:
    yaml = pytest.importorskip("yaml")
    assert text.startswith("---\n")
    found: dict[str, Any] = yaml.safe_load(text[4 : text.index("\n---\n", 4)])
    return found


def test_what_stands_in_a_card(tmp_path: Path) -> None:
    text = card_of(tmp_path)
    for line in (
        "| val | accuracy | 0.95 | 0.76 to 0.99 |",
        "| val | macro F1 | 0.9 | 0.7 to 1 |",
        "| train | 1,200 |",
        "- 3 images of val are byte-identical to training images: its score flatters",
        "- a note",
        "- 9 of 20 samples are in l.csv, which has 12 rows",
        "- licence of the weights: unknown: ask the author of the weights",
        "$ precompute predict photos.safetensors new-data",
    ):
        assert line in text.splitlines(), line
    assert "somebody" not in text
    about = front_matter(text)
    assert about["license"] == "other"
    assert about["metrics"] == ["accuracy", "f1"]
    assert about["pipeline_tag"] == "image-classification"


def test_a_licence_that_is_known_and_leaks_that_are_none(tmp_path: Path) -> None:
    training = {**metadata()["training"], "notes": []}
    text = card_of(tmp_path, weights_source={"kind": "embedded"}, training=training)
    assert front_matter(text)["license"] == "bsd-3-clause"
    assert "None found" in text


def test_intervals_of_groups_draw_groups(tmp_path: Path) -> None:
    training = {**metadata()["training"], "groups": 7}
    rows = card_of(tmp_path, training=training).splitlines()
    assert "| val | accuracy | 0.95 | not known |" in rows  # Wilson's takes each sample for one observation
    assert "| val | macro F1 | 0.9 | 0.7 to 1 |" in rows
    training["scores"]["val"]["intervals"]["accuracy"] = [0.5, 1.0]
    text = card_of(tmp_path, training=training)
    assert "| val | accuracy | 0.95 | 0.5 to 1 |" in text
    assert "7 groups were kept whole" in text
    assert "groups were kept whole" not in card_of(tmp_path)


def test_a_temperature_was_fitted_where_one_is_applied(tmp_path: Path) -> None:
    text = card_of(tmp_path)
    assert "no temperature is applied" in text
    assert "fitted" not in text
    text = card_of(tmp_path, temperature=1.25)
    assert "The logarithms of the probabilities are divided by the temperature 1.25 and normalised" in text
    assert "- the temperature was fitted on val" in text.splitlines()


def test_names_of_strangers_stay_text(tmp_path: Path) -> None:
    text = card_of(tmp_path)
    assert set(front_matter(text)) == {
        *("license", "license_name", "library_name", "pipeline_tag", "tags", "base_model_relation", "metrics")
    }
    assert "<script>" not in text
    assert "\u202e" not in text
    assert "](https:" not in text
    (line,) = [line for line in text.splitlines() if "10 classes" in line]
    assert "license: mit" in line  # on one line, which opens no front matter
    rows = [line for line in text.splitlines() if line.endswith("| 2 | 1 | 0.5 | 0.1 to 0.9 |")]
    assert len(rows) == len(HOSTILE)
    assert escaped("a|b") == "a\\|b"


def test_names_of_strangers_as_a_reader_of_markdown_sees_them(tmp_path: Path) -> None:
    parser = pytest.importorskip("markdown_it", reason="pip install 'precompute[docs]'")
    html = parser.MarkdownIt("commonmark").enable("table").render(card_of(tmp_path).partition("\n---\n")[2])
    for forbidden in ("<script", "<a ", "<img", "href"):
        assert forbidden not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert html.count("<h1>") == 1


@pytest.mark.parametrize(
    "odd",
    [
        {"training": None},
        {"training": {"scores": {"val": None}, "rows": [], "classes": 7, "notes": 5, "layers": None}},
        {"spec": [], "weights_source": None, "layer": None},
        {"spec": {"transform": {"modality": []}}, "training": {"layers": 5}, "temperature": float("nan")},
        {"temperature": 10**400, "average_views": "3", "training": {"groups": True, "layers": {}}},
        {
            "temperature": [1],
            "training": {
                "task": [],
                "scores": {
                    "val": {
                        "accuracy": 10**400,
                        "macro_f1": float("nan"),
                        "auc": 0.5,
                        "auc_interval": [0, 10**400],
                        "calibration_error": 10**400,
                        "per_class": [{"images": 10**400, "precision": float("inf")}],
                    }
                },
                "classes": [None],
            },
        },
        {
            "temperature": 1.5,
            "training": {"task": "number", "scores": {"val": {"r2": 0.5, "intervals": {"r2": [0, 1]}}}},
        },
    ],
    ids=["no training", "odd training", "no spec", "odd kinds", "odd numbers", "odd scores", "number"],
)
def test_metadata_of_strangers(tmp_path: Path, odd: dict[str, Any]) -> None:
    assert "## Limits" in card_of(tmp_path, **odd)


def test_without_a_score_no_leak_was_searched(tmp_path: Path) -> None:
    text = card_of(tmp_path, training={**metadata()["training"], "scores": {}, "notes": ["a note"]})
    assert "No split was scored, so no leaks were searched." in text
    assert "None found" not in text


def test_a_head_on_imported_features_takes_such_features(tmp_path: Path) -> None:
    spec = {"backbone": "external", "weights": "sha256 ab", "storage": "float32"}
    text = card_of(tmp_path, spec=spec, weights_source={})
    assert "$ precompute predict photos.safetensors new-features.h5" in text.splitlines()
    assert "precompute export" not in text
    assert "on the same features only" in text
    named = card_of(tmp_path, spec={**spec, "weights": "named clip`b32 v1"}, weights_source={})
    assert "$ precompute import new-features.npz -o new-features.h5 --name 'clip`b32 v1'" in named.splitlines()
    assert "only" not in named
    assert "picture" not in text
    assert "SHA-256 of the weights" not in text
    assert "pipeline_tag" not in front_matter(text)


@pytest.mark.parametrize(
    "refused",
    [
        {"average_views": 3},
        {"spec": {**metadata()["spec"], "transform": {"decoder": "nvjpeg, resized by torch on the device, 1"}}},
        {"spec": {**metadata()["spec"], "transform": {"fast_decode": True}}},
        {"spec": {**metadata()["spec"], "transform": {"modality": "text"}}},
    ],
    ids=["views", "nvjpeg", "fast decode", "text"],
)
def test_no_graph_is_promised_where_none_can_be_made(tmp_path: Path, refused: dict[str, Any]) -> None:
    line = "$ precompute export photos.safetensors -o model.onnx"
    assert line in card_of(tmp_path).splitlines()
    assert line not in card_of(tmp_path, **refused).splitlines()


def test_a_head_of_numbers_is_no_classifier(tmp_path: Path) -> None:
    text = card_of(tmp_path, training={"task": "number", "scores": {"val": {"r2": 0.5}}})
    assert "It predicts a number for a picture: " in text
    assert "pipeline_tag" not in front_matter(text)


def test_a_file_in_its_place_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "card.md").write_text("mine")
    with pytest.raises(HeadError, match="exists"):
        write_card(tmp_path / "card.md", metadata(), kind="head", file_name="a")
    assert (tmp_path / "card.md").read_text() == "mine"


def test_the_command(precompute: Command, png_photos: Path) -> None:
    assert precompute("extract", "photos", "-b", "tiny", "-o", "a.h5").returncode == 0
    assert precompute("train-head", "a.h5", "--C", "1", "-o", "a.safetensors").returncode == 0
    done = precompute("export", "a.safetensors", "-o", "card.md", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["licence"] == "bsd-3-clause"
    assert {one["split"] for one in told["scores"]} == {"val"}
    assert precompute("export", "a.safetensors", "-o", "card.md").returncode == 1
    assert precompute("export", "a.safetensors", "-o", "card.md", "--overwrite").returncode == 0
