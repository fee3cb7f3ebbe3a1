"""What should be trained with so many labels: same draws, same test images, resumable, and an honest answer."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from conftest import ROOT, Command, make_image
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from scipy.stats import binomtest, ttest_rel
from torch import nn

from precompute import Depth, depth, extract, few_shot, load_backbone, open_cache
from precompute.backbones.tail import tail_of
from precompute.cli import cli
from precompute.errors import BackboneError, TrainingError, UsageError
from precompute.evaluation.depth_methods import NAMES, names_of
from precompute.evaluation.depth_result import OverDraws, interval_of, standing
from precompute.finetuning.activations import ActivationRows, CachedActivations
from precompute.finetuning.fine_tune import fine_tune
from precompute.finetuning.on_rows import Given, calibrate, fit_on_rows
from precompute.finetuning.settings import TailSettings
from precompute.training.splits import digest_groups
from precompute.training.targets import own_classes

SMALL = {"resize": 16, "crop": 16}
LIGHT = ["pixels", "random", "head"]


class LowerCorner(nn.Module):
    """The mean colour of the lower right quarter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :, 8:, 8:].mean(dim=(2, 3)) * self.weight


def blind() -> nn.Module:
    return LowerCorner()


@pytest.fixture(scope="module")
def corners(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pictures a class in train and 16 in test, 16 x 16: red or blue in the upper left quarter, noise elsewhere."""
    folder = tmp_path_factory.mktemp("corners")
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 16)):
        for label, colour in (("blue", (30, 30, 200)), ("red", (200, 30, 30))):
            (folder / split / label).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                pixels[:8, :8] = np.clip(rng.normal(colour, 20), 0, 255)
                Image.fromarray(pixels).save(folder / split / label / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def graded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 and 10 pictures of each of two classes in train and val, which `tiny` can tell apart to some degree."""
    folder = tmp_path_factory.mktemp("graded")
    seed = 0
    for split, count in (("train", 20), ("val", 10)):
        for place, label in enumerate(("bright", "dark")):
            (folder / split / label).mkdir(parents=True)
            for number in range(count):
                seed += 1
                pixels = np.asarray(make_image(seed, (32, 32))).astype(float)
                picture = Image.fromarray(np.clip(pixels + 25 - 50 * place, 0, 255).astype(np.uint8))
                picture.save(folder / split / label / f"{number}.png")
    return folder


def scores_of(found: Depth) -> dict[tuple[str, Any], tuple[float, ...]]:
    return {(point.method, point.shots): point.scores for point in found.points}


@pytest.mark.slow
def test_heads_are_those_of_few_shot_on_the_same_draws(graded: Path, tmp_path: Path) -> None:
    found = depth(graded, tmp_path / "d", backbone="tiny", shots=[2, 10, "all"], draws=3, methods=LIGHT, seed=4)
    files = [tmp_path / "d" / f"{name}.h5" for name in LIGHT]
    for curve in few_shot(files, shots=[2, 10, 20], draws=3, seed=4):
        scores = [point.scores for point in curve.points]
        assert scores_of(found)[curve.name, 2] == scores[0]
        assert scores_of(found)[curve.name, 10] == scores[1]
        (of_all,) = scores_of(found)[curve.name, "all"]
        assert scores[2] == (of_all,) * 3  # 20 a class are all, in every draw
        interval = found.point(curve.name, 10).interval  # type: ignore[union-attr]
        assert interval == curve.points[1].interval
    assert (found.split, found.tested, found.labels, found.n_classes) == ("val", 20, 40, 2)
    assert [point.labels for point in found.points if point.method == "head"] == [4, 20, 40]
    assert {one.name: one.bytes for one in found.methods} == {
        name: os.path.getsize(tmp_path / "d" / f"{name}.h5") for name in LIGHT
    }


@pytest.mark.rotates(3)
def test_what_is_finished_is_not_done_again(graded: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"backbone": "tiny", "draws": 2, "methods": ["head"]}
    first = depth(graded, tmp_path / "d", shots=[2, "all"], **options)
    results, features = tmp_path / "d" / "results.jsonl", tmp_path / "d" / "head.h5"
    before = (results.read_bytes(), features.stat().st_mtime_ns)
    again = depth(graded, tmp_path / "d", shots=[2, "all"], **options)
    assert again.to_dict() == first.to_dict()
    assert (results.read_bytes(), features.stat().st_mtime_ns) == before
    more = depth(graded, tmp_path / "d", shots=[2, 5, "all"], **{**options, "draws": 3})
    assert scores_of(more)["head", 2][:2] == scores_of(first)["head", 2]
    assert results.read_bytes().startswith(before[0])
    assert results.read_bytes().count(b"\n") == before[0].count(b"\n") + 1 + 3
    other = depth(graded, tmp_path / "d", shots=[2, "all"], **options, seed=1)
    assert other.seed == 1
    assert results.read_bytes().count(b"\n") > before[0].count(b"\n") + 4


def arguments_for(source: Path, out: str, methods: str, draws: int) -> list[str]:
    return [
        *("depth", str(source), "-b", "tiny", "-o", out, "--shots", "2,all", "--draws", str(draws), "--epochs", "1"),
        *("--methods", methods, "--json"),
    ]


@pytest.mark.rotates(6)
def test_every_method_answers(graded: Path, tmp_path: Path, precompute: Command) -> None:
    done = precompute(*arguments_for(graded, "d", ",".join(NAMES), 1))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    names = [method["name"] for method in found["methods"]]
    assert names[:5] == ["pixels", "random", "head", "all-layers", "attentive"]
    assert names[-2:] == ["everything", "scratch"]
    assert len(names) > 7
    assert all(name.startswith("tail:") for name in names[5:-2])
    assert [len(found["points"]), len(found["standings"])] == [2 * len(names), 2]
    assert all(0 <= score <= 1 for point in found["points"] for score in point["scores"])
    assert all((tmp_path / "d" / f"{name}.h5").exists() for name in ("layers", "map", "tail-body"))
    for method in found["methods"]:
        _, name, *words = shlex.split(method["command"])
        if method["name"] not in ("all-layers", "attentive"):  # values that train-head alone knows
            cli.commands[name].make_context(name, words, parent=click.Context(cli))
    assert {method["name"] for method in found["methods"] if not method["pretrained"]} == {
        *("pixels", "random", "scratch")
    }


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_as_one_that_was_not(graded: Path, tmp_path: Path, precompute: Command) -> None:
    """SIGKILL among the results; the scores of every method, those that train networks too, are the same."""
    methods = "pixels,head,tail:body,everything"
    whole = precompute(*arguments_for(graded, "whole", methods, 2))
    assert whole.returncode == 0, whole.stderr
    lines = (tmp_path / "whole" / "results.jsonl").read_bytes().count(b"\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "precompute", *arguments_for(graded, "killed", methods, 2)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    results = tmp_path / "killed" / "results.jsonl"
    while process.poll() is None:
        if results.exists() and results.read_bytes().count(b"\n") >= lines // 2:
            process.send_signal(signal.SIGKILL)
        time.sleep(0.01)
    assert process.wait() == -signal.SIGKILL
    assert results.read_bytes().count(b"\n") < lines
    resumed = precompute(*arguments_for(graded, "killed", methods, 2))
    assert resumed.returncode == 0, resumed.stderr
    one, other = (json.loads(run.stdout) for run in (whole, resumed))
    points = [[{**point, "seconds": 0} for point in found["points"]] for found in (one, other)]
    assert points[0] == points[1]
    assert [each["order"] for each in one["standings"]] == [each["order"] for each in other["standings"]]
    assert results.read_bytes().count(b"\n") == lines


@pytest.mark.rotates(6)
def test_transfer_that_hurts_is_said_so(corners: Path, tmp_path: Path) -> None:
    found = depth(
        *(corners, tmp_path / "d"),
        backbone="test_depth:blind",
        transform=SMALL,
        shots=[10, "all"],
        draws=4,
        methods=LIGHT,
    )
    assert found.notes == ("random: a factory chooses its own weights, so there are no random ones",)
    assert [one.name for one in found.methods] == ["pixels", "head"]
    assert [one.hurts for one in found.standings] == [("pixels",), ("pixels",)]
    assert "Transfer hurts: raw pixels beat the pretrained head (at 10, all a class)." in found.words
    assert found.words.startswith("With all 48 labels: raw pixels (")
    assert "is significantly better than the others" in found.words
    assert found.standings[-1].tied == ("pixels",)


def test_what_cannot_be_told_apart_is_said_so_and_the_cheapest_is_named() -> None:
    rng = np.random.default_rng(0)
    right = rng.random(200) < 0.9
    nearly = right.copy()
    nearly[:2] = ~nearly[:2]
    coin = rng.random(200) < 0.5
    found = standing("all", {"pixels": [coin], "head": [nearly], "everything": [right]}, np.arange(200))
    assert set(found.tied) == {"head", "everything"}
    assert found.cheapest == "head"
    assert found.order[-1] == "pixels"
    assert found.hurts == ()
    draws = {"head": [right, nearly, right], "pixels": [coin, coin, ~coin]}
    again = standing(5, draws, np.arange(200))
    assert again.order == ("head", "pixels")


@pytest.mark.rotates(3)
@given(arrays.arrays(np.float64, st.tuples(st.just(2), st.integers(2, 9)), elements=st.floats(0, 1, width=16)))
def test_the_test_over_draws_is_students(scores: np.ndarray) -> None:
    found = OverDraws.of(*scores)
    more = scores[0] - scores[1]
    if np.ptp(more) < 1e-9:
        assert found.difference == pytest.approx(more[0], abs=1e-9)
        return
    expected = ttest_rel(*scores)
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)
    assert found.interval == pytest.approx(tuple(expected.confidence_interval()), abs=1e-9)
    assert found.distinct == (expected.pvalue < 0.05)


def test_a_single_fit_has_an_interval_over_images() -> None:
    right, alone = np.arange(50) % 5 > 0, np.arange(50)
    wilson = binomtest(40, 50).proportion_ci(method="wilson")
    assert interval_of([right], alone) == (pytest.approx((wilson.low, wilson.high)), "images")
    low, high = interval_of([right], alone // 5)[0]  # groups that all have the same share
    assert (low, high) == pytest.approx((0.8, 0.8))
    assert interval_of([right, right, ~right], alone)[1] == "draws"


@pytest.mark.rotates(3)
def test_fitting_on_rows_is_fine_tuning_on_them(graded: Path, tmp_path: Path) -> None:
    """On all of train it gives, bit for bit, what `fine_tune` gives that has train and val alone."""
    extract(graded, tmp_path / "body.h5", backbone="tiny", layer="body", pooling="none")
    tuned = fine_tune(tmp_path / "body.h5", epochs=3, batch_size=8, seed=5)
    cache = open_cache(tmp_path / "body.h5")
    train, val = (np.flatnonzero(cache.split == split) for split in ("train", "val"))
    activations = CachedActivations(cache, "body")
    given = Given(activations, own_classes(cache), digest_groups(cache))
    tail = tail_of(load_backbone("tiny", layer="body", pooling="none"), "body")
    head = fit_on_rows(tail, given, train, TailSettings(epochs=3, batch_size=8, seed=5))
    assert head.choices()["history"] == tuned.choices["history"]
    rows = ActivationRows(activations, val)
    assert np.array_equal(head.predict_proba(rows), tuned.head.predict_proba(rows))
    few = fit_on_rows(
        tail_of(load_backbone("tiny", layer="body", pooling="none"), "body"),
        given,
        np.array([train[0], train[-1]]),
        TailSettings(epochs=1),
    )
    assert few.predict(rows).shape == (20,)


@pytest.mark.rotates(3)
def test_normalisation_is_measured_on_the_rows_and_stays_fixed(graded: Path, tmp_path: Path) -> None:
    extract(graded, tmp_path / "input.h5", backbone="tiny", weights="random", layer="input", pooling="none")
    cache = open_cache(tmp_path / "input.h5")
    backbone = load_backbone("tiny", weights="random", layer="input", pooling="none")
    tail = tail_of(backbone, "input")
    rows = np.arange(20)
    first = next(one for one in tail.modules() if isinstance(one, nn.BatchNorm2d))
    seen: list[torch.Tensor] = []
    hook = first.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].clone()))
    calibrate(tail, CachedActivations(cache, "input"), rows, batch_size=32, device="cpu")
    hook.remove()
    (entered,) = seen
    assert torch.allclose(first.running_mean, entered.mean(dim=(0, 2, 3)), atol=1e-5)
    assert torch.allclose(first.running_var, entered.var(dim=(0, 2, 3)), rtol=1e-3)
    assert not any(one.training for one in tail.modules())
    with pytest.raises(TrainingError, match="no variance"):
        calibrate(tail, CachedActivations(cache, "input"), rows[:1], batch_size=32, device="cpu")


