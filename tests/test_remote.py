"""Object stores: the same samples as on a disk, whatever keys and servers do, and no secret anywhere."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, Command, list_images, run_python
from contracts import SourceContract
from listings import FORMS, rows_of_folder, write_listing
from object_store import KEY, SECRET, Bucket, Proxy, Server, cuts, passes, refuses, resets, set_environment
from test_parts import columns_equal
from test_shards import picture, shards_of, write_shard

from precompute import extract, forecast, load_backbone, open_cache, predict, repair, train_head
from precompute.cache import Status
from precompute.errors import SampleError, SourceError, Stopped, UsageError
from precompute.extraction import pipeline
from precompute.extraction.executors.packing import packed
from precompute.extraction.executors.processes import ProcessExecutor
from precompute.extraction.pipeline import decoded_blocks
from precompute.extraction.source_comparison import compare_source
from precompute.extraction.timing import StageClock
from precompute.inputs.images.formats import IMAGES
from precompute.sources import tar_index
from precompute.sources.base import Reading, Source
from precompute.sources.registry import open_source
from precompute.sources.remote import store as stores
from precompute.sources.remote.address import address_of
from precompute.sources.remote.store import open_store

pytestmark = pytest.mark.usefixtures("tiny_made_once", "environment")
NUMBERS = count()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("moto"))
    yield server
    server.stop()


@pytest.fixture
def environment(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, server.environment)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "kept"))


@pytest.fixture
def bucket(server: Server) -> Bucket:
    return Bucket(server, f"bucket-{next(NUMBERS)}")


def open_images(name: str, **options: Any) -> Source:
    return open_source(name, IMAGES, **options)


def ids(source: Source) -> list[str]:
    return [os.fsdecode(bytes(row)) for row in source.table.ids]


class TestPrefix(SourceContract):
    @pytest.fixture
    def source(self, photos: Path, bucket: Bucket) -> Source:
        return open_images(bucket.upload(photos, "photos"))


class TestNamedObjects(SourceContract):
    @pytest.fixture
    def source(self, photos: Path, tmp_path: Path, bucket: Bucket) -> Source:
        bucket.upload(photos, "photos")
        table = write_listing(tmp_path / "labels.csv", rows_of_folder(photos))
        bucket.put("photos/labels.csv", table.read_bytes())
        return open_images(f"{bucket.url}/photos/labels.csv")


class TestRemoteShards(SourceContract):
    @pytest.fixture
    def source(self, photos: Path, tmp_path: Path, bucket: Bucket) -> Source:
        return open_images(bucket.upload(shards_of(photos, tmp_path / "shards"), "shards") + "/*.tar")


class TestAnyOtherStore(SourceContract):
    """memory://, through what all file systems of fsspec have."""

    @pytest.fixture
    def source(self, photos: Path) -> Iterator[Source]:
        import fsspec

        system = fsspec.filesystem("memory")
        system.put(str(photos), "/store/photos", recursive=True)
        yield open_images("memory://store/photos")
        system.rm("/store", recursive=True)

    def test_another_process_reads_the_same(self, source: Source) -> None:
        """It cannot: it has no such memory."""
        with pytest.raises(TypeError, match="in one process only"):
            packed(source)

    test_it_can_be_pickled_by_others_such_as_ray = test_another_process_reads_the_same


# The same as on a disk


@pytest.mark.rotates(3)
def test_a_prefix_gives_the_file_that_the_folder_gives(photos: Path, tmp_path: Path, bucket: Bucket) -> None:
    (photos / "train/cats/without-extension").write_bytes(picture(50))
    (photos / "train/cats/README").write_text("no image")
    (photos / ".hidden").mkdir()
    (photos / ".hidden/1.png").write_bytes(picture(51))
    (photos / "val/dogs/broken.jpg").write_bytes(b"\xff\xd8\xff")
    url = bucket.upload(photos)
    source, folder = open_images(url), list_images(photos)
    assert (source.ignored, source.notes) == (folder.ignored, folder.notes)
    made = extract(url, tmp_path / "s3.h5", backbone="tiny")
    extract(photos, tmp_path / "folder.h5", backbone="tiny")
    assert sum(made.failures.values()) == 1
    assert_same_but_for_stamps(tmp_path / "s3.h5", tmp_path / "folder.h5")
    assert extract(url, tmp_path / "s3.h5", backbone="tiny").reused == 26


