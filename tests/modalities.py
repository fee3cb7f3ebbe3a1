"""Samples of each modality behind one face: the suites that were written for images run over texts and clips too.

`Samples` is a source that can be changed: a folder of files, or a table with a column of texts. Names are ids, such as
train/cats/0.jpg; they say split and class.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sounds import encoded, sound, wav

WORDS = "bark bone claw fetch kitten leash meow paw purr puppy tail whisker woof".split()


def image_bytes(seed: int, suffix: str) -> bytes:
    from conftest import make_image

    stream = io.BytesIO()
    make_image(seed).save(stream, {"jpg": "JPEG"}.get(suffix, suffix))
    return stream.getvalue()


def text_bytes(seed: int, suffix: str) -> bytes:
    """Of the same number of bytes for each seed of so many digits; quotation marks and line ends among them."""
    del suffix
    words = " ".join(WORDS[number] for number in np.random.default_rng(seed).integers(0, len(WORDS), 6))
    return f'"naïve" {words:<48}\nnumber {seed:06}'.encode()


def clip_bytes(seed: int, suffix: str) -> bytes:
    """0.2 to 1.3 s; windows of mel-statistics are 1 s."""
    values = sound(seed, 0.2 + 0.1 * (seed % 12))
    return wav(values) if suffix == "wav" else encoded(values, kind=suffix.upper())


def broken_images() -> dict[str, tuple[bytes, str]]:
    whole, lying = image_bytes(1, "jpg"), bytearray(image_bytes(2, "png"))
    lying[16:24] = (60_000).to_bytes(4, "big") * 2  # width and height
    lying[29:33] = zlib.crc32(lying[12:29]).to_bytes(4, "big")
    return {
        "train/cats/cut.jpg": (whole[: len(whole) // 2], "TRUNCATED"),
        "train/dogs/text.jpg": (b"no image at all", "UNDECODABLE"),
        "train/dogs/void.png": (b"", "UNDECODABLE"),
        "val/dogs/lying.png": (bytes(lying), "TOO_LARGE"),
    }


def broken_texts() -> dict[str, tuple[bytes, str]]:
    return {
        "train/cats/latin.txt": (b"caf\xe9", "UNDECODABLE"),
        "train/dogs/nul.txt": (b"a \0 byte", "UNDECODABLE"),
        "train/dogs/void.txt": (b"", "UNDECODABLE"),
        "val/dogs/long.txt": (b"x" * (2**20 + 1), "TOO_LARGE"),
    }


def broken_clips() -> dict[str, tuple[bytes, str]]:
    return {
        "train/cats/cut.flac": (clip_bytes(11, "flac")[:3000], "TRUNCATED"),
        "train/dogs/text.wav": (b"no clip at all", "UNDECODABLE"),
        "train/dogs/void.wav": (b"", "UNDECODABLE"),
        "val/dogs/long.wav": (wav(np.zeros(301 * 1000), 1000, bits=8), "TOO_LARGE"),
    }


@dataclass(frozen=True)
class Kind:
    """A modality, and the backbone inside the package that takes it.

    unit: what messages call its samples · suffixes: of names with an even and an odd number · fixed: of files that have
    one size for all seeds (see `same_size`) · encode: (seed, suffix) -> bytes · broken: by name, bytes and the reason
    why they are none · needs: modules of an extra.
    """

    name: str
    backbone: str
    unit: str
    suffixes: tuple[str, str]
    fixed: str
    encode: Callable[[int, str], bytes]
    broken: Callable[[], Mapping[str, tuple[bytes, str]]]
    in_table: bool = False
    needs: tuple[str, ...] = ()

    def check_extra(self) -> None:
        for module in self.needs:
            pytest.importorskip(module, reason=f"{self.name} needs the extra `audio`")

    def named(self, stem: str) -> str:
        """`stem`, which ends in a number or a word, with the suffix of its kind."""
        last = stem.rpartition("/")[2]
        return f"{stem}.{self.suffixes[int(last) % 2 if last.isdecimal() else 0]}"

    def make(self, place: Path, *, per_class: int = 6) -> Samples:
        """train and val of cats and dogs, each sample another, below `place`, which need not be there."""
        self.check_extra()
        samples: Samples = Table(self, place / "samples.csv") if self.in_table else Folder(self, place / "samples")
        seed = 0
        with samples.together():
            for split in ("train", "val"):
                for label in ("cats", "dogs"):
                    for number in range(per_class):
                        seed += 1
                        samples.put(f"{split}/{label}/{number}", seed)
        return samples


IMAGE = Kind("image", "tiny", "images", ("jpg", "png"), "bmp", image_bytes, broken_images)
TEXT = Kind("text", "ngram-hash", "texts", ("txt", "txt"), "txt", text_bytes, broken_texts)
TABLE = Kind("texts of a table", "ngram-hash", "texts", ("txt", "txt"), "txt", text_bytes, broken_texts, in_table=True)
SOUND = Kind(
    *("sound", "mel-statistics", "clips", ("wav", "flac"), "wav", clip_bytes, broken_clips),
    needs=("soundfile", "soxr"),
)
FOLDERS = (IMAGE, TEXT, SOUND)
KINDS = (IMAGE, TEXT, TABLE, SOUND)


class Samples:
    """A source of samples. source: what `extract` takes."""

    def __init__(self, kind: Kind, source: Path) -> None:
        self.kind, self.source = kind, source
        self.backbone = kind.backbone

    def extract(self, out: Path | str, **options: Any) -> Any:
        from precompute import extract

        return extract(self.source, out, backbone=self.backbone, **options)

    def put(self, stem: str, seed: int) -> str:
        """Write the sample of this seed as `stem`, with its suffix; its name."""
        name = self.kind.named(stem)
        self.write(name, self.kind.encode(seed, name.rpartition(".")[2]))
        return name

    def copy(self, name: str, other: str) -> None:
        self.write(other, self.read(name))

    def move(self, name: str, other: str) -> None:
        raise NotImplementedError

    def names(self) -> list[str]:
        raise NotImplementedError

    def read(self, name: str) -> bytes:
        raise NotImplementedError

    def write(self, name: str, data: bytes) -> None:
        raise NotImplementedError

    def remove(self, name: str) -> None:
        raise NotImplementedError

    def together(self) -> Any:
        """Entered around several changes, which are seen at once where they are costly one by one."""
        return contextlib.nullcontext()


class Folder(Samples):
    def names(self) -> list[str]:
        paths = (path for path in self.source.rglob("*") if path.is_file())
        return sorted(str(path.relative_to(self.source)) for path in paths)

    def read(self, name: str) -> bytes:
        return (self.source / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        (self.source / name).parent.mkdir(parents=True, exist_ok=True)
        (self.source / name).write_bytes(data)

    def copy(self, name: str, other: str) -> None:
        shutil.copy(self.source / name, self.source / other)

    def move(self, name: str, other: str) -> None:
        (self.source / other).parent.mkdir(parents=True, exist_ok=True)
        os.rename(self.source / name, self.source / other)

    def remove(self, name: str) -> None:
        (self.source / name).unlink()


@dataclass
class _Held:
    """Changes of a table that are not written yet."""

    table: Table
    depth: int = 0

    def __enter__(self) -> None:
        self.depth += 1

    def __exit__(self, *_: object) -> None:
        self.depth -= 1
        self.table.save()


class Table(Samples):
    """A .csv with the columns id, text, label and split, written again after each change, in the order of its ids."""

    def __init__(self, kind: Kind, source: Path) -> None:
        super().__init__(kind, source)
        source.parent.mkdir(parents=True, exist_ok=True)
        self._rows: dict[str, bytes] = {}
        self._held = _Held(self)

    def together(self) -> Any:
        return self._held

    def names(self) -> list[str]:
        return sorted(self._rows)

    def read(self, name: str) -> bytes:
        return self._rows[name]

    def write(self, name: str, data: bytes) -> None:
        self._rows[name] = data
        self.save()

    def move(self, name: str, other: str) -> None:
        self._rows[other] = self._rows.pop(name)
        self.save()

    def remove(self, name: str) -> None:
        del self._rows[name]
        self.save()

    def save(self) -> None:
        if self._held.depth:
            return
        lines = [b"id,text,label,split"]
        for name, data in sorted(self._rows.items()):
            split, label, _ = name.split("/")
            lines.append(f'{name},"'.encode() + data.replace(b'"', b'""') + f'",{label},{split}'.encode())
        self.source.write_bytes(b"\n".join(lines) + b"\n")
