"""Temperature scaling of trained heads: fitted on val, reported before and after; no prediction changes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import Command, make_image
from sklearn.metrics import log_loss

from precompute import extract, load_head, open_cache, save_head, train_head
from precompute.errors import HeadFormatError, UsageError
from precompute.heads.scoring.temperature import as_logits, scale, temperature


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a.h5: train, val and test of two classes, whose labels are noise for every third picture; b.h5: no val."""
    place = tmp_path_factory.mktemp("calibrating")
    for number in range(120):
        red = number % 2 if number % 3 else number // 6 % 2
        image = make_image(number)
        image.paste((200 * (number % 2), 60, 60), (0, 0, 20, 32))
        out = place / "photos" / ("train", "val", "test")[number // 40] / ("red", "blue")[red]
        out.mkdir(parents=True, exist_ok=True)
        image.save(out / f"{number}.png")
    extract(place / "photos", place / "a.h5", backbone="tiny")
    extract(place / "photos/train", place / "b.h5", backbone="tiny")
    return place


def probabilities(cache, head, split):
    rows = np.flatnonzero(cache.split == split)
    return np.array(cache.classes)[cache.labels[rows]], head.predict_proba(np.array(cache.features()[rows]))


@pytest.mark.rotates(3)
def test_before_and_after_are_told_and_nothing_else_changes_unless_asked(folder: Path) -> None:
    cache = open_cache(folder / "a.h5")
    training = train_head(cache, C=1e3)  # far too sure of itself
    found = training.calibration
    assert found is not None
    assert not found.applied
    true, proba = probabilities(cache, training.head, "val")
    T = temperature(as_logits(proba), np.searchsorted(training.head.classes_, true))
    assert found.temperature == T > 1
    for split in ("val", "test"):
        true, proba = probabilities(cache, training.head, split)
        assert found.before[split]["log_loss"] == pytest.approx(log_loss(true, proba), rel=1e-4)
        assert found.after[split]["log_loss"] == pytest.approx(log_loss(true, scale(proba, T)), rel=1e-4)
        assert training.scores[split].log_loss == found.before[split]["log_loss"]
    assert found.after["test"]["log_loss"] < found.before["test"]["log_loss"]


@pytest.mark.parametrize("head", ["logistic", "mlp"])
def test_a_calibrated_head_predicts_the_same_with_other_probabilities(folder: Path, tmp_path: Path, head: str) -> None:
    cache = open_cache(folder / "a.h5")
    settings = {"logistic": {"C": 1e3}, "mlp": {"hidden": (8,), "max_epochs": 5}}[head]
    plain = train_head(cache, tmp_path / "plain.safetensors", head=head, **settings)
    done = train_head(cache, tmp_path / "calibrated.safetensors", head=head, calibrated=True, **settings)
    assert done.calibration is not None
    assert done.calibration.applied
    for split in ("val", "test"):
        assert np.array_equal(done.scores[split].confusion, plain.scores[split].confusion)
        assert done.scores[split].log_loss == pytest.approx(done.calibration.after[split]["log_loss"])
    X = np.array(cache.features())
    saved, before = load_head(tmp_path / "calibrated.safetensors"), load_head(tmp_path / "plain.safetensors")
    assert saved.metadata["temperature"] == done.calibration.temperature
    assert "temperature" not in before.metadata
    assert np.array_equal(saved.predict_proba(X), scale(before.predict_proba(X), done.calibration.temperature))
    assert np.array_equal(saved.predict_proba(X).argmax(axis=1), before.predict_proba(X).argmax(axis=1))


def test_predict_tells_the_calibrated_probabilities(folder: Path, tmp_path: Path, precompute: Command) -> None:
    done = precompute("train-head", folder / "a.h5", "-o", "a.safetensors", "--C", "1000", "--calibrate")
    assert done.returncode == 0, done.stderr
    assert "fitted on val, applied" in done.stdout
    assert "test: log loss" in done.stdout
    report = json.loads(precompute("predict", "a.safetensors", folder / "photos/test", "--json").stdout)
    cache = open_cache(folder / "a.h5")
    rows = np.flatnonzero(cache.split == "test")
    proba = load_head(tmp_path / "a.safetensors").predict_proba(np.array(cache.features()[rows]))
    np.testing.assert_allclose([item["probability"] for item in report["predictions"]], proba.max(axis=1), rtol=1e-6)
    done = precompute("export-head", "a.safetensors", "-o", "a.joblib")
    assert "not its probabilities" in done.stderr


def test_without_val_there_is_nothing_to_fit_on(folder: Path) -> None:
    assert train_head(folder / "b.h5", C=1.0).calibration is None
    with pytest.raises(UsageError, match="no split val"):
        train_head(folder / "b.h5", C=1.0, calibrated=True)


def test_where_every_image_of_val_is_right_it_is_said_and_nothing_applied(tmp_path: Path) -> None:
    for number in range(24):
        label = number % 2
        image = make_image(number)
        image.paste((255 * label, 0, 255 * (1 - label)), (0, 0, 40, 30))
        out = tmp_path / "photos" / ("train", "val")[number // 12] / ("red", "blue")[label]
        out.mkdir(parents=True, exist_ok=True)
        image.save(out / f"{number}.png")
    extract(tmp_path / "photos", tmp_path / "a.h5", backbone="tiny")
    training = train_head(tmp_path / "a.h5", tmp_path / "a.safetensors", C=1.0, calibrated=True)
    assert training.scores["val"].accuracy == 1
    assert training.calibration is not None
    assert training.calibration.temperature is None
    assert not training.calibration.applied
    assert any("every sample is right" in line for line in training.notes)
    assert "temperature" not in load_head(tmp_path / "a.safetensors").metadata


@pytest.mark.parametrize("T", [0, -2.0, 1e9, "2", None, True, [1.0]])
def test_a_file_with_an_impossible_temperature_is_refused(folder: Path, tmp_path: Path, T: object) -> None:
    head = train_head(folder / "a.h5", C=1.0).head
    save_head(tmp_path / "a.safetensors", head, metadata={"temperature": T})
    with pytest.raises(HeadFormatError, match="the temperature must be"):
        load_head(tmp_path / "a.safetensors")
