"""Ranking backbones on a sample: which images are drawn, how they are scored, and what is said of ties."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Command, make_photos
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import binomtest
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from precompute import Ranking, extract, open_cache, rank
from precompute.errors import BackboneError, TrainingError, UsageError, WeightsError
from precompute.evaluation.candidates import Candidate
from precompute.evaluation.probes import Trial, separated
from precompute.evaluation.records import Records
from precompute.evaluation.sample import sample_rows, shares, target_of
from precompute.extraction.executors.local import LocalExecutor
from precompute.heads import paired
from precompute.sources.base import Raw, Source, Table
from precompute.sources.chosen import ChosenSource
from precompute.training.targets import AUTO, CLASSES, Target

SMALL = {"resize": 32, "crop": 32}


class Listed(Source):
    """A table alone: nothing is read."""

    def __init__(self, ids: list[bytes], labels: list[int], splits: list[int], classes: tuple[bytes, ...]) -> None:
        order = np.argsort(np.array(ids))
        zeros = np.zeros(len(ids), np.int64)
        self.name = "listed"
        self.table = Table(
            *(np.array(ids)[order], zeros, zeros),
            *(np.array(labels, np.int32)[order], np.array(splits, np.uint8)[order], classes),
        )

    def read(self, row: int) -> Raw:
        raise NotImplementedError


def listed(count: int, *, classes: int = 3, splits: tuple[int, ...] = (1,), order: int = 0) -> Listed:
    """`count` samples whose class and split follow from their id, listed in an order of its own."""
    numbers = np.random.default_rng(order).permutation(count).tolist()
    names = tuple(b"class%d" % k for k in range(classes))
    labels = [number % classes for number in numbers]
    return Listed([b"%05d" % n for n in numbers], labels, [splits[n % len(splits)] for n in numbers], names)


def drawn(source: Source, n: int, seed: int = 0) -> list[bytes]:
    ids: list[bytes] = source.table.ids[sample_rows(source, target_of(source, AUTO, None), n, seed)].tolist()
    return ids


@given(st.integers(12, 200), st.integers(6, 200), st.integers(0, 5), st.integers(1, 5))
def test_a_sample_follows_from_ids_and_seed_and_keeps_the_classes(count: int, n: int, seed: int, order: int) -> None:
    source = listed(count)
    found = drawn(source, n, seed)
    assert found == drawn(listed(count, order=order), n, seed)
    assert len(set(found)) == len(found) == min(n, count)
    labels = np.array([int(name) % 3 for name in found])
    counts = np.bincount(labels, minlength=3)
    assert counts.min() >= 2
    assert counts.max() - counts.min() <= 2


def test_no_image_of_val_or_test_is_drawn_and_other_seeds_draw_others() -> None:
    source = listed(300, splits=(1, 1, 2, 3))
    found = drawn(source, 100)
    assert {int(name) % 4 for name in found} <= {0, 1}
    assert found != drawn(source, 100, seed=1)
    without = listed(60, splits=(0,))
    assert len(drawn(without, 50)) == 50
    with pytest.raises(TrainingError, match="no labelled images in split train"):
        drawn(listed(30, splits=(2, 3)), 10)
    with pytest.raises(UsageError, match="cannot hold 2 of each of the 3 classes") as error:
        drawn(listed(30), 5)
    assert error.value.hint == "Use at least 6: -n 6"


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), st.floats(0, 1))
def test_shares_are_whole_proportional_and_exact(sizes: list[int], part: float) -> None:
    n = int(part * sum(sizes))
    found = shares(np.array(sizes), n)
    assert found.sum() == n
    assert (found <= sizes).all()
    if sum(sizes):
        assert (abs(found - np.array(sizes) * n / sum(sizes)) < 1 + 1e-9).all()


@pytest.mark.rotates(3)
def test_chosen_rows_are_an_ordinary_source(tmp_path: Path) -> None:
    from precompute.inputs.images.formats import IMAGES
    from precompute.sources.registry import open_source

    make_photos(tmp_path / "photos")
    whole = open_source(tmp_path / "photos", IMAGES)
    rows = np.array([1, 4, 9, 20])
    chosen = ChosenSource(whole, rows, "four photos")
    assert chosen.table.ids.tolist() == whole.table.ids[rows].tolist()
    assert [chosen.read(row).data for row in range(4)] == [whole.read(row).data for row in rows.tolist()]
    assert np.concatenate(list(chosen.order(np.array([0, 2, 3])))).tolist() == [0, 2, 3]
    assert chosen.reads(str(tmp_path / "photos/train/new.jpg")) == whole.reads(str(tmp_path / "photos/train/new.jpg"))
    extract(tmp_path / "photos", tmp_path / "whole.h5", backbone="tiny")
    extract(chosen, tmp_path / "some.h5", backbone="tiny")
    some, all_ = open_cache(tmp_path / "some.h5"), open_cache(tmp_path / "whole.h5")
    assert some.key == all_.key
    assert np.array_equal(some.features(), all_.features()[rows])
    with pytest.raises(ValueError, match="ascend"):
        ChosenSource(whole, np.array([3, 1]), "disorder")


# What a made set's classes differ by: the colour of the upper left corner, not that of the lower right one


class Corner(nn.Module):
    """The mean colour of the upper left quarter, or of the lower right one."""

    def __init__(self, upper: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.upper = upper

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        part = x[:, :, :8, :8] if self.upper else x[:, :, 8:, 8:]
        return part.mean(dim=(2, 3)) * self.weight


def sees() -> nn.Module:
    return Corner(upper=True)


def sees_too() -> nn.Module:
    return Corner(upper=True)


def blind() -> nn.Module:
    return Corner(upper=False)


@pytest.fixture(scope="module")
def corners(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 pictures of 16 x 16: red or blue in the upper left quarter, noise elsewhere."""
    folder = tmp_path_factory.mktemp("corners")
    rng = np.random.default_rng(0)
    for label, colour in (("blue", (30, 30, 200)), ("red", (200, 30, 30))):
        (folder / label).mkdir()
        for number in range(60):
            pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            pixels[:8, :8] = np.clip(rng.normal(colour, 20), 0, 255)
            Image.fromarray(pixels).save(folder / label / f"{number}.png")
    return folder


