"""What was found as one Markdown file and as lines on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from check_gpu.running import Outcome, Row

LONG = ("tail", "why", "stages", "warnings", "traceback")
"""What stands below its table instead of in it."""


def markdown(heading: str, sections: Mapping[str, Outcome]) -> str:
    """One table for each section, with what was skipped and what went wrong below it."""
    parts = [f"# {heading}"]
    for outcome in sections.values():
        status = "" if outcome.status == "done" else f", {outcome.status}"
        parts.append(f"## {outcome.title} ({outcome.seconds:.0f} s{status})")
        parts += [_table(rows) for rows in _alike(outcome.rows)]
        notes = [f"- {row['name']}: {key}: {_text(row[key])}" for row in outcome.rows for key in LONG if row.get(key)]
        notes += [f"- skipped: {row['name']}: {row['why']}" for row in outcome.skipped]
        notes += [f"- **error**: {row['name']}: {row['error']}" for row in outcome.errors]
        if notes:
            parts.append("\n".join(notes))
    return "\n\n".join(parts) + "\n"


def line(title: str, kind: str, row: Row) -> str:
    """One row for the terminal."""
    if kind != "rows":
        mark, why = {"skipped": ("SKIPPED", "why"), "errors": ("ERROR", "error")}[kind]
        return f"{title}: {mark} {row['name']} · {row[why]}"
    values = " · ".join(f"{key} {_text(value)}" for key, value in row.items() if key not in ("name", *LONG))
    return f"{title}: {row['name']} · {values}"


def _alike(rows: Iterable[Row]) -> list[list[Row]]:
    """Neighbours with the same columns stand in one table."""
    groups: list[tuple[tuple[str, ...], list[Row]]] = []
    for row in rows:
        columns = tuple(key for key in row if key not in LONG)
        if groups and (set(columns) <= set(groups[-1][0]) or set(groups[-1][0]) <= set(columns)):
            groups[-1] = (max(groups[-1][0], columns, key=len), [*groups[-1][1], row])
        else:
            groups.append((columns, [row]))
    return [found for _, found in groups]


def _table(rows: list[Row]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row if key not in LONG))
    lines = [columns, ["---"] * len(columns), *([_text(row.get(key)) for key in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _text(value: Any) -> str:
    text = "" if value is None else f"{value:,}" if isinstance(value, int | float) else str(value)
    return " ".join(text.replace("|", "/").split())
