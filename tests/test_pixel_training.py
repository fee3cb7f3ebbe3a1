"""Training from images: the same losses as from a cache where that is possible, the same bytes again and after a kill,
and what it says where images, labels or files are not what it needs."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, Command, make_image, make_photos
from sklearn.metrics import log_loss

from precompute import extract, open_cache, predict, train_head
from precompute.errors import BackboneError, HeadError, HeadMismatchError, PrecomputeError, SampleError, UsageError
from precompute.finetuning.checkpoint import SUFFIX
from precompute.finetuning.fine_tune import fine_tune
from precompute.finetuning.labelled_images import FEATURES
from precompute.finetuning.opening import open_head

MIDDLE = "body.3"
QUICK: dict[str, Any] = {"epochs": 3, "batch_size": 8, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 photos: train and val of two classes."""
    return make_photos(tmp_path_factory.mktemp("training") / "photos", per_class=20)


@pytest.fixture(scope="module")
def features(photos: Path) -> Path:
    extract(photos, photos.parent / "features.h5", backbone="tiny", precision="fp32")
    return photos.parent / "features.h5"


def train(photos: Path, out: Path | None, features: Path, **options: Any) -> Any:
    return fine_tune(photos, out, backbone="tiny", features=features, **{**QUICK, **options})


@pytest.mark.rotates(6)
def test_a_frozen_body_trains_as_its_cached_activations_do(photos: Path, features: Path, tmp_path: Path) -> None:
    """The same seeds and batches, no views: the same loss in each step, and the same parameters."""
    extract(photos, tmp_path / "middle.h5", backbone="tiny", layer=MIDDLE, precision="fp32")
    losses: dict[str, list[float]] = {"images": [], "cache": []}

    def watch(name: str) -> Any:
        return lambda epoch, step, loss: losses[name].append(loss)

    of_images = train(photos, None, features, freeze_to=MIDDLE, augment="none", epochs=6, watch=watch("images"))
    of_cache = fine_tune(tmp_path / "middle.h5", **{**QUICK, "epochs": 6}, watch=watch("cache"))
    assert len(losses["images"]) == len(losses["cache"]) > 20
    assert np.allclose(losses["images"], losses["cache"], rtol=0, atol=1e-5)
    assert np.ptp(losses["images"]) > 0.01  # something was learned
    assert of_images.scores["val"].accuracy == of_cache.scores["val"].accuracy


@pytest.mark.rotates(3)
@pytest.mark.parametrize("freeze_to", [None, MIDDLE])
def test_predictions_from_images_are_those_that_were_scored(
    photos: Path, features: Path, tmp_path: Path, precompute: Command, freeze_to: str | None
) -> None:
    result = train(photos, tmp_path / "net.safetensors", features, freeze_to=freeze_to)
    done = precompute("predict", "net.safetensors", photos / "val", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)["predictions"]
    scores = result.scores["val"]
    assert len(said) == 40
    assert np.mean([one["label"] == one["true"] for one in said]) == pytest.approx(scores.accuracy)
    proba = [one["probability"] if one["label"] == "dogs" else 1 - one["probability"] for one in said]
    assert log_loss([one["true"] for one in said], proba) == pytest.approx(scores.log_loss, abs=1e-5)


@pytest.mark.rotates(3)
def test_a_cache_of_the_input_gives_the_same(photos: Path, features: Path, tmp_path: Path) -> None:
    train(photos, tmp_path / "net.safetensors", features)
    extract(photos, tmp_path / "input.h5", backbone="tiny", layer="input", precision="fp32")
    of_images, of_cache = (predict(tmp_path / "net.safetensors", one).items for one in (photos, tmp_path / "input.h5"))
    assert [one.label for one in of_images] == [one.label for one in of_cache]
    assert np.allclose([one.probability for one in of_images], [one.probability for one in of_cache], atol=1e-6)


@pytest.mark.rotates(6)
def test_the_same_command_gives_the_same_bytes_and_another_augmentation_others(
    photos: Path, features: Path, tmp_path: Path
) -> None:
    def made(name: str, **options: Any) -> bytes:
        train(photos, tmp_path / name, features, **options)
        return (tmp_path / name).read_bytes()

    first = made("a", workers=1)
    assert made("b", workers=3) == first
    assert made("c", augment="none") != first
    assert made("d", seed=1) != first


