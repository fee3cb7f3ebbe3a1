"""`precompute doctor`: what of this machine helps or stops an extraction."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from precompute.cli._options import complete_backbone
from precompute.cli._output import SlowSteps, json_option, print_json, printable
from precompute.system.steps import listening

if TYPE_CHECKING:
    from precompute.diagnosis import Diagnosis, Finding


@click.command()
@click.argument("folder", required=False, type=click.Path())
@click.option(
    "-b", "--backbone", shell_complete=complete_backbone, help="Also load this network, without a connection."
)
@click.option(
    "--weights", default="DEFAULT", show_default=True, help="Its weights, as for extract: an entry or a file."
)
@json_option
@click.pass_context
def doctor(ctx: click.Context, /, folder: str | None, backbone: str | None, weights: str, as_json: bool) -> None:
    """Look at this machine: devices, engines, packages, folders, limits and variables; and what to install for more.

    With FOLDER, where feature files shall lie (or such a file), also whether they can be written there. With -b whether
    the weights of that network are on this machine. Nothing is changed or downloaded.

    \b
    Examples:
      precompute doctor
      precompute doctor results
      precompute doctor -b mobilenet_v2
      precompute doctor -b mobilenet_v2 --weights my-weights.pth --json

    \b
    Exit status: 0, or 1 where something would stop `precompute extract`; with -b also where it would have to download.
    """
    from precompute.diagnosis.doctor import doctor as run

    if backbone is None and weights != "DEFAULT":
        raise click.UsageError("--weights belongs to a backbone: -b NAME.")
    with SlowSteps("doctor") as steps, listening(steps):  # lines alone: the library of bars may be what is broken
        found = run(folder, backbone=backbone, weights=weights)
        torch = any(
            (one.section, one.name) == ("packages", "torch") and one.status != "problem" for one in found.findings
        )
        found = found.with_more(_settings(ctx, torch=torch))
    if as_json:
        print_json(found.to_dict())
    else:
        _print(found)
    ctx.exit(0 if found.healthy else 1)


def _settings(ctx: click.Context, *, torch: bool = True) -> Iterator[Finding]:
    """The file with options, and variables that begin like ours. torch: whether it can be loaded, to try a device."""
    from difflib import get_close_matches

    from precompute.cli._command import file_named
    from precompute.cli._config import FILE_VARIABLE, LIBRARY, settings_of, variables_of
    from precompute.diagnosis import Finding
    from precompute.diagnosis.finding import NOTE, OK
    from precompute.system.addresses import without_secrets

    root = ctx.find_root().command
    commands = root.commands if isinstance(root, click.Group) else {}
    known: dict[str, list[tuple[str, str]]] = {}  # commands and keys of a variable, `extract` first
    for name in sorted(commands, key=lambda name: name != "extract"):
        for key in settings_of(commands[name]):
            for variable in variables_of(name, key):
                known.setdefault(variable, []).append((name, key))
    others = {FILE_VARIABLE: "the file with options", "PRECOMPUTE_DEBUG": "--debug"}
    if (path := file_named(ctx.meta)) is not None:  # it has been read by now, or this command would not run
        yield Finding("variables", "--config", OK, f"{os.path.abspath(path)} has been read", details={"path": path})
    for variable in sorted(os.environ):
        if not variable.startswith("PRECOMPUTE_") or variable in LIBRARY:
            continue
        if variable in known:
            name, key = known[variable][0]
            words = f"{key} of {name if variable == variables_of(name, key)[0] else 'all commands'}"
            wrong = _wrong(variable, name, key, commands[name], words, torch=torch) if os.environ[variable] else None
        elif variable in others:
            wrong, words = None, others[variable]
        else:  # its value is not shown: nobody knows what it is
            close = get_close_matches(variable, [*known, *others], 1)
            hint = f"Did you mean {close[0]}?" if close else ""
            yield Finding("variables", variable, NOTE, "no option has this variable", hint)
            continue
        value = without_secrets(os.environ[variable])
        yield wrong or Finding("variables", variable, OK, f"{value} ({words})", details={"value": value})


def _wrong(variable: str, name: str, key: str, command: click.Command, words: str, *, torch: bool) -> Finding | None:
    """What the command `name` would say of the value of a variable, where it would refuse it."""
    from precompute.cli._config import from_variable, settings_of, variables_of
    from precompute.diagnosis import Finding
    from precompute.diagnosis.devices import refusal
    from precompute.diagnosis.finding import NOTE, PROBLEM
    from precompute.errors import UsageError
    from precompute.system.addresses import without_secrets

    parameter, text = settings_of(command)[key], os.environ[variable]
    hint = f"Correct it, or remove it: unset {variable}."
    try:
        taken = from_variable(parameter, text, variable)
        if not isinstance(taken, bool):
            parameter.type_cast_value(click.Context(command, info_name=name), taken)
    except click.BadParameter as error:
        said = error.message
    except UsageError as error:
        said, hint = error.message, error.hint
    else:
        refused = refusal(text) if torch and (name, key) == ("extract", "device") and text != "auto" else None
        if refused is None:
            return None
        said, hint = refused.message, refused.hint
    stops = name == "extract" and variable == next(one for one in variables_of(name, key) if os.environ.get(one))
    said = without_secrets(said).rstrip(".")
    return Finding("variables", variable, PROBLEM if stops else NOTE, f"{said} ({words})", hint)


WORDS = {"ok": "ok", "note": "note", "problem": "PROBLEM"}


def _print(found: Diagnosis) -> None:
    width = min(max(len(one.name) for one in found.findings), 24)
    section = ""
    for one in found.findings:
        if one.section != section:
            click.echo(("\n" if section else "") + one.section.capitalize())
            section = one.section
        first, *more = printable(one.text).split("\n")
        click.echo(f"  {WORDS[one.status]:7}  {printable(one.name):{width}}  {first}")
        for line in [*more, *(printable(f"-> {one.hint}").split("\n") if one.hint else ())]:
            click.echo(f"{'':{width + 13}}{line}")
    count = len(found.problems)
    click.echo()
    if count:
        names = ", ".join(one.name for one in found.problems)
        click.echo(f"{count} problem{'s' if count > 1 else ''} would stop `precompute extract`: {printable(names)}.")
    else:
        click.echo("Nothing was found that would stop `precompute extract`.")