@pytest.mark.slow  # starts processes that load torch
@pytest.mark.parametrize("form", ["prefix", "shards", "table of texts"])
def test_processes_read_a_store_as_threads_do(photos: Path, tmp_path: Path, bucket: Bucket, form: str) -> None:
    options: dict[str, Any] = {"backbone": "tiny", "batch_size": 4}
    if form == "prefix":
        url = bucket.upload(photos)
    elif form == "shards":
        url = bucket.upload(shards_of(photos, tmp_path / "shards"), "shards") + "/*.tar"
    else:
        bucket.put("texts.csv", ("text\n" + "".join(f"text {number}\n" for number in range(50))).encode())
        url, options["backbone"] = f"{bucket.url}/texts.csv", "ngram-hash"
    with ProcessExecutor(2) as executor:
        made = extract(url, tmp_path / "processes.h5", executor=executor, **options)
    extract(url, tmp_path / "threads.h5", **options)
    assert made.computed >= 24 and not made.failures
    columns_equal(tmp_path / "processes.h5", tmp_path / "threads.h5")


def assert_same_but_for_stamps(one: Path, other: Path) -> None:
    """All that a file holds of its samples; a store's second stamp is no time, and row checksums hold it."""
    a, b = open_cache(one), open_cache(other)
    assert a.key == b.key
    names = {name for name in a.layout.columns if not name.startswith("checksums/")}
    for name in names - {"provenance", "samples/mtime_ns"}:
        assert a.column(name).tobytes() == b.column(name).tobytes(), name


@pytest.mark.rotates(6)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "where", ["beside", pytest.param("local", marks=pytest.mark.slow), pytest.param("root", marks=pytest.mark.slow)]
)
def test_tables_and_lists_of_objects(photos: Path, tmp_path: Path, bucket: Bucket, form: str, where: str) -> None:
    url = bucket.upload(photos, "photos")
    rows = rows_of_folder(photos)
    if where == "root" and form != "txt":  # whole addresses, and ids
        rows = [{**row, "id": row["path"], "path": f"{url}/{row['path']}"} for row in rows]
    table = write_listing(tmp_path / f"labels.{form}", rows)
    if where == "beside":
        bucket.put(f"photos/labels.{form}", table.read_bytes())
        source = open_images(f"{url}/labels.{form}")
    else:
        source = open_images(str(table), reading=Reading(root=url))
    folder = list_images(photos)
    assert np.array_equal(source.table.ids, folder.table.ids)
    assert np.array_equal(source.table.sizes, folder.table.sizes)
    if form != "txt":
        assert np.array_equal(source.table.labels, folder.table.labels)
        assert np.array_equal(source.table.splits, folder.table.splits)
    assert [source.read(row).data for row in range(24)] == [folder.read(row).data for row in range(24)]


def test_a_table_in_a_store_may_name_files_here(photos: Path, tmp_path: Path, bucket: Bucket) -> None:
    table = write_listing(tmp_path / "labels.csv", rows_of_folder(photos))
    bucket.put("labels.csv", table.read_bytes())
    source = open_images(f"{bucket.url}/labels.csv", reading=Reading(root=str(photos)))
    assert source.origin == f"{bucket.url}/labels.csv"
    assert source.read(0) == list_images(photos).read(0)


