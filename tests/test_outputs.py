"""Outputs are never taken from their owner: what a command may write to, and what it leaves alone, for each of them."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from conftest import Command, make_photos

from precompute import LogisticHead, extract, load_head, open_cache, repair, save_head, train_head, verify
from precompute.errors import CacheError, HeadError, UsageError
from precompute.heads.persistence.export import write_joblib
from precompute.reports.plots import check_plot

FOREIGN = b"my thesis\n"


@dataclass(frozen=True)
class Writer:
    """One command that writes. arguments: up to the output · late: the same, to fail once the work has begun.

    reads: the name of an input in `arguments` · known: whether it knows its own older file again.
    """

    arguments: tuple[str, ...]
    late: tuple[str, ...]
    suffix: str
    reads: str | None
    known: bool = True

    def run(self, precompute: Command, output: str, *more: str, **renamed: str) -> subprocess.CompletedProcess[str]:
        return precompute(*(renamed.get(word, word) for word in self.arguments), output, *more)


MLP = ("--head", "mlp", "--max-epochs", "1")
WRITERS = {
    "extract": Writer(
        ("extract", "photos", "-b", "tiny", "-o"), ("extract", "nowhere", "-b", "tiny", "-o"), ".h5", None
    ),
    "train-head": Writer(
        ("train-head", "CACHE", "--C", "1", "-o"), ("train-head", "CACHE", "--C", "-1", "-o"), ".safetensors", "CACHE"
    ),
    "train-head --plot": Writer(
        ("train-head", "CACHE", *MLP, "--plot"),
        ("train-head", "CACHE", *MLP, "--dropout", "7", "--plot"),
        ".png",
        "CACHE",
    ),
    "few-shot --plot": Writer(
        ("few-shot", "CACHE", "--shots", "1", "--draws", "1", "--plot"),
        ("few-shot", "CACHE", "--shots", "9999", "--plot"),
        ".svg",
        "CACHE",
    ),
    "export card": Writer(("export", "HEAD", "-o"), ("export", "CACHE", "-o"), ".md", "HEAD", known=False),
    "export-head": Writer(
        ("export-head", "HEAD", "-o"), ("export-head", "CACHE", "-o"), ".joblib", "HEAD", known=False
    ),
}


@pytest.fixture(params=WRITERS)
def writer(request: pytest.FixtureRequest) -> Writer:
    writer = WRITERS[request.param]
    if "--plot" in writer.arguments:
        pytest.importorskip("matplotlib", reason="pip install 'precompute[plot]'")
    return writer


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outputs")
    make_photos(folder / "photos")
    extract(folder / "photos", folder / "CACHE", backbone="tiny")
    train_head(folder / "CACHE", folder / "HEAD", C=1.0)
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `photos`, their CACHE, and a HEAD, which is also the working folder."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def everything(place: Path) -> dict[str, object]:
    """What lies there: a link's target, a file's bytes, of all else its mode and number."""
    found: dict[str, object] = {}
    for path in sorted(place.rglob("*")):
        status = path.lstat()
        if path.is_symlink():
            found[str(path)] = os.readlink(path)
        else:
            found[str(path)] = path.read_bytes() if stat.S_ISREG(status.st_mode) else (status.st_mode, status.st_ino)
    return found


def refused(done: subprocess.CompletedProcess[str], name: str) -> str:
    assert done.returncode in (1, 2), done.stdout + done.stderr
    assert name in done.stderr
    assert "Traceback" not in done.stderr
    assert "bug in precompute" not in done.stderr
    return done.stderr


# What is no ordinary file -------------------------------------------------------------------------------------------


def make_device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))  # another /dev/null
    except OSError as error:
        pytest.skip(f"cannot make a device: {error}")


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)  # in the working folder: the whole path may be too long for a socket


ODD: dict[str, Callable[[Path], object]] = {
    "device": make_device,
    "pipe": os.mkfifo,
    "socket": make_socket,
    "folder": Path.mkdir,
}


@pytest.mark.parametrize("overwrite", [False, True], ids=["", "overwrite"])
@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_ordinary_file_is_left_alone(
    writer: Writer, kind: str, overwrite: bool, place: Path, precompute: Command
) -> None:
    ODD[kind](place / f"out{writer.suffix}")
    before = everything(place)
    done = writer.run(precompute, f"out{writer.suffix}", *["--overwrite"] * overwrite)
    assert f"it is a {'named ' if kind == 'pipe' else ''}{kind}" in refused(done, f"out{writer.suffix}")
    assert everything(place) == before


# Inputs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["its name", "a hard link", "a link"])
def test_an_input_is_left_alone(writer: Writer, by: str, place: Path, precompute: Command) -> None:
    if writer.reads is None:
        pytest.skip("reads a folder, see below")
    name = f"in{writer.suffix}"
    (place / writer.reads).rename(name)
    output = name if by == "its name" else f"out{writer.suffix}"
    if by == "a hard link":
        os.link(name, output)
    elif by == "a link":
        os.symlink(name, output)
    before = everything(place)
    for more in ((), ("--overwrite",)):
        done = writer.run(precompute, output, *more, **{writer.reads: name})
        assert "is the same file as" in refused(done, name)
        assert done.returncode == 2
    assert everything(place) == before


@pytest.mark.parametrize("by", ["its name", "a hard link", "a link", "another spelling"])
def test_an_image_of_the_source_is_left_alone(by: str, place: Path, precompute: Command) -> None:
    photo = "photos/train/cats/0.jpg"
    output = {"its name": photo, "another spelling": f"photos/../{photo}"}.get(by, "a.h5")
    if by == "a hard link":
        os.link(photo, output)
    elif by == "a link":
        os.symlink(photo, output)
    before = everything(place)
    refused(precompute("extract", "photos", "-b", "tiny", "-o", output), photo if by == "a link" else output)
    told = refused(precompute("extract", "photos", "-b", "tiny", "-o", output, "--overwrite"), "of the samples")
    assert "It is left as it is" in told
    assert everything(place) == before


def test_an_output_is_not_made_that_the_next_run_would_take_for_an_image(place: Path, precompute: Command) -> None:
    refused(precompute("extract", "photos", "-b", "tiny", "-o", "photos/train/new.jpg"), "would be one next time")
    assert precompute("extract", "photos", "-b", "tiny", "-o", "photos/train/new.h5").returncode == 0
    assert precompute("extract", "photos", "-b", "tiny", "-o", "photos/train/new.h5").returncode == 0


def test_weights_and_groups_are_inputs_too(place: Path, precompute: Command) -> None:
    for arguments in (
        ("extract", "photos", "-b", "tiny", "--weights", "f", "-o"),
        ("train-head", "CACHE", "--groups-file", "f", "-o"),
    ):
        Path("f").write_bytes(FOREIGN)
        assert "is the same file as" in refused(precompute(*arguments, "f", "--overwrite"), "'f'")
        assert Path("f").read_bytes() == FOREIGN


def test_two_outputs_of_one_command_are_two_files(place: Path, precompute: Command) -> None:
    pytest.importorskip("matplotlib", reason="pip install 'precompute[plot]'")
    before = everything(place)
    done = precompute("train-head", "CACHE", *MLP, "-o", "x.png", "--plot", "./x.png", "--overwrite")
    assert "is the same file as" in refused(done, "x.png")
    assert everything(place) == before


# Files that are there already ---------------------------------------------------------------------------------------


@pytest.mark.rotates(3)
@pytest.mark.parametrize("content", [FOREIGN, b""], ids=["text", "empty"])
def test_a_foreign_file_is_replaced_only_where_that_is_said(
    writer: Writer, content: bytes, place: Path, precompute: Command
) -> None:
    output = Path(f"out{writer.suffix}")
    output.write_bytes(content)
    before = everything(place)
    told = refused(writer.run(precompute, str(output)), str(output))
    assert "left as it is" in told
    assert "--overwrite" in told
    assert everything(place) == before
    done = writer.run(precompute, str(output), "--overwrite")
    assert done.returncode == 0, done.stderr
    assert len(output.read_bytes()) > 1000


@pytest.mark.rotates(3)
def test_a_file_of_its_own_kind_is_replaced(writer: Writer, place: Path, precompute: Command) -> None:
    output = Path(f"out{writer.suffix}")
    before = everything(place)
    assert writer.run(precompute, str(output)).returncode == 0
    added = everything(place)
    assert added.keys() - before.keys() == {str(place / output)}  # nothing beside it
    number = output.stat().st_ino
    done = writer.run(precompute, str(output))
    assert done.returncode == (0 if writer.known else 1), done.stderr
    if writer.known:
        assert everything(place).keys() == added.keys()
        assert (output.stat().st_ino == number) is (writer.suffix == ".h5")  # of which extract writes none again


def test_another_kind_of_ours_is_foreign(writer: Writer, place: Path, precompute: Command) -> None:
    """A head instead of a cache, a cache instead of a picture: both are precompute's, and still a mistake."""
    output = f"out{writer.suffix}"
    shutil.copy("HEAD" if writer.suffix == ".h5" else "CACHE", output)
    before = everything(place)
    assert "left as it is" in refused(writer.run(precompute, output), output)
    assert everything(place) == before


