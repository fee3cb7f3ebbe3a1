"""Clusters of Ray on this machine whose nodes declare GPUs that are not there, and are killed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

STORE = 100_000_000  # bytes of a node's object store
ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",  # else Ray makes a token in the home folder
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": str(STORE),
}


@contextmanager
def cluster(**head: Any) -> Iterator[Any]:
    """A head without cores of its own, on which nothing is computed; `add` adds nodes."""
    os.environ.update(ENVIRONMENT)
    made = import_module("ray.cluster_utils").Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": STORE} | head
    )
    try:
        yield made
    finally:
        import_module("ray").shutdown()
        made.shutdown()


def add(made: Any, count: int) -> list[Any]:
    """Nodes of one core, each of which says that it has a GPU."""
    nodes = [made.add_node(num_cpus=1, num_gpus=1, object_store_memory=STORE) for _ in range(count)]
    made.wait_for_nodes()
    return nodes