def ranked(source: Path, *names: str, **options: Any) -> Ranking:
    names = tuple(name if name == "tiny" else f"test_rank:{name}" for name in names)
    return rank(source, names, **{"transform": {"resize": 16, "crop": 16}, **options})


@pytest.mark.rotates(3)
def test_a_backbone_that_sees_the_class_is_before_one_that_does_not(corners: Path) -> None:
    found = ranked(corners, "blind", "sees")
    assert [one.backbone for one in found.candidates] == ["test_rank:sees", "test_rank:blind"]
    first, second = found.candidates
    assert (first.group, second.group) == (1, 2)
    assert first.score > 0.95
    assert second.score < 0.7
    assert first.interval[0] <= first.score <= first.interval[1]
    assert first.behind is None
    assert found.words == "test_rank:sees is significantly better than the others."
    assert found.tried == found.images == 120
    assert found.tau is None  # both have three parameters
    assert (first.cost.images, first.width, first.parameters) == (120, 3, 3)
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.rotates(3)
def test_equal_backbones_are_tied_and_the_verdict_says_so(corners: Path) -> None:
    found = ranked(corners, "sees", "sees_too", "blind", n=60)
    assert [one.group for one in found.candidates] == [1, 1, 2]
    one, other, _ = found.candidates
    assert one.score == other.score
    assert other.behind is not None
    assert (other.behind.difference, other.behind.p_value) == (0, 1)
    assert "No significant difference between " in found.words and " with 60 images" in found.words
    assert found.tried == 60


