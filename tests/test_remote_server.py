"""A server that is stopped, held, asked with wrong keys and changed under a run; and runs that are killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from conftest import ROOT, make_photos, rows_there
from object_store import KEY, SECRET, Bucket, Server, set_environment
from test_parts import columns_equal
from test_shards import picture, shards_of

from precompute import extract, open_cache, verify
from precompute.errors import SourceError
from precompute.inputs.images.formats import IMAGES
from precompute.sources.registry import open_source

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("environment")]
NUMBERS = count()
PER_CLASS = 150
DOWN_SECONDS = 10


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("seaweedfs"), "seaweedfs")
    yield server
    server.stop()


@pytest.fixture
def environment(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, server.environment)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "kept"))


@pytest.fixture
def bucket(server: Server) -> Bucket:
    return Bucket(server, f"bucket-{next(NUMBERS)}")


@pytest.fixture
def url(tmp_path: Path, bucket: Bucket) -> str:
    """600 photos in a bucket."""
    return bucket.upload(make_photos(tmp_path / "photos", per_class=PER_CLASS), "photos")


class Run:
    """A real process that extracts a source to `a.h5`, held once it has some rows."""

    def __init__(self, url: str, place: Path) -> None:
        self.out = place / "a.h5"
        self.errors = place / "errors"
        command = [sys.executable, "-W", "error", "-m", "precompute", "extract", url, "-b", "tiny", "-o", str(self.out)]
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [*command, "--batch-size", "4"], env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=errors
            )
        while not rows_there(self.partial):
            assert self.process.poll() is None, self.errors.read_text()
            time.sleep(0.001)
        self.process.send_signal(signal.SIGSTOP)
        assert 0 < rows_there(self.partial) < 4 * PER_CLASS

    @property
    def partial(self) -> Path:
        return self.out.with_name("a.h5.partial")

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def wait(self) -> int:
        return self.process.wait(300)


@pytest.fixture
def run(url: str, tmp_path: Path, environment: None) -> Iterator[Run]:
    run = Run(url, tmp_path)
    yield run
    run.process.kill()
    run.process.wait()


def check_equals_a_fresh_run(run: Run, url: str) -> None:
    assert verify(open_cache(run.out)).whole
    extract(url, run.out.with_name("fresh.h5"), backbone="tiny", batch_size=4)
    columns_equal(run.out, run.out.with_name("fresh.h5"))


def test_a_killed_run_goes_on_where_it_was(run: Run, url: str) -> None:
    run.process.kill()
    assert run.wait() == -signal.SIGKILL
    there = rows_there(run.partial)
    resumed = extract(url, run.out, backbone="tiny", batch_size=4)
    assert (resumed.reused, resumed.computed) == (there, 4 * PER_CLASS - there)
    check_equals_a_fresh_run(run, url)


@pytest.mark.parametrize("how", ["stopped", "held"])
@pytest.mark.daily(2)
def test_a_server_that_is_away_for_ten_seconds_is_waited_for(run: Run, server: Server, url: str, how: str) -> None:
    server.stop() if how == "stopped" else server.hold()
    run.go_on()
    time.sleep(DOWN_SECONDS)
    assert run.process.poll() is None, run.errors.read_text()
    server.start() if how == "stopped" else server.go_on()
    assert run.wait() == 0, run.errors.read_text()
    assert "Skipped" not in run.errors.read_text()
    check_equals_a_fresh_run(run, url)


@pytest.mark.daily(2)
def test_a_server_that_stays_away_ends_the_run_and_nothing_is_lost(run: Run, server: Server, url: str) -> None:
    server.stop()
    try:
        run.go_on()
        assert run.wait() == 1
        assert "disappeared" in run.errors.read_text()
        assert "Everything computed so far is kept" in run.errors.read_text()
        assert "Traceback" not in run.errors.read_text()
        there = rows_there(run.partial)
        assert there
    finally:
        server.start()
    resumed = extract(url, run.out, backbone="tiny", batch_size=4)
    assert (resumed.reused, resumed.computed) == (there, 4 * PER_CLASS - there)
    check_equals_a_fresh_run(run, url)


def test_an_object_changed_in_mid_run_is_in_the_file_as_it_was_read(run: Run, url: str, bucket: Bucket) -> None:
    bucket.put("photos/train/cats/1.png", picture(9001))  # read already
    bucket.put("photos/val/dogs/149.png", picture(9002))  # to come
    run.go_on()
    assert run.wait() == 0, run.errors.read_text()
    made = extract(url, run.out, backbone="tiny", batch_size=4)
    assert (made.reused, made.copied, made.computed) == (4 * PER_CLASS - 1, 0, 1)
    check_equals_a_fresh_run(run, url)


@pytest.mark.parametrize(
    "wrong",
    [{"AWS_SECRET_ACCESS_KEY": "another+secret"}, {"AWS_ACCESS_KEY_ID": "AKIDWRONG"}, {"AWS_ACCESS_KEY_ID": ""}],
)
@pytest.mark.parametrize("source", ["photos", "photos/*.tar", "photos/a.tar", "labels.csv"])
def test_a_wrong_key_is_an_error_before_anything_is_made(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, str], source: str
) -> None:
    for name, value in wrong.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    with pytest.raises(SourceError, match=r"the store refuses it|no credentials were found") as caught:
        extract(f"{bucket.url}/{source}", tmp_path / "a.h5", backbone="tiny")
    for secret in (KEY, SECRET, *wrong.values()):
        assert not secret or secret not in str(caught.value)
    assert not list(tmp_path.glob("a.h5*"))


def test_rows_of_a_file_are_not_dropped_by_a_wrong_key(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract(url, tmp_path / "a.h5", backbone="tiny", limit=5)
    before = (tmp_path / "a.h5").read_bytes()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(SourceError, match="SignatureDoesNotMatch"):
        extract(url, tmp_path / "a.h5", backbone="tiny", limit=5)
    assert (tmp_path / "a.h5").read_bytes() == before


def test_real_photos_in_a_bucket_give_the_file_of_the_folder(hymenoptera: Path, tmp_path: Path, bucket: Bucket) -> None:
    """Also after photos were added, edited and deleted, and as shards."""
    photos = tmp_path / "photos"
    shutil.copytree(hymenoptera, photos)
    url = bucket.upload(photos, "photos")
    made = extract(url, tmp_path / "s3.h5", backbone="tiny")
    extract(photos, tmp_path / "folder.h5", backbone="tiny")
    assert made.rows == len(open_cache(tmp_path / "folder.h5")) >= 397
    same_samples(tmp_path / "s3.h5", tmp_path / "folder.h5")
    shards = bucket.upload(shards_of(photos, tmp_path / "shards", per_shard=64), "shards")
    extract(f"{shards}/*.tar", tmp_path / "remote.h5", backbone="tiny")
    extract(f"{tmp_path}/shards/*.tar", tmp_path / "local.h5", backbone="tiny")
    same_samples(tmp_path / "remote.h5", tmp_path / "local.h5")
    names = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.jpg"))
    changed = {names[3]: picture(7), "train/ants/new.png": picture(8)}
    for name, data in changed.items():
        (photos / name).write_bytes(data)
        bucket.put(f"photos/{name}", data)
    for name in names[10:13]:
        (photos / name).unlink()
        bucket.delete(f"photos/{name}")
    made = extract(url, tmp_path / "s3.h5", backbone="tiny")
    assert (made.computed, made.dropped) == (2, 3)
    extract(url, tmp_path / "fresh.h5", backbone="tiny")
    columns_equal(tmp_path / "s3.h5", tmp_path / "fresh.h5")
    extract(photos, tmp_path / "again.h5", backbone="tiny")
    same_samples(tmp_path / "s3.h5", tmp_path / "again.h5")


def same_samples(one: Path, other: Path) -> None:
    """Byte for byte, but for the second stamp, no time in a store, and the checksums of rows, which hold it."""
    a, b = open_cache(one), open_cache(other)
    assert a.key == b.key
    for name in a.layout.columns:
        if name not in ("provenance", "samples/mtime_ns") and not name.startswith("checksums/"):
            assert a.column(name).tobytes() == b.column(name).tobytes(), name


def test_listing_does_not_ask_for_each_object(url: str) -> None:
    from precompute.sources.remote import s3

    asked = []
    ask = s3.S3Store._ask
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            s3.S3Store, "_ask", lambda self, how, method, given: asked.append(method) or ask(self, how, method, given)
        )
        assert len(open_source(url, IMAGES)) == 4 * PER_CLASS
    assert asked == ["list_objects_v2"]
