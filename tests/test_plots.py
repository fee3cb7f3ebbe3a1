"""Pictures: drawn where matplotlib is there, and a clear word where it is not."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import Command, make_photos
from PIL import Image

from precompute import extract
from precompute.errors import UsageError
from precompute.evaluation.learning_curve import FewShotCurve, point_of
from precompute.reports.plots import check_plot, plot_few_shot, plot_history


def epoch(number: int, held: float | None) -> dict[str, float | None]:
    value = 1 / number
    return {
        "epoch": number,
        "train_loss": value,
        "train_accuracy": value,
        "validation_loss": held,
        "validation_accuracy": held,
    }


def curve(name: str, draws: int) -> FewShotCurve:
    points = tuple(point_of(shots, [0.5 + shots / 100] * draws) for shots in (1, 5, 20))
    return FewShotCurve(name, f"{name}.h5", "tiny", "embed", "logistic", 2, "test", 10, points, ())


@pytest.mark.rotates(6)
def test_pictures_are_drawn_and_the_same_curves_give_the_same_bytes(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pip install 'precompute[plot]'")
    for name in ("one.png", "two.png", "one.pdf", "two.pdf"):
        plot_history([epoch(n, 0.4) for n in range(1, 30)], tmp_path / name, best_epoch=4)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    with Image.open(tmp_path / "one.png") as picture:
        assert len(np.unique(np.asarray(picture.convert("L")))) > 10
    assert (tmp_path / "one.pdf").read_bytes().startswith(b"%PDF")
    plot_history([epoch(1, None)], tmp_path / "single.svg")
    plot_few_shot([curve("a", 3), curve("b", 1)], tmp_path / "few.png", title="a and b")
    for path in tmp_path.iterdir():
        assert 1_000 < path.stat().st_size < 100_000, path


def test_what_cannot_be_drawn_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"must end in one of .pdf, .png, .svg"):
        check_plot(tmp_path / "curves.jpeg")
    with pytest.raises(UsageError, match="does not exist"):
        check_plot(tmp_path / "nowhere" / "curves.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # as Python marks a module that is not there
    with pytest.raises(UsageError, match="needs matplotlib") as error:
        check_plot(tmp_path / "curves.png")
    assert "pip install 'precompute[plot]'" in error.value.hint


@pytest.mark.rotates(3)
def test_train_head_searches_and_draws(precompute: Command, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pip install 'precompute[plot]'")
    make_photos(tmp_path / "photos", per_class=40)
    extract(tmp_path / "photos", tmp_path / "a.h5", backbone="tiny")
    mlp = ("train-head", "a.h5", "--head", "mlp", "--max-epochs", "4")
    done = precompute(
        *mlp, "--search", "--time-budget", "60", "--dropout", "0.1", "--plot", "a.png", "-o", "a.safetensors"
    )
    assert done.returncode == 0, done.stderr
    assert "12 settings" in done.stdout  # 24 less what is given
    assert (tmp_path / "a.png").stat().st_size > 1_000
    assert precompute("predict", "a.safetensors", "photos/val").returncode == 0
    assert precompute(*mlp, "--batch-norm", "--mixup", "0.2", "--label-smoothing", "0.1").returncode == 0
    for wrong in (
        ("train-head", "a.h5", "--search"),
        ("train-head", "a.h5", "--plot", "a.png"),
        (*mlp, "--time-budget", "3"),
        (*mlp, "--plot", "a.txt"),
        (*mlp, "--search", "--hidden", "8", "--dropout", "0", "--weight-decay", "0", "--learning-rate", "0.1"),
    ):
        assert precompute(*wrong).returncode == 2, wrong
    for budget, status in (("0", 2), ("-1", 2), ("soon", 2), ("nan", 2)):
        assert precompute(*mlp, "--search", "--time-budget", budget).returncode == status
