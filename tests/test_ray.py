"""The executor that computes in processes of Ray: its contract, and a cluster whose actors, nodes and driver die.

Ray takes seconds to start, so what needs it is slow. Nodes declare GPUs that are not there; engines are those of CPUs.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, list_images, make_photos, run_python
from contracts import ExecutorContract

from precompute import extract, load_backbone, open_cache
from precompute.errors import DeviceError, SampleError, SourceError, Stopped, UsageError
from precompute.extraction.executors.base import Executor
from precompute.extraction.executors.names import check_executor

STORE = 100_000_000  # bytes of a node's object store


@pytest.fixture(scope="session")
def ray(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The library, quiet, with all that it leaves in a folder of the tests."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # else it makes a token in the home folder
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("PYTHONPATH", str(ROOT))
    return pytest.importorskip("ray", reason="Ray is not installed: pip install 'precompute[ray]'")


@pytest.fixture
def cluster(ray: Any, tmp_path: Path) -> Iterator[Any]:
    """A head without cores of its own, on which nothing is computed; tests add nodes with `add`."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": STORE})
    yield made
    ray.shutdown()
    made.shutdown()


def add(cluster: Any, count: int) -> list[Any]:
    """Nodes of one core, each of which says that it has a GPU."""
    nodes = [cluster.add_node(num_cpus=1, num_gpus=1, object_store_memory=STORE) for _ in range(count)]
    cluster.wait_for_nodes()
    return nodes


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
    """Of a Ray that the tests have started."""
    from precompute.extraction.executors.ray import RayExecutor

    ray.init(num_cpus=1, object_store_memory=STORE, include_dashboard=False, log_to_driver=False, logging_level="error")
    with RayExecutor(workers=2) as executor:
        yield executor
    ray.shutdown()


@pytest.mark.slow
class TestRayExecutor(ExecutorContract):
    @pytest.fixture
    def executor(self, one_actor: Executor) -> Executor:
        return one_actor


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """96 pictures, of which one is cut short and two are copies of others."""
    photos = make_photos(tmp_path / "many", per_class=24)
    paths = sorted(path for path in photos.rglob("*") if path.is_file())
    paths[5].write_bytes(paths[5].read_bytes()[:60])
    for number in (10, 50):
        (paths[70].parent / f"copy-{number}{paths[number].suffix}").write_bytes(paths[number].read_bytes())
    return photos


@pytest.fixture
def local(many: Path, tmp_path: Path) -> Path:
    """What the local executor makes of it."""
    made = extract(many, tmp_path / "local.h5", backbone="tiny", batch_size=4)
    assert (made.computed, made.copied, made.failures) == (95, 2, {"TRUNCATED": 1})
    return tmp_path / "local.h5"


@pytest.mark.slow
def test_four_nodes_make_the_same_file(cluster: Any, many: Path, local: Path, tmp_path: Path) -> None:
    add(cluster, 4)
    with executor_for(cluster) as executor:
        made = extract(many, tmp_path / "a.h5", backbone="tiny", batch_size=4, executor=executor)
        assert (made.computed, made.copied, made.failures) == (95, 2, {"TRUNCATED": 1})
        assert_same_rows(tmp_path / "a.h5", local)
        (record,) = (one["executor"] for one in open_cache(tmp_path / "a.h5").provenance if "executor" in one)
        assert (record["kind"], record["actors"]) == ("ray", 4)
        assert len(record["devices"]) == 1
        assert made.stages is not None
        assert made.stages.actors == 4
        assert made.stages.forward > 0 < made.stages.decode
        again = extract(many, tmp_path / "a.h5", backbone="tiny", batch_size=4, executor=executor, rehash=True)
        assert (again.computed, again.reused + again.copied) == (0, 98)