def test_names_of_methods() -> None:
    assert names_of([]) == [name for name in NAMES if name != "scratch"]
    assert names_of(["scratch", "head", "tail:layer3"]) == ["head", "tail:layer3", "scratch"]
    for wrong in ("tail:", "heads", ""):
        with pytest.raises(UsageError, match="There is no method"):
            names_of([wrong])


@pytest.mark.rotates(3)
def test_bad_requests(graded: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"backbone": "tiny", "methods": ["head"], "draws": 1}
    for wrong, message in (
        ({"shots": [0]}, "shots must be whole numbers of at least 1, or all. Got 0"),
        ({"shots": ["most"]}, "Got 'most'"),
        ({"shots": []}, "one number or more"),
        ({"draws": 0}, "draws must be"),
        ({"methods": ["forest"]}, "no method 'forest'"),
    ):
        with pytest.raises(UsageError, match=message):
            depth(graded, tmp_path / "d", **{**options, **wrong})
    assert not (tmp_path / "d").exists()
    with pytest.raises(BackboneError, match="nowhere"):
        depth(graded, tmp_path / "d", **{**options, "methods": ["tail:nowhere"]})
    found = depth(graded, tmp_path / "d", **options, shots=[3, 20, 50])
    assert [one.shots for one in found.standings] == [3, "all"]
    assert found.notes[-1] == "20, 50 labels a class are all that there are: the largest class has 20 to draw from"
    names = [path.relative_to(graded).as_posix() for path in sorted(graded.rglob("*.png"))]
    lines = [f"{name},{'a;b' if 'dark' in name else 'a'}" for name in names]
    (tmp_path / "labels.csv").write_text("path,label\n" + "\n".join([*lines[:-1], lines[-1] + ";c"]) + "\n")
    with pytest.raises(TrainingError, match="several labels a sample, and depth compares methods only on classes"):
        depth(tmp_path / "labels.csv", tmp_path / "l", **options, root=str(graded))


