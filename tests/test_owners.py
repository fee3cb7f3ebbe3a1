"""Byte-identical images have one owner, whichever thread comes first, and no two digests are taken for one another."""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from precompute.extraction.owners import THIS_RUN, DigestIndex, Owners

# Few heads and few tails: digests that are the same, or that differ only behind the first 8 bytes, are common.
DIGESTS = st.builds(
    lambda head, middle, tail: bytes([head] * 8 + [middle] * 16 + [tail] * 8), *(st.sampled_from([0, 1, 255]),) * 3
)


def column(digests: list[bytes]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, 32)


@pytest.mark.rotates(3)
@given(st.lists(DIGESTS, max_size=30), st.lists(DIGESTS, max_size=30), st.data())
def test_an_index_finds_what_a_dictionary_would(there: list[bytes], asked: list[bytes], data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.integers(0, max(0, len(there) - 1)), unique=True, max_size=len(there)).map(sorted))
    index = DigestIndex(column(there), np.array(chosen, dtype=np.int64))
    oracle: dict[bytes, int] = {}
    for row in chosen:
        oracle.setdefault(there[row], row)
    assert [index.find(digest) for digest in asked] == [oracle.get(digest) for digest in asked]
    rows = np.arange(len(asked))[::-1]
    assert index.holds(column(asked), rows).tolist() == [asked[row] in oracle for row in rows]
    assert {there[row] for row in index.rows.tolist()} == set(oracle)


@given(st.lists(DIGESTS, max_size=10), st.lists(DIGESTS, max_size=10), st.lists(DIGESTS, max_size=40))
def test_owners_are_those_of_a_dictionary(first: list[bytes], second: list[bytes], claims: list[bytes]) -> None:
    olds = [DigestIndex(column(digests), np.arange(len(digests))) for digests in (first, second)]
    owners = Owners(olds, len(claims))
    oracle: dict[bytes, tuple[int, int]] = {}
    for number, digests in enumerate((first, second)):
        for row, digest in enumerate(digests):
            oracle.setdefault(digest, (number, row))
    for row, digest in enumerate(claims):
        assert owners.claim(digest, row) == (oracle.setdefault(digest, (THIS_RUN, row)) == (THIS_RUN, row))
        assert owners.owner(digest) == oracle[digest]
    for row, digest in enumerate(claims):
        if oracle[digest] == (THIS_RUN, row):
            assert owners.digest(row) == digest


@given(st.lists(DIGESTS, min_size=1, max_size=12, unique=True), st.data())
def test_what_is_forgotten_goes_to_the_next_claim_and_nothing_else_is_lost(
    claims: list[bytes], data: st.DataObject
) -> None:
    old = DigestIndex(column(claims[:3]), np.arange(len(claims[:3])))
    owners = Owners([old], 2 * len(claims))
    for row, digest in enumerate(claims):
        owners.claim(digest, row)
    before = {digest: owners.owner(digest) for digest in claims}
    lost = data.draw(st.sampled_from(claims))
    owners.forget(lost, before[lost][0])  # type: ignore[index]
    assert owners.owner(lost) is None
    assert {digest: owners.owner(digest) for digest in claims if digest != lost} == {
        digest: owner for digest, owner in before.items() if digest != lost
    }
    assert owners.claim(lost, len(claims))
    assert owners.owner(lost) == (THIS_RUN, len(claims))
    assert not owners.claim(lost, len(claims) + 1)


def test_of_threads_that_claim_the_same_bytes_exactly_one_is_granted() -> None:
    threads, pictures = 8, 3000
    digests = [hashlib.sha256(str(number).encode()).digest() for number in range(pictures)]
    owners = Owners([], threads * pictures)
    start = threading.Barrier(threads)

    def claim_all(thread: int) -> list[bool]:
        start.wait()
        return [owners.claim(digest, thread * pictures + number) for number, digest in enumerate(digests)]

    with ThreadPoolExecutor(threads) as pool:
        granted = np.array(list(pool.map(claim_all, range(threads))))
    assert (granted.sum(axis=0) == 1).all()
    winners = (granted.argmax(axis=0) * pictures + np.arange(pictures)).tolist()
    assert [owners.owner(digest) for digest in digests] == [(THIS_RUN, row) for row in winners]