@pytest.mark.rotates(3)
def test_an_object_that_a_table_names_and_is_not_there(photos: Path, tmp_path: Path, bucket: Bucket) -> None:
    url = bucket.upload(photos)
    rows = [*rows_of_folder(photos), {"path": "val/cats/lost.png", "label": "cats", "split": "val"}]
    table = write_listing(tmp_path / "labels.csv", rows)
    assert extract(table, tmp_path / "a.h5", backbone="tiny", root=url).failures == {"VANISHED": 1}
    bucket.put("val/cats/lost.png", picture(60))
    again = extract(table, tmp_path / "a.h5", backbone="tiny", root=url)
    assert (again.reused, again.computed) == (24, 1)
    with pytest.raises(SourceError, match="None of the 25 objects"):
        extract(table, tmp_path / "b.h5", backbone="tiny", root=f"{url}/train")
    write_listing(tmp_path / "out.csv", [{"path": "../up.png"}])
    with pytest.raises(SourceError, match="leads out of"):
        extract(tmp_path / "out.csv", tmp_path / "b.h5", backbone="tiny", root=f"{url}/train")


@pytest.mark.rotates(3)
@pytest.mark.parametrize("pattern", ["*.tar", "{train,val}-{000..002}.tar", "**/t*-00[01].tar"])
def test_shards_are_found_as_on_a_disk(photos: Path, tmp_path: Path, bucket: Bucket, pattern: str) -> None:
    shards = shards_of(photos, tmp_path / "shards")
    url = bucket.upload(shards, "shards")
    remote, local = open_images(f"{url}/{pattern}"), open_images(f"{shards}/{pattern}")
    assert ids(remote) == ids(local)
    assert np.array_equal(remote.table.splits, local.table.splits)
    assert remote.table.classes == local.table.classes
    assert [remote.read(row).data for row in range(len(remote))] == [local.read(row).data for row in range(len(local))]


@pytest.mark.rotates(3)
def test_the_index_of_a_remote_shard_is_kept_by_its_etag(
    tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tar_index, "KEPT_FROM", 1)
    shard = write_shard(tmp_path / "a.tar", {"1.png": picture(1), "1.cls": b"a", "2.png": picture(2)})
    bucket.put("a.tar", shard.read_bytes())
    before = open_images(f"{bucket.url}/a.tar")
    monkeypatch.setattr(tar_index, "_scan", None)  # whoever scans once more fails
    again = open_images(f"{bucket.url}/a.tar")
    assert np.array_equal(before.table.mtimes, again.table.mtimes)
    bucket.put("a.tar", write_shard(tmp_path / "a.tar", {"1.png": picture(3), "2.png": picture(2)}).read_bytes())
    with pytest.raises(TypeError):
        open_images(f"{bucket.url}/a.tar")
    monkeypatch.undo()


@pytest.mark.rotates(3)
def test_what_changed_is_computed_and_the_rest_kept(photos: Path, tmp_path: Path, bucket: Bucket) -> None:
    url = bucket.upload(photos)
    extract(url, tmp_path / "a.h5", backbone="tiny")
    (photos / "train/cats/new.png").write_bytes(picture(70))
    (photos / "train/cats/1.png").write_bytes(picture(71))
    (photos / "val/dogs/0.jpg").unlink()
    for key in ("train/cats/new.png", "train/cats/1.png"):
        bucket.put(key, (photos / key).read_bytes())
    bucket.delete("val/dogs/0.jpg")
    made = extract(url, tmp_path / "a.h5", backbone="tiny")
    assert (made.reused, made.computed, made.dropped) == (22, 2, 1)
    extract(url, tmp_path / "fresh.h5", backbone="tiny")
    columns_equal(tmp_path / "a.h5", tmp_path / "fresh.h5")
    extract(photos, tmp_path / "folder.h5", backbone="tiny")
    assert_same_but_for_stamps(tmp_path / "a.h5", tmp_path / "folder.h5")