@pytest.mark.rotates(3)
def test_what_is_frozen_is_not_in_the_file(photos: Path, features: Path, tmp_path: Path) -> None:
    train(photos, tmp_path / "whole.safetensors", features)
    train(photos, tmp_path / "behind.safetensors", features, freeze_to=MIDDLE)
    whole, behind = (set(open_head(tmp_path / f"{name}.safetensors").saved.trained) for name in ("whole", "behind"))  # type: ignore[union-attr]
    assert behind < whole
    assert {name.split(".")[1:3][0] for name in whole - behind} == {"body"}
    assert not any(name.startswith("tail.body.0") for name in behind)


@pytest.mark.rotates(3)
def test_the_frozen_layers_stay_and_the_others_move(photos: Path, features: Path, tmp_path: Path) -> None:
    from precompute import load_backbone

    train(photos, tmp_path / "net.safetensors", features, epochs=8, augment="none")
    file = open_head(tmp_path / "net.safetensors")
    if not file.saved.fitted.best_epoch:  # type: ignore[union-attr]
        pytest.fail("nothing was learned, so the test says nothing")
    before = load_backbone("tiny").network.state_dict()
    trained = file.saved.trained  # type: ignore[union-attr]
    names = [name for name in trained if name.startswith("tail.")]
    moved = [not np.array_equal(trained[name], before[name.removeprefix("tail.")].numpy()) for name in names]
    assert np.mean(moved) > 0.9
    state = dict(before)
    assert not any("running" in name for name in trained)
    assert {name for name in state if "running" in name}


def command(photos: Path, out: str, features: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "precompute", "fine-tune", str(photos), "-b", "tiny", "-o", out),
        *("--features", str(features), "--epochs", "6", "--batch-size", "8", "--learning-rate", "1e-3"),
        *("--checkpoint-seconds", "0.001", *more),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("when", [1, 7, 16])
