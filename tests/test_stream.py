"""Threads that read and decode."""

from __future__ import annotations

import threading

import torch

from precompute.stream import decode_threads


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