@pytest.mark.slow
def test_every_command_takes_a_store(photos: Path, tmp_path: Path, bucket: Bucket, precompute: Command) -> None:
    url = bucket.upload(photos, "photos")
    extract(url, tmp_path / "a.h5", backbone="tiny")
    assert extract(url, tmp_path / "b.h5", backbone="tiny", limit=3).rows == 3
    assert forecast(url, backbone="tiny", part="1/2").images == 12
    assert compare_source(open_cache(tmp_path / "a.h5"), url).same
    train_head(tmp_path / "a.h5", tmp_path / "a.safetensors", C=1.0)
    assert len(predict(tmp_path / "a.safetensors", url).items) == 24
    assert repair(tmp_path / "a.h5", url).computed == 0
    told = precompute("info", "a.h5")
    assert f"precompute extract {url}" in " ".join(told.stdout.split())
    refused = precompute("extract", url, "--root", ".", "-b", "tiny", "-o", "c.h5")
    assert refused.returncode == 2
    assert "--root cannot be used with an object store" in refused.stderr


# Keys and pages


@pytest.mark.rotates(3)
def test_keys_that_no_file_could_have_are_ignored_and_named(bucket: Bucket) -> None:
    keys = [
        *("a/../up.png", "a//two.png", "a/./dot.png", "/top.png", "a/nul\0.png"),
        *("a/", "a/folder.png/", "a/.hidden.png", ".git/x.png", ".git/y.png"),
    ]
    good = ["a/A.PNG", "a/a.png", "a/line\x01end.png", "a/ü%20+&?#.png", "a/" + "n" * 200 + ".png"]
    for key in (*keys, *good):
        bucket.put(key, b"" if key.endswith("/") else picture(1))
    bucket.put("a/full/", b"x")
    source = open_images(bucket.url)
    assert ids(source) == sorted(good, key=os.fsencode)
    assert [source.read(row).data for row in range(5)] == [picture(1)] * 5
    assert all(source.sample_name(row).isprintable() for row in range(5))
    lines = [line.partition(": ")[0] for line in source.ignored]
    assert lines == ["2 hidden", "6 keys that are no paths"]


@pytest.mark.slow
def test_more_objects_than_a_page_holds(bucket: Bucket) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: bucket.put(f"p/{number:05}.png", b"x"), range(1003)))
    source = open_images(f"{bucket.url}/p")
    assert ids(source) == [f"{number:05}.png" for number in range(1003)]
    assert open_images(f"{bucket.url}/p", limit=2).table.ids.tolist() == [b"00000.png", b"00001.png"]


@pytest.mark.parametrize(
    "address",
    [
        f"s3://{KEY}:{SECRET}@bucket/photos",
        f"s3://bucket/photos?X-Amz-Signature={SECRET}",
        f"s3://bucket/a.csv?sig={SECRET}",
        f"s3://{KEY}:{SECRET}@bucket/{{0..9}}.tar",
        f"https://user:{SECRET}@host/a.tar",
        f"file:///{SECRET}",
        f"simplecache::s3://bucket/{SECRET}",
    ],
)
def test_addresses_with_secrets_are_refused_and_not_shown(tmp_path: Path, address: str, precompute: Command) -> None:
    done = precompute("extract", address, "-b", "tiny", "-o", "a.h5", "--root", ".")
    assert done.returncode in (1, 2)
    if not address.startswith("simplecache"):
        assert SECRET not in done.stdout + done.stderr
    (tmp_path / "labels.csv").write_text("path\na.png\n")
    if address.startswith("s3"):
        done = precompute("extract", "labels.csv", "-b", "tiny", "-o", "a.h5", "--root", address)
        assert done.returncode == 1
        assert SECRET not in done.stdout + done.stderr


@pytest.mark.rotates(6)
@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("s3://no-such-bucket/photos", "the bucket does not exist"),
        ("s3://BUCKET/nothing", "nothing is below it"),
        ("s3://BUCKET/none-*.tar", "matches no object"),
        ("s3://BUCKET/none.csv", "No such object"),
        ("s3://BUCKET/none.tar", "No such object"),
        ("s3://BUCKET/a/../b", "`..`"),
        ("nosuch://bucket/b", "cannot be opened"),
    ],
)
def test_addresses_that_lead_nowhere(bucket: Bucket, address: str, said: str) -> None:
    with pytest.raises(SourceError, match=said):
        open_images(address.replace("BUCKET", bucket.name))


# What changes, goes away, or never answers