@pytest.mark.rotates(6)
def test_the_command(graded: Path, precompute: Command, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pip install 'precompute[plot]'")
    arguments = ("depth", graded, "-b", "tiny", "-o", "d", "--methods", "pixels,head", "--draws", 2, "--shots", "1,all")
    shown = precompute(*arguments, "--plot", "depth.svg")
    assert shown.returncode == 0, shown.stderr
    assert "precompute train-head d/" in shown.stdout
    assert "Transfer" in shown.stdout
    assert "pixels" in (tmp_path / "depth.svg").read_text()
    told = json.loads(precompute(*arguments, "--json").stdout)
    assert [method["name"] for method in told["methods"]] == ["pixels", "head"]
    assert told["verdict"].startswith("With all 40 labels: ")


@pytest.mark.rotates(6)
def test_on_real_photos_a_head_beats_pixels(hymenoptera: Path, mobilenet_weights: Path, tmp_path: Path) -> None:
    found = depth(
        *(hymenoptera, tmp_path / "d"),
        backbone="mobilenet_v2",
        weights=str(mobilenet_weights),
        transform={"resize": 96, "crop": 96},
        shots=["all"],
        methods=["pixels", "head"],
    )
    assert found.standings[-1].order == ("head", "pixels")
    assert found.standings[-1].hurts == ()
