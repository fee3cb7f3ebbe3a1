"""Makes the hostile checkpoints: code, pickles that take memory, and tensors that claim it."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from pathlib import Path

from .archives import hostile_archives
from .good import make_weights
from .parts import Payload, bomb, write_sparse
from .tensors import entries, safetensors_cases, tensors_file


def checkpoint(pickled: bytes, *, storage: bytes = bytes(8), grows: int = 0) -> bytes:
    """torch's zip format around a pickle of one's own; with `grows`, `storage` is deflate data of so many bytes."""
    result = io.BytesIO()
    with zipfile.ZipFile(result, "w") as archive:
        for name, data in {"data.pkl": pickled, "byteorder": b"little", "data/0": storage, "version": b"3\n"}.items():
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), data)
        entry = archive.getinfo("archive/data/0")
    made = bytearray(result.getvalue())
    if grows:
        central = made.index(b"PK\1\2", made.index(b"PK\1\2", made.index(b"PK\1\2") + 4) + 4)
        for method, length in ((entry.header_offset + 8, entry.header_offset + 22), (central + 10, central + 24)):
            struct.pack_into("<H", made, method, zipfile.ZIP_DEFLATED)
            struct.pack_into("<I", made, length, grows)
    return bytes(made)


def hostile_weights(folder: Path, target: Path) -> None:
    import joblib
    import torch

    folder.mkdir()
    make_weights(folder)
    good = (folder / "zip.pth").read_bytes()
    for name, blob in safetensors_cases().items():
        (folder / f"{name}.safetensors").write_bytes(blob)
    empty = b'"%06x":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    text = b"{" + b",".join(empty % number for number in range(10**6)) + b"}"
    (folder / "tensors_300000.safetensors").write_bytes(tensors_file(text))
    write_sparse(folder / "header_200_mb.safetensors", (200 * 10**6).to_bytes(8, "little"), 201 * 10**6)
    claim = entries(a=("F32", [2**36], (0, 2**38)))
    write_sparse(folder / "sparse_256_gb.safetensors", tensors_file(claim), 8 + len(claim) + 2**38)

    (folder / "pickle.pth").write_bytes(pickle.dumps(Payload(target)))
    joblib.dump(Payload(target), folder / "joblib.pth")
    torch.save({"state_dict": {"a": torch.zeros(2)}, "evil": Payload(target)}, folder / "code.pth")
    legacy = {"a": torch.zeros(2), "evil": Payload(target)}
    torch.save(legacy, folder / "code_legacy.pth", _use_new_zipfile_serialization=False)
    tuples, lists, sets = b"\x85" * 10**6, b"]" * 10**7, b"\x8f" * 10**7
    start, key = b"\x80\x02}", b"K\x01s."
    wholes = {
        "deep_key": start + b")" + tuples + key,
        "deep_list": b"\x80\x02" + b"]" * 300_000 + b"a" * 299_999 + b".",
        "many_sets": b"\x80\x02(" + sets + b"t.",
        "huge_string": start + b"X\xff\xff\xff\xffabc" + key,
        "huge_memo": start + b"r\xff\xff\xff\xff" + b"K\x01K\x02s.",
        "no_stop": start,
    }
    for name, pickled in wholes.items():
        (folder / f"{name}.pth").write_bytes(checkpoint(pickled))
    legacy_head = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    (folder / "deep_key_legacy.pth").write_bytes(legacy_head + wholes["deep_key"])
    (folder / "many_lists_legacy.pth").write_bytes(legacy_head + b"\x80\x02(" + lists + b"l.")
    write_sparse(folder / "sparse_legacy.pth", legacy_head + start, 2**40)
    write_sparse(folder / "sparse_zip.pth", good, 2**40)
    write_sparse(folder / "sparse_tar.pth", bytes(257) + b"ustar\x0000", 2**40)

    torch.save({"a": torch.zeros(1).expand(2**40)}, folder / "repeated_2_to_40.pth")
    torch.save({"a": torch.empty(2**40, device="meta")}, folder / "meta_2_to_40.pth")
    indices = torch.zeros(1, 1, dtype=torch.long)
    sparse = torch.sparse_coo_tensor(indices, torch.ones(1), (2**40,), check_invariants=False)
    torch.save({"a": sparse}, folder / "sparse_tensor.pth")
    torch.save({"a": torch.zeros(4, dtype=torch.complex64)}, folder / "complex.pth")
    torch.save({"a": torch.zeros(4).to(torch.float8_e5m2)}, folder / "float8.pth")
    torch.save({("a",) * 3: torch.zeros(4), 7: torch.zeros(2)}, folder / "names_no_strings.pth")
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        name = next(entry for entry in archive.namelist() if entry.endswith("data.pkl"))
        state = archive.read(name)
    (folder / "zip_bomb.pth").write_bytes(checkpoint(state, storage=bomb(2**31, wrapped=False), grows=2**31))
    (folder / "storage_missing.pth").write_bytes(checkpoint(state))
    zip_cases(folder, wholes["many_sets"])
    (folder / "zip_with_code.pth").write_bytes(checkpoint(pickle.dumps(Payload(target), 2)))
    for part in range(8):
        (folder / f"cut_{part}.pth").write_bytes(good[: len(good) * part // 8])
    (folder / "folder.pth").mkdir()
    os.mkfifo(folder / "fifo.pth")
    (folder / "zero.pth").symlink_to("/dev/zero")
    (folder / "loop.pth").symlink_to("loop.pth")


def zip_cases(folder: Path, bad: bytes) -> None:
    """Archives of which one reader sees a plain pickle and another `bad`, and one whose pickle claims too much."""
    import torch

    whole = io.BytesIO()
    torch.save({"a": torch.zeros(2**20)}, whole)
    with zipfile.ZipFile(whole) as archive:
        claiming = archive.read("archive/data.pkl")
    (folder / "storage_short.pth").write_bytes(checkpoint(claiming))  # 4 MiB claimed, 8 bytes there
    for name, made in hostile_archives(claiming, bad).items():
        (folder / f"{name}.pth").write_bytes(made)
