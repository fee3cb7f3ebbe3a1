"""The key: what must be equal for two features to be equal, as canonical JSON and its SHA-256."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from precompute.cache.columns import VIEW

Spec = Mapping[str, Any]


def canonical_json(value: object) -> str:
    """JSON with sorted keys, no spaces and ASCII only, so that equal specs are equal bytes.

    Raises ValueError for NaN and infinities, which JSON does not have.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def key_of(spec: Spec) -> str:
    """The key of a file that precompute writes for `spec`: SHA-256 of its canonical JSON, as 64 hexadecimal digits."""
    return key_of_bytes(canonical_json(spec).encode("ascii"))


def key_of_bytes(stored: bytes) -> str:
    """SHA-256 of `spec` as it is stored, however it is spelled."""
    return hashlib.sha256(stored).hexdigest()


def spec_layers(spec: Spec) -> dict[str, tuple[tuple[str, ...], str]]:
    """Axes and pooling of each layer that `spec` names, in its order.

    Raises ValueError where it does not name each layer once, with its pooling and axes.
    """
    entries = spec.get("layers")
    found: dict[str, tuple[tuple[str, ...], str]] = {}
    for entry in entries if isinstance(entries, list) else []:
        name, pooling, axes = (
            (entry.get(word) for word in ("name", "pooling", "axes")) if isinstance(entry, Mapping) else (None,) * 3
        )
        words = isinstance(axes, list) and all(
            isinstance(axis, str) and axis.isascii() and axis.isidentifier() for axis in axes
        )
        if not (isinstance(name, str) and isinstance(pooling, str) and words) or name in found:
            raise ValueError("each entry of `layers` must have its own name, a pooling and a list of axes")
        found[name] = tuple(axes or ()), pooling
    return found


def plain_spec(spec: Spec) -> dict[str, Any]:
    """The settings of the plain view alone: `spec` of the file that would hold no other."""
    layers = spec.get("layers")
    rest = {name: value for name, value in spec.items() if name != "augment"}
    if isinstance(layers, list):
        rest["layers"] = [_plain_layer(entry) for entry in layers]
    return {**rest, "views": 1} if "views" in spec else rest


def _plain_layer(entry: Any) -> Any:
    axes = entry.get("axes") if isinstance(entry, Mapping) else None
    return {**entry, "axes": axes[1:]} if isinstance(axes, list) and axes[:1] == [VIEW] else entry


def leaves(value: object, path: str = "") -> Iterator[tuple[str, str]]:
    """The single settings of a spec, such as ("transform.resize", "232"); lists of plain values are one setting."""
    if isinstance(value, Mapping):
        for name in sorted(value):
            yield from leaves(value[name], f"{path}.{name}" if path else str(name))
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for number, item in enumerate(value):
            yield from leaves(item, f"{path}[{number}]")
    else:
        yield path, value if isinstance(value, str) else canonical_json(value)


def difference(old: Spec, new: Spec) -> list[str]:
    """One line for each setting that differs, such as `transform.resize: 232 -> 256`; empty where the keys agree."""
    before, after = dict(leaves(old)), dict(leaves(new))
    return [
        f"{path}: {before.get(path, '(absent)')} -> {after.get(path, '(absent)')}"
        for path in sorted(before.keys() | after.keys())
        if before.get(path) != after.get(path)
    ]
