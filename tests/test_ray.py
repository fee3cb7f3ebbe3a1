"""The executor that computes in processes of Ray: its contract, and a cluster whose actors, nodes and driver die.

Ray takes seconds to start, so what needs it is slow. Nodes declare GPUs that are not there; engines are those of CPUs.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import counted
import numpy as np
import pytest
import ray_clusters
from conftest import ROOT, list_images, make_photos, run_python
from contracts import ExecutorContract

from precompute import extract, load_backbone, open_cache
from precompute.errors import DeviceError, SampleError, SourceError, Stopped, UsageError
from precompute.extraction.executors.base import Executor
from precompute.extraction.executors.names import check_executor
from precompute.extraction.executors.ray_flow import LEAST_BLOCKS, UNDER_WAY


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What networks of `counted` write, in all processes that start from now on; these find it."""
    path = tmp_path_factory.mktemp("counted") / "log"
    folders = (str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", ""))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(counted.VARIABLE, str(path))
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, folders)))
        yield path


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """The library."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ray_clusters.ENVIRONMENT.items():
            patch.setenv(name, value)
        patch.delenv("RAY_ADDRESS", raising=False)
        yield pytest.importorskip("ray", reason="Ray is not installed: pip install 'precompute[ray]'")


@pytest.fixture(scope="module")
def cluster(ray: Any, log: Path) -> Iterator[Any]:
    """A head without cores, on which nothing is computed, and four nodes; tests that kill one add another."""
    with ray_clusters.cluster() as made:
        ray_clusters.add(made, 4)
        yield made


def executor_for(cluster: Any, **options: Any) -> Any:
    from precompute.extraction.executors.ray import RayExecutor

    return RayExecutor(cluster.address, **options)


def assert_same_rows(one: Path, other: Path) -> None:
    """Each column but the provenance, byte for byte."""
    ours, theirs = open_cache(one), open_cache(other)
    names = set(ours.layout.columns) - {"provenance"}
    assert names == set(theirs.layout.columns) - {"provenance"}
    assert [name for name in sorted(names) if ours.column(name).tobytes() != theirs.column(name).tobytes()] == []
    assert all(ours.features(layer).tobytes() == theirs.features(layer).tobytes() for layer in ours.layers)


@pytest.fixture(scope="class")
def one_actor(ray: Any) -> Iterator[Executor]:
    """Of a Ray that it starts itself."""
    from precompute.extraction.executors.ray import RayExecutor

    with RayExecutor(workers=2) as executor:
        yield executor


@pytest.mark.slow
class TestRayExecutor(ExecutorContract):
    @pytest.fixture
    def executor(self, one_actor: Executor) -> Executor:
        return one_actor


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """96 pictures, of which one is truncated and two are copies of others."""
    photos = make_photos(tmp_path / "many", per_class=24)
    paths = sorted(path for path in photos.rglob("*") if path.is_file())
    paths[5].write_bytes(paths[5].read_bytes()[:60])
    for number in (10, 50):
        (paths[70].parent / f"copy-{number}{paths[number].suffix}").write_bytes(paths[number].read_bytes())
    return photos


BLOCK = 98 // (4 * LEAST_BLOCKS)  # rows of it that go out together to one of four actors
OPTIONS: dict[str, Any] = {
    "backbone": "counted:squeezenet",
    "transform": {"resize": 64, "crop": 64},
    "batch_size": 1,  # no batch is filled up with samples of another
    "engine": "torch",
    "precision": "fp32",
}


@dataclass(frozen=True)
class Local:
    """What the local executor makes of it: the file, and inputs that each engine begins with, which are no samples."""

    file: Path
    examples: set[bytes]


@pytest.fixture
def local(many: Path, tmp_path: Path, log: Path) -> Local:
    log.write_bytes(b"")
    load_backbone(OPTIONS["backbone"], transform=OPTIONS["transform"])
    examples = set(counted.times(log))
    made = extract(many, tmp_path / "local.h5", **OPTIONS)
    assert (made.computed, made.copied, made.failures) == (95, 2, {"TRUNCATED": 1})
    assert set(counted.times(log, besides=examples).values()) == {1}
    log.write_bytes(b"")
    return Local(tmp_path / "local.h5", examples)


@pytest.mark.slow
@pytest.mark.daily(2)
def test_four_nodes_make_the_same_file(cluster: Any, many: Path, local: Local, log: Path, tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    with executor_for(cluster) as executor:
        made = extract(many, tmp_path / "a.h5", executor=executor, **OPTIONS)
        assert (made.computed, made.copied, made.failures) == (95, 2, {"TRUNCATED": 1})
        assert_same_rows(tmp_path / "a.h5", local.file)
        computed = counted.times(log, besides=local.examples)
        assert (len(computed), computed.total()) == (95, 95)
        (record,) = (one["executor"] for one in open_cache(tmp_path / "a.h5").provenance if "executor" in one)
        assert (record["kind"], record["actors"], len(record["devices"])) == ("ray", 4, 1)
        assert made.stages is not None
        assert made.stages.actors == 4
        assert made.stages.forward > 0 < made.stages.decode
        again = extract(many, tmp_path / "a.h5", executor=executor, rehash=True, **OPTIONS)
        assert (again.computed, again.reused + again.copied) == (0, 98)
    assert signal.getsignal(signal.SIGTERM) is handler


@pytest.mark.slow
@pytest.mark.daily(2)
def test_actors_and_nodes_that_die_cost_their_blocks_alone(
    cluster: Any, many: Path, local: Local, log: Path, tmp_path: Path
) -> None:
    killed: list[int] = []

    def disturb(progress: Any) -> None:
        if progress.done >= 12 and not killed:
            killed.append(counted.processes(log, besides=os.getpid())[-1])
            os.kill(killed[0], signal.SIGKILL)
        for place, done in enumerate((30, 60), start=1):
            if progress.done >= done and len(killed) == place:
                cluster.remove_node(cluster.list_all_nodes()[1], allow_graceful=False)
                ray_clusters.add(cluster, 1)
                killed.append(place)

    with executor_for(cluster) as executor:
        made = extract(many, tmp_path / "a.h5", executor=executor, progress=disturb, **OPTIONS)
    assert len(killed) == 3
    assert (made.computed, made.copied, made.failures) == (95, 2, {"TRUNCATED": 1})
    assert_same_rows(tmp_path / "a.h5", local.file)
    computed = counted.times(log, besides=local.examples)
    assert len(computed) == 95
    assert computed.total() <= 95 + len(killed) * UNDER_WAY * BLOCK


@pytest.mark.slow
@pytest.mark.daily(2)
def test_a_driver_that_was_killed_goes_on(cluster: Any, many: Path, local: Local, log: Path, tmp_path: Path) -> None:
    options = ("-b", "counted:squeezenet", "--resize", 64, "--crop", 64, "--batch-size", 1, "--executor", "ray")
    line = [sys.executable, "-m", "precompute", "extract", many, *options, "-o", tmp_path / "a.h5"]
    environment = {**os.environ, "RAY_ADDRESS": cluster.address}
    driver = subprocess.Popen(list(map(str, line)), env=environment, stderr=subprocess.DEVNULL)
    while len(counted.times(log, besides=local.examples)) < 40 and driver.poll() is None:
        time.sleep(0.02)
    driver.kill()
    assert driver.wait() == -signal.SIGKILL
    with executor_for(cluster) as executor:
        made = extract(many, tmp_path / "a.h5", executor=executor, **OPTIONS)
    assert 0 < made.computed < 95
    assert_same_rows(tmp_path / "a.h5", local.file)
    computed = counted.times(log, besides=local.examples)
    assert len(computed) == 95
    assert computed.total() <= 95 + 4 * UNDER_WAY * BLOCK


@pytest.mark.slow
@pytest.mark.daily(2)
def test_a_node_decides_what_auto_is(cluster: Any, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes are on this machine here, so it is what this machine decides; this process, where CUDA is the table's first
    choice, could not even look."""
    from precompute.engines.machine import Machine

    for name in ("PRECOMPUTE_ENGINE", "PRECOMPUTE_PRECISION"):
        monkeypatch.delenv(name)
    plain = extract(many, tmp_path / "here.h5", backbone="tiny")
    monkeypatch.setattr(Machine, "here", lambda: pytest.fail("It is not for this machine to decide."))
    with executor_for(cluster) as executor:
        made = extract(many, tmp_path / "there.h5", backbone="tiny", executor=executor)
        assert (made.engine, made.precision, made.dtype) == (plain.engine, plain.precision, plain.dtype)
        assert made.why.startswith("decided by the node ")
        assert open_cache(tmp_path / "there.h5").key == open_cache(tmp_path / "here.h5").key
        monkeypatch.setenv("PRECOMPUTE_ENGINE", "torch")  # which nodes do not have: the user's word is this process's
        monkeypatch.setenv("PRECOMPUTE_PRECISION", "fp32")
        asked = extract(many, tmp_path / "asked.h5", backbone="tiny", executor=executor, limit=4)
        assert (asked.engine, asked.precision) == ("torch", "fp32")


