"""What an output was begun with: `auto` is resolved once for a file, and stays with it."""

from __future__ import annotations

import contextlib
from typing import Any

from precompute.backbones.load import Backbone
from precompute.cache import Cache
from precompute.engines.choice import Begun
from precompute.engines.devices import MAX_BATCH, PRECISIONS
from precompute.errors import CacheFormatError
from precompute.extraction.output import CacheOutput


def begun_with(output: CacheOutput, model: Backbone) -> Begun:
    """What the last run that made rows with these settings took, in the file in progress or the finished one."""
    wanted = _without_precision(model.spec(precision="", storage=""))
    for name in (output.partial, output.path, *output.reuse):
        with contextlib.suppress(CacheFormatError, OSError):  # reported where the file is opened to be used
            cache = output.open(name)
            if cache is None or _without_precision(cache.spec) != wanted:
                continue
            if cache.spec.get("precision") in PRECISIONS:
                return _begun(cache, output.path if name == output.partial else name)
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
