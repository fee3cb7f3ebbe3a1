"""What only a CUDA device can show. Each test is skipped where there is none; `scripts/check_gpu.sh` runs them all."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_image
from pictures import eager, images

from precompute import (
    Backbone,
    KNNHead,
    KNNRegressionHead,
    LogisticHead,
    MLPHead,
    MLPRegressionHead,
    MultilabelKNNHead,
    MultilabelLogisticHead,
    MultilabelMLPHead,
    extract,
    load_backbone,
    open_cache,
    predict,
    train_head,
)
from precompute.engines.base import EngineChoice
from precompute.engines.devices import make_engine
from precompute.engines.graphs import GRAPHS_UP_TO
from precompute.engines.guard import cosine
from precompute.engines.torch import TorchEngine
from precompute.errors import Stopped
from precompute.heads.base import arrays
from precompute.heads.neighbours import nearest

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
BATCH = 4


@pytest.fixture(autouse=True)
def _own_model_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def resnet() -> Backbone:
    return load_backbone("resnet18", weights="random", transform={"resize": 64, "crop": 64})


@pytest.fixture
def all_memory() -> Iterator[None]:
    """The process may use the whole device again after a test that has limited it."""
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


class OneTap:
    """An engine whose network has a single tap: one array instead of a tuple."""

    def __init__(self, engine: TorchEngine) -> None:
        self.engine = engine

    def __call__(self, samples: Sequence[tuple[torch.Tensor, ...]]) -> np.ndarray:
        return self.engine(samples)[0]

    def finish(self) -> np.ndarray:
        return self.engine.finish()[0]

    def map(self, batches: Iterable[Sequence[tuple[torch.Tensor, ...]]]) -> Iterator[np.ndarray]:
        return (features for (features,) in self.engine.map(batches))


def engine_of(
    backbone: Backbone, *, precision: str = "fp32", batch_size: int = BATCH, compiled: bool = False
) -> OneTap:
    choice = EngineChoice("torch", "cuda", precision, batch_size, compiled=compiled)
    engine = make_engine(backbone.module, backbone.preprocess, choice, identity=None)
    assert isinstance(engine, TorchEngine)
    return OneTap(engine)


def flat(features: np.ndarray) -> np.ndarray:
    return features.reshape(len(features), -1).astype(np.float64)


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    """The worst row's relative L2 distance."""
    return float((np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)).max())


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "vit_b_16"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_features_are_those_of_the_cpu(name: str, precision: str) -> None:
    backbone = load_backbone(name, weights="random")
    pictures = images(6, backbone.preprocess.transform.crop)
    expected = eager(backbone, pictures).astype(np.float64)
    if precision == "fp16" and np.abs(expected).max() < 2**-14:
        pytest.skip("with random weights these features are too small for fp16 on any device")
    found = flat(np.concatenate(list(engine_of(backbone, precision=precision).map([pictures[:4], pictures[4:]]))))
    if precision == "fp32":
        assert distance(found, expected) < 1e-4  # TF32 would be at about 1e-3
    assert cosine(found, expected).min() > 0.999


def test_batches_under_way_are_the_same_as_one_at_a_time(resnet: Backbone) -> None:
    run = engine_of(resnet)
    assert run.engine.depth > 1
    batches = [images(BATCH, seed=number) for number in range(6 * run.engine.depth)]
    alone = [run(batch) for batch in batches]
    assert all(np.array_equal(one, other) for one, other in zip(run.map(batches), alone, strict=True))


def test_results_stay_when_their_memory_is_used_again(resnet: Backbone) -> None:
    run = engine_of(resnet)
    first = run(images(BATCH))
    before = first.copy()
    for number in range(1, 3 * run.engine.depth):
        run(images(BATCH, seed=number))
    assert np.array_equal(first, before)


