"""What commands share: JSON, tables, notes and a progress bar."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import click

from precompute.cli._signals import Signals
from precompute.cli._streams import Terminal
from precompute.system.steps import listening

LOG_SECONDS = 10.0
QUIET_SECONDS = 2.0  # of a step or of training, before it is shown
PIPE_WIDTH = 200  # columns where nobody says how wide the reader is: lines are not cut


def _data_alone(ctx: click.Context, param: click.Parameter, as_json: bool) -> bool:  # noqa: ARG001
    """With --json whatever else is printed, such as by a backbone that is the user's own code, goes to stderr."""
    if as_json:
        terminal().for_programs = True
        ctx.with_resource(contextlib.redirect_stdout(sys.stderr))
    return as_json


json_option = click.option(
    "--json", "as_json", is_flag=True, callback=_data_alone, help="Print exactly one JSON object on stdout."
)


verbose_option = click.option(
    "-v", "--verbose", is_flag=True, help="Also print why it ran as it did, and where the time went."
)


def terminal() -> Terminal:
    """What the running command prints on."""
    return click.get_current_context().ensure_object(Terminal)


def finished(path: str | None) -> None:
    """Say which file this command has finished, for the case that the result cannot be printed."""
    terminal().finished = path


@contextlib.contextmanager
def stop_on_signal() -> Iterator[Signals]:
    """Give the `stop` of a run, whose `batches_begin` is to be called with its first batch."""
    signals = terminal().signals
    try:
        yield signals
    finally:
        signals.batches_end()


def print_json(value: object) -> None:
    """The one JSON object of a command. ASCII: names that are not UTF-8 survive as escapes."""
    terminal().out.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


def print_pairs(title: str | None, pairs: Iterable[tuple[str, object]]) -> None:
    """Lines of names and values; values of None are left out. (Without rich, whose loading would double a rerun.)"""
    lines = [(printable(name), printable(str(value)).split("\n")) for name, value in pairs if value is not None]
    width = max((len(name) for name, _ in lines), default=0)
    if title is not None:
        click.echo(printable(title))
    for name, values in lines:
        click.echo(f"{name:{width}}  " + f"\n{'':{width}}  ".join(values))


def print_table(
    title: str | None, columns: Iterable[str], rows: Iterable[Iterable[object]], *, right: int = 99
) -> None:
    """A table on stdout. `right`: columns from this one on hold numbers and are on the right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    if title is not None:
        click.echo(printable(title))  # rich would wrap a table's own title at the table's width
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number >= right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(str(value))) for value in row))  # Text: nothing in it is read as markup
    console = _console(sys.stdout)
    with console.capture() as drawn:
        console.print(table)
    lines = [line.rstrip() for line in drawn.get().splitlines()]
    click.echo("\n".join(lines).strip("\n") + "\n")


def printable(text: str) -> str:
    """`text` safe for a terminal: file names can hold escape sequences."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def _console(stream: Any) -> Any:
    from rich.console import Console

    return Console(file=stream, width=None if stream.isatty() else PIPE_WIDTH, highlight=False)


def note(text: str) -> None:
    """One line on stderr."""
    click.echo(printable(text), err=True)


@contextlib.contextmanager
def progress_bar(what: str, unit: str | Callable[[], str]) -> Iterator[Callable[[int, int, str], None]]:
    """Give a function (done, total, extra text) that draws a bar on a terminal and writes plain lines elsewhere.

    While nothing is counted, the current step is shown instead: on a terminal at once, elsewhere on its own line once
    it has taken QUIET_SECONDS. unit: of the count, or a function that returns it once it is known.
    """
    if not sys.stderr.isatty():
        with SlowSteps(what) as steps, listening(steps):
            yield _log_lines(what, unit)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.text import Text

    class Counted(MofNCompleteColumn):
        def render(self, task: Any) -> Text:
            return super().render(task) if task.total is not None else Text("")

    columns = (TextColumn(what), BarColumn(), Counted(), TextColumn("{task.fields[extra]}", markup=False))
    with Progress(*columns, console=_console(sys.stderr), transient=True) as bar:
        task = bar.add_task(what, total=None, extra="")
        counted = ""

        def draw(done: int, total: int, extra: str) -> None:
            nonlocal counted
            counted = extra
            bar.update(task, completed=done, total=total, extra=extra)

        with listening(lambda name: bar.update(task, extra=printable(name) or counted)):
            yield draw


class SlowSteps:
    """Writes the name of a step that has lasted for QUIET_SECONDS, once. To be called with each step that begins, with
    "" where none is left; a step that continues after an inner one is not named again."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._named = set[str]()
        self._timer: threading.Timer | None = None

    def __enter__(self) -> SlowSteps:
        return self

    def __exit__(self, *_: object) -> None:
        self("")

    def __call__(self, name: str) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if name and name not in self._named:
            self._timer = threading.Timer(QUIET_SECONDS, self._write, (name, sys.stderr))
            self._timer.daemon = True
            self._timer.start()

    def _write(self, name: str, stream: Any) -> None:
        self._named.add(name)
        with contextlib.suppress(OSError, ValueError):  # of a stream that was closed meanwhile
            stream.write(printable(f"{self._what}: {name}") + "\n")
            stream.flush()


def _log_lines(what: str, unit: str | Callable[[], str]) -> Callable[[int, int, str], None]:
    last, told = time.monotonic(), -1

    def log(done: int, total: int, extra: str) -> None:
        nonlocal last, told
        if time.monotonic() - last >= LOG_SECONDS or (done == total and told != total):
            last, told = time.monotonic(), done
            counted = unit if isinstance(unit, str) else unit()
            note(" ".join(filter(None, (f"{what}: {done:,} of {total:,}", counted, extra))))

    return log


@contextlib.contextmanager
def training_progress(what: str) -> Iterator[None]:
    """Show what fits, searches and comparisons inside report, once they have taken QUIET_SECONDS."""
    from precompute.heads.base.progress import Progress
    from precompute.heads.base.progress import listening as hearing

    began = time.monotonic()
    ended = set[str]()  # what has been counted to its end, such as the steps of one label's fit
    levels: dict[str, Progress] = {}  # what is counted now, and inside which other counts
    draw: Callable[[int, int, str], None] | None = None

    def show(now: Progress) -> None:
        nonlocal draw
        names = list(levels)
        for inner in names[names.index(now.what) + 1 :] if now.what in names else ():
            del levels[inner]
        levels[now.what] = now
        elapsed, is_end = time.monotonic() - began, now.done >= now.total
        if elapsed >= QUIET_SECONDS and not (is_end and now.what in ended):
            draw = draw or stack.enter_context(progress_bar(what, ""))
            outer, *inner_levels = levels.values()
            parts = [outer.what, outer.note, *(f"{one.done:,} of {one.total:,} {one.what}" for one in inner_levels)]
            if outer.done:
                parts.append(f"about {duration(elapsed / outer.done * (outer.total - outer.done))} left")
            draw(outer.done, outer.total, "; ".join(filter(None, parts)))
        if is_end:
            ended.add(now.what)
            del levels[now.what]

    with SlowSteps(what) as steps, listening(steps), contextlib.ExitStack() as stack, hearing(show):
        yield


def duration(seconds: float | None) -> str:
    """For example 1:02:03 or 0:07."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
