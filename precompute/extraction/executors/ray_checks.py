"""Whether what an actor says of itself fits the others and this process."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from precompute.engines.choice import Decision
from precompute.engines.guard import spread
from precompute.errors import DeviceError, SampleError, SourceError
from precompute.extraction.executors.ray_actor import Ready, digest_of
from precompute.sources.base import Source

BY_ENGINE = {"openvino"}
"""Packages that matter where their engine runs."""


LOOKED_AT = 4
"""Samples that every node must be able to read, and alike."""


def own_digests(source: Source) -> dict[int, bytes | SampleError]:
    """Of the rows that nodes must see: the SHA-256 of their bytes, or the error."""
    rows = spread(np.arange(len(source)), LOOKED_AT).tolist()
    return {row: digest_of(source, row) for row in rows}


def check_seen(
    host: str, source: Source, own: Mapping[int, bytes | SampleError], seen: Mapping[int, bytes | SampleError]
) -> None:
    """Raise SourceError where a node cannot read what this process can, or reads something else."""
    for row, there in seen.items():
        here = own[row]
        if isinstance(here, bytes) and there != here:
            what = f"cannot read it ({there.message})" if isinstance(there, SampleError) else "reads other bytes"
            raise SourceError(
                f"{source.sample_name(row)} of {source.origin} is there on this machine, but the node {host} {what}.",
                hint="All nodes must see the samples under the same path, such as on NFS or in an object store "
                "(s3://bucket/prefix).",
            )


def check_versions(host: str, ready: Ready, here: Mapping[str, str], engine: str) -> None:
    """Raise DeviceError where a package that decides features is another one there."""
    for name, version in here.items():
        if (there := ready.versions.get(name)) != version and (name not in BY_ENGINE or name == engine):
            raise DeviceError(
                f"The node {host} has {name} {there}, and this machine {version}.",
                hint="Install the same versions on all nodes: features depend on them.",
            )


def check_model(host: str, ready: Ready, known: Collection[str]) -> None:
    """Raise DeviceError where the device is another model than those of the others."""
    if others := sorted(set(known) - {ready.device}):
        raise DeviceError(
            f"The node {host} computes by {ready.device}, others by {' and '.join(others)}.",
            hint="Leave --exact out, or give Ray nodes of one model alone.",
        )


def check_trial(host: str, ready: Ready, decision: Decision) -> None:
    """Raise DeviceError where the engine falls short there and does not here. One that was requested may fall short."""
    if ready.trial is not None and not ready.trial.passed and not decision.warnings:
        raise DeviceError(
            f"The node {host} ({ready.device}): {ready.trial.words}.",
            hint=f"{decision.choice.precision} passes where that was decided. Take fp32, or leave the node out.",
        )
