"""The command line: thin click commands over the library, one file each, heavy imports inside the functions."""

from __future__ import annotations

import json
import os
import sys
import traceback
from typing import Any

import click

from precompute.cli.backbones import backbones
from precompute.cli.compare import compare
from precompute.cli.demo import demo
from precompute.cli.export_head import export_head
from precompute.cli.extract import extract
from precompute.cli.few_shot import few_shot
from precompute.cli.info import info
from precompute.cli.plan import plan
from precompute.cli.predict import predict
from precompute.cli.train_head import train_head
from precompute.cli.verify import verify
from precompute.errors import PrecomputeError, Stopped

INTERRUPTED = 130  # what a shell reports for a process that SIGINT ended


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="precompute")
@click.option("--debug", is_flag=True, help="Show the Python traceback of an error.")
def cli(debug: bool) -> None:
    """Run a frozen backbone once, keep its features in one HDF5 file, train heads in seconds.

    \b
    precompute extract photos -b resnet18 -o photos.h5
    precompute train-head photos.h5 -o photos.safetensors
    precompute predict photos.safetensors new-photos

    \b
    Exit status: 0 done, 1 failed, 2 wrong usage, 3 finished but some images were skipped,
    130 or 143 stopped by SIGINT or SIGTERM (run the same command again to go on).
    """


for command in (extract, plan, train_head, few_shot, compare, predict, export_head, info, verify, backbones, demo):
    cli.add_command(command)


def main() -> None:
    """Entry point of the console script; turns every expected error into a message and an exit status."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    try:
        result = cli.main(args=arguments, prog_name="precompute", standalone_mode=False)
        sys.stdout.flush()
        sys.exit(result if isinstance(result, int) else 0)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Stopped.", err=True)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # such as `precompute backbones | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except PrecomputeError as error:
        _report(error.message, error.hint, error, debug)
        sys.exit(error.exit_code)
    except MemoryError as error:
        _report("Memory ran out.", "Use a smaller --batch-size or fewer --workers.", error, debug)
        sys.exit(1)
    except OSError as error:
        what = f"{error.strerror or error}" + (f": {os.fsdecode(error.filename)}" if error.filename else "")
        _report(what, "What was finished before is kept; mend the cause and run the same command again.", error, debug)
        sys.exit(1)
    except Exception as error:  # noqa: BLE001 - the last line before the user
        _report(
            f"Unexpected {type(error).__name__}: {error}",
            "This is a mistake in precompute. Please report it with the output of --debug (before the command).",
            error,
            debug,
        )
        sys.exit(1)


def _report(message: str, hint: str, error: BaseException, debug: bool) -> None:
    if debug:
        traceback.print_exception(error)
    label = "" if isinstance(error, Stopped) else "Error: "
    click.echo(f"{label}{message}" + (f"\n{hint}" if hint else ""), err=True)
    if "--json" in sys.argv:
        told: dict[str, Any] = {"error": {"type": type(error).__name__, "message": message, "hint": hint}}
        click.echo(json.dumps(told))
