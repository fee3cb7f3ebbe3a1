"""Threads that read and decode."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import list_images, make_photos

from precompute import load_backbone
from precompute.engines.base import Engine, EngineChoice
from precompute.extraction.pipeline import decode_threads, forward


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
    engine, preprocess = Deep(), load_backbone("tiny").preprocess
    blocks = forward(listing, np.arange(len(listing)), engine, preprocess, workers=1)
    next(blocks)
    assert engine.under_way
    with pytest.raises(ZeroDivisionError):
        blocks.throw(ZeroDivisionError)  # type: ignore[attr-defined]
    assert not engine.under_way
