"""The main job on real photos with real weights, through the real command, against plain PIL and torch."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from conftest import Command, run_command
from PIL import Image
from torchvision.models import MobileNet_V2_Weights, mobilenet_v2

from precompute import load_head, open_cache, train_head
from precompute.heads import to_sklearn


def openvino(folder: Path) -> dict[str, str]:
    """What `--engine auto` is, with and without the extra; torch itself is compared in test_engines.py."""
    return {
        "PRECOMPUTE_ENGINE": "openvino" if find_spec("openvino") else "torch",
        "XDG_CACHE_HOME": str(folder / "cache"),
    }


@pytest.fixture(scope="module")
def ants(tmp_path_factory: pytest.TempPathFactory, hymenoptera: Path, mobilenet_weights: Path) -> Path:
    """The folder with ants.h5, made by the command of the README."""
    folder = tmp_path_factory.mktemp("ants")
    done = run_command(
        folder, "extract", hymenoptera, "-b", "mobilenet_v2", "--weights", mobilenet_weights,
        "-o", "ants.h5", "--precision", "fp32", "--json", env=openvino(folder),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["rows"] == told["computed"] == 398
    assert told["ignored"] == ["2 hidden: train/.DS_Store, val/.DS_Store"]
    return folder


@pytest.mark.rotates(2)
@pytest.mark.parametrize("step", [3, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.daily(2)
def test_every_row_equals_the_plain_reference(
    ants: Path, hymenoptera: Path, mobilenet_weights: Path, step: int
) -> None:
    """Each `step`th photo, and whatever is none."""
    model = mobilenet_v2(weights=None)
    model.load_state_dict(torch.load(mobilenet_weights, weights_only=True))
    model.eval()
    transform = MobileNet_V2_Weights.IMAGENET1K_V1.transforms()
    cache = open_cache(ants / "ants.h5")
    worst = {"jpeg": 0.0, "other": 0.0}
    with torch.inference_mode():
        for row, name in enumerate(cache.ids):
            if row % step and name.lower().endswith("jpg"):
                continue
            with Image.open(hymenoptera / name) as image:
                kind = "jpeg" if image.format == "JPEG" else "other"
                inputs = transform(image.convert("RGB"))
            expected = model.features(inputs[None]).mean((2, 3))[0].numpy()
            distance = np.linalg.norm(cache.features()[row] - expected) / np.linalg.norm(expected)
            worst[kind] = max(worst[kind], float(distance))
    assert 0 < worst["other"] <= 1e-3
    assert worst["jpeg"] <= 1e-2


@pytest.mark.rotates(3)
def test_a_head_trained_on_them_is_right_and_predicts_the_same(
    ants: Path, hymenoptera: Path, precompute: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in openvino(ants).items():
        monkeypatch.setenv(name, value)
    trained = precompute("train-head", ants / "ants.h5", "-o", ants / "ants.safetensors", "--json")
    assert trained.returncode == 0, trained.stderr
    val = json.loads(trained.stdout)["scores"]["val"]
    assert val["n"] == 153
    assert val["accuracy"] >= 0.96
    predicted = precompute("predict", ants / "ants.safetensors", hymenoptera / "val", "--json")
    assert predicted.returncode == 0, predicted.stderr
    told = json.loads(predicted.stdout)
    assert told["scored"] == 153
    assert told["accuracy"] == val["accuracy"]


@pytest.mark.rotates(6)
@pytest.mark.parametrize("head", ["knn", "ridge", "centroid"])
def test_every_other_head_tells_them_apart_too(ants: Path, head: str) -> None:
    """And its export does, in scikit-learn's hands."""
    training = train_head(ants / "ants.h5", ants / f"{head}.safetensors", head=head)
    assert training.scores["val"].accuracy >= 0.92
    assert training.scores["val"].log_loss < 0.25
    X = np.array(open_cache(ants / "ants.h5").features())
    loaded = load_head(ants / f"{head}.safetensors").head
    assert np.array_equal(loaded.predict_proba(X), training.head.predict_proba(X))
    assert np.array_equal(to_sklearn(loaded).predict(X), training.head.predict(X))


def test_plain_h5py_reads_the_file(ants: Path, hymenoptera: Path) -> None:
    with h5py.File(ants / "ants.h5") as file:
        assert file["features/flatten"].shape == (398, 1280)
        assert file["samples/status"][:].tolist() == [1] * 398
        names = [name.decode() for name in file["samples/id"][:]]
    assert names == sorted(
        str(path.relative_to(hymenoptera)) for path in hymenoptera.rglob("*") if path.is_file() and path.name[0] != "."
    )


@pytest.mark.rotates(3)
def test_other_weights_than_those_of_the_training_are_refused(
    ants: Path, hymenoptera: Path, tmp_path: Path, mobilenet_weights: Path, precompute: Command
) -> None:
    if not (ants / "ants.safetensors").exists():
        precompute("train-head", ants / "ants.h5", "-o", ants / "ants.safetensors")
    state = torch.load(mobilenet_weights, weights_only=True)
    state["features.0.0.weight"][0, 0, 0, 0] += 1e-3
    torch.save(state, tmp_path / "other.pth")
    done = precompute("predict", ants / "ants.safetensors", hymenoptera / "val", "--weights", "other.pth")
    assert done.returncode == 1
    assert "weights: " in done.stderr
    assert "--weights" in done.stderr