@pytest.mark.rotates(3)
def test_the_order_of_backbones_and_of_calls_changes_nothing(corners: Path) -> None:
    def told(*names: str) -> list[Any]:
        found = ranked(corners, *names, n=50).to_dict()
        return [{name: v for name, v in one.items() if name != "cost"} for one in found["candidates"]]

    assert told("blind", "sees", "sees_too") == told("sees_too", "blind", "sees")


@pytest.mark.rotates(6)
def test_features_that_are_kept_are_ordinary_files_and_are_reused(corners: Path, tmp_path: Path) -> None:
    first = ranked(corners, "sees", "tiny", n=40, out=tmp_path / "kept", transform=SMALL)
    files = sorted((tmp_path / "kept").glob("*.h5"))
    assert len(files) == 2
    assert {len(open_cache(path)) for path in files} == {40}
    stamps = {path.name: path.stat().st_mtime_ns for path in files}
    said: list[str] = []
    again = ranked(corners, "sees", "tiny", n=40, out=tmp_path / "kept", transform=SMALL, say=said.append)
    assert len(said) == 2
    assert {path.name: path.stat().st_mtime_ns for path in files} == stamps
    assert [one.to_dict() for one in again.candidates] == [one.to_dict() for one in first.candidates]
    assert all(one.cost.rate for one in again.candidates)
    more = ranked(corners, "sees", "tiny", n=60, out=tmp_path / "kept", transform=SMALL)
    assert more.tried == 60


class Counting(LocalExecutor):
    calls, closed = 0, False

    def blocks(self, *given: Any, **options: Any) -> Any:
        self.calls += 1
        return super().blocks(*given, **options)

    def close(self) -> None:
        self.closed = True


def test_one_executor_computes_for_all_and_stays_its_owners(corners: Path) -> None:
    executor = Counting(1)
    found = ranked(corners, "sees", "blind", n=40, executor=executor)
    assert executor.calls == 2
    assert not executor.closed
    scores = [(one.backbone, one.score) for one in found.candidates]
    assert scores == [(one.backbone, one.score) for one in ranked(corners, "sees", "blind", n=40).candidates]
    with pytest.raises(UsageError, match="executor must be"):
        ranked(corners, "sees", "blind", n=40, executor="dask")


@pytest.mark.rotates(3)
def test_nothing_is_left_behind_unless_asked(corners: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ranked(corners, "sees", n=20)
    assert not list(tmp_path.iterdir())


@pytest.mark.rotates(3)
def test_the_forecast_of_the_file_is_the_size_of_the_full_extraction(corners: Path, tmp_path: Path) -> None:
    found = ranked(corners, "tiny", n=20, transform=SMALL)
    planned = extract(corners, tmp_path / "all.h5", backbone="tiny", transform=SMALL, dry_run=True)
    cost = found.candidates[0].cost
    assert cost.bytes == planned.bytes
    assert cost.rate is not None
    assert cost.seconds == pytest.approx(cost.start_seconds + 120 / cost.rate)


@pytest.mark.rotates(3)
def test_every_layer_is_a_candidate_and_maps_are_averaged(corners: Path) -> None:
    found = ranked(corners, "tiny", n=40, layer="all-blocks", transform=SMALL)
    names = {one.layer for one in found.candidates}
    assert len(names) == len(found.candidates) > 1
    assert found.name_of(found.candidates[0]).startswith("tiny ")
    assert all(one.width <= 512 for one in found.candidates)
    sizes = {one.layer: one.cost.bytes for one in found.candidates}
    widths = {one.layer: one.width for one in found.candidates}
    assert sorted(sizes, key=sizes.__getitem__) == sorted(widths, key=widths.__getitem__)


def test_identical_images_and_groups_are_never_on_both_sides() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    groups = rng.integers(0, 20, 60)
    trial = Trial.of(Target(CLASSES, ("a", "b"), labels, np.ones(60, bool)), groups, where="here", seed=0)
    tested = np.concatenate([test for _, test in trial.splits])
    assert sorted(tested.tolist()) == list(range(60))
    for train, test in trial.splits:
        assert not set(groups[train]) & set(groups[test])
    with pytest.raises(TrainingError, match="cannot be divided"):
        Trial.of(Target(CLASSES, ("a", "b"), labels, np.ones(60, bool)), labels, where="here", seed=0)


@pytest.mark.rotates(3)
def test_copies_under_other_names_teach_nothing(tmp_path: Path) -> None:
    """Noise of random labels, each picture five times: a probe that saw a copy would know its label."""
    rng = np.random.default_rng(0)
    for number in range(40):
        folder = tmp_path / "noise" / ("a" if number % 2 else "b")
        folder.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        for copy in range(5):
            picture.save(folder / f"{number}-{copy}.png")
    (one,) = ranked(tmp_path / "noise", "sees").candidates
    assert one.score < 0.8
    assert one.knn < 0.8


def test_answers_are_those_of_scikit_learn_fold_by_fold() -> None:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 3, 90)
    X = (rng.normal(size=(3, 12))[labels] + rng.normal(size=(90, 12))).astype(np.float32)
    trial = Trial.of(Target(CLASSES, ("a", "b", "c"), labels, np.ones(90, bool)), np.arange(90), where="", seed=0)
    expected = np.empty(90, int)
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    for train, test in trial.splits:
        votes = KNeighborsClassifier(20, weights=lambda d: np.exp((1 - d**2 / 2) / 0.07))
        expected[test] = votes.fit(unit[train], labels[train]).predict(unit[test])
    answers = trial.answers(X, "knn")
    assert (answers == expected).mean() > 0.98  # a tie of votes may fall either way
    score, (low, high) = trial.score(answers)
    assert score == (answers == labels).mean()
    half = 1.96 * np.sqrt(score * (1 - score) / 90)
    assert low == pytest.approx(score - half, abs=0.03)
    assert high == pytest.approx(score + half, abs=0.03)


