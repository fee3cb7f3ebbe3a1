"""The actors of a run, wherever Ray has put them: starting them, checking what they are, losing and replacing them."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from precompute.engines.guard import Trial
from precompute.errors import DeviceError, PrecomputeError, reason_of
from precompute.extraction.executors.base import Work
from precompute.extraction.executors.ray_actor import BLOCKS_AT_ONCE, ActorSettings, Proved, Ready, RowActor
from precompute.extraction.executors.ray_checks import check_model, check_seen, check_trial, check_versions, own_digests
from precompute.extraction.executors.ray_cluster import START_SECONDS, RayCluster
from precompute.extraction.provenance import LIBRARIES
from precompute.system import version_of

RESTARTS = 1_000  # of one actor's process, on the same node; a block that kills them is bounded itself
LOOK_SECONDS = 5.0  # between two looks for nodes that have come or gone
WAIT_SECONDS = 0.5
NODES_NAMED = 5
CORES_AN_ACTOR, ACTORS_A_GPU = 4, 4
"""Threads of one process share an interpreter: with an H200 4 of them decoded 1,128 photos a second, 16 of them 1,297
(docs/performance.md). So a GPU with many cores has several actors, of which each holds the network."""
GROUPS = {"look": "look", "forget": "look", "compute": "compute", "halt": "control"}
"""Methods of actors by the threads that call them. Ray Client has no option for this, so they belong to a class."""


class Member:
    """An actor, and what is known of it. node: its id · state: starting, up or gone · under_way: blocks that it has."""

    def __init__(self, pool: RayPool, node: str, host: str, handle: Any) -> None:
        self.node, self.host, self._handle, self._pool = node, host, handle, pool
        self.state, self.under_way = "starting", 0
        self.found: Ready | None = None
        self.asked: Any = self.ask()

    def ask(self) -> Any:
        """Let it say when it is ready; also once its process has been started again."""
        return self._handle.ready.options(max_task_retries=-1).remote(*self._pool.sent, self._pool.looked_at)

    def call(self, method: str, *given: Any) -> Any:
        """Call a method of its; what is returned stands for the result."""
        return getattr(self._handle, method).remote(*given)

    def lost(self) -> None:
        """Its process has died with all that was in progress. It may come back."""
        if self.state == "up":
            self.state, self.under_way = "starting", 0
            self.asked = self.ask()

    def end(self) -> None:
        """Kill it."""
        self.state = "gone"
        self._pool.kill(self._handle)


class RayPool:
    """Actors for one piece of work.

    members: all that there have been · workers: threads of the last that began · looked_at: rows that each of them
    reads to begin with · sent: source and backbone in the object store, for `ready` alone, since Ray does not start a
    process again whose constructor needs an object that is lost.
    """

    def __init__(
        self, cluster: RayCluster, work: Work, *, workers: int | None, exact: bool, proved: Proved | None = None
    ) -> None:
        self._ray = cluster.ray
        self._work, self._exact, self._asked_workers, self._proved = work, exact, workers, proved
        self.members: list[Member] = []
        self.workers = 1
        self._own = own_digests(work.source)
        self.looked_at = list(self._own)
        names = (*LIBRARIES, *work.backbone.family.packages)
        self._versions = {name: version_of(name) or "not installed" for name in names}
        self._nodes: set[str] = set()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._trials: dict[str, Trial] = {}
        self._refused: list[str] = []
        self._looked, self._last = 0.0, ""
        errors = self._ray.exceptions
        names = ("RayActorError", "ObjectLostError", "NodeDiedError", "WorkerCrashedError", "OutOfMemoryError")
        self.losses = tuple(getattr(errors, name) for name in (*names, "ActorUnschedulableError"))
        self.sent = [cluster.sent("source", work.source), cluster.sent("backbone", work.backbone)]

    @property
    def up(self) -> list[Member]:
        """Those that take blocks."""
        return [one for one in self.members if one.state == "up"]

    def serves(self, work: Work) -> bool:
        """Whether it was made for the same."""
        mine = (self._work.source, self._work.backbone, self._work.decision)
        return all(one is other for one, other in zip(mine, (work.source, work.backbone, work.decision), strict=True))

    def begin(self, stop: Callable[[], object] | None = None) -> None:
        """Start the actors, and wait until all have said what they are, or `stop()` is true.

        Raises DeviceError where there are none, or one is not like the others; SourceError where one cannot read what
        this process can.
        """
        self._join(first=True)
        began = changed = time.monotonic()
        while any(one.state == "starting" for one in self.members):
            before = len(self.up)
            self._hear(first=True, seconds=WAIT_SECONDS)
            now = time.monotonic()
            changed = now if len(self.up) != before else changed
            if stop is not None and stop():
                return
            if self.up and now - changed > START_SECONDS / 2:
                break  # those that are ready suffice
            if now - began > START_SECONDS and not self.up:
                raise DeviceError(
                    f"No actor of {len(self.members)} was ready within {START_SECONDS:.0f} s.",
                    hint="See with `ray status` whether other jobs hold the cluster.",
                )
        self._check_left()

    def look_around(self) -> None:
        """Actors that have come up since, and nodes that have joined."""
        if any(one.state == "starting" for one in self.members):
            self._hear(first=False, seconds=0.0)
        if time.monotonic() - self._looked > LOOK_SECONDS:
            self._join(first=False)

    def wait(self) -> None:
        """Until an actor may have come up. Raises DeviceError where none is left that could."""
        self._check_left()
        self._hear(first=False, seconds=WAIT_SECONDS)

    def done(self, refs: list[Any], seconds: float) -> list[Any]:
        """Those whose results are there, or that have failed; at least one, unless it takes longer."""
        if not refs:
            return []
        found, _ = self._ray.wait(refs, num_returns=1, timeout=seconds)
        return list(found)

    def value(self, ref: Any) -> Any:
        """Raises one of `losses` where its actor has died."""
        return self._ray.get(ref)

    def settle(self, refs: list[Any], seconds: float) -> None:
        """Wait until these calls have come to an end."""
        self._ray.wait(refs, num_returns=len(refs), timeout=seconds, fetch_local=False)

    def kill(self, handle: Any) -> None:
        """End an actor's process at once."""
        self._ray.kill(handle)

    def close(self) -> None:
        """End all of them."""
        for member in self.members:
            if member.state != "gone":
                member.end()
        self.sent.clear()

    def record(self) -> dict[str, Any]:
        """JSON-ready: actors by host and model, and the trial of each model that did worst."""
        devices: dict[str, dict[str, int]] = {}
        for (device, host), count in sorted(self._counts.items()):
            devices.setdefault(device, {})[host] = count
        few = {device: hosts for device, hosts in devices.items() if len(hosts) <= NODES_NAMED}
        many = {device: {"hosts": len(hosts)} for device, hosts in devices.items() if device not in few}
        trials = {device: trial.to_dict() for device, trial in sorted(self._trials.items())}
        return {"kind": "ray", "actors": sum(self._counts.values()), "devices": few | many, "guard": trials}

    def warnings(self) -> tuple[str, ...]:
        """What a user should know of them."""
        found = list(self._refused)
        if len(models := sorted({device for device, _ in self._counts})) > 1:
            found.append(
                f"Features were computed by {' and '.join(models)}, whose last bits may differ. --exact refuses that."
            )
        for device, trial in sorted(self._trials.items()):
            if not trial.passed:
                found.append(f"On {device} {trial.words}. --precision auto avoids that.")
        return tuple(found)

    def _join(self, *, first: bool) -> None:
        """Actors for nodes that have none yet."""
        self._looked = time.monotonic()
        nodes = [node for node in self._ray.nodes() if node["Alive"]]
        gone = self._nodes - {node["NodeID"] for node in nodes}
        for member in self.members:
            if member.node in gone and member.state == "starting":
                member.end()
        choice = self._work.decision.choice
        for node in nodes:
            cores, gpus = (int(node["Resources"].get(name, 0)) for name in ("CPU", "GPU"))
            if node["NodeID"] in self._nodes or cores < 1 or (choice.kind == "cuda" and not gpus):
                continue
            self._nodes.add(node["NodeID"])
            here = max(1, gpus)
            shares = actors_a_gpu(cores // here) if choice.kind == "cuda" else 1
            for _ in range(here * shares):
                self._start(node, cores // here // shares, 1 / shares if gpus else 0.0)
        if first and not self.members:
            raise DeviceError(
                f"None of the {len(nodes)} nodes of the cluster has {'a GPU' if choice.kind == 'cuda' else 'a core'}.",
                hint="See with `ray status`. --device cpu computes without a GPU.",
            )

    def _start(self, node: dict[str, Any], cores: int, gpu: float) -> None:
        decision = self._work.decision
        self.workers = self._asked_workers or max(1, cores)
        choice = replace(decision.choice, device=decision.choice.kind, why="")
        settings = ActorSettings(choice, decision.storage, self.workers, os.getcwd(), self._proved)
        handle = self.launch(settings, node["NodeID"], cores, gpu)
        self.members.append(Member(self, node["NodeID"], str(node["NodeManagerHostname"]), handle))

    def launch(self, settings: ActorSettings, node: str, cores: int, gpu: float) -> Any:
        """A `RowActor` on the node of this id: what has its methods, each with a `remote` of Ray's. gpu: its share."""
        groups = {"look": 1, "compute": BLOCKS_AT_ONCE, "control": 1}
        affinity = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False)
        actor = self._ray.remote(concurrency_groups=groups)(_actor_class(self._ray)).options(
            num_cpus=cores,
            num_gpus=gpu,
            scheduling_strategy=affinity,
            max_restarts=RESTARTS,
            max_task_retries=0,
        )
        return actor.remote(settings)

    def _hear(self, *, first: bool, seconds: float) -> None:
        """Who of those that start has become ready, or never will."""
        starting = {one.asked: one for one in self.members if one.state == "starting"}
        if not starting:
            return
        found, _ = self._ray.wait(list(starting), num_returns=1, timeout=seconds)
        for ref in found:
            member = starting[ref]
            try:
                value = self._ray.get(ref)
            except self.losses as error:
                self._last = reason_of(error)
                member.state = "gone"
                continue
            try:
                self._admit(member, value)
            except PrecomputeError as error:
                member.end()
                if first:
                    raise
                self._refused.append(f"Not used: {error.message}")

    def _admit(self, member: Member, value: Ready | PrecomputeError) -> None:
        """Raise DeviceError or SourceError unless it computes what all others do."""
        if isinstance(value, PrecomputeError):
            raise type(value)(f"The node {member.host}: {value.message}", hint=value.hint)
        check_seen(member.host, self._work.source, self._own, value.seen)
        check_versions(member.host, value, self._versions, self._work.decision.choice.engine)
        if self._exact:
            check_model(member.host, value, {device for device, _ in self._counts})
        check_trial(member.host, value, self._work.decision)
        worst = self._trials.get(value.device)
        if value.trial is not None and (worst is None or value.trial.worst < worst.worst):
            self._trials[value.device] = value.trial
        if member.found is None:
            self._counts[value.device, value.host] += 1
        member.found, member.state, member.under_way = value, "up", 0

    def _check_left(self) -> None:
        if all(one.state == "gone" for one in self.members):
            raise DeviceError(
                f"No node is left that computes{f': {self._last}' if self._last else ''}.",
                hint="Everything computed so far is kept. See with `ray status`, and run the same command again.",
            )


def actors_a_gpu(cores: int) -> int:
    """How many actors share a GPU that has so many cores."""
    return max(1, min(ACTORS_A_GPU, cores // CORES_AN_ACTOR))


def _actor_class(ray: Any) -> type[RowActor]:
    """`RowActor` with the threads of its methods, as Ray and Ray Client take them: sent by value."""

    def grouped(name: str) -> Any:
        method = getattr(RowActor, name)

        def call(self: RowActor, *given: Any) -> Any:
            return method(self, *given)

        return ray.method(concurrency_group=GROUPS[name])(call)

    return type("RayRowActor", (RowActor,), {name: grouped(name) for name in GROUPS})
