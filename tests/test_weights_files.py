"""Weights files: nothing in them runs, what is none is refused by its path, and no network is no mystery."""

from __future__ import annotations

import io
import os
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_image
from safetensors.torch import save_file
from test_weights import state_of
from torch import nn
from torchvision.models import ResNet18_Weights

from precompute.backbones.checkpoints import load_file
from precompute.backbones.weights import digest_of, download
from precompute.errors import WeightsError


class Payload:
    """Unpickling this runs a command."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def test_code_in_a_pickle_is_refused_and_does_not_run(tmp_path: Path) -> None:
    target = tmp_path / "ran"
    torch.save({"state_dict": state_of(), "evil": Payload(target)}, tmp_path / "evil.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Payload(target)))
    for name, why in (("evil.pth", "Python objects .*mkdir"), ("plain.pth", "not a checkpoint")):
        with pytest.raises(WeightsError, match=rf"{name} cannot be loaded safely: .*{why}"):
            load_file(str(tmp_path / name))
    assert not target.exists()
    pickle.loads((tmp_path / "plain.pth").read_bytes())
    assert target.exists(), "the payload works where it is let"


def script(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        torch.jit.script(nn.Linear(2, 2)).save(str(path))


BAD_FILES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "missing": ("No such file", lambda path: None),
    "a folder": ("not a file", lambda path: path.mkdir()),
    "a fifo": ("not a file", os.mkfifo),
    "empty": ("cannot be loaded safely", lambda path: path.write_bytes(b"")),
    "garbage": ("not a checkpoint", lambda path: path.write_bytes(b"\x07garbage" * 99)),
    "broken zip": ("cannot be loaded safely", lambda path: path.write_bytes(b"PK\3\4" + bytes(200))),
    "torchscript": ("TorchScript", script),
    "a whole module": (r"Python objects \(torch.nn", lambda path: torch.save(nn.Linear(2, 2), path)),
    "no tensors": ("no state dict", lambda path: torch.save({"epoch": 3, "state_dict": {}}, path)),
    "a bare tensor": ("no state dict", lambda path: torch.save(torch.zeros(3), path)),
    "a photo": ("not a checkpoint", lambda path: make_image(1).save(path, "JPEG")),
}


@pytest.mark.parametrize("kind", BAD_FILES)
@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_what_is_no_weights_file_is_refused_by_its_path(tmp_path: Path, kind: str, name: str) -> None:
    message, make = BAD_FILES[kind]
    path = tmp_path / name
    make(path)
    if name.endswith("safetensors") and path.is_file():
        message = "cannot be loaded safely: SafetensorError"
    with pytest.raises(WeightsError, match=message) as caught:
        load_file(str(path))
    assert str(path) in caught.value.message
    assert caught.value.hint


def test_a_truncated_checkpoint_is_refused(tmp_path: Path) -> None:
    torch.save(state_of(), tmp_path / "a.pth")
    whole = (tmp_path / "a.pth").read_bytes()
    for cut in (1, 50, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.pth").write_bytes(whole[:cut])
        with pytest.raises(WeightsError, match=r"cut\.pth cannot be loaded"):
            load_file(str(tmp_path / "cut.pth"))


# torchvision's entries


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A TORCH_HOME of our own, and a proxy that refuses every connection."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


def test_without_network_the_missing_file_and_three_ways_out_are_named(no_network: Path) -> None:
    with pytest.raises(WeightsError) as caught:
        download(ResNet18_Weights.DEFAULT)
    assert str(no_network / "resnet18-f37072fd.pth") in caught.value.message
    for way in ("TORCH_HOME", "--weights PATH", "-b tiny"):
        assert way in caught.value.hint
    assert list(no_network.iterdir()) == []


def test_a_file_that_lies_in_torch_home_needs_no_network(no_network: Path) -> None:
    no_network.mkdir(parents=True)
    torch.save(state_of(), no_network / "resnet18-f37072fd.pth")
    state, file = download(ResNet18_Weights.DEFAULT)
    assert digest_of(state) == digest_of(state_of())
    assert file["path"] == str(no_network / "resnet18-f37072fd.pth")


def test_a_half_file_in_torch_home_is_to_be_deleted(no_network: Path) -> None:
    no_network.mkdir(parents=True)
    (no_network / "resnet18-f37072fd.pth").write_bytes(b"PK\3\4 half")
    with pytest.raises(WeightsError, match=r"resnet18-f37072fd\.pth") as caught:
        download(ResNet18_Weights.DEFAULT)
    assert "Delete" in caught.value.hint


def test_a_torch_home_that_cannot_be_written_is_no_traceback(no_network: Path) -> None:
    no_network.parent.parent.mkdir(parents=True)
    no_network.parent.write_bytes(b"a file where a folder should be")
    with pytest.raises(WeightsError, match="could not be downloaded"):
        download(ResNet18_Weights.DEFAULT)


# Zip archives as other programs write them


def repacked(data: bytes, folder: str) -> bytes:
    """A checkpoint packed again by zipfile, which writes the older end record alone."""
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(result, "w") as new:
        for name in old.namelist():
            new.writestr(f"{folder}/{name.partition('/')[2]}", old.read(name))
    return result.getvalue()


def widened(data: bytes) -> bytes:
    """The same archive, each entry of its directory with 64-bit sizes, as files beyond 4 GiB have them."""
    end = data.rindex(b"PK\5\6")
    length, start = struct.unpack_from("<2L", data, end + 12)
    directory, made = data[start : start + length], b""
    while directory:
        fields = list(struct.unpack_from("<4s6H3L5H2L", directory))
        name = directory[46 : 46 + fields[10]]
        extra = struct.pack("<2H3Q", 1, 24, fields[9], fields[8], fields[16])
        directory = directory[46 + sum(fields[10:13]) :]
        fields[8:10], fields[11], fields[16] = [2**32 - 1] * 2, len(extra), 2**32 - 1
        made += struct.pack("<4s6H3L5H2L", *fields) + name + extra
    return data[:start] + made + data[end : end + 12] + struct.pack("<2LH", len(made), start, 0)


@pytest.mark.parametrize("folder", ["archive", "Gewichte für A"])
@pytest.mark.parametrize("wide", [False, True])
def test_an_archive_packed_by_another_program_is_read(tmp_path: Path, folder: str, wide: bool) -> None:
    torch.save(state_of(), tmp_path / "a.pth")
    packed = repacked((tmp_path / "a.pth").read_bytes(), folder)
    (tmp_path / "b.pth").write_bytes(widened(packed) if wide else packed)
    assert torch.load(tmp_path / "b.pth", weights_only=True).keys() == state_of().keys()  # torch reads it, too
    assert digest_of(load_file(str(tmp_path / "b.pth"))) == digest_of(state_of())


def test_a_pickle_that_claims_more_than_its_record_has_is_refused(tmp_path: Path) -> None:
    """torch before 2.10 hands out the memory behind the record."""
    torch.save({"a": torch.zeros(2**20)}, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as old, zipfile.ZipFile(tmp_path / "b.pth", "w") as new:
        for name in old.namelist():
            new.writestr(name, b"12345678" if name.endswith("/data/0") else old.read(name))
    with pytest.raises(WeightsError, match=r"b\.pth cannot be loaded safely"):
        load_file(str(tmp_path / "b.pth"))


def test_weights_stay_what_they_were_when_their_file_is_overwritten(tmp_path: Path) -> None:
    for name, save in (("a.pth", torch.save), ("a.safetensors", save_file)):
        path = tmp_path / name
        save(state_of(), path)
        state = load_file(str(path))
        path.write_bytes(bytes(path.stat().st_size))
        assert digest_of(state) == digest_of(state_of())
