"""How a cache and its heads were made, in the document of a report: settings, runs, versions and commands.

The report is a file that others get: of paths it has the last part, and it names no machine.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from precompute.cache import Cache
from precompute.cache.key import leaves
from precompute.cache.reader import FOUND
from precompute.reports.commands import extract_command, report_command, shortened, train_command
from precompute.reports.places import readable
from precompute.reports.samples import recorded_source
from precompute.reports.scored import ScoredHead

MOST_RUNS = 100
LETTERS = 2000  # of a setting


def made_by_part(cache: Cache, heads: Sequence[ScoredHead], given: Sequence[tuple[str, Any]] = ()) -> dict[str, Any]:
    """JSON-ready. given: options of the report, see `report_command`.

    What the files say may come from strangers: it is text here, and no more.
    """
    runs = [record for record in cache.provenance if FOUND.isdisjoint(record) and "started" in record]
    name = os.path.basename(cache.path)
    commands = []
    if (command := extract_command(cache.last_run, output=name, base_names=True)) is not None:
        commands.append(command)
    for head in heads:
        saved = head.side.saved
        command = train_command(saved.metadata, saved.head, cache=name, output=head.name)
        if command is not None:
            commands.append(command)
    commands.append(report_command(name, [head.name for head in heads], given))
    source, last = recorded_source(cache), cache.last_run
    return {
        "settings": [[readable(key), readable(_plain(value))[:LETTERS]] for key, value in leaves(cache.spec)],
        "runs": [_run(record) for record in runs[-MOST_RUNS:]],
        "n_runs": len(runs),
        "versions": _versions(last.get("versions")),
        "commands": [readable(command) for command in commands],
        "weights": _weights(last.get("weights")),
        "key": cache.key,
        "source": None if source is None else readable(shortened(source[0])),
    }


def _run(record: dict[str, Any]) -> dict[str, Any]:
    versions = record.get("versions")
    version = versions.get("precompute") if isinstance(versions, dict) else None
    command = extract_command(record, base_names=True)
    batch = record.get("batch_size")
    return {
        "when": _text(record.get("started")),
        "version": _text(version),
        "command": None if command is None else readable(command),
        **{name: _text(record.get(name)) for name in ("engine", "device", "precision")},
        "batch_size": batch if isinstance(batch, int) else None,
    }


def _text(value: Any) -> str | None:
    return readable(value)[:LETTERS] if isinstance(value, str) else None


def _plain(value: str) -> str:
    """A setting without the folders of a path that it names."""
    return shortened(value)


def _versions(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        return {}
    return {readable(str(name)): readable(str(one))[:LETTERS] for name, one in list(value.items())[:50]}


def _weights(value: Any) -> dict[str, str]:
    """What is known of the weights, in words."""
    if not isinstance(value, dict):
        return {}
    plain = {name: one for name, one in value.items() if isinstance(one, str | int | float)}
    return {readable(str(name)): readable(shortened(str(one)))[:LETTERS] for name, one in list(plain.items())[:20]}
