"""Fits, searches and curves report how far they are, and the commands show it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from conftest import Command
from sklearn.datasets import load_digits

from precompute import open_cache
from precompute.cache import Layer, RowWriter, Samples, create, key_of
from precompute.cli import _output
from precompute.evaluation.learning_curve import few_shot
from precompute.heads import KNNHead, LogisticHead, MLPHead, Progress, listening
from precompute.system import steps
from precompute.training.splits import whole_rows

X, Y = load_digits(return_X_y=True)
SPEC = {
    "backbone": "tiny",
    "layers": [{"name": "pixels", "pooling": "none", "axes": ["channel"]}],
    "precision": "fp32",
    "storage": "float32",
    "transform": {"modality": "image"},
    "weights": "0" * 64,
}


def write(path: Path, values: np.ndarray, labels: np.ndarray, classes: int) -> Path:
    rows = len(values)
    samples = Samples(
        ids=np.array([b"%06d" % row for row in range(rows)]),
        sizes=np.ones(rows, np.int64),
        mtimes=np.zeros(rows, np.int64),
        labels=labels.astype(np.int32),
        splits=np.zeros(rows, np.uint8),
        classes=tuple(b"%03d" % label for label in range(classes)),
    )
    width = values.shape[1]
    layout = create(
        str(path),
        spec=SPEC,
        samples=samples,
        layers={"pixels": Layer((width,), np.dtype("float32"), ("channel",), "none")},
    )
    assert layout.key == key_of(SPEC)
    digests = np.random.default_rng(0).integers(0, 256, (rows, 32), dtype=np.uint8)
    with RowWriter(str(path), layout) as writer:
        writer.write(
            np.arange(rows),
            {"pixels": values.astype(np.float32)},
            digests=digests,
            statuses=np.ones(rows, np.uint8),
            sizes=samples.sizes,
            mtimes=samples.mtimes,
        )
    return path


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("progress") / "digits.h5", X, Y, 10)


def heard(run: object) -> dict[str, list[Progress]]:
    """What was reported while `run` was called, by what was counted."""
    found: dict[str, list[Progress]] = {}
    with listening(lambda now: found.setdefault(now.what, []).append(now)):
        run()  # type: ignore[operator]
    return found


def check(reports: list[Progress], total: int | None = None) -> None:
    counts = [one.done for one in reports]
    assert counts == sorted(counts)
    assert counts[-1] == reports[-1].total
    assert total is None or {one.total for one in reports} == {total}


def test_a_choice_of_C_reports_each_value_and_the_best_so_far() -> None:
    found = heard(lambda: LogisticHead(C=[0.001, 0.01, 0.1], cv=2).fit(X[:300] / 16, Y[:300]))
    check(found["values of C"], 3)
    assert len(found["values of C"]) == 4
    assert found["values of C"][0].note == ""
    assert all(re.search(r"best so far C = 0\.\d+, log loss \d\.\d", one.note) for one in found["values of C"][1:])
    assert {"steps at C = 0.001", "steps at C = 0.01", "steps at C = 0.1"} < set(found)


def test_other_heads_report_epochs_and_rows() -> None:
    found = heard(lambda: MLPHead(hidden=(8,), max_epochs=3).fit(X[:200], Y[:200]))
    check(found["epochs"], 3)
    assert "lowest loss so far" in found["epochs"][-1].note
    knn = KNNHead(k=3).fit(X[:200], Y[:200])
    check(heard(lambda: knn.predict_proba(X[:300]))["rows compared"], 300)


def test_a_curve_and_a_check_of_rows_report(digits: Path) -> None:
    found = heard(lambda: few_shot([digits], shots=[1, 2], draws=2, head="centroid"))
    check(found[f"fits on {digits}"], 4)
    check(heard(lambda: whole_rows(open_cache(digits), "pixels"))["rows checked"], len(X))


def test_nobody_need_listen_and_a_listener_inside_takes_over() -> None:
    outer: list[Progress] = []
    inner: list[Progress] = []
    with listening(outer.append):
        with listening(inner.append):
            LogisticHead(C=0.1).fit(X[:100], Y[:100])
        assert inner
        assert not outer
    LogisticHead(C=0.1).fit(X[:100], Y[:100])


@pytest.mark.rotates(3)
def test_a_log_gets_a_line_now_and_then(digits: Path, precompute: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "of 45" not in precompute("train-head", digits, "--C", "0.1").stderr
    monkeypatch.setattr(_output, "QUIET_SECONDS", 0.0)
    monkeypatch.setattr(_output, "LOG_SECONDS", 0.0)
    done = precompute("train-head", digits, "--json")
    assert done.returncode == 0
    lines = [line for line in done.stderr.splitlines() if "values of C" in line]
    assert any(re.search(r"train-head: 3 of 45 +values of C; best so far C = .*; about 0:\d\d left", x) for x in lines)
    assert any(re.search(r"\d+ of 1,000 steps at C = ", line) for line in lines)
    assert done.stdout.startswith("{")


@pytest.mark.rotates(3)
def test_a_loop_that_ends_again_and_again_has_one_last_line(
    digits: Path, precompute: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fit of each label counts its own steps at the same C."""
    monkeypatch.setattr(_output, "QUIET_SECONDS", 0.0)
    done = precompute("train-head", digits, "--task", "labels", "--C", "0.1", "--json")
    assert done.returncode == 0, done.stderr
    assert len([line for line in done.stderr.splitlines() if "steps at C = 0.1" in line]) == 1


SLOW_FACTORY = """
import time
from torch import nn

def make():
    time.sleep(0.5)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))
"""


def test_steps_inside_one_another_are_reported() -> None:
    names: list[str] = []
    with steps.listening(names.append):
        with steps.step("loading"), steps.step("listing"):
            pass
        with steps.step("finishing"):
            pass
    with steps.step("unheard"):
        pass
    assert names == ["loading", "listing", "loading", "", "finishing", ""]


def test_a_log_names_a_step_that_lasts_and_no_other(
    photos: Path, tmp_path: Path, precompute: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow_net.py").write_text(SLOW_FACTORY)
    monkeypatch.syspath_prepend(tmp_path)
    size = ("--resize", "8", "--crop", "8")
    quick = precompute("extract", photos, "-b", "slow_net:make", *size, "-o", "a.h5")
    assert quick.returncode == 0, quick.stderr
    assert "loading" not in quick.stderr
    monkeypatch.setattr(_output, "QUIET_SECONDS", 0.001)
    done = precompute("extract", photos, "-b", "slow_net:make", *size, "-o", "b.h5", "--json")
    assert done.stderr.splitlines().count("extract: loading slow_net:make") == 1
    assert done.stdout.startswith("{")
