"""Makes a folder of photos with odd names, links, pipes, devices and depth."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from pathlib import Path

from .good import make_pictures
from .images import png
from .parts import write_sparse


def odd_names() -> list[bytes]:
    """File names that are bytes like any other to the file system."""
    return [
        b"two\nlines.jpg",
        b"not \xff\xfe utf-8.jpg",
        b"x" * 251 + b".jpg",
        "right\u202egpj.exe.jpg".encode(),
        "\u200f\u2066both\u2069.jpg".encode(),
        b"-rf.jpg",
        b"--help.jpg",
        b"bell\x07 and \x1b[2J\x1b]0;title\x07.jpg",
        b"tab\t and \r return.jpg",
        b" .jpg",
        b"~.jpg",
        b"*?[a].jpg",
        b"$(id) `id` ;id.jpg",
        b"%s%n%00.jpg",
        b"C:\\windows\\..\\x.jpg",
        "e\u0301.jpg".encode(),
        "\u00e9.jpg".encode(),
        b"CON.jpg",
    ]


def make_photos(folder: Path, canary: Path) -> None:
    folder.mkdir()
    photo, root = make_pictures()["baseline.jpg"], os.fsencode(folder)
    for number, name in enumerate(odd_names()):
        place = os.path.join(root, b"odd \xff\nclass", name)
        os.makedirs(os.path.dirname(place), exist_ok=True)
        with open(place, "wb") as file:
            file.write(photo + bytes([number]))  # bytes behind the picture, so that no two files are the same
    plain = folder / "plain"
    plain.mkdir()
    (plain / "good.jpg").write_bytes(photo)
    (plain / "cut.jpg").write_bytes(photo[:200])
    (plain / "text.jpg").write_bytes(b"no picture")
    (plain / "empty.png").write_bytes(b"")
    (plain / "lying.png").write_bytes(png(100_000, 100_000))
    (plain / "canary.jpg").symlink_to(canary)
    write_sparse(plain / "sparse.jpg", photo[:300], 2**40)
    (plain / "loop").symlink_to("..")
    (plain / "self.jpg").symlink_to("self.jpg")
    (plain / "nowhere.jpg").symlink_to("nowhere")
    (plain / "zero.jpg").symlink_to("/dev/zero")
    (plain / "stdin.jpg").symlink_to("/dev/stdin")
    os.mkfifo(plain / "fifo.jpg")
    with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(plain):  # a socket's path may have 107 bytes only
        server.bind("socket.jpg")
    with contextlib.suppress(OSError):  # only root may, and not everywhere
        os.mknod(plain / "device.jpg", stat.S_IFCHR | 0o644, os.makedev(1, 5))
    deep = plain
    for _ in range(60):
        deep /= "deep"
    deep.mkdir(parents=True)
    (deep / "bottom.jpg").write_bytes(photo)