@pytest.mark.rotates(3)
def test_an_object_that_changes_in_mid_run_has_the_stamps_that_it_was_read_with(
    photos: Path, tmp_path: Path, bucket: Bucket
) -> None:
    url = bucket.upload(photos)
    source = open_images(url)
    row = ids(source).index("train/dogs/3.png")
    bucket.put("train/dogs/3.png", picture(80))
    raw = source.read(row)
    assert raw.data == picture(80)
    assert raw.mtime != source.table.mtimes[row]
    extract(source, tmp_path / "a.h5", backbone="tiny")
    again = extract(url, tmp_path / "a.h5", backbone="tiny")
    assert (again.reused, again.computed) == (24, 0)  # the file has the stamps of the new object
    bucket.put("train/dogs/3.png", picture(81))
    assert extract(url, tmp_path / "a.h5", backbone="tiny").computed == 1


def test_a_shard_that_changes_while_it_is_listed_or_after(tmp_path: Path, bucket: Bucket) -> None:
    shard = write_shard(tmp_path / "a.tar", {f"{number}.png": picture(number) for number in range(3)})
    bucket.put("a.tar", shard.read_bytes())
    source = open_images(f"{bucket.url}/a.tar")
    other = write_shard(tmp_path / "a.tar", {"0.png": picture(0), "1.png": picture(9), "2x.png": picture(2)})
    bucket.put("a.tar", other.read_bytes())
    assert source.read(0).data == picture(0)
    assert source.read(0).mtime != source.table.mtimes[0]
    with pytest.raises(SampleError, match="has changed since it was listed"):
        source.read(2)
    bucket.put("a.tar", b"")
    with pytest.raises(SampleError, match="has changed"):
        source.read(0)
    bucket.delete("a.tar")
    with pytest.raises(SampleError, match="No such object") as caught:
        source.read(0)
    assert caught.value.reason == "VANISHED"


@pytest.mark.slow
def test_one_object_that_is_gone_is_a_sample_and_a_bucket_that_is_gone_ends_the_run(
    photos: Path, tmp_path: Path, bucket: Bucket
) -> None:
    url = bucket.upload(photos)
    source = open_images(url)
    bucket.delete("train/cats/1.png")
    assert extract(source, tmp_path / "a.h5", backbone="tiny").failures == {"VANISHED": 1}
    assert set(open_cache(tmp_path / "a.h5").status) == {Status.OK, Status.VANISHED}
    for key in bucket.names():
        bucket.delete(key)
    bucket.server.client("delete_bucket", Bucket=bucket.name)
    assert not source.alive()
    with pytest.raises(SourceError, match="disappeared"):
        extract(source, tmp_path / "b.h5", backbone="tiny")