@pytest.mark.slow
def test_actors_and_nodes_that_die_cost_their_blocks_alone(
    cluster: Any, ray: Any, many: Path, local: Path, tmp_path: Path
) -> None:
    nodes = add(cluster, 3)
    executor = executor_for(cluster)
    killed: list[int] = []

    def disturb(progress: Any) -> None:
        """Kill the process of an actor, then a node; then another node joins."""
        if progress.done >= 12 and not killed:
            member = executor._pool.up[0]
            ray.kill(member._handle, no_restart=False)
            killed.append(progress.done)
        if progress.done >= 30 and len(killed) == 1:
            cluster.remove_node(nodes[-1], allow_graceful=False)
            killed.append(progress.done)
        if progress.done >= 50 and len(killed) == 2:
            add(cluster, 1)
            killed.append(progress.done)

    with executor:
        made = extract(many, tmp_path / "a.h5", backbone="tiny", batch_size=2, executor=executor, progress=disturb)
    assert len(killed) == 3
    assert (made.computed, made.copied, made.failures) == (95, 2, {"TRUNCATED": 1})
    whole = extract(many, tmp_path / "whole.h5", backbone="tiny", batch_size=2)
    assert whole.computed == 95
    assert_same_rows(tmp_path / "a.h5", tmp_path / "whole.h5")


@pytest.mark.slow
def test_a_driver_that_was_killed_goes_on(cluster: Any, many: Path, local: Path, tmp_path: Path) -> None:
    add(cluster, 2)
    out = tmp_path / "a.h5"
    code = (
        "import sys, os, signal\nfrom precompute import extract\n"
        "from precompute.extraction.executors.ray import RayExecutor\n"
        "def show(progress):\n    if progress.done > 20: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"extract({str(many)!r}, {str(out)!r}, backbone='tiny', batch_size=4, progress=show,\n"
        f"        executor=RayExecutor({cluster.address!r}))\n"
    )
    done = run_python(code)
    assert done.returncode == -signal.SIGKILL, done.stderr
    with executor_for(cluster) as executor:
        made = extract(many, out, backbone="tiny", batch_size=4, executor=executor)
    assert 0 < made.computed < 95
    assert_same_rows(out, local)


@pytest.mark.slow
def test_a_node_that_cannot_see_the_samples_is_named(cluster: Any, many: Path, tmp_path: Path) -> None:
    """All nodes are on one machine here: the path leads through an open file that this process alone has."""
    add(cluster, 1)
    folder = os.open(many, os.O_RDONLY)
    try:
        with (
            executor_for(cluster) as executor,
            pytest.raises(SourceError, match=rf"of /proc/self/fd/{folder} .* the node \S+ cannot read it"),
        ):
            extract(f"/proc/self/fd/{folder}", tmp_path / "a.h5", backbone="tiny", executor=executor)
    finally:
        os.close(folder)


@pytest.mark.slow
def test_a_cluster_without_cores_is_an_error(cluster: Any, many: Path, tmp_path: Path) -> None:
    with executor_for(cluster) as executor, pytest.raises(DeviceError, match="None of the 1 nodes"):
        extract(many, tmp_path / "a.h5", backbone="tiny", executor=executor)


# What runs on a node, without Ray


@pytest.fixture
def actor(photos: Path) -> Any:
    """One of 24 pictures, four at a time, that is ready."""
    from precompute.engines.base import EngineChoice
    from precompute.extraction.executors.ray_actor import RowActor, Told

    told = Told(EngineChoice("torch", "cpu", "fp32", 4), "float32", 2, os.getcwd(), several=True)
    made = RowActor(told)
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
    from precompute.extraction.executors.ray_actor import RowActor, Told

    told = Told(EngineChoice("torch", "cpu", "fp32", 4), "float32", 1, os.getcwd())
    actor = RowActor(told)
    for done in (actor.look(np.arange(3), 1), actor.compute(np.arange(3), [], [], 1, False)):
        assert (done.ready, done.missing, done.blocks) == (False, [0, 1, 2], [])


def test_a_source_that_has_gone_away_comes_back_as_an_error(actor: Any, photos: Path) -> None:
    shutil.rmtree(photos)
    for value in (actor.look(np.arange(4), 1), actor.compute(np.arange(4), [], [], 1, False)):
        assert isinstance(value, SourceError)
        assert "went away" in value.message


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
    with pytest.raises(UsageError, match="executor must be local, ray or ray://HOST:PORT"):
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
