"""The feature file: one HDF5 file that a run can never corrupt. `FORMAT.md` beside this file is its specification."""

from __future__ import annotations

if __name__ != "precompute.cache":
    raise ImportError(
        "This folder installs as `precompute.cache`. Import it by that name: `from precompute.cache import open_cache`."
    )

from precompute.cache.check import read_layout
from precompute.cache.columns import Column, Layer, Layout, Samples
from precompute.cache.creation import bytes_needed, column_digests, create
from precompute.cache.key import canonical_json, difference, key_of, plain_spec
from precompute.cache.lock import WriteLock, check_lock, lock_path
from precompute.cache.reader import Cache, open_cache
from precompute.cache.relabelled import RelabelledCache
from precompute.cache.status import SPLITS, UNKNOWN_SPLIT, Status, split_name, status_name, status_text
from precompute.cache.verification import Verification, verify
from precompute.cache.writer import RowWriter

__all__ = [
    "SPLITS",
    "UNKNOWN_SPLIT",
    "Cache",
    "Column",
    "Layer",
    "Layout",
    "RelabelledCache",
    "RowWriter",
    "Samples",
    "Status",
    "Verification",
    "WriteLock",
    "bytes_needed",
    "canonical_json",
    "check_lock",
    "column_digests",
    "create",
    "difference",
    "key_of",
    "lock_path",
    "open_cache",
    "plain_spec",
    "read_layout",
    "split_name",
    "status_name",
    "status_text",
    "verify",
]