@pytest.mark.rotates(3)
def test_failures_that_pass_are_not_noticed(
    photos: Path, tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = bucket.upload(photos)
    extract(url, tmp_path / "plain.h5", backbone="tiny")
    passing = [refuses(503, "SlowDown"), refuses(500, "InternalError"), resets, cuts, refuses(400, "RequestTimeout")]
    faults = [one for fault in passing for one in (fault, passes)]
    with Proxy(bucket.server, faults) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        made = extract(url, tmp_path / "a.h5", backbone="tiny", on_error="stop")
        assert made.computed == 24
        assert len(proxy.seen) > 24
    columns_equal(tmp_path / "a.h5", tmp_path / "plain.h5")


@pytest.mark.rotates(3)
@pytest.mark.parametrize(("status", "code"), [(403, "AccessDenied"), (400, "ExpiredToken"), (404, "NoSuchBucket")])
def test_failures_for_good_are_not_repeated_and_their_text_is_not_shown(
    photos: Path, tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, status: int, code: str
) -> None:
    url = bucket.upload(photos)
    with Proxy(bucket.server, [refuses(status, code)]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        with pytest.raises(SourceError, match=f"{code}|expired|does not exist") as caught:
            extract(url, tmp_path / "a.h5", backbone="tiny")
        assert len(proxy.seen) == 1
    assert SECRET not in str(caught.value)
    assert not list(tmp_path.glob("a.h5*"))


@pytest.mark.rotates(3)
@pytest.mark.parametrize("name", ["a.tar", "{a,b}.tar"])
def test_a_shard_that_is_refused_says_what_to_check(bucket: Bucket, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    with Proxy(bucket.server, [refuses(403, "InvalidAccessKeyId")]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        with pytest.raises(SourceError, match=r"a\.tar cannot be read: the store refuses it") as caught:
            open_images(f"{bucket.url}/{name}")
    assert "Check the credentials" in caught.value.hint


@pytest.mark.rotates(3)
@pytest.mark.parametrize(
    ("status", "code", "said"),
    [(501, "NotImplemented", "the store answers NotImplemented"), (301, "PermanentRedirect", "AWS_DEFAULT_REGION")],
)
def test_answers_that_never_change_are_not_waited_for(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, status: int, code: str, said: str
) -> None:
    """For example an address of http that redirects to https: botocore asks for the region of the bucket, and so on."""
    with Proxy(bucket.server, [refuses(status, code)]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        with pytest.raises(SourceError, match=said):
            open_images(bucket.url)


@pytest.mark.rotates(4)
@pytest.mark.parametrize("how", ["resets", "hangs"])
def test_a_stop_is_not_kept_waiting_by_a_store_that_does_not_answer(
    photos: Path, tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    url = bucket.upload(photos)
    over, asked = threading.Event(), count()

    def away(handler: Any, answer: Any) -> bool:
        return resets(handler, answer) if how == "resets" else over.wait(120)

    def stop() -> int:
        """Asked more often than there are batches, so while nothing comes."""
        return signal.SIGINT if next(asked) > 100 else 0

    with Proxy(bucket.server, [passes] * 20 + [away] * 100_000) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        monkeypatch.setattr(pipeline, "STOP_SECONDS", 0.01)
        with pytest.raises(Stopped):
            extract(url, tmp_path / "a.h5", backbone="tiny", batch_size=2, stop=stop)
        over.set()
    monkeypatch.setenv("AWS_ENDPOINT_URL", bucket.server.environment["AWS_ENDPOINT_URL"])
    made = extract(url, tmp_path / "a.h5", backbone="tiny", batch_size=2)
    assert not made.failures
    columns_equal(tmp_path / "a.h5", extract(url, tmp_path / "fresh.h5", backbone="tiny", batch_size=2).path)


@pytest.mark.rotates(3)
def test_stores_of_a_process_share_a_thread(bucket: Bucket) -> None:
    bucket.put("a.png", picture(1))
    for _ in range(4):
        open_images(bucket.url)
    assert [thread.name for thread in threading.enumerate()].count("s3") == 1


@pytest.mark.rotates(3)
def test_a_list_of_addresses_in_a_program(photos: Path, tmp_path: Path, bucket: Bucket) -> None:
    url = bucket.upload(photos, "photos")
    given = sorted(f"{bucket.url}/{name}" for name in bucket.names())
    made = extract(given, tmp_path / "list.h5", backbone="tiny")
    extract(url, tmp_path / "prefix.h5", backbone="tiny")
    assert open_cache(made.path).ids == given
    np.testing.assert_array_equal(
        open_cache(made.path).features("embed.4"), open_cache(tmp_path / "prefix.h5").features("embed.4")
    )
    for other, said in ((str(photos / "1.png"), "1 files"), (f"{given[0][:-5]}/../../x.png", "empty part")):
        with pytest.raises(SourceError, match=said):
            open_source([*given, other], IMAGES)
    with pytest.raises(SourceError, match="leads out"):
        open_source([*given, "s3://another/1.png"], IMAGES)


@pytest.mark.rotates(3)
def test_what_is_read_from_a_disk_alone_says_so(tmp_path: Path, bucket: Bucket) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"image": [picture(1)], "label": ["a"]}), tmp_path / "a.parquet")
    bucket.put("a.parquet", (tmp_path / "a.parquet").read_bytes())
    np.save(tmp_path / "a.npy", np.zeros((1, 8, 8), np.uint8))
    bucket.put("a.npy", (tmp_path / "a.npy").read_bytes())
    for name in ("a.parquet", "a.npy"):
        with pytest.raises(SourceError) as caught:
            open_images(f"{bucket.url}/{name}")
        assert "from a disk alone" in str(caught.value)


@pytest.mark.slow
def test_credentials_that_end_in_mid_run_stop_it(
    photos: Path, tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = bucket.upload(photos)
    ends = [passes] * 12 + [refuses(400, "ExpiredToken")] * 1000
    with Proxy(bucket.server, ends) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        with pytest.raises(SourceError, match="disappeared"):
            extract(url, tmp_path / "a.h5", backbone="tiny", batch_size=4)
    monkeypatch.setenv("AWS_ENDPOINT_URL", bucket.server.environment["AWS_ENDPOINT_URL"])
    extract(url, tmp_path / "a.h5", backbone="tiny", batch_size=4)
    extract(url, tmp_path / "fresh.h5", backbone="tiny", batch_size=4)
    columns_equal(tmp_path / "a.h5", tmp_path / "fresh.h5")


@pytest.mark.slow
def test_a_public_bucket_needs_no_credentials(photos: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    url = bucket.upload(photos)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(SourceError, match="no credentials were found"):
        open_images(url)
    code = (
        "from precompute.inputs.images.formats import IMAGES\nfrom precompute.sources.registry import open_source\n"
        f"print(len(open_source({url!r}, IMAGES)))\n"
    )
    done = run_python(code, FSSPEC_S3_ANON="true")
    assert done.stdout == "24\n", done.stderr


@pytest.mark.rotates(3)
def test_reads_begin_before_a_thread_is_free_to_decode(photos: Path, tmp_path: Path, bucket: Bucket) -> None:
    """All 24 are asked for before the first is answered, with one worker."""
    source, arrived = open_images(bucket.upload(photos)), threading.Barrier(24)
    read = source.read

    def wait_for_all(row: int) -> Any:
        arrived.wait(60)
        return read(row)

    source.read = wait_for_all  # type: ignore[method-assign]
    rows = np.arange(24)
    blocks = list(decoded_blocks(source, rows, 4, load_backbone("tiny").preprocess, 1, None, StageClock(on_cpu=True)))
    assert [item.row for block in blocks for item in block.decoded] == rows.tolist()


@pytest.mark.slow
def test_a_store_that_does_not_answer_is_waited_for_as_long_as_is_said(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put("a.png", picture(1))
    source = open_images(bucket.url)
    monkeypatch.setattr(stores, "RETRY_SECONDS", 0.5)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nobody is there
    with pytest.raises(SourceError, match="does not answer"):
        open_images(bucket.url)
    away = pickle.loads(pickle.dumps(source))
    with pytest.raises(SampleError, match="does not answer") as caught:
        away.read(0)
    assert caught.value.reason == "UNREADABLE"
    assert not away.alive()
    assert source.alive()


def test_a_folder_that_a_store_refuses_to_list_is_a_gap(photos: Path, tmp_path: Path) -> None:
    import fsspec
    from fsspec.implementations.memory import MemoryFileSystem

    class Guarded(MemoryFileSystem):
        protocol = "guarded"
        store: dict[str, Any] = {}  # noqa: RUF012 - as in the class above
        pseudo_dirs: list[str] = [""]  # noqa: RUF012
        refused = False

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return str(super()._strip_protocol(path.replace("guarded://", "memory://")))

        def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
            if Guarded.refused and path.rstrip("/").endswith("val/dogs"):
                raise PermissionError(path)
            return super().ls(path, detail=detail, **options)

    fsspec.register_implementation("guarded", Guarded, clobber=True)
    system = fsspec.filesystem("guarded")
    system.put(str(photos), "/store", recursive=True)
    assert len(open_images("guarded://store")) == 24
    extract("guarded://store", tmp_path / "a.h5", backbone="tiny")
    again = extract("guarded://store", tmp_path / "a.h5", backbone="tiny")
    assert (again.reused, again.copied, again.computed) == (0, 24, 0)  # neither ETag nor version: read again
    Guarded.refused = True
    source = open_images("guarded://store")
    assert (len(source), source.gaps) == (18, (b"val/dogs/",))
    with pytest.raises(SourceError, match=r"val/dogs/ cannot be listed, so the 6 rows"):
        extract("guarded://store", tmp_path / "a.h5", backbone="tiny")


@pytest.mark.rotates(3)
def test_sizes_are_checked_before_memory_is_taken(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    from precompute.sources.remote import s3

    bucket.put("a.png", b"x" * 5000)
    source = open_images(bucket.url)
    monkeypatch.setattr(s3, "MAX_FILE_BYTES", 4096)
    monkeypatch.setattr(stores, "MAX_FILE_BYTES", 4096)
    with pytest.raises(SampleError, match="5,000 bytes, more than 4,096") as caught:
        source.read(0)
    assert caught.value.reason == "UNREADABLE"


# Processes, packages and secrets


@pytest.mark.rotates(3)
def test_a_process_ends_without_noise_and_a_fork_reads_too(photos: Path, bucket: Bucket) -> None:
    url = bucket.upload(photos)
    code = f"""
import os
from precompute.inputs.images.formats import IMAGES
from precompute.sources.registry import open_source
source = open_source({url!r}, IMAGES)
one = source.read(0)
if (child := os.fork()) == 0:
    os._exit(0 if source.read(0) == one else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    done = run_python(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_without_s3fs_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(SourceError, match=r"needs s3fs.*\n.*pip install 'precompute\[s3\]'"):
        open_images("s3://bucket/photos")


def test_help_and_folders_load_nothing_of_it(photos: Path) -> None:
    code = (
        "import sys\nfrom precompute.inputs.images.formats import IMAGES\n"
        "from precompute.sources.registry import open_source\n"
        f"open_source({str(photos)!r}, IMAGES)\n"
        "assert not {'fsspec', 's3fs', 'aiohttp', 'botocore', 'asyncio'} & set(sys.modules)\n"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.rotates(3)
def test_no_secret_is_in_the_file_or_in_what_is_printed(photos: Path, tmp_path: Path, bucket: Bucket) -> None:
    url = bucket.upload(photos)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    texts = []
    for name, wrong in (("a.h5", {}), ("b.h5", {"AWS_ENDPOINT_URL": f"http://{KEY}:secret@127.0.0.1:port"})):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", "precompute", "extract", url, "-b", "tiny", "-o", name, "--json"],
            env={**environment, **wrong},
            cwd=tmp_path,
            capture_output=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == (1 if wrong else 0), done.stderr
        texts += [done.stdout, done.stderr]
    told = subprocess.run(
        [sys.executable, "-m", "precompute", "info", "a.h5", "--json"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        check=True,
    )
    texts += [told.stdout, (tmp_path / "a.h5").read_bytes()]
    for text in texts:
        assert KEY.encode() not in text
        assert SECRET.encode() not in text
        assert b":secret@" not in text


@pytest.mark.rotates(6)
def test_a_stamp_follows_from_etag_version_and_time() -> None:
    store = open_store(address_of("memory://x"))
    known = store.stamp('"abc"', None, 5.7)
    assert known == store.stamp("abc", None, 5.2) == store.stamp('W/"abc"', None, 5)
    others = [store.stamp("abd", None, 5), store.stamp("abc", "2", 5), store.stamp("abc", None, 6)]
    assert len({known, *others, store.stamp(None, None, 5)}) == 5
    assert all(0 <= one < 2**63 for one in (known, *others))
    assert store.stamp(None, None, 5) != open_store(address_of("memory://y")).stamp(None, None, 5)
    gc.collect()


def test_options_of_tables_are_for_tables(bucket: Bucket) -> None:
    with pytest.raises(UsageError, match="cannot be used with an object store"):
        open_images(bucket.url, reading=Reading(columns={"label": "x"}))
