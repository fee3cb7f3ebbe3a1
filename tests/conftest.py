"""What the tests share: real photos and weights where they lie beside the repository, and runs of the real command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modalities import Kind, Samples
from zlib import crc32

# Two OpenMP threads that wait for each other while another process has the core slow small models down tenfold.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Tests that are not about engines compare with fp32 torch, in hundreds of processes: `auto` is that here.
os.environ.setdefault("PRECOMPUTE_ENGINE", "torch")
os.environ.setdefault("PRECOMPUTE_PRECISION", "fp32")

import numpy as np
import pytest
from forks import Forks
from hypothesis import HealthCheck, settings
from PIL import Image

# On a busy machine a first call takes as long as it takes
settings.register_profile("no clock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no clock")

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
Command = Callable[..., subprocess.CompletedProcess[str]]


# A shell starts in the background with SIGINT ignored; processes of tests, which are sent it, would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Set once, by the process that starts all others, so that they agree also at midnight.
DAY = int(os.environ.setdefault("PRECOMPUTE_TEST_DAY", str(datetime.now(UTC).timetuple().tm_yday)))

OTHERS = ("text", "texts of a table", "sound")
"""Modalities beside images, over which the suites of images run: see tests/modalities.py."""


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test marked `rotates(n)` every n-th case runs by default, another one each day; the others are slow.

    A test that runs over all modalities (`samples`) does so with images and one other each day. Of one marked
    `daily(n)` every n-th case runs, another one each day, and the others are skipped.
    """
    seen: Counter[str] = Counter()
    for item in items:
        daily = item.get_closest_marker("daily")
        if daily is not None:
            name = f"{item.nodeid.partition('[')[0]} daily"
            days = daily.args[0] * (2 if "PRECOMPUTE_HALF_OF_DAILY" in os.environ else 1)
            if (seen[name] + DAY + crc32(name.encode())) % days and "PRECOMPUTE_ALL_CASES" not in os.environ:
                item.add_marker(pytest.mark.skip(reason="another day's case; PRECOMPUTE_ALL_CASES=1 takes them all"))
            seen[name] += 1
        kind = getattr(item, "callspec", None) and item.callspec.params.get("samples")  # type: ignore[attr-defined]
        if kind in OTHERS and item.get_closest_marker("rotates") is None:
            name = item.nodeid.partition("[")[0]
            if (OTHERS.index(kind) + DAY + crc32(name.encode())) % len(OTHERS):
                item.add_marker(pytest.mark.slow)
        mark = item.get_closest_marker("rotates")
        if mark is not None:
            name = item.nodeid.partition("[")[0]
            if (seen[name] + DAY + crc32(name.encode())) % mark.args[0]:  # not all of them on the same day
                item.add_marker(pytest.mark.slow)
            seen[name] += 1


def _shared(*parts: str) -> Path:
    path = SHARED.joinpath(*parts)
    if path.exists():
        return path
    reason = f"needs {'/'.join(('../shared', *parts))}, which is not there"
    if os.environ.get("PRECOMPUTE_REQUIRE_SHARED") == "1":
        pytest.fail(f"{reason}; PRECOMPUTE_REQUIRE_SHARED=1 wants it")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def hymenoptera() -> Path:
    """397 JPEG and one GIF of ants and bees, train/ and val/."""
    return _shared("data", "hymenoptera")


@pytest.fixture(scope="session")
def flowers() -> Path:
    """4317 JPEG in five class folders, some byte-identical under two classes."""
    return _shared("data", "flowers_small", "flowers")


@pytest.fixture(scope="session")
def playing_cards() -> Path:
    """363 JPEG and labels.csv: `labels` separated by blanks, a column of 0 and 1 for each of six ranks, card_count."""
    return _shared("data", "playing_cards")


@pytest.fixture(scope="session")
def mobilenet_weights() -> Path:
    return _shared("weights", "mobilenet_v2_imagenet.pth")


@pytest.fixture(scope="session")
def squeezenet_weights() -> Path:
    return _shared("weights", "squeezenet1_1_imagenet.pth")


@pytest.fixture(scope="session")
def resemblyzer_weights() -> Path:
    return _shared("weights", "resemblyzer.safetensors")


@pytest.fixture(scope="session")
def spoken_digits() -> Path:
    """600 WAV of 8 kHz: train/DIGIT and test/DIGIT, named DIGIT_SPEAKER_TAKE.wav, of six speakers."""
    return _shared("data", "spoken_digits")


@pytest.fixture(scope="session")
def trec() -> Path:
    """5,952 questions of six classes: text, label, split."""
    return _shared("data", "text", "trec.csv")


@pytest.fixture(scope="session")
def minilm() -> Path:
    """all-MiniLM-L6-v2, a folder of sentence-transformers."""
    return _shared("weights", "all-MiniLM-L6-v2")


