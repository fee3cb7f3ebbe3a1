"""What an output was begun with: `auto` is resolved once for a file, and stays with it."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from precompute.backbones.load import Backbone
from precompute.cache import Cache, open_cache
from precompute.engines.choice import Begun
from precompute.engines.devices import MAX_BATCH, PRECISIONS
from precompute.errors import CacheFormatError
from precompute.extraction.matching import partial_path


def begun_with(path: str, model: Backbone) -> Begun:
    """What the last run that made rows with these settings took, in the file in progress or the finished one."""
    wanted = _without_precision(model.spec(precision="", storage=""))
    for name in (partial_path(path), path):
        if not os.path.lexists(name):
            continue
        with contextlib.suppress(CacheFormatError, OSError):  # reported where the file is opened to be used
            cache = open_cache(name)
            if _without_precision(cache.spec) == wanted and cache.spec.get("precision") in PRECISIONS:
                return _begun(cache, path)
    return Begun()


def _begun(cache: Cache, path: str) -> Begun:
    last, batch = cache.last_run, cache.last_run.get("batch_size")
    trials = [trial for record in cache.provenance for trial in _list(record.get("guard")) if isinstance(trial, dict)]
    return Begun(
        engine=str(last["engine"]) if "engine" in last else None,
        precision=str(cache.spec["precision"]),
        batch_size=batch if isinstance(batch, int) and 1 <= batch <= MAX_BATCH else None,
        compiled=last.get("compiled") is True,
        proved=frozenset(
            (str(trial.get("engine")), str(trial.get("precision"))) for trial in trials if trial.get("passed") is True
        ),
        words=f"as {path} was begun with",
    )


def _without_precision(spec: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in spec.items() if name not in ("precision", "storage")}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