def test_holm_corrects_for_the_number_of_candidates() -> None:
    right = np.ones(400, bool)

    def behind(wrong: int) -> Any:
        other = right.copy()
        other[:wrong] = False
        return paired(right, other)

    assert binomtest(0, 6).pvalue < 0.05 < 2 * binomtest(0, 6).pvalue
    assert separated([behind(6)]) == [True]
    assert separated([behind(6), behind(6)]) == [False, False]
    assert separated([behind(6), behind(40)]) == [True, True]
    assert separated([behind(0), behind(40)]) == [False, True]
    assert separated([]) == []


@pytest.mark.rotates(3)
def test_labels_and_numbers_are_ranked_by_their_own_scores(corners: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    lines = {"labels": ["path,label"], "number": ["path,label"]}
    for path in sorted(corners.rglob("*.png")):
        name, is_red = path.relative_to(corners).as_posix(), path.parent.name == "red"
        lines["labels"].append(f"{name},{'red;any' if is_red else 'blue'}")
        lines["number"].append(f"{name},{2.5 * is_red + rng.normal(0, 0.1):.3f}")
    for task, metric in (("labels", "mean_average_precision"), ("number", "r2")):
        (tmp_path / f"{task}.csv").write_text("\n".join(lines[task]) + "\n")
        found = ranked(tmp_path / f"{task}.csv", "sees", "blind", n=80, root=str(corners))
        assert (found.task, found.metric, found.tried) == (task, metric, 80)
        assert [one.group for one in found.candidates] == [1, 2]
        assert found.candidates[0].backbone == "test_rank:sees"
        assert found.candidates[0].score > 0.8


@pytest.mark.parametrize(
    ("names", "options", "error", "message"),
    [
        (["tiny", "resnte18"], {}, BackboneError, "resnte18"),
        (["tiny", "resnet18=no-such-file.pth"], {}, WeightsError, "no-such-file"),
        (["tiny", "tiny"], {}, UsageError, "named twice"),
        ([], {}, UsageError, "no backbone"),
        (["tiny="], {}, UsageError, "names no backbone"),
        (["tiny"], {"layer": "nowhere"}, BackboneError, "no layer 'nowhere'"),
        (["tiny"], {"n": 0}, UsageError, "n must be"),
    ],
    ids=["unknown", "weights", "twice", "none", "empty", "layer", "n"],
)
def test_errors_come_before_an_image_is_read(
    corners: Path, tmp_path: Path, names: list[str], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        rank(corners, names, out=tmp_path / "kept", **options)
    assert not (tmp_path / "kept").exists()


@pytest.mark.rotates(3)
def test_more_images_than_there_are_and_one_class(corners: Path, tmp_path: Path) -> None:
    found = ranked(corners, "sees", n=500)
    assert found.notes == ("there are 120 labelled training images, fewer than the 500 requested: all are used",)
    (tmp_path / "one").mkdir()
    os.symlink(corners / "red", tmp_path / "one" / "red")
    with pytest.raises(TrainingError, match="one class, 'red'"):
        ranked(tmp_path / "one", "sees")


def test_names_of_candidates() -> None:
    assert Candidate.parse("resnet50=random:1") == Candidate("resnet50", "random:1")
    assert Candidate.parse("mobilenet_v2=a/b=c.pth") == Candidate("mobilenet_v2", "a/b=c.pth")
    assert Candidate.parse("mobilenet_v2=a/w.pth").name == "mobilenet_v2=w.pth"
    assert Candidate.parse("tiny") == Candidate("tiny")


@pytest.mark.rotates(3)
def test_records_survive_a_kill_and_refuse_what_is_not_theirs(tmp_path: Path) -> None:
    path = str(tmp_path / "results.jsonl")
    records = Records(path)
    records.add({"shots": 1, "draw": 0}, 0.5)
    records.add({"draw": 1, "shots": 1}, {"score": 0.25})
    whole = Path(path).read_bytes()
    for cut in range(len(whole) + 1):
        Path(path).write_bytes(whole[:cut])
        again = Records(path)
        lines = whole[:cut].count(b"\n")
        assert again.get({"draw": 0, "shots": 1}) == (0.5 if lines > 1 else None)
        assert again.get({"shots": 1, "draw": 1}) == ({"score": 0.25} if lines > 2 else None)
        again.add({"x": 1}, cut)
        assert Records(path).get({"x": 1}) == cut
    for strange in (b"my notes\n", whole.replace(b"1", b"9", 1), whole + b"{}\n", whole + b"[" * 10**5 + b"\n"):
        Path(path).write_bytes(strange)
        with pytest.raises(UsageError, match="holds no results"):
            Records(path)
        assert Path(path).read_bytes() == strange


@pytest.mark.rotates(3)
def test_the_command(corners: Path, precompute: Command, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pip install 'precompute[plot]'")
    arguments = (corners, "-b", "tiny", "-b", "tiny=random:1", "-n", 40, "--crop", 32, "--resize", 32)
    told = precompute("rank", *arguments, "--json", "--plot", "rank.svg")
    assert told.returncode == 0, told.stderr
    found = json.loads(told.stdout)
    assert {one["name"] for one in found["candidates"]} == {"tiny", "tiny=random:1"}
    assert found["verdict"]
    assert "tiny=random:1" in (tmp_path / "rank.svg").read_text()
    shown = precompute("rank", *arguments)
    assert shown.returncode == 0, shown.stderr
    assert "Kendall's tau" in shown.stdout
    assert "tiny=random:1: 40 images" in shown.stderr
    failed = precompute("rank", corners, "-b", "tiny", "-b", "tinny", "--json")
    assert failed.returncode == 1
    assert "tinny" in json.loads(failed.stdout)["error"]["message"]


@pytest.mark.slow
def test_on_real_photos_imagenet_weights_come_before_random_ones(hymenoptera: Path, mobilenet_weights: Path) -> None:
    names = ["mobilenet_v2=random", f"mobilenet_v2={mobilenet_weights}"]
    found = rank(hymenoptera, names, n=160, transform={"resize": 128, "crop": 128})
    assert [one.weights for one in found.candidates] == [str(mobilenet_weights), "random"]
    assert [one.group for one in found.candidates] == [1, 2]