def test_a_photo_is_no_picture_of_ours(place: Path, precompute: Command) -> None:
    pytest.importorskip("matplotlib", reason="pip install 'precompute[plot]'")
    shutil.copy("photos/train/cats/1.png", "photo.png")
    before = everything(place)
    refused(WRITERS["train-head --plot"].run(precompute, "photo.png"), "photo.png")
    assert everything(place) == before


@pytest.mark.rotates(3)
@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_pictures_are_known_again(suffix: str, place: Path, precompute: Command) -> None:
    pytest.importorskip("matplotlib", reason="pip install 'precompute[plot]'")
    for _ in range(2):
        done = WRITERS["few-shot --plot"].run(precompute, f"out{suffix}")
        assert done.returncode == 0, done.stderr


# Links --------------------------------------------------------------------------------------------------------------


@pytest.mark.rotates(3)
def test_a_link_is_followed_and_stays(writer: Writer, place: Path, precompute: Command) -> None:
    """One that leads to nothing yet, and the same one again when there is a file."""
    (place / "elsewhere").mkdir()
    link, real = f"out{writer.suffix}", Path("elsewhere/real")
    os.symlink(real, link)
    for _ in range(2 if writer.known else 1):
        done = writer.run(precompute, link)
        assert done.returncode == 0, done.stderr
        assert os.readlink(link) == str(real)
        assert len(real.read_bytes()) > 1000
        assert os.listdir("elsewhere") == ["real"]