@pytest.mark.slow
def test_a_node_that_cannot_see_the_samples_is_named(cluster: Any, many: Path, tmp_path: Path) -> None:
    """All nodes are on one machine here: the path leads through an open file that this process alone has."""
    folder = os.open(many, os.O_RDONLY)
    try:
        with (
            executor_for(cluster) as executor,
            pytest.raises(SourceError, match=rf"of /proc/self/fd/{folder} .* the node \S+ cannot read it"),
        ):
            extract(f"/proc/self/fd/{folder}", tmp_path / "a.h5", backbone="tiny", executor=executor)
    finally:
        os.close(folder)
    assert not list(tmp_path.glob("a.h5*"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Ray leaves files of its server open
def test_over_the_client_server_and_where_no_node_has_cores(
    ray: Any, log: Path, many: Path, local: Local, tmp_path: Path
) -> None:
    pytest.importorskip("grpc", reason="Ray Client is not installed: pip install 'precompute[ray]'")
    from precompute.extraction.executors.ray import RayExecutor

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"ray://127.0.0.1:{port}"
    with ray_clusters.cluster(ray_client_server_port=port) as made, RayExecutor(address) as executor:
        with pytest.raises(DeviceError, match="No node of the cluster has a core"):
            extract(many, tmp_path / "a.h5", executor=executor, **OPTIONS)
        ray_clusters.add(made, 1)
        extract(many, tmp_path / "a.h5", executor=executor, **OPTIONS)
    assert_same_rows(tmp_path / "a.h5", local.file)


# What runs on a node, without Ray


@pytest.fixture
def actor(photos: Path) -> Any:
    """One of 24 pictures, four at a time, that is ready."""
    from precompute.engines.base import EngineChoice
    from precompute.extraction.executors.ray_actor import ActorSettings, RowActor

    settings = ActorSettings(EngineChoice("torch", "cpu", "fp32", 4), "float32", 2, os.getcwd())
    made = RowActor(settings)
    assert (
        made.ready(list_images(photos), load_backbone("tiny"), [0, 23]).trial is None
    )  # fp32 torch has nothing to prove
    return made


def test_an_actor_computes_what_it_was_asked_for_of_what_it_has_looked_at(actor: Any, photos: Path) -> None:
    source = list_images(photos)
    found = actor.look(np.arange(8), 1)
    assert [item.row for item in found] == list(range(8))
    assert found[3].digest == hashlib.sha256(source.read(3).data).digest()
    for path in photos.rglob("*.*"):  # the bytes that were looked at are those that are computed
        path.write_bytes(b"something else")
    done = actor.compute(np.array([1, 3, 6, 20]), [0, 2, 4, 5, 7], [3], 1, True)
    assert done.missing == [20]
    items = [item for block in done.blocks for item in block.decoded]
    assert [item.row for item in items] == [1, 3, 6]
    assert [item.row for item in items if item.tensors is not None] == [3]
    assert items[1].digest == found[3].digest
    assert done.stages.decode > 0
    assert actor.compute(np.array([1, 3, 6]), [], [], 1, True).missing == [1, 3, 6]  # all of it is forgotten


def test_an_actor_that_is_halted_begins_nothing_and_goes_on_with_the_next_run(actor: Any) -> None:
    actor.halt(1)
    assert actor.look(np.arange(4), 1) == []
    assert sum(len(block) for block in actor.compute(np.arange(24), [], [], 1, False).blocks) < 24
    assert sum(len(block) for block in actor.compute(np.arange(24), [], [], 2, False).blocks) == 24


def test_an_actor_whose_process_was_started_again_says_so() -> None:
    from precompute.engines.base import EngineChoice
    from precompute.extraction.executors.ray_actor import ActorSettings, RowActor

    settings = ActorSettings(EngineChoice("torch", "cpu", "fp32", 4), "float32", 1, os.getcwd())
    actor = RowActor(settings)
    for done in (actor.look(np.arange(3), 1), actor.compute(np.arange(3), [], [], 1, False)):
        assert (done.ready, done.missing, done.blocks) == (False, [0, 1, 2], [])


def test_a_source_that_has_gone_away_comes_back_as_an_error(actor: Any, photos: Path) -> None:
    shutil.rmtree(photos)
    for value in (actor.look(np.arange(4), 1), actor.compute(np.arange(4), [], [], 1, False)):
        assert isinstance(value, SourceError)
        assert "disappeared" in value.message


def test_nodes_that_do_not_fit_are_named(photos: Path) -> None:
    from precompute.engines.base import EngineChoice
    from precompute.engines.choice import Decision
    from precompute.engines.guard import Trial
    from precompute.extraction.executors import ray_checks as checks
    from precompute.extraction.executors.ray_actor import Ready

    source = list_images(photos)
    bad = Trial("torch", "bf16", 0.9, 0.95, 32)
    ready = Ready("n7", "H100", {"torch": "2.9", "openvino": "1"}, {3: b"x" * 32}, bad)
    with pytest.raises(SourceError, match=r"the node n7 reads other bytes"):
        checks.check_seen("n7", source, {3: b"y" * 32}, ready.seen)
    checks.check_seen("n7", source, {3: SampleError("no", reason="VANISHED")}, ready.seen)  # nor can this process
    with pytest.raises(DeviceError, match="n7 has torch 2.9, and this machine 2.8"):
        checks.check_versions("n7", ready, {"torch": "2.8"}, "torch")
    checks.check_versions("n7", ready, {"openvino": "2"}, "torch")
    with pytest.raises(DeviceError, match="n7 has openvino"):
        checks.check_versions("n7", ready, {"openvino": "2"}, "openvino")
    with pytest.raises(DeviceError, match="n7 computes by H100, others by A100"):
        checks.check_model("n7", ready, {"A100", "H100"})
    choice = EngineChoice("torch", "cuda", "bf16", 256)
    with pytest.raises(DeviceError, match="n7 .*fails"):
        checks.check_trial("n7", ready, Decision(choice, None, "float16"))  # type: ignore[arg-type]
    asked = Decision(choice, None, "float16", warnings=("it was asked for",))  # type: ignore[arg-type]
    checks.check_trial("n7", ready, asked)


def test_blocks_are_whole_batches_and_hold_each_row_once(photos: Path) -> None:
    from precompute.engines.base import EngineChoice
    from precompute.engines.choice import Decision
    from precompute.engines.torch import TorchEngine
    from precompute.extraction.executors.base import Work
    from precompute.extraction.executors.ray_flow import parts

    backbone = load_backbone("tiny")
    engine = TorchEngine(backbone.module, backbone.preprocess, EngineChoice("torch", "cpu", "fp32", 2))
    work = Work(list_images(photos), backbone, Decision(engine.choice, engine, "float32"))
    sizes = [len(one.rows) for one in parts(work, np.arange(23), 1)]
    assert sizes == [2] * 11 + [1]
    found = np.concatenate([one.rows for one in parts(work, np.arange(23), 1)])
    assert found.tolist() == list(range(23))


@pytest.mark.parametrize("name", ["spark", "ray:", "ray://", "ray://host", "ray://host:port", "ray://host:70000", ""])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="executor must be auto, local, processes, ray or ray://HOST:PORT"):
        check_executor(name)


def test_exact_is_about_several_machines() -> None:
    with pytest.raises(UsageError, match="--exact"):
        check_executor("local", exact=True)


def test_where_ray_is_missing_the_line_that_installs_it_is_named(photos: Path, tmp_path: Path) -> None:
    done = run_python(
        "import sys\nsys.modules['ray'] = None\nfrom precompute import extract\n"
        f"extract({str(photos)!r}, {str(tmp_path / 'a.h5')!r}, backbone='tiny', executor='ray')"
    )
    assert "DeviceError" in done.stderr
    assert "pip install 'precompute[ray]'" in done.stderr
    assert not (tmp_path / "a.h5").exists()


def test_errors_survive_the_way_to_another_process() -> None:
    errors = (SampleError("no", reason="VANISHED"), SourceError("gone", hint="look"), Stopped("s", signum=2, hint=""))
    for error in errors:
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert vars(again) == vars(error)
        assert str(again) == str(error)


class GivesUp:
    """In place of the library: a client server that gives up the first connections, which cannot be had at will."""

    def __init__(self, times: int) -> None:
        self.left, self.calls = times, 0

    def init(self, where: str, **options: Any) -> None:
        self.calls += 1
        self.left -= 1
        if self.left >= 0:
            raise ConnectionAbortedError("Initialization failure from server:")


@pytest.mark.parametrize(("times", "calls"), [(0, 1), (2, 3), (3, 3)])
def test_a_connection_that_the_client_server_gives_up_is_tried_again(times: int, calls: int) -> None:
    from precompute.extraction.executors.ray_cluster import RayCluster

    cluster = object.__new__(RayCluster)
    cluster.ray = GivesUp(times)
    if times < 3:
        cluster._init("ray://host:10001", {})
    else:
        with pytest.raises(ConnectionAbortedError):
            cluster._init("ray://host:10001", {})
    assert cluster.ray.calls == calls