@pytest.mark.daily(3)
def test_killed_and_run_again_it_gives_the_same_bytes(photos: Path, features: Path, tmp_path: Path, when: int) -> None:
    """SIGKILL once the checkpoint has been written so many times, in the middle of an epoch."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command(photos, "whole", features), cwd=tmp_path, check=True, env=environment, capture_output=True)
    kept = tmp_path / f"killed{SUFFIX}"
    with subprocess.Popen(
        command(photos, "killed", features), cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL
    ) as running:
        seen: set[int] = set()
        while len(seen) < when and running.poll() is None:
            if kept.exists():
                seen.add(kept.stat().st_mtime_ns)
            time.sleep(0.0005)
        running.send_signal(signal.SIGKILL)
    assert kept.exists()
    assert not (tmp_path / "killed").exists()
    subprocess.run(command(photos, "killed", features), cwd=tmp_path, check=True, env=environment, capture_output=True)
    assert (tmp_path / "killed").read_bytes() == (tmp_path / "whole").read_bytes()
    assert not kept.exists()


@pytest.mark.rotates(3)
def test_stopped_and_run_again_it_gives_the_same_bytes(photos: Path, features: Path, tmp_path: Path) -> None:
    train(photos, tmp_path / "whole", features)
    steps = 0

    def stop() -> int:
        nonlocal steps
        steps += 1
        return signal.SIGTERM if steps == 8 else 0

    with pytest.raises(PrecomputeError, match="Stopped in epoch"):
        train(photos, tmp_path / "stopped", features, stop=stop)
    assert (tmp_path / f"stopped{SUFFIX}").exists()
    train(photos, tmp_path / "stopped", features)
    assert (tmp_path / "stopped").read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.mark.rotates(3)
def test_a_checkpoint_of_another_augmentation_is_refused(photos: Path, features: Path, tmp_path: Path) -> None:
    steps = iter(range(100))
    with pytest.raises(PrecomputeError, match="Stopped"):
        train(photos, tmp_path / "o", features, stop=lambda: signal.SIGTERM if next(steps) == 5 else 0)
    with pytest.raises(HeadMismatchError):
        train(photos, tmp_path / "o", features, augment="crop,flip,color")
    assert (tmp_path / f"o{SUFFIX}").exists()


@pytest.mark.rotates(3)
def test_an_image_that_changes_meanwhile_ends_the_training_and_brought_back_it_goes_on(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", per_class=10)
    extract(photos, tmp_path / "f.h5", backbone="tiny", precision="fp32")
    train(photos, tmp_path / "whole", tmp_path / "f.h5", workers=1)
    victim = photos / "train" / "cats" / "1.png"
    before = victim.read_bytes()

    def watch(epoch: int, step: int, loss: float) -> None:
        if (epoch, step) == (2, 0):
            make_image(999).save(victim)

    with pytest.raises(SampleError, match="train/cats/1.png has changed") as raised:
        train(photos, tmp_path / "o", tmp_path / "f.h5", workers=1, watch=watch, checkpoint_seconds=1e-6)
    assert "checkpoint is kept" in raised.value.hint
    assert (tmp_path / f"o{SUFFIX}").exists()
    assert not (tmp_path / "o").exists()
    victim.write_bytes(before)
    train(photos, tmp_path / "o", tmp_path / "f.h5", workers=1)
    assert (tmp_path / "o").read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.mark.rotates(3)
def test_the_feature_file_stays_beside_the_network_and_trains_heads(photos: Path, tmp_path: Path) -> None:
    fine_tune(photos, tmp_path / "net.safetensors", backbone="tiny", **{**QUICK, "epochs": 1})
    kept = Path(f"{tmp_path / 'net.safetensors'}{FEATURES}")
    assert open_cache(kept).layers == ("embed.4",)
    assert train_head(kept).scores["val"].accuracy >= 0.3


@pytest.mark.rotates(3)
def test_broken_images_are_left_out(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", per_class=10)
    (photos / "train" / "cats" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    result = fine_tune(photos, tmp_path / "o", backbone="tiny", **{**QUICK, "epochs": 1})
    assert result.rows["train"] == 20


def write_table(photos: Path, path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "split", "kind", "size", "marks", "series"))
        for number, image in enumerate(sorted(photos.rglob("*.*g"))):
            split, kind = image.parts[-3], image.parts[-2]
            marks = ";".join(name for bit, name in ((1, "a"), (2, "b")) if number & bit) or ";"
            writer.writerow((image.relative_to(photos), split, kind, number / 7, marks, number // 4))


@pytest.mark.rotates(3)
@pytest.mark.parametrize(
    ("options", "task"),
    [
        ({"label_column": "kind", "split_column": "split"}, "classes"),
        ({"label_column": "size", "task": "number"}, "number"),
        ({"label_column": "marks", "task": "labels", "groups_column": "series"}, "labels"),
    ],
    ids=["classes", "number", "labels"],
)
def test_what_a_table_says_is_learned(photos: Path, tmp_path: Path, options: dict[str, Any], task: str) -> None:
    write_table(photos, tmp_path / "table.csv")
    out = tmp_path / "net.safetensors"
    given = {**QUICK, "epochs": 1, "root": str(photos), **options}
    result = fine_tune(tmp_path / "table.csv", out, backbone="tiny", **given)
    assert result.task == task
    assert result.rows["train"] == 40
    found = predict(out, tmp_path / "table.csv", root=str(photos), columns={"label": options["label_column"]})
    assert len(found.items) == 80
    assert found.scored == 80


@pytest.mark.rotates(3)
def test_a_tail_of_ones_own_behind_frozen_layers(
    photos: Path, features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precompute: Command
) -> None:
    (tmp_path / "own_tails.py").write_text(
        "from torch import nn\n"
        "def small(shape):\n"
        "    return nn.Sequential(nn.Conv2d(shape[0], 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    train(photos, tmp_path / "own.safetensors", features, freeze_to=MIDDLE, tail="own_tails:small", epochs=1)
    assert precompute("predict", "own.safetensors", photos / "val").returncode == 1
    done = precompute("predict", "own.safetensors", photos / "val", "--tail", "own_tails:small")
    assert done.returncode == 0, done.stderr
    refused = precompute("export-head", "own.safetensors", "-o", "own.pth")
    assert refused.returncode == 1
    sys.modules.pop("own_tails", None)


@pytest.mark.rotates(3)
def test_mixed_precision_is_for_cuda_and_said(photos: Path, features: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        result = train(photos, None, features, device="cuda")
        assert any("bf16" in note for note in result.notes)
        return
    result = train(photos, None, features, device="auto", epochs=1)
    assert result.choices["settings"]["precision"] == "fp32"
    with pytest.raises(UsageError, match="for CUDA"):
        train(photos, None, features, precision="bf16")


@pytest.mark.rotates(3)
def test_mixed_precision_as_a_path_of_the_code(photos: Path, features: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU's autocast, with the rule that keeps it for CUDA taken away: close to fp32, and parameters stay fp32."""
    losses: dict[str, list[float]] = {"fp32": [], "bf16": []}
    for precision, seen in losses.items():
        with monkeypatch.context() as patch:
            patch.setattr("precompute.finetuning.tuning.check_device", lambda device: "cuda")
            result = train(
                photos, None, features, precision=precision, watch=lambda epoch, step, loss, to=seen: to.append(loss)
            )
        assert {one.dtype for one in result.head.network.parameters()} == {torch.float32}
    assert losses["fp32"] != losses["bf16"]
    assert np.allclose(losses["fp32"], losses["bf16"], rtol=0.05, atol=0.02)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"backbone": None}, UsageError, "must be named"),
        ({"layer": MIDDLE}, UsageError, "--layer has no effect"),
        ({"freeze_to": "nowhere"}, BackboneError, "no layer 'nowhere'"),
        ({"freeze_to": "body.3.block.0"}, BackboneError, "More than one tensor"),
        ({"freeze_to": "embed.4"}, BackboneError, "there is nothing to train"),
        ({"average_views": True}, UsageError, "predicts from the plain image"),
        ({"augment": "shear"}, UsageError, "augment must name"),
        ({"precision": "fp8"}, UsageError, "precision must be one of"),
        ({"out": None}, UsageError, "needs a file"),
        ({"out": "features.h5"}, HeadError, "is not a tail"),
    ],
    ids=lambda value: str(sorted(value)[0]) + str(value)[-9:-2] if isinstance(value, dict) else "",
)
def test_what_is_refused_before_any_work(
    photos: Path, features: Path, tmp_path: Path, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    (tmp_path / "features.h5").write_bytes(features.read_bytes())
    out = options.get("out", "o.safetensors")
    rest = {name: value for name, value in options.items() if name != "out"}
    with pytest.raises(error, match=words):
        fine_tune(photos, None if out is None else tmp_path / out, **{"backbone": "tiny", **QUICK, **rest})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["features.h5"]


def test_options_of_images_say_nothing_of_a_cache(features: Path, tmp_path: Path, precompute: Command) -> None:
    done = precompute("fine-tune", features, "--freeze-to", MIDDLE)
    assert done.returncode == 2
    assert "freeze_to has no effect" in done.stderr


@pytest.mark.rotates(3)
def test_images_without_labels(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(8):
        make_image(number).save(tmp_path / "photos" / f"{number}.png")
    with pytest.raises(PrecomputeError, match="label"):
        fine_tune(tmp_path / "photos", tmp_path / "o", backbone="tiny", **QUICK)


def test_a_head_is_not_overwritten(photos: Path, features: Path, tmp_path: Path) -> None:
    train_head(features, tmp_path / "head.safetensors")
    before = (tmp_path / "head.safetensors").read_bytes()
    with pytest.raises(HeadError, match="is not a tail"):
        train(photos, tmp_path / "head.safetensors", features)
    assert (tmp_path / "head.safetensors").read_bytes() == before


@pytest.mark.rotates(3)
def test_images_that_cannot_be_decoded_are_named_and_left_out(tmp_path: Path, precompute: Command) -> None:
    make_photos(tmp_path / "photos", per_class=6)
    (tmp_path / "photos/train/cats/broken.jpg").write_bytes(b"no picture")
    options = ("fine-tune", tmp_path / "photos", "-b", "tiny", "--epochs", 1, "-o", tmp_path / "full.safetensors")
    done = precompute(*options, "--json")
    assert done.returncode == 3
    found = json.loads(done.stdout)
    assert "left out: train/cats/broken.jpg (UNDECODABLE)" in found["notes"] and found["skipped"] == 1
    assert precompute(*options, "--overwrite", "--allow-skipped").returncode == 0
