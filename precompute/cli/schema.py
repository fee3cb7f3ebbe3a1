"""`precompute schema`: what the output of --json holds, as a JSON Schema."""

from __future__ import annotations

import click

from precompute.cli._output import json_option, print_json


@click.command(no_args_is_help=True)
@click.argument("command", metavar="COMMAND")
@json_option
def schema(command: str, as_json: bool) -> None:  # noqa: ARG001 - it prints JSON anyway
    """Print the JSON Schema of what COMMAND prints with --json; `error` for that of its errors.

    Each field is described, and any validator checks an output with it (draft 2020-12). It stands alone.

    \b
    Examples:
      precompute schema extract
      precompute schema error
      precompute schema train-head > train-head.schema.json
    """
    from precompute.schemas import schema_of

    print_json(schema_of(command))
