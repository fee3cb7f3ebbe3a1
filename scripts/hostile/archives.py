"""Makes the hostile zip archives: two readers of them could find two different pickles."""

from __future__ import annotations

import io
import struct
import warnings
import zipfile
from collections.abc import Iterable

Records = Iterable[tuple[str, bytes]]


def zipped(records: Records) -> bytes:
    """An archive of uncompressed records, in their order; names may repeat."""
    result = io.BytesIO()
    with zipfile.ZipFile(result, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a name that repeats
        for name, data in records:
            archive.writestr(zipfile.ZipInfo(name), data)
    return result.getvalue()


def records(pickled: bytes, *, folder: str = "archive", pickle_name: str = "data.pkl") -> list[tuple[str, bytes]]:
    """What torch.save writes around a pickle and one tensor of 8 bytes."""
    parts = {pickle_name: pickled, "byteorder": b"little", "data/0": bytes(8), "version": b"3\n"}
    return [(f"{folder}/{name}", data) for name, data in parts.items()]


def directory_of(archive: bytes) -> tuple[int, bytes]:
    """Where the directory begins, and its bytes."""
    length, start = struct.unpack_from("<2L", archive, archive.rindex(b"PK\5\6") + 12)
    return start, archive[start : start + length]


def ended(body: bytes, directory: bytes, *, narrow: tuple[int, int, int]) -> bytes:
    """`body` and its directory, to which the newer end record leads; `narrow` is what the older one says of it.

    narrow: number of entries, bytes, offset.
    """
    count, start, end = directory.count(b"PK\1\2"), len(body), len(body) + len(directory)
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(directory), start)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, end, 1)
    old = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, narrow[0], *narrow, 0)
    return body + directory + end64 + locator + old


def two_directories(good: bytes, bad: bytes) -> bytes:
    """The older end record leads to `good`, the newer one to `bad`."""
    both = zipped([*records(bad, folder="hidden"), *records(good)])
    start, directory = directory_of(both)
    half = directory.index(b"archive/data.pkl") - 46
    shown = directory[half:]
    return ended(both[:start] + shown, directory[:half], narrow=(shown.count(b"PK\1\2"), len(shown), start))


def many_records() -> bytes:
    entry = struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0)
    crowd = b"".join(entry + b"a/%07d" % number for number in range(10**6))
    return ended(b"PK\3\4" + bytes(26), crowd, narrow=(0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF))


def overlapping(good: bytes) -> bytes:
    made = bytearray(zipped([*records(good), ("archive/data/1", bytes(2**16)), ("archive/data/2", b"")]))
    struct.pack_into("<2L", made, made.rindex(b"archive/data/2") - 26, 2**17, 2**17)
    return bytes(made)


def renamed(good: bytes) -> bytes:
    """The directory calls the pickle otherwise than its own header does; torch goes by the directory, in any case."""
    head, _, tail = zipped(records(good)).rpartition(b"archive/data.pkl")
    return head + b"archive/DATA.PKL" + tail


def hostile_archives(good: bytes, bad: bytes) -> dict[str, bytes]:
    """By name: archives that show the pickle `good` to one reader and the pickle `bad` to another, or are none."""
    plain, other = zipped(records(good)), zipped(records(bad))
    return {
        "two_pickles": zipped([*records(good), *records(bad)]),
        "two_pickles_in_two_cases": zipped([*records(good), *records(bad, pickle_name="Data.pkl")]),
        "pickle_in_capitals": renamed(bad),
        "pickle_nowhere": zipped(records(good, pickle_name="dataa.pkl")),
        "archive_behind_archive": plain + other,
        "archive_and_more": plain + bytes(100),
        "archive_in_comment": other[:-2] + struct.pack("<H", len(plain)) + plain,
        "two_directories": two_directories(good, bad),
        "records_overlap": overlapping(good),
        "records_10_to_6": many_records(),
        "name_with_nul": plain.replace(b"archive/version", b"archive/versio\0"),
    }
