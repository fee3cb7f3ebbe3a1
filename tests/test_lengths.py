"""Samples of several lengths: each batch holds one, and a row depends on its sample alone."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts import ExecutorContract, PreprocessContract
from lengths import LENGTHS, WIDTH, Letters, text_of

from precompute import extract, load_backbone, open_cache
from precompute.engines import guard
from precompute.engines.audit import EngineAudit, Shown
from precompute.engines.base import Engine, EngineChoice
from precompute.engines.choice import Decision
from precompute.engines.devices import make_engine
from precompute.errors import BackboneError
from precompute.extraction.executors.base import Work
from precompute.extraction.executors.local import LocalExecutor
from precompute.extraction.pipeline import BLOCK_SAMPLES
from precompute.extraction.sampling import sample_of
from precompute.inputs.base import Preprocess, shape_of
from precompute.inputs.kinds import files_of
from precompute.sources.registry import open_source

BACKBONE = "lengths:make_attention"
OPENVINO = pytest.mark.skipif(find_spec("openvino") is None, reason="needs openvino")
ENGINES = ["torch", pytest.param("openvino", marks=OPENVINO)]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """60 files: 30 of up to 8 letters, 15 of up to 16 and 15 that are longer than the longest length."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(60):
        (folder / f"{number:02}.txt").write_text(text_of(number))
    return folder


def engine_of(name: str, batch: int) -> Engine:
    model = load_backbone(BACKBONE)
    return make_engine(model.module, model.preprocess, EngineChoice(name, "cpu", "fp32", batch), identity=None)


class TestLetters(PreprocessContract):
    @pytest.fixture
    def preprocess(self) -> Preprocess:
        return Letters()

    @pytest.fixture
    def raws(self) -> list[bytes]:
        return [b"a text", b"another"]

    @pytest.mark.skip(reason="bytes are what it takes")
    def test_bytes_that_are_no_sample_are_refused_with_a_reason(self) -> None: ...


class TestExecutor(ExecutorContract):
    """The contract of the local executor, where samples have three lengths."""

    @pytest.fixture
    def executor(self) -> LocalExecutor:
        return LocalExecutor(2)

    @pytest.fixture
    def work(self, tmp_path: Path) -> Work:
        folder = tmp_path / "photos"  # the contract's name for its samples
        folder.mkdir()
        for number in range(24):
            (folder / f"{number:02}.txt").write_text(text_of(number))
        (folder / f"{self.BROKEN:02}.txt").write_bytes(b"")
        (folder / "20.txt").write_text(text_of(10))
        backbone, engine = load_backbone(BACKBONE), engine_of("torch", 4)
        return Work(open_source(folder, files_of("text")), backbone, Decision(engine.choice, engine, "float32"))

    def test_what_cannot_be_decoded_says_why(self, executor: Any, work: Work) -> None:
        (failed,) = (item for block in executor.blocks(work, np.array([self.BROKEN, 6])) for item in block.failed)
        assert failed.error.reason == "UNDECODABLE"

    def test_a_block_holds_one_length(self, executor: LocalExecutor, work: Work) -> None:
        blocks = list(executor.blocks(work, np.arange(24), keep=lambda row: True))
        shapes = [{shape_of(item.inputs[0]) for item in block.decoded} for block in blocks if block.decoded]
        assert all(len(one) == 1 for one in shapes)
        assert {one.pop()[0][0] for one in shapes} == {*LENGTHS}
        assert max(map(len, blocks)) <= BLOCK_SAMPLES


@pytest.mark.rotates(3)
@pytest.mark.parametrize("name", ENGINES)
def test_a_row_depends_on_its_sample_alone(name: str, texts: Path) -> None:
    """Whatever its neighbours are, and whether 1 or 64 run at a time."""
    samples = [Letters().host(path.read_bytes()) for path in sorted(texts.iterdir())]
    several, alone = engine_of(name, 64), engine_of(name, 1)
    for length in LENGTHS:
        group = [one for one in samples if len(one[0]) == length]
        (together,) = several(group)
        (backwards,) = several(group[::-1])
        assert together.tobytes() == backwards[::-1].tobytes()
        for row, sample in zip(together, group, strict=True):
            (single,) = several([sample])
            assert row.tobytes() == single[0].tobytes()
            (unbatched,) = alone([sample])
            np.testing.assert_allclose(unbatched[0], row, rtol=0, atol=1e-5 * np.abs(row).max())