def make_image(seed: int, size: tuple[int, int] = (40, 32)) -> Image.Image:
    """A picture with structure, different for each seed: two random colours, graded, with noise."""
    generator = np.random.default_rng(seed)
    width, height = size
    grade = np.linspace(0, 1, width)[None, :, None] * np.linspace(0, 1, height)[:, None, None]
    first, second = generator.uniform(0, 255, (2, 3))
    noise = generator.normal(0, 12, (height, width, 3))
    return Image.fromarray(np.clip(first * (1 - grade) + second * grade + noise, 0, 255).astype(np.uint8))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """24 small PNG and JPEG files: train and val of two classes."""
    return make_photos(tmp_path / "photos")


@pytest.fixture(params=["image", *OTHERS])
def samples(request: pytest.FixtureRequest, tmp_path: Path) -> Samples:
    """24 samples in train and val of cats and dogs, of each modality: a test that takes them runs over all."""
    return kind_named(request.param).make(tmp_path)


def kind_named(name: str) -> Kind:
    """Of tests/modalities.py."""
    from modalities import KINDS

    return next(kind for kind in KINDS if kind.name == name)


@pytest.fixture
def folder_samples(samples: Samples) -> Samples:
    """The same where they are files in a folder."""
    if samples.kind.in_table:
        pytest.skip("for files in a folder")
    return samples


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of each batch that an engine of torch is given in this process, how many inputs it has."""
    from precompute.engines.torch import TorchEngine

    seen: list[int] = []
    start = TorchEngine.start

    def counted(engine: Any, samples: Any) -> None:
        seen.append(len(samples))
        start(engine, samples)

    monkeypatch.setattr(TorchEngine, "start", counted)
    return seen


@pytest.fixture
def png_photos(photos: Path) -> Path:
    """The PNG files among them: JPEG is decoded by another library than Pillow."""
    for path in photos.rglob("*.jp*g"):
        path.unlink()
    return photos


def make_photos(folder: Path, *, per_class: int = 6) -> Path:
    seed = 0
    for split in ("train", "val"):
        for label in ("cats", "dogs"):
            place = folder / split / label
            place.mkdir(parents=True)
            for number in range(per_class):
                seed += 1
                make_image(seed).save(place / f"{number}.{'png' if number % 2 else 'jpg'}")
    return folder


def run_command(
    folder: Path, *arguments: object, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the real command in a process of its own, inside `folder`."""
    return subprocess.run(
        [sys.executable, "-m", "precompute", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
        timeout=300,
        check=False,
    )


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a Python of its own, inside this folder, where warnings are errors as in these tests."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def tiny_made_once() -> Iterator[None]:
    """Plain runs of tiny in this process share one network: loading and folding it is half of the time of a small one.

    For tests that compute in fp32 alone: an engine of another precision would cast the network of all.
    """
    from precompute import load_backbone
    from precompute.engines.torch import folded

    tiny = load_backbone("tiny")
    network = folded(tiny.module)
    plain = {"weights": "DEFAULT", "layer": None, "pooling": "auto", "transform": {}, "views": 1, "augment": ()}

    def load(name: str, **options: Any) -> Any:
        return tiny if (name, options) == ("tiny", plain) else load_backbone(name, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("precompute.extraction.setup.load_backbone", load)
        patch.setattr(
            "precompute.engines.torch.folded", lambda module: network if module is tiny.module else folded(module)
        )
        yield


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """Processes of the real command's code, which share one loading of torch."""
    with Forks(tmp_path_factory.mktemp("forks")) as forks:
        yield forks


@pytest.fixture
def precompute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command's own entry point inside the test's folder and this process, which spares loading torch each time."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        from precompute.cli import main

        command = ["precompute", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", command)
        monkeypatch.chdir(tmp_path)
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        output, errors = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return subprocess.CompletedProcess(command, ended.value.code, output, errors)

    return run


def resident_kib() -> int:
    """Memory of this process that pages of files take."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssFile"))


def list_images(root: str | os.PathLike[str], **options: Any) -> Any:
    """The images of a folder, as `extract` lists them."""
    from precompute.inputs.images.formats import IMAGES
    from precompute.sources.folder import list_folder

    return list_folder(root, IMAGES, **options)


def as_samples(images: Any) -> list[tuple[Any, ...]]:
    """Images (3, H, W) as the preprocessing hands them to an engine."""
    return [(image.permute(1, 2, 0),) for image in images]


def rows_there(path: Path) -> int:
    """How many rows a feature file has, also one in progress; 0 where it is not there yet."""
    from precompute.cache import open_cache
    from precompute.errors import CacheFormatError

    try:
        return int(open_cache(path).ok.sum())
    except CacheFormatError:
        return 0


def kill_in_the_middle(command: Sequence[str], out: Path, *, rows: int, of: int) -> int:
    """Run precompute with these arguments until `out`.partial has so many `rows` of `of`, kill it; how many it had."""
    process = subprocess.Popen(
        [sys.executable, "-m", "precompute", *command, out.name],
        cwd=out.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    partial = out.with_name(f"{out.name}.partial")
    while rows_there(partial) < rows:
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = rows_there(partial)
    assert rows <= kept < of
    return kept
