"""Makes safetensors files whose headers lie, for heads and for weights."""

from __future__ import annotations

import json


def tensors_file(header: bytes, data: bytes = b"") -> bytes:
    """A safetensors file with this header."""
    return len(header).to_bytes(8, "little") + header + data


def entries(**arrays: tuple[str, list[int], tuple[int, int]]) -> bytes:
    return json.dumps(
        {name: {"dtype": kind, "shape": shape, "data_offsets": span} for name, (kind, shape, span) in arrays.items()}
    ).encode()


def safetensors_cases() -> dict[str, bytes]:
    """Headers that lie, for heads and for weights."""
    many = b"{" + b",".join(b'"%x":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % n for n in range(100_000)) + b"}"
    return {
        "header_2_to_63": (2**63).to_bytes(8, "little") + b"{}",
        "header_2_to_64": b"\xff" * 8 + b"{}",
        "header_100_mb_claimed": (10**8).to_bytes(8, "little") + b"{}",
        "header_longer_than_file": (200).to_bytes(8, "little") + b"{}",
        "header_cut": b"\x10\0\0",
        "header_empty": tensors_file(b""),
        "header_no_object": tensors_file(b"[]"),
        "header_deep": tensors_file(b'{"a":' * 100_000),
        "header_not_utf8": tensors_file(b'{"\xff":1}'),
        "header_many_tensors": tensors_file(many),
        "overlapping": tensors_file(entries(a=("F32", [2], (0, 8)), b=("F32", [2], (4, 12))), bytes(12)),
        "gap": tensors_file(entries(a=("F32", [1], (0, 4)), b=("F32", [1], (8, 12))), bytes(12)),
        "negative": tensors_file(entries(a=("F32", [1], (-4, 0))), bytes(4)),
        "backwards": tensors_file(entries(a=("F32", [1], (4, 0))), bytes(4)),
        "beyond": tensors_file(entries(a=("F32", [2**40], (0, 2**42))), bytes(4)),
        "shape_overflows": tensors_file(entries(a=("F32", [2**32, 2**32, 0], (0, 4))), bytes(4)),
        "shape_and_span_differ": tensors_file(entries(a=("F32", [3], (0, 4))), bytes(4)),
        "dtype_unknown": tensors_file(entries(a=("OBJECT", [1], (0, 4))), bytes(4)),
        "twice": tensors_file(
            b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
            b'"a":{"dtype":"F64","shape":[1],"data_offsets":[0,8]}}',
            bytes(8),
        ),
    }