@pytest.mark.rotates(6)
@pytest.mark.parametrize("name", ENGINES)
def test_features_are_those_of_the_network_without_padding_between_neighbours(
    name: str, texts: Path, tmp_path: Path
) -> None:
    extract(texts, tmp_path / "a.h5", backbone=BACKBONE, engine=name, precision="fp32", batch_size=4)
    cache, model = open_cache(tmp_path / "a.h5"), load_backbone(BACKBONE)
    assert cache.ok.all()
    assert cache.spec["transform"] == {"modality": "text", **Letters().spec()}
    for row in range(len(cache)):
        tensors = model.preprocess.host((texts / bytes(cache.column("samples/id")[row]).decode()).read_bytes())
        real = int(tensors[1].sum())
        with torch.inference_mode():
            (expected,) = model.module(*(one[None, :real] for one in tensors))
        np.testing.assert_allclose(cache.features()[row], expected[0], rtol=0, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("workers", [1, 3])
def test_order_and_threads_change_no_row(texts: Path, tmp_path: Path, workers: int) -> None:
    extract(texts, tmp_path / "a.h5", backbone=BACKBONE, batch_size=4)
    paths = [str(path) for path in sorted(texts.iterdir())]
    some = tmp_path / "some.txt"
    some.write_text("\n".join(f"texts/{Path(path).name}" for path in paths[7:41:2]))
    extract(some, tmp_path / "b.h5", backbone=BACKBONE, batch_size=4, workers=workers)
    first, second = open_cache(tmp_path / "a.h5"), open_cache(tmp_path / "b.h5")
    names = [bytes(one).removeprefix(b"texts/") for one in second.column("samples/id")]
    rows = np.searchsorted(first.column("samples/id"), names)
    assert np.asarray(first.features())[rows].tobytes() == np.asarray(second.features()).tobytes()


def test_every_length_proves_the_engine(texts: Path) -> None:
    """The longest texts are among those that are looked at although there are many more of the others."""
    for number in range(1000, 1400):
        (texts / f"{number}.txt").write_text(f"{number}")
    model, source = load_backbone(BACKBONE), open_source(texts, files_of("text"))
    sample = sample_of(source, model.preprocess, workers=2)
    counts = [len(shape) for shape in sample.shapes]
    lengths = [len(sample.samples[shape.start][0]) for shape in sample.shapes]
    assert dict(zip(lengths, counts, strict=True)) == {8: guard.IMAGES, 16: 15, 32: 15}
    for name in ("fp32", "bf16"):
        choice = EngineChoice("torch", "cpu", name, 4)
        trial = guard.trial(sample, model, make_engine(model.module, model.preprocess, choice, identity=None))
        assert trial.images == (3 * guard.EXACT_IMAGES if name == "fp32" else len(sample))
        assert trial.passed
        assert "texts" in trial.words


def test_an_engine_that_fails_on_long_texts_alone_does_not_pass(texts: Path) -> None:
    model, source = load_backbone(BACKBONE), open_source(texts, files_of("text"))

    class Wrong(type(engine_of("torch", 4))):  # type: ignore[misc]
        def start(self, samples: Any) -> None:
            self.long = len(samples[0][0]) == LENGTHS[-1]
            super().start(samples)

        def finish(self) -> Any:
            return tuple(-one if self.long else one for one in super().finish())

    wrong = Wrong(model.module, model.preprocess, EngineChoice("torch", "cpu", "fp32", 4))
    assert not guard.trial(sample_of(source, model.preprocess, workers=2), model, wrong).passed


def test_the_audit_compares_samples_of_every_length(texts: Path) -> None:
    model, source = load_backbone(BACKBONE), open_source(texts, files_of("text"))
    engine, rows = engine_of("torch", 4), np.arange(60)
    audit = EngineAudit(model, engine.choice, rows, "float32")
    audit._began -= 1000  # it has all the time it needs
    work = Work(source, model, Decision(engine.choice, engine, "float32"))
    shown = 0
    for block in LocalExecutor(2).blocks(work, rows, keep=audit.wants):
        wanted = [
            Shown(str(item.row), item.inputs, (row,))
            for item, row in zip(block.decoded, block.features[0], strict=True)
            if item.tensors
        ]
        shown += len(wanted)
        audit.show(wanted)
    found = audit.finish()
    assert found is not None
    assert found.images == shown >= 16
    assert found.worst > 0.999


class Growing(torch.nn.Module):
    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return ids[:, :, None].float() + mask[:, :, None]


def make_growing() -> tuple[torch.nn.Module, Preprocess]:
    return Growing(), Letters()


def make_wrong() -> tuple[torch.nn.Module, Preprocess]:
    class Longer(Letters):
        def examples(self) -> Any:
            return super().examples()[:2]

    return make_attention_of(Longer())


def make_attention_of(preprocess: Preprocess) -> tuple[torch.nn.Module, Preprocess]:
    from lengths import make_attention

    return make_attention()[0], preprocess


def test_features_must_have_one_shape_for_all_lengths() -> None:
    with pytest.raises(BackboneError, match=r"gives features of \(16, 1\)"):
        load_backbone("test_lengths:make_growing", layer="output")


def test_a_length_that_is_not_named_ends_the_run(texts: Path, tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="none of the shapes that it names"):
        extract(texts, tmp_path / "a.h5", backbone="test_lengths:make_wrong", precision="fp32")


def test_the_default_feature_is_the_mean_of_real_tokens() -> None:
    model = load_backbone(BACKBONE)
    assert [(tap.layer, tap.shape) for tap in model.taps] == [("output", (WIDTH,))]
    assert model.unit == "texts"