def test_a_link_to_a_foreign_file_or_nowhere_is_left_alone(writer: Writer, place: Path, precompute: Command) -> None:
    Path("thesis").write_bytes(FOREIGN)
    for number, target in enumerate(("thesis", f"1{writer.suffix}", "nowhere/real")):
        os.symlink(target, f"{number}{writer.suffix}")
    before = everything(place)
    for number in range(3):
        refused(writer.run(precompute, f"{number}{writer.suffix}"), "")
    assert everything(place) == before


# Before the work ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("", "not a file name"),
        ("x" * 300, "its name is too long"),
        ("d/" * 3000 + "x", "its name is too long"),
        ("nowhere/x", "the folder 'nowhere' does not exist"),
        ("/proc/x", "no file can be made in the folder '/proc'"),
        ("taken", "left as it is"),
    ],
    ids=["empty", "long name", "long path", "no folder", "no room for files", "taken"],
)
def test_what_cannot_be_written_is_refused_before_the_work(
    writer: Writer, output: str, reason: str, place: Path, precompute: Command
) -> None:
    output += writer.suffix if output else ""
    if output.startswith("taken"):
        Path(output).write_bytes(FOREIGN)
    before = everything(place)
    if not output and "--plot" in writer.arguments:
        reason = "must end in one of"
    assert reason in refused(precompute(*writer.late, output), "")
    assert everything(place) == before


