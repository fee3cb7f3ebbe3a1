"""The contract of executors: the local one, and one of this file's own that works backwards in one thread."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import list_images, make_photos
from contracts import ExecutorContract

from precompute import extract, load_backbone, open_cache
from precompute.engines.base import Engine, EngineChoice
from precompute.engines.choice import Decision
from precompute.engines.torch import TorchEngine
from precompute.errors import Stopped
from precompute.extraction.executors.base import Executor, Work
from precompute.extraction.executors.local import LocalExecutor
from precompute.extraction.executors.processes import ProcessExecutor
from precompute.extraction.pipeline import Block, decode_threads, read


class Backwards(Executor):
    """One thread, the last row first, three samples at a time."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def blocks(
        self,
        work: Work,
        rows: np.ndarray,
        *,
        claim: Any = None,
        stop: Callable[[], object] | None = None,
        clock: Any = None,
        keep: Callable[[int], bool] | None = None,
    ) -> Generator[Block, None, None]:
        for start in range(0, len(rows), 3):
            block = Block()
            for row in rows[::-1][start : start + 3].tolist():
                self.rows.append(row)
                block.add(read(work.source, row, work.backbone.preprocess, claim), work.source)
            if block.decoded:
                made = [work.decision.engine(item.inputs) for item in block.decoded]  # for each tap (views, *shape)
                several = work.backbone.preprocess.views > 1
                block.features = tuple(
                    np.stack(tap if several else [one[0] for one in tap]) for tap in zip(*made, strict=True)
                )
            block.decoded = [
                item if keep is not None and keep(item.row) else item.without_tensors() for item in block.decoded
            ]
            yield block
            if stop is not None and stop():
                return


class TestLocalExecutor(ExecutorContract):
    @pytest.fixture(params=[1, 3])
    def executor(self, request: pytest.FixtureRequest) -> Executor:
        return LocalExecutor(workers=request.param)


@pytest.mark.rotates(16)  # each test starts processes that load torch
class TestProcessExecutor(ExecutorContract):
    @pytest.fixture(params=[1, 3])
    def executor(self, request: pytest.FixtureRequest) -> Executor:
        return ProcessExecutor(workers=request.param)


class TestBackwards(ExecutorContract):
    @pytest.fixture
    def executor(self) -> Executor:
        return Backwards()


class Queued(Engine):
    """As `inner`, with three batches under way."""

    depth = 3

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner.choice)
        self._inner = inner
        self._begun: deque[list[Any]] = deque()
        self.sizes: list[int] = []

    def start(self, samples: Any) -> None:
        assert len(self._begun) < self.depth
        self.sizes.append(len(samples))
        self._begun.append([tuple(one.clone() for one in sample) for sample in samples])

    def finish(self) -> Any:
        return self._inner(self._begun.popleft())


@pytest.mark.parametrize("views", [1, 3, 4, 7, pytest.param(50, marks=pytest.mark.slow)])
def test_batches_under_way_and_views_that_do_not_fill_them_make_no_difference(views: int, photos: Path) -> None:
    backbone = load_backbone("tiny", views=views, augment="flip,crop" if views > 1 else None)
    inner = TorchEngine(backbone.module, backbone.preprocess, EngineChoice("torch", "cpu", "fp32", 4))
    engines = (inner, Queued(inner))
    found = []
    for engine in engines:
        work = Work(list_images(photos), backbone, Decision(engine.choice, engine, "float32"))
        features = {}
        for block in LocalExecutor(2).blocks(work, np.arange(24)):
            assert block.features is not None
            features |= {item.row: block.features[0][k].tobytes() for k, item in enumerate(block.decoded)}
        found.append(features)
    assert found[0] == found[1]
    assert len(found[0]) == 24
    sizes = engines[1].sizes
    assert sum(sizes) == 24 * views
    if views <= 4 * 8:  # only the last pass has places left over, but where a block would be too long
        assert sizes[:-1] == [4] * (len(sizes) - 1)


def test_features_without_their_views_are_no_rows(photos: Path, tmp_path: Path) -> None:
    class OneView(Backwards):
        def blocks(self, *given: Any, **named: Any) -> Generator[Block, None, None]:
            for block in super().blocks(*given, **named):
                block.features = block.features and tuple(tap[:, 0] for tap in block.features)
                yield block

    with pytest.raises(ValueError, match="An executor gave features of"):
        extract(photos, tmp_path / "a.h5", backbone="tiny", views=3, augment="flip", executor=OneView())


@pytest.mark.rotates(3)
def test_another_executor_makes_the_same_file(photos: Path, tmp_path: Path) -> None:
    """It is stopped half-way, and the local one goes on."""
    (photos / "val/cats/broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    copy = photos / "val/dogs/copy.png"
    copy.write_bytes((photos / "train/cats/1.png").read_bytes())
    executor, whole = Backwards(), extract(photos, tmp_path / "whole.h5", backbone="tiny", batch_size=4)
    with pytest.raises(Stopped):
        extract(photos, tmp_path / "a.h5", backbone="tiny", batch_size=4, executor=executor, stop=lambda: 2)
    assert executor.rows == [25, 24, 23]
    made = extract(photos, tmp_path / "a.h5", backbone="tiny", batch_size=4)
    assert made.reused == 3
    for out in ("a.h5", "b.h5"):
        if out == "b.h5":
            made = extract(photos, tmp_path / out, backbone="tiny", batch_size=4, executor=Backwards())
            assert (made.computed, made.copied) == (whole.computed, whole.copied) == (24, 1)
        assert made.failures == whole.failures == {"TRUNCATED": 1}
        ours, theirs = open_cache(tmp_path / out), open_cache(tmp_path / "whole.h5")
        names = set(ours.layout.columns) - {"provenance"}
        assert names == set(theirs.layout.columns) - {"provenance"}
        assert all(ours.column(name).tobytes() == theirs.column(name).tobytes() for name in names)


def test_a_decoding_thread_works_alone_and_other_threads_keep_theirs() -> None:
    """Each would otherwise resize every picture with a team of threads, which spin where they wait."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        with decode_threads(3) as pool:
            assert list(pool.map(lambda _: torch.get_num_threads(), range(6))) == [1] * 6
        assert torch.get_num_threads() == 4
        found: list[int] = []
        later = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        later.start()
        later.join()
        assert found == [4]
    finally:
        torch.set_num_threads(before)


class Deep(Engine):
    """Three batches under way at once, and an account of them."""

    depth = 3

    def __init__(self) -> None:
        super().__init__(EngineChoice("torch", "cpu", "fp32", 2))
        self.under_way: list[int] = []

    def start(self, images: object) -> None:
        self.under_way.append(len(list(images)))  # type: ignore[call-overload]

    def finish(self) -> tuple[np.ndarray, ...]:
        return (np.zeros((self.under_way.pop(0), 4), np.float32),)


def test_no_batch_is_left_under_way_by_an_error(tmp_path: Path) -> None:
    """OpenVINO ends the whole process where an engine is taken down in the middle of a batch."""
    listing = list_images(make_photos(tmp_path / "photos"))
    engine = Deep()
    backbone = load_backbone("tiny")
    work = Work(listing, backbone, Decision(engine.choice, engine, "float32"))
    blocks = LocalExecutor(workers=1).blocks(work, np.arange(len(listing)))
    next(blocks)
    assert engine.under_way
    with pytest.raises(ZeroDivisionError):
        blocks.throw(ZeroDivisionError)
    assert not engine.under_way
