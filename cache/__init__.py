"""The feature file: one HDF5 file that a run can never corrupt. `FORMAT.md` next to this file is its specification."""

from __future__ import annotations

if __name__ != "precompute.cache":
    raise ImportError(
        "This folder installs as `precompute.cache`. Import it by that name: `from precompute.cache import open_cache`."
    )

from precompute.cache.check import read_layout
from precompute.cache.columns import INT8, Column, Layer, Layout, Samples, channel_axis
from precompute.cache.creation import bytes_needed, column_digests, create
from precompute.cache.key import canonical_json, difference, key_of, plain_spec
from precompute.cache.lock import WriteLock, check_lock, lock_path
from precompute.cache.quantised import Features, QuantisedFeatures, as_read, quantise, storage_dtype
from precompute.cache.reader import Cache, open_cache
from precompute.cache.relabelled import RelabelledCache
from precompute.cache.status import SPLITS, UNKNOWN_SPLIT, Status, split_name, status_name, status_text
from precompute.cache.verification import Verification, verify
from precompute.cache.writer import RowWriter

__all__ = [
    "INT8",
    "SPLITS",
    "UNKNOWN_SPLIT",
    "Cache",
    "Column",
    "Features",
    "Layer",
    "Layout",
    "QuantisedFeatures",
    "RelabelledCache",
    "RowWriter",
    "Samples",
    "Status",
    "Verification",
    "WriteLock",
    "as_read",
    "bytes_needed",
    "canonical_json",
    "channel_axis",
    "check_lock",
    "column_digests",
    "create",
    "difference",
    "key_of",
    "lock_path",
    "open_cache",
    "plain_spec",
    "quantise",
    "read_layout",
    "split_name",
    "status_name",
    "status_text",
    "storage_dtype",
    "verify",
]