def test_the_longest_name_that_fits(place: Path, precompute: Command) -> None:
    """With all that extract puts behind it; a head needs nothing behind its name."""
    longest = os.pathconf(place, "PC_NAME_MAX")
    room = longest - len(".precompute.kept.new")
    assert precompute("extract", "photos", "-b", "tiny", "-o", "x" * room).returncode == 0
    told = refused(precompute("extract", "nowhere", "-b", "tiny", "-o", "x" * (room + 1)), "its name is too long")
    assert ".precompute.kept.new' is needed as well" in told
    assert precompute("train-head", "CACHE", "--C", "1", "-o", "x" * longest).returncode == 0
    assert len(load_head("x" * longest).head.classes_) == 2


# Beside the output --------------------------------------------------------------------------------------------------


@pytest.mark.rotates(3)
@pytest.mark.parametrize(
    "suffix", [".lock", ".probe", ".new", ".tmp", ".partial.new", ".partial.kept.new", ".partial.lock"]
)
@pytest.mark.parametrize("content", [FOREIGN, b"", b'{"pid": 1}', b"\x89HDF\r\n\x1a\n and so on"])
def test_files_beside_it_are_left_alone(suffix: str, content: bytes, place: Path, precompute: Command) -> None:
    Path(f"poetry{suffix}").write_bytes(content)
    os.utime(f"poetry{suffix}", (1, 1))
    before = os.stat(f"poetry{suffix}")
    done = precompute("extract", "photos", "-b", "tiny", "-o", "poetry")
    assert done.returncode == 0, done.stderr
    assert Path(f"poetry{suffix}").read_bytes() == content
    after = os.stat(f"poetry{suffix}")
    assert (after.st_ino, after.st_mtime_ns, after.st_mode) == (before.st_ino, before.st_mtime_ns, before.st_mode)
    assert verify(open_cache("poetry")).whole


NEEDED = (".partial", ".partial.kept", ".precompute.lock", ".precompute.new", ".precompute.kept.new")
BESIDE: dict[str, Callable[[Path], object]] = {
    "text": lambda path: path.write_bytes(FOREIGN),
    "pipe": os.mkfifo,
    "device": make_device,
    "folder": Path.mkdir,
    "link": lambda path: path.symlink_to("CACHE"),
    "dangling": lambda path: path.symlink_to("nowhere"),
}


@pytest.mark.parametrize("suffix", NEEDED)
@pytest.mark.parametrize("kind", BESIDE)
def test_a_name_that_it_needs_is_named_where_it_is_taken(
    suffix: str, kind: str, place: Path, precompute: Command
) -> None:
    """By `extract`, whatever is said, and by `verify --repair`: before anything is written or read."""
    shutil.copy("CACHE", "a.h5")
    BESIDE[kind](place / f"a.h5{suffix}")
    before = everything(place)
    for arguments in (
        ("extract", "nowhere", "-b", "tiny", "-o", "a.h5"),
        ("extract", "photos", "-b", "tiny", "-o", "a.h5", "--overwrite"),
        ("verify", "a.h5", "--source", "photos", "--repair"),
    ):
        assert "left as it is" in refused(precompute(*arguments), f"a.h5{suffix}")
    assert everything(place) == before
    with pytest.raises(CacheError, match="left as it is"):
        repair("a.h5", "photos")
    assert everything(place) == before


@pytest.mark.rotates(3)
@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        (".precompute.lock", b""),
        (".precompute.lock", b"\0" * 70),
        (".precompute.lock", b'{"pi'),
        (".precompute.lock", b'{"pid": 12, "host": "gone", "since": "2020-02-02T20:20:20+00:00"}'),
        (".precompute.new", b""),
        (".precompute.new", b"\0" * 5000),
        (".precompute.new", b"\0" * 2048 + b"rows without a head"),
        (".precompute.new", b"\x89HD"),
        (".precompute.new", b"\x89HDF\r\n\x1a\n cut"),
        (".precompute.kept.new", b""),
        (".precompute.kept.new", b"\x89HDF\r\n\x1a\n cut"),
    ],
)
def test_what_a_crash_of_ours_may_have_left_is_in_nobodys_way(suffix: str, content: bytes, place: Path) -> None:
    Path(f"a.h5{suffix}").write_bytes(content)
    assert extract("photos", "a.h5", backbone="tiny").computed == 24
    assert [name for name in os.listdir() if name.startswith("a.h5")] == ["a.h5"]


