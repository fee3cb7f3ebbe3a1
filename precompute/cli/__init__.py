"""The command line: thin click commands over the library, one file each, heavy imports inside the functions."""

from __future__ import annotations

import io
import json
import os
import sys
import traceback
from typing import NoReturn

import click

from precompute.cli._command import Commands
from precompute.cli._config import FILE_VARIABLE, switched_on
from precompute.cli._failures import failure_of
from precompute.cli._signals import Interrupted
from precompute.cli._streams import Terminal, hold_descriptors
from precompute.cli.backbones import backbones
from precompute.cli.compare import compare
from precompute.cli.demo import demo
from precompute.cli.depth import depth
from precompute.cli.doctor import doctor
from precompute.cli.export import export
from precompute.cli.export_head import export_head
from precompute.cli.extract import extract
from precompute.cli.few_shot import few_shot
from precompute.cli.fine_tune import fine_tune
from precompute.cli.import_features import import_features
from precompute.cli.info import info
from precompute.cli.plan import plan
from precompute.cli.predict import predict
from precompute.cli.rank import rank
from precompute.cli.report import report
from precompute.cli.schema import schema
from precompute.cli.train_head import train_head
from precompute.cli.verify import verify

COMPLETE = "_PRECOMPUTE_COMPLETE"
"""The variable by which a shell asks click for what could be typed next."""


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="precompute")
@click.option("--debug", is_flag=True, help="Show the Python traceback of an error.")
def cli(debug: bool) -> None:  # noqa: ARG001 - `main` looks for it
    """Run a frozen backbone once, keep its features in one HDF5 file, train heads in seconds.

    \b
    precompute extract photos -b resnet18 -o photos.h5
    precompute train-head photos.h5 -o photos.safetensors
    precompute predict photos.safetensors new-photos

    Options can also be set by environment variables and in a TOML file. Precedence: flag, variable, file, default.
    For example PRECOMPUTE_EXTRACT_BATCH_SIZE=8 is --batch-size 8 of extract, and so is batch-size = 8 under
    [extract] in the file. PRECOMPUTE_DEVICE is the device of all commands. See docs/configuration.md.

    \b
    Exit status: 0 done, 1 failed, 2 wrong usage, 3 finished but some samples were skipped,
    129, 130 or 143 stopped by SIGHUP, SIGINT or SIGTERM (run the same command again to go on).
    Output that cannot be printed ends no run: a result lost on stdout gives 1 and a line on
    stderr that names the finished file; progress and notes lost on stderr change no status.
    """
    os.getcwd()  # raises where the folder is gone: libraries would end the process without a word


for command in (
    extract,
    plan,
    rank,
    train_head,
    fine_tune,
    few_shot,
    depth,
    compare,
    report,
    predict,
    export,
    import_features,
    export_head,
    info,
    verify,
    backbones,
    doctor,
    schema,
    demo,
):
    cli.add_command(command)


def main() -> None:
    """Entry point of the console script; turns every error into a message and an exit status."""
    if COMPLETE in os.environ:
        _complete()
    hold_descriptors()
    terminal = Terminal()
    with terminal.installed():
        status = _run(sys.argv[1:], terminal)
        status = terminal.close(status)
    sys.exit(status)


def _complete() -> NoReturn:
    """Answer a shell that completes a command, by click's own protocol, on the streams as they are."""
    try:
        cli.main(prog_name="precompute")
    finally:
        sys.stdout.flush()
    sys.exit(1)  # click has ended already


def _run(arguments: list[str], terminal: Terminal) -> int:
    try:
        with terminal.signals.interrupting(lambda signum: _end(Interrupted(signum), arguments, terminal)):
            result = cli.main(args=arguments, prog_name="precompute", standalone_mode=False, obj=terminal)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except Interrupted as error:
        _end(error, arguments, terminal)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the last line before the user
        if signum := terminal.signals.raised:  # a library has made an error of its own of it
            stopped = Interrupted(signum)
            stopped.__cause__ = error
            _end(stopped, arguments, terminal)
        return _report(error, arguments, terminal)


def _end(error: Interrupted, arguments: list[str], terminal: Terminal) -> NoReturn:
    """End at once: an engine that is taken down in the middle of a batch can crash the process."""
    os._exit(terminal.close(_report(error, arguments, terminal)))


def _report(error: BaseException, arguments: list[str], terminal: Terminal) -> int:
    """Print what ended the command, on stdout as well if that is to be JSON; the exit status."""
    as_json = asks_for_json(arguments)
    terminal.for_programs = terminal.for_programs or as_json
    failure = failure_of(error)
    if asks_for("debug", arguments):
        terminal.complain("".join(traceback.format_exception(error)).rstrip())
    terminal.complain(_shown_by_click(error) if isinstance(error, click.ClickException) else failure.text)
    if as_json and not terminal.out.used:
        shown = {"type": failure.kind, "message": failure.message, "hint": failure.hint}
        terminal.out.write(json.dumps({"error": shown}) + "\n")
    return failure.status


def _shown_by_click(error: click.ClickException) -> str:
    text = io.StringIO()
    error.show(file=text)
    return text.getvalue().rstrip()


def asks_for_json(arguments: list[str]) -> bool:
    """Whether --json is among the options, also where click cannot make sense of the others, or set elsewhere."""
    return asks_for("json", arguments)


def asks_for(flag: str, arguments: list[str]) -> bool:
    """Whether a flag is among the arguments, or set by a variable or the file."""
    options = [option for command in (cli, *cli.commands.values()) for option in command.params]
    with_value = {
        name for option in options if isinstance(option, click.Option) and not option.is_flag for name in option.opts
    }
    command, path = "", os.environ.get(FILE_VARIABLE)
    rest, overridden = iter(arguments), False
    for argument in rest:
        if argument == "--":
            break
        if argument == f"--{flag}":
            return True
        name, equals, value = argument.partition("=")
        if name in with_value:
            value = value if equals else next(rest, "")
            path = value if name == "--config" else path
            overridden = overridden or (flag, name) == ("json", "--format")  # see `_config.EXCLUSIVE`
        elif not command and argument in cli.commands:
            command = argument
    return not overridden and switched_on(flag, "" if flag == "debug" else command, path or None)
