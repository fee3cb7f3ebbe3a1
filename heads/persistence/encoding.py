"""The bytes of a head file: a safetensors file with a digest, encoded here and decoded without trusting it.

safetensors (https://github.com/huggingface/safetensors): 8 bytes of header length (little endian), a JSON header
`{"__metadata__": {str: str}, name: {"dtype", "shape", "data_offsets"}}`, then the arrays without gaps. The header is
parsed here and not by the library, which would accept duplicate metadata keys, other dtypes and changed bytes.

The metadata strings are JSON. One that is longer than MAX_STRING_BYTES, such as the names of very many classes, stands
in no header: it is the array `json:KEY`, its ASCII characters as U8. A file with such an array, or with one of float64,
is of version 2; others are of version 1, which older releases read.

Everything raises ValueError that says what is wrong; the caller adds the file's name.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import BinaryIO

    import numpy.typing as npt

    Arrays = dict[str, npt.NDArray[Any]]
    ArrayEntry = tuple[int, list[int], np.dtype[Any]]

__all__ = [
    "MAX_FILE_BYTES",
    "MAX_HEADER_BYTES",
    "MAX_STRING_BYTES",
    "MAX_TEXT_BYTES",
    "FileFormat",
    "TooLargeError",
    "UnknownFormatError",
    "decode",
    "encode",
    "encoded",
    "is_of",
    "read_json",
    "write_json",
]

# A linear head for 21,000 ImageNet classes on 4096 features has 344 MB. Anything larger is refused before it is read.
MAX_FILE_BYTES = 1 << 30
MAX_HEADER_BYTES = 16 << 20  # (The safetensors library allows 100 MB.)
MAX_STRING_BYTES = 1 << 20  # of a metadata string in the header
# Of all strings outside the header: 100,000 class names of 255 bytes fit. What JSON becomes in memory depends on how
# many values it holds, and is limited by that.
MAX_TEXT_BYTES, MAX_TEXT_VALUES = 64 << 20, 4_000_000
NO_DIGEST = "0" * 64
READ_BYTES = 1 << 20
# safetensors' names; arrays are little endian. All sizes divide 8, and an array stands after those of wider numbers.
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I32": "<i4"}
CODES = {np.dtype(dtype): code for code, dtype in DTYPES.items()}
TEXT, TEXT_CODE = "json:", "U8"  # how the array of a long string is named, and its dtype
# Quotes inside a JSON string are escaped, so these bytes can only be a real key and its value.
DIGEST = re.compile(rb'"digest":"([0-9a-f]{64})"')


@dataclass(frozen=True)
class FileFormat:
    """A kind of file that is encoded in this way.

    name: what its metadata says · noun: what it is called in messages · versions: those that are read; the last is
    written for what the first cannot hold · max_bytes: of a whole file · dimensions: how many an array may have.
    """

    name: str
    noun: str
    versions: tuple[str, ...]
    max_bytes: int
    dimensions: range


HEAD_FORMAT = FileFormat("precompute-head", "head", ("1", "2"), MAX_FILE_BYTES, range(1, 3))


class UnknownFormatError(ValueError):
    """A safetensors file that holds something else, or a head of a version that this code does not know."""


class TooLargeError(ValueError):
    """A head that would make a file that cannot be loaded."""


def encode(arrays: Arrays, strings: dict[str, str]) -> bytes:
    """A whole head file. The same input gives the same bytes."""
    return b"".join(encoded(arrays, strings, HEAD_FORMAT))


def encoded(arrays: Arrays, strings: dict[str, str], form: FileFormat) -> list[bytes | memoryview]:
    """The parts of a whole file, in order; arrays are not copied. The same input gives the same bytes."""
    for name, array in arrays.items():
        if array.dtype not in CODES:
            held = ", ".join(map(str, CODES))
            raise ValueError(f"its array {name} is {array.dtype}, and a {form.noun} file holds {held}")
        if not np.isfinite(array).all():
            raise ValueError(f"its array {name} holds values that are not finite")
    parts: list[tuple[str, str, list[int], bytes | memoryview]] = [
        (name, CODES[array.dtype], list(array.shape), _bytes_of(array.astype(DTYPES[CODES[array.dtype]], copy=False)))
        for name, array in sorted(arrays.items(), key=lambda item: -item[1].dtype.itemsize)
    ]
    long = {key: value.encode("ascii") for key, value in strings.items() if len(value) > MAX_STRING_BYTES}
    _check_texts([len(value) for value in long.values()], long.values())
    parts += [(TEXT + key, TEXT_CODE, [len(value)], value) for key, value in long.items()]
    short = {key: value for key, value in strings.items() if key not in long}
    needs_more = bool(long) or any(code == "F64" for _, code, *_ in parts)
    version = form.versions[-1 if needs_more else 0]
    header: dict[str, Any] = {"__metadata__": {"format": form.name, "version": version, **short, "digest": NO_DIGEST}}
    end = 0
    for name, code, shape, part in parts:
        start, end = end, end + len(part)
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [start, end]}
    text = write_json(header).encode("ascii")
    text += b" " * (-len(text) % 8)  # safetensors aligns the arrays to 8 bytes
    if len(text) > MAX_HEADER_BYTES or 8 + len(text) + end > form.max_bytes:
        raise TooLargeError(
            f"it would have a header of {len(text)} and arrays of {end} bytes, "
            f"but at most {MAX_HEADER_BYTES} and {form.max_bytes} are allowed"
        )
    hasher = hashlib.sha256(len(text).to_bytes(8, "little") + text)
    for *_, part in parts:
        hasher.update(part)
    text = DIGEST.sub(f'"digest":"{hasher.hexdigest()}"'.encode(), text)
    return [len(text).to_bytes(8, "little") + text, *(part for *_, part in parts)]


def _bytes_of(array: npt.NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def is_of(file: BinaryIO, form: FileFormat) -> bool:
    """Whether the file says that it is of this form, of any version; what follows its header may be damaged."""
    length = int.from_bytes(file.read(8), "little")
    if length > MAX_HEADER_BYTES:
        return False
    try:
        header = read_json(file.read(length).decode("utf-8"))
    except ValueError:
        return False
    strings = header.get("__metadata__") if isinstance(header, dict) else None
    return isinstance(strings, dict) and strings.get("format") == form.name


def decode(file: BinaryIO, size: int, form: FileFormat = HEAD_FORMAT) -> tuple[Arrays, dict[str, str]]:
    """The arrays and metadata strings of a file with `size` bytes. Sizes are checked before memory is taken."""
    if not 8 < size <= form.max_bytes:
        raise ValueError(f"it has {size} bytes, and a {form.noun} has between 9 and {form.max_bytes}")
    prefix = file.read(8)
    length = int.from_bytes(prefix, "little")
    if not length <= min(MAX_HEADER_BYTES, size - 8):
        raise ValueError("it is not a safetensors file, or it is truncated (the length of its header is impossible)")
    text = file.read(length)
    shapes, strings = _parse_header(text, size - 8 - length, form)
    if size > MAX_FILE_BYTES:  # such a file is read twice, so that one that is not whole takes no memory
        _check_digest(prefix, text, iter(lambda: file.read(READ_BYTES), b""))
        file.seek(8 + length)
    data = bytearray(size - 8 - length)
    if len(text) != length or _fill(file, data) != len(data) or file.read(1):
        raise ValueError("it changed while it was read")
    _check_digest(prefix, text, [data])
    arrays = {}
    for name, (start, shape, dtype) in shapes.items():
        if name.startswith(TEXT):
            value = bytes(data[start : start + shape[0]])
            _check_texts([], [value])
            strings[name.removeprefix(TEXT)] = _ascii(name, value)
            continue
        array = np.frombuffer(data, dtype=dtype, count=math.prod(shape), offset=start).reshape(shape)
        arrays[name] = array.astype(dtype.newbyteorder("="), copy=False)
        if not np.isfinite(array).all():
            raise ValueError(f"its array {name} holds values that are not finite")
    return arrays, strings


def _fill(file: BinaryIO, data: bytearray) -> int:
    """Read `data` full, or as far as the file goes; how many bytes that is."""
    view, at = memoryview(data), 0
    while at < len(data) and (n := file.readinto(view[at:])):  # type: ignore[attr-defined]  # of files that are open
        at += n
    return at


def _parse_header(text: bytes, data_bytes: int, form: FileFormat) -> tuple[dict[str, ArrayEntry], dict[str, str]]:
    """Where each array starts, its shape and dtype, and the metadata strings."""
    try:
        header = read_json(text.decode("utf-8"))
    except UnicodeDecodeError:
        raise ValueError("it is not a safetensors file, or damaged (its header is not UTF-8)") from None
    strings = header.pop("__metadata__", None) if isinstance(header, dict) else None
    if not isinstance(strings, dict) or strings.get("format") != form.name:
        raise UnknownFormatError(f"its metadata does not say that its format is {form.name}")
    if strings.get("version") not in form.versions:
        known = " and ".join(map(repr, form.versions))
        raise UnknownFormatError(f"its version is {strings.get('version')!r}, and this precompute reads {known}")
    if not all(isinstance(value, str) for value in strings.values()):
        raise ValueError("its metadata holds values that are not strings")
    shapes, end = {}, 0
    for name, entry in header.items():
        shape, dtype = _shape_of(name, entry, end, form)
        shapes[name] = (end, shape, dtype)
        end += dtype.itemsize * math.prod(shape)
    texts = {name.removeprefix(TEXT): shape[0] for name, (_, shape, _) in shapes.items() if name.startswith(TEXT)}
    _check_texts(texts.values(), [])
    if twice := sorted(texts.keys() & strings.keys()):
        raise ValueError(f"its metadata holds {twice[0]} twice")
    if end != data_bytes:
        raise ValueError(f"it is truncated or damaged: its arrays need {end} bytes, and it has {data_bytes}")
    return shapes, strings


def _shape_of(name: str, entry: Any, start: int, form: FileFormat) -> tuple[list[int], np.dtype[Any]]:
    """Shape and dtype of one header entry, which must be an array from byte `start` on: they are in file order."""
    dtypes = {TEXT_CODE: "|u1"} if name.startswith(TEXT) else DTYPES
    known = isinstance(entry, dict) and set(entry) == {"dtype", "shape", "data_offsets"}
    if not known or not isinstance(entry["dtype"], str) or entry["dtype"] not in dtypes:
        raise ValueError(f"its array {name!r} is not described with a shape, offsets and one of {', '.join(dtypes)}")
    shape, dtype = entry["shape"], np.dtype(dtypes[entry["dtype"]])
    # `type`, not isinstance: true and 1.0 are not sizes.
    if not isinstance(shape, list) or not all(type(n) is int and 0 < n <= form.max_bytes for n in shape):
        raise ValueError(f"its array {name!r} has no valid shape")
    end = start + dtype.itemsize * math.prod(shape)
    if (
        len(shape) not in ({1} if name.startswith(TEXT) else form.dimensions)
        or start % dtype.itemsize
        or entry["data_offsets"] != [start, end]
    ):
        raise ValueError(f"its array {name!r} is not at the offset that its shape and the previous array imply")
    return shape, dtype


def _check_texts(sizes: Iterable[int], texts: Iterable[bytes]) -> None:
    """Raise where strings outside the header have too many bytes, or hold too many JSON values."""
    if (total := sum(sizes)) > MAX_TEXT_BYTES:
        raise TooLargeError(f"it has {total} bytes of labels and metadata, and at most {MAX_TEXT_BYTES} are allowed")
    for text in texts:
        if (values := sum(map(text.count, (b",", b"[", b"{")))) > MAX_TEXT_VALUES:
            raise TooLargeError(f"its metadata has {values} values in one place, and {MAX_TEXT_VALUES} are allowed")


def _ascii(name: str, value: bytes) -> str:
    try:
        return value.decode("ascii")
    except UnicodeDecodeError:
        raise ValueError(f"its array {name!r} is no ASCII text") from None


def _check_digest(prefix: bytes, text: bytes, data: Iterable[bytes | bytearray]) -> None:
    found = DIGEST.findall(text)
    if len(found) != 1:
        raise ValueError("it has no digest, or more than one")
    hasher = hashlib.sha256(prefix)
    hasher.update(DIGEST.sub(f'"digest":"{NO_DIGEST}"'.encode(), text))
    for part in data:
        hasher.update(part)
    if hasher.hexdigest().encode() != found[0]:
        raise ValueError("it is damaged: its contents do not match its digest")


def write_json(value: Any) -> str:
    """ASCII JSON, in which a lone surrogate (a byte of a file name that is not UTF-8) is an escape like any other."""
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def read_json(text: str) -> Any:
    """Parse JSON, refusing what Python's parser lets through: duplicate keys, NaN, infinity, endless nesting."""
    try:
        return json.loads(
            text, object_pairs_hook=_without_duplicates, parse_constant=_finite_number, parse_float=_finite_number
        )
    except json.JSONDecodeError as error:
        raise ValueError(f"its JSON is not valid: {error}") from None
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("its JSON holds a key twice")
    return result


def _finite_number(text: str) -> float:
    value = float(text)  # also what the parser calls for NaN, Infinity and -Infinity
    if not math.isfinite(value):
        raise ValueError(f"its JSON holds {text}, which is not a finite number")
    return value