def test_nothing_lies_around_after_a_refusal_or_an_error(place: Path, precompute: Command) -> None:
    before = everything(place)
    refused(precompute("extract", "nowhere", "-b", "tiny", "-o", "a.h5"), "nowhere")
    refused(precompute("extract", "photos", "-b", "resnet81", "-o", "a.h5"), "resnet81")
    refused(precompute("train-head", "CACHE", "--C", "-1", "-o", "b"), "C must be")
    assert precompute("extract", "photos", "-b", "tiny", "-o", "a.h5", "--dry-run").returncode == 0
    assert everything(place) == before


# At the moment of the write -----------------------------------------------------------------------------------------


@pytest.mark.rotates(3)
@pytest.mark.parametrize("kind", [*ODD, "text", "dangling"])
def test_what_appears_during_a_run_is_left_alone_and_the_work_kept(kind: str, place: Path) -> None:
    def appear(progress: object) -> None:
        if not os.path.lexists("a.h5"):
            {**BESIDE, **ODD}[kind](place / "a.h5")

    with pytest.raises(CacheError, match=r"a\.h5"):
        extract("photos", "a.h5", backbone="tiny", progress=appear, overwrite=kind != "text")
    found = everything(place)
    assert found[str(place / "a.h5")] not in (None, b"")
    assert verify(open_cache("a.h5.partial")).whole
    os.rename("a.h5", "theirs")
    assert extract("photos", "a.h5", backbone="tiny").reused == 24
    assert everything(place)[str(place / "theirs")] == found[str(place / "a.h5")]


def test_a_head_is_checked_again_when_it_is_written(place: Path) -> None:
    pytest.importorskip("matplotlib", reason="pip install 'precompute[plot]'")
    output = check_plot("a.svg")

    def write(file: object) -> None:
        os.mkfifo("a.svg")

    with pytest.raises(UsageError, match="named pipe"):
        output.write(write)
    assert stat.S_ISFIFO(os.stat("a.svg").st_mode)
    assert not [name for name in os.listdir() if name.startswith(".precompute")]


# The library, and the rest ------------------------------------------------------------------------------------------


def test_the_functions_refuse_as_the_commands_do(place: Path) -> None:
    head = LogisticHead(C=1.0).fit(np.eye(4), ["a", "b", "a", "b"])
    Path("thesis").write_bytes(FOREIGN)
    for write in (
        lambda **more: save_head("thesis", head, metadata={}, **more),
        lambda **more: write_joblib("thesis", head, **more),
        lambda **more: train_head("CACHE", "thesis", C=1.0, **more),
    ):
        with pytest.raises(HeadError, match="thesis"):
            write()
        assert Path("thesis").read_bytes() == FOREIGN
        write(overwrite=True)
        assert Path("thesis").read_bytes() != FOREIGN
        Path("thesis").write_bytes(FOREIGN)
    with pytest.raises(UsageError, match="is the same file as"):
        train_head(open_cache("CACHE"), "CACHE")
    for empty in ("", b"", "a\0b"):
        with pytest.raises(UsageError, match="not a file name"):
            extract("photos", empty, backbone="tiny")  # type: ignore[arg-type]


def test_the_demo_refuses_before_it_begins(place: Path, precompute: Command) -> None:
    for name in ("tiny.h5", "pixels.h5", "random.h5", "digits.safetensors"):
        folder = place / f"demo-{name}"
        folder.mkdir()
        (folder / name).write_bytes(FOREIGN)
        refused(precompute("demo", "--folder", str(folder)), name)
        assert os.listdir(folder) == [name]
        assert (folder / name).read_bytes() == FOREIGN