def test_the_images_may_change_once_a_batch_has_begun(resnet: Backbone) -> None:
    run, pictures = engine_of(resnet), images(BATCH)
    expected = run(pictures)
    run.engine.start(pictures)
    for (picture,) in pictures:
        picture.zero_()
    assert np.array_equal(run.finish(), expected)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_row_does_not_depend_on_its_neighbours_or_its_place(precision: str, resnet: Backbone) -> None:
    one, *others = images(BATCH + 1)
    run = engine_of(resnet, precision=precision)
    alone = run([one])[0]  # a last batch that is not full
    for place in range(BATCH):
        batch = [*others[:place], one, *others[place : BATCH - 1]]
        assert np.array_equal(run(batch)[place], alone)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_cuda_graph_changes_no_bit(precision: str, resnet: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = [images(BATCH, seed=number) for number in range(5)] + [images(BATCH - 1, seed=9)]
    recorded = engine_of(resnet, precision=precision)
    assert all(slot.graph is not None for slots in recorded.engine._free.values() for slot in slots)
    monkeypatch.setattr("precompute.engines.torch.GRAPHS_UP_TO", 0)
    plain = engine_of(resnet, precision=precision)
    assert all(slot.graph is None for slots in plain.engine._free.values() for slot in slots)
    assert all(np.array_equal(one, other) for one, other in zip(recorded.map(batches), plain.map(batches), strict=True))


def test_a_network_that_looks_at_values_runs_without_a_cuda_graph(resnet: Backbone) -> None:
    class Looks(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
            assert pixels.abs().sum().item() >= 0  # waits for the device, which a recording cannot
            return self.inner(pixels)

    choice = EngineChoice("torch", "cuda", "fp32", BATCH)
    engine = make_engine(Looks(resnet.module), resnet.preprocess, choice, identity=None)
    assert any("No CUDA graph is used" in note for note in engine.notes)
    pictures = images(BATCH)
    # BatchNorm is not folded into its convolutions, where fx does not see it
    assert distance(flat(OneTap(engine)(pictures)), flat(engine_of(resnet)(pictures))) < 1e-4
    # A recording that fails would leave these in the middle of it
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert torch.rand(3, device="cuda").shape == (3,)
    torch.cuda.empty_cache()


def test_without_memory_for_a_cuda_graph_none_is_recorded(resnet: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("precompute.engines.graphs.SPARE", 1e6)
    run = engine_of(resnet)
    assert any("too little memory" in note for note in run.engine.notes)
    assert np.isfinite(run(images(BATCH))).all()


def test_too_little_memory_halves_the_batch(all_memory: None) -> None:
    backbone, size = load_backbone("resnet18", weights="random"), 2 * GRAPHS_UP_TO  # a graph holds its memory
    run, pictures = engine_of(backbone, batch_size=size), images(size, backbone.preprocess.transform.crop)
    run(pictures)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_reserved()
    expected = run(pictures)
    peak = torch.cuda.max_memory_reserved()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((held + (peak - held) // 3) / total)
    found = run(pictures)
    assert run.engine.chunk < size
    assert distance(flat(found), flat(expected)) < 1e-4
    assert np.array_equal(run(pictures), found)


def make_photos(folder: Path, count: int = 40) -> Path:
    for number in range(count):
        place = folder / ("train", "val")[number % 2] / ("cats", "dogs")[number // 2 % 2]
        place.mkdir(parents=True, exist_ok=True)
        make_image(number, (80, 72)).save(place / f"{number}.jpg")
    return folder


def test_auto_is_cuda(tmp_path: Path) -> None:
    result = extract(make_photos(tmp_path / "photos"), tmp_path / "a.h5", backbone="tiny")
    assert (result.engine, result.device.partition(":")[0]) == ("torch", "cuda")


def test_auto_precision_is_proved_on_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PRECOMPUTE_ENGINE")
    monkeypatch.delenv("PRECOMPUTE_PRECISION")
    photos = make_photos(tmp_path / "photos")
    result = extract(photos, tmp_path / "a.h5", backbone="resnet18", weights="random")
    extract(photos, tmp_path / "b.h5", backbone="resnet18", weights="random", device="cpu", precision="fp32")
    assert result.device.partition(":")[0] == "cuda"
    one, other = (flat(open_cache(tmp_path / name).features()[:]) for name in ("a.h5", "b.h5"))
    assert cosine(one, other).min() > 0.999


@pytest.mark.parametrize("precision", ["fp32", "bf16", "auto"])
def test_a_stopped_run_goes_on_to_the_same_bytes(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PRECOMPUTE_PRECISION")
    photos = make_photos(tmp_path / "photos")
    settings = {"backbone": "resnet18", "weights": "random", "device": "cuda", "batch_size": BATCH}
    whole = extract(photos, tmp_path / "whole.h5", precision=precision, **settings)
    asked = iter([0, 0, signal.SIGTERM])
    with pytest.raises(Stopped):
        extract(photos, tmp_path / "cut.h5", precision=precision, stop=lambda: next(asked, signal.SIGTERM), **settings)
    assert not (tmp_path / "cut.h5").exists()
    resumed = extract(photos, tmp_path / "cut.h5", precision=precision, **settings)
    assert 0 < resumed.computed < whole.computed
    assert resumed.key == whole.key
    one, other = (open_cache(tmp_path / name).features()[:] for name in ("whole.h5", "cut.h5"))
    assert one.tobytes() == other.tobytes()


def test_predict_on_cuda_says_what_it_says_on_the_cpu(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos")
    extract(photos, tmp_path / "a.h5", backbone="tiny", device="cuda")
    train_head(tmp_path / "a.h5", tmp_path / "a.safetensors")
    on_cuda, on_cpu = (predict(tmp_path / "a.safetensors", photos, device=device) for device in ("cuda", "cpu"))
    assert len(on_cuda.items) == 40
    assert [item.label for item in on_cuda.items] == [item.label for item in on_cpu.items]
    values = [[item.probability for item in found.items] for found in (on_cuda, on_cpu)]
    assert np.allclose(*values, atol=1e-3)


def samples(rows: int = 600, width: int = 32, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, classes, rows)
    centres = generator.normal(0, 1, (classes, width))
    return (0.5 * centres[labels] + generator.normal(0, 1, (rows, width))).astype(np.float32), labels


@pytest.mark.parametrize("C", [0.01, 100.0, "auto"])
def test_logistic_head_is_that_of_the_cpu(C: float | str) -> None:
    features, labels = samples()
    on_cuda, on_cpu = (LogisticHead(C=C, device=device, tol=1e-8).fit(features, labels) for device in ("cuda", "cpu"))
    assert on_cuda.C_ == on_cpu.C_
    assert on_cuda.converged_
    assert on_cuda.objective_ == pytest.approx(on_cpu.objective_, rel=1e-5)
    assert np.allclose(on_cuda.predict_proba(features), on_cpu.predict_proba(features), atol=5e-3)


@pytest.mark.parametrize("C", [1.0, [1e-2, 1.0]])
def test_heads_of_several_labels_and_of_numbers_are_those_of_the_cpu(C: float | list[float]) -> None:
    features, labels = samples()
    several, number = labels[:, None] == np.arange(3), features[:, 0] + labels
    mlp = {"dropout": 0.0, "max_epochs": 15}
    for make in (
        lambda device: MultilabelLogisticHead(C=C, device=device, tol=1e-8),
        lambda device: MultilabelKNNHead(device=device),
        lambda device: MultilabelMLPHead(device=device, **mlp),
    ):
        on_cuda, on_cpu = (make(device).fit(features, several) for device in ("cuda", "cpu"))
        assert np.allclose(on_cuda.predict_proba(features), on_cpu.predict_proba(features), atol=5e-3)
    for make in (
        lambda device: KNNRegressionHead(device=device),
        lambda device: MLPRegressionHead(device=device, **mlp),
    ):
        on_cuda, on_cpu = (make(device).fit(features, number) for device in ("cuda", "cpu"))
        assert np.allclose(on_cuda.predict(features), on_cpu.predict(features), atol=2e-2 * number.std())


def test_mlp_head_without_dropout_is_close_to_that_of_the_cpu() -> None:
    features, labels = samples()
    heads = [
        MLPHead(device=device, dropout=0.0, max_epochs=15, random_state=0).fit(features, labels)
        for device in ("cuda", "cpu")
    ]
    one, other = (head.predict_proba(features) for head in heads)
    assert np.allclose(one, other, atol=0.02)
    assert (one.argmax(axis=1) == other.argmax(axis=1)).mean() > 0.99


def test_mlp_head_learns_on_cuda_and_predicts_anywhere() -> None:
    features, labels = samples()
    head = MLPHead(device="cuda", random_state=0).fit(features[:400], labels[:400])
    assert head.score(features[400:], labels[400:]) > 0.7
    on_cuda = head.predict_proba(features)
    assert np.allclose(on_cuda, head.set_params(device="cpu").predict_proba(features), atol=1e-4)


def test_mlp_head_takes_float64_on_cuda() -> None:
    features, labels = samples(200)
    head = MLPHead(device="cuda", max_epochs=3).fit(features.astype(np.float64), labels)
    assert np.isfinite(head.predict_proba(features.astype(np.float64))).all()


@pytest.mark.parametrize("free", [2**30, 2**23], ids=["resident", "sent"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_knn_head_on_cuda_votes_as_on_the_cpu(monkeypatch: pytest.MonkeyPatch, dtype: type, free: int) -> None:
    """Of rows that the device holds, and of more than it has memory for."""
    features, labels = samples(8_000, 256)
    features, asked = features.astype(dtype), features[:1_500].astype(dtype)
    weight = np.random.default_rng(0).choice([0.0, 0.5, 1.0, 2.0], 8_000)
    monkeypatch.setattr(arrays._Torch, "free_bytes", lambda _: free)
    for given in (None, weight):
        head = KNNHead(device="cuda").fit(features, labels, given)
        on_cuda = head.predict_proba(asked)
        on_cpu = head.set_params(device="cpu").predict_proba(asked)
        # Of nearly equal neighbours, either may be the last one.
        assert (np.abs(on_cuda - on_cpu).max(axis=1) < 1e-4).mean() > 0.99
        assert np.abs(on_cuda - on_cpu).max() < 0.2


@pytest.mark.parametrize("block", [100, 10_000])
def test_knn_head_on_cuda_takes_the_first_of_equal_rows(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """Rows of one or four entries of the same size: all products are powers of two, and so exact."""
    rng = np.random.default_rng(0)
    features = np.zeros((2_000, 6), np.float32)
    for row in features:
        row[rng.permutation(6)[: rng.choice([1, 4])]] = 2.0 ** rng.integers(-3, 4)
    monkeypatch.setattr(nearest, "DEVICE_BYTES", 28 * 1024 * block)
    head = KNNHead(device="cuda").fit(features, rng.integers(0, 50, 2_000))
    on_cuda = head.predict_proba(features)
    assert np.array_equal(on_cuda, head.set_params(device="cpu").predict_proba(features))


def test_memory_that_torch_keeps_on_cuda_counts_as_free() -> None:
    on = arrays.arrays_on("cuda", np.dtype(np.float32), "KNNHead")
    before = on.free_bytes()
    taken = on.empty(2**28)
    assert on.free_bytes() <= before - 2**29
    del taken
    assert on.free_bytes() > before - 2**29


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled_features_are_those_of_the_cpu(precision: str, resnet: Backbone) -> None:
    run = engine_of(resnet, precision=precision, compiled=True)
    assert run.notes == ()
    pictures = images(2 * BATCH)
    found = flat(np.concatenate(list(run.map([pictures[:BATCH], pictures[BATCH:]]))))
    assert cosine(found, eager(resnet, pictures)).min() > 0.999


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_tail_is_trained_and_predicts_as_on_the_cpu(tmp_path: Path, precision: str) -> None:
    """Losses of the first epochs agree with the CPU's, and a tail that was trained here predicts there."""
    from precompute.finetuning.fine_tune import fine_tune
    from precompute.finetuning.tail_file import load_tail

    photos = make_photos(tmp_path / "photos", 40)
    extract(photos, tmp_path / "deep.h5", backbone="tiny", layer="body.3", dtype="float32", device="cpu")
    losses: dict[str, list[float]] = {"cpu": [], "cuda": []}
    for device, found in losses.items():
        fine_tune(
            tmp_path / "deep.h5",
            tmp_path / f"{device}.safetensors",
            epochs=2,
            batch_size=8,
            device=device,
            precision=precision if device == "cuda" else "fp32",
            watch=lambda epoch, step, loss, found=found: found.append(loss),
        )
    np.testing.assert_allclose(losses["cuda"], losses["cpu"], atol=1e-2 if precision == "fp32" else 0.1)
    saved, backbone = load_tail(tmp_path / "cuda.safetensors"), load_backbone("tiny", layer="body.3")
    X = np.array(open_cache(tmp_path / "deep.h5").features())
    there, here = (saved.attach(backbone, device=device).head.predict_proba(X) for device in ("cuda", "cpu"))
    np.testing.assert_allclose(there, here, atol=1e-4)  # TF32 would be at about 1e-2


@pytest.mark.usefixtures("all_memory")
def test_a_tail_whose_batch_does_not_fit_names_one_to_try(tmp_path: Path) -> None:
    from precompute.errors import TrainingError
    from precompute.finetuning.fine_tune import fine_tune

    photos = make_photos(tmp_path / "photos", 120)
    extract(photos, tmp_path / "deep.h5", backbone="tiny", layer="body.0", device="cpu")
    torch.cuda.set_per_process_memory_fraction(0.0001)
    with pytest.raises(TrainingError, match="does not fit into the memory|GiB of memory") as caught:
        fine_tune(tmp_path / "deep.h5", batch_size=60, device="cuda")
    assert "--batch-size" in caught.value.hint or "--layer" in caught.value.hint
