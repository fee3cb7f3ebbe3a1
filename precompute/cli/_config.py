"""Options from a file and from variables: a flag goes before a variable, that before the file, that before the default.

What comes from elsewhere is put where click's parser puts the words of the command line, as the same text. So each
value is converted, checked and recorded like a flag's, whatever type the option has; what is added is where it is from.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import click

from precompute.errors import UsageError

PREFIX = "PRECOMPUTE"
FILE_VARIABLE = f"{PREFIX}_CONFIG"
COMMON = ("allow-skipped", "device", "executor", "json", "seed", "workers")
"""Options that mean the same in every command that has them: PRECOMPUTE_DEVICE, or a key before the first table."""
ONLY_SOMETIMES = frozenset({("train-head", "device"), ("fine-tune", "workers"), ("predict", "workers")})
"""Options of these names that only some heads, or some sources, admit: a value for all commands would be an error."""
EXCLUSIVE = (("json", "format"), ("text", "audio"))
"""Options that exclude each other where a command has both: the value that goes before the other holds alone."""
TYPED, OWN_VARIABLE, COMMON_VARIABLE, OWN_KEY, COMMON_KEY = range(5)
"""What goes before what."""
LIBRARY = {
    "PRECOMPUTE_ENGINE": "what --engine auto stands for",
    "PRECOMPUTE_PRECISION": "what --precision auto stands for",
}
"""Variables that the library reads itself, so that they hold in Python too."""
UNLISTED = ("config", "help", "version")
MAX_BYTES = 2**18  # a file of all options of all commands has some 10 KB
TRUE, FALSE = ("1", "true", "t", "yes", "y", "on"), ("0", "false", "f", "no", "n", "off")  # click's own words
SUGGESTIONS = 3

Table = dict[str, Any]


@dataclass(frozen=True)
class Value:
    """What a variable or a file says. text: as on the command line, a list where there may be several, a bool of a flag
    · origin: where it comes from, for messages · rank: of two values that exclude each other the lower one holds."""

    text: str | bool | list[str]
    origin: str
    rank: int = 0


def key_of(parameter: click.Parameter) -> str:
    """The name in a file: `batch-size` of --batch-size, `source` of SOURCE, `head-a` of HEAD_A."""
    if isinstance(parameter, click.Argument):
        return str(parameter.name).replace("_", "-")
    return max(parameter.opts, key=len).lstrip("-")


def settings_of(command: click.Command) -> dict[str, click.Parameter]:
    """What can be set of a command, by key: all its arguments and options but --config and --help."""
    return {key: parameter for parameter in command.params if (key := key_of(parameter)) not in UNLISTED}


def variables_of(command: str, key: str) -> tuple[str, ...]:
    """The variables of one option, the one that goes before the other first."""
    own = f"{PREFIX}_{command}_{key}" if command else f"{PREFIX}_{key}"
    names = [own, f"{PREFIX}_{key}"] if is_common(command, key) else [own]
    return tuple(name.upper().replace("-", "_") for name in dict.fromkeys(names))


def is_common(command: str, key: str) -> bool:
    """Whether one value may be given for all commands that have this option."""
    return key in COMMON and (command, key) not in ONLY_SOMETIMES


def is_flag(parameter: click.Parameter) -> bool:
    return isinstance(parameter, click.Option) and parameter.is_flag


def values_for(
    name: str, command: click.Command, path: str | None, commands: Mapping[str, click.Command]
) -> dict[str, Value]:
    """What variables and the file at `path` say of the options of a command, by key.

    Raises UsageError for a file that cannot be read, has unknown tables or keys, or values of the wrong type, and for a
    variable that cannot be taken apart.
    """
    tables = {} if path is None else read(path, commands)
    found = {}
    for key, parameter in settings_of(command).items():
        value = _from_environment(name, key, parameter)
        if value is None and key in (table := tables.get(name, {})):
            value = replace(_from_file(parameter, table[key], f"{key} in [{name}] of {path}"), rank=OWN_KEY)
        if value is None and key in (table := tables.get("", {})) and is_common(name, key):
            value = replace(_from_file(parameter, table[key], f"{key} of {path}"), rank=COMMON_KEY)
        if value is not None:
            found[key] = value
    return found


def excluding(values: Mapping[str, Value], typed: Iterable[str]) -> dict[str, Value]:
    """`values` without those that one which goes before them excludes; typed: the keys on the command line."""
    ranks = {key: value.rank for key, value in values.items() if value.text is not False}
    ranks |= dict.fromkeys(typed, TYPED)
    beaten = {
        key
        for group in EXCLUSIVE
        for key in group
        if key in ranks and ranks[key] > min(ranks[other] for other in group if other in ranks)
    }
    return {key: value for key, value in values.items() if key not in beaten}


def _from_environment(command: str, key: str, parameter: click.Parameter) -> Value | None:
    for variable in variables_of(command, key):
        if text := os.environ.get(variable):  # an empty one is as good as none
            rank = OWN_VARIABLE if variable == variables_of(command, key)[0] else COMMON_VARIABLE
            return Value(from_variable(parameter, text, variable), variable, rank)
    return None


def from_variable(parameter: click.Parameter, text: str, variable: str) -> str | bool | list[str]:
    """The text of a variable as on the command line, not yet converted to the parameter's type. Raises UsageError."""
    if is_flag(parameter):
        return truth(text, variable)
    if not _several(parameter):
        return text
    import shlex

    try:
        return shlex.split(text)
    except ValueError as error:
        raise UsageError(
            f"{variable} cannot be taken apart: {error}.",
            hint="It holds several values, separated by blanks; quotation marks keep one with blanks together.",
        ) from error


def truth(text: str, variable: str) -> bool:
    """Whether a flag is set by a variable with this text. Raises UsageError."""
    if text.lower() not in (*TRUE, *FALSE):
        raise UsageError(f"{variable} is neither true nor false.", hint="A flag's variable is 1 or 0.")
    return text.lower() in TRUE


def read(path: str, commands: Mapping[str, click.Command]) -> dict[str, Table]:
    """The tables of a file by command, with the entries before the first table under "".

    Raises UsageError, naming the file, for what cannot be read, for names that nothing has, and for wrong types.
    """
    content = _parsed(path)
    tables: dict[str, Table] = {"": {key: value for key, value in content.items() if not isinstance(value, dict)}}
    for name, table in content.items():
        if isinstance(table, dict):
            if name not in commands:
                raise _unknown(f"{path}: there is no command for the table [{name}].", name, list(commands), "[{}]")
            tables[name] = table
    common = {key: parameter for key, _, parameter in _common(commands)}
    for key, value in tables[""].items():
        if key not in common:
            raise _no_common(path, key, commands, common)
        _from_file(common[key], value, f"{key} of {path}")
    for name in tables.keys() - {""}:
        known = settings_of(commands[name])
        for key, value in tables[name].items():
            if key not in known:
                raise _unknown(f"{path}: [{name}] has no option {key}.", key, list(known), "{}", name)
            _from_file(known[key], value, f"{key} in [{name}] of {path}")
    return tables


def _common(commands: Mapping[str, click.Command]) -> Iterator[tuple[str, str, click.Parameter]]:
    for name, command in commands.items():
        for key, parameter in settings_of(command).items():
            if is_common(name, key):
                yield key, name, parameter


def _parsed(path: str) -> dict[str, Any]:
    import tomllib

    from precompute.system.untrusted import open_without_waiting

    try:
        with open(path, "rb", opener=open_without_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UsageError(f"{path} is no ordinary file.", hint="--config takes a TOML file.")
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"{path} cannot be read: {reason}.", hint="Name a TOML file with --config.") from error
    if len(data) > MAX_BYTES:
        raise UsageError(
            f"{path} is larger than {MAX_BYTES:,} bytes.", hint="--config takes a TOML file with options alone."
        )
    try:
        return tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:  # of UTF-8, TOML, or a number that is too long
        said = "too deep" if isinstance(error, RecursionError) else error
        raise UsageError(f"{path} is not TOML: {said}.", hint="See docs/configuration.md for an example.") from error


def _unknown(message: str, name: str, known: Sequence[str], form: str, command: str = "") -> UsageError:
    from difflib import get_close_matches

    found = get_close_matches(name.replace("_", "-"), known, SUGGESTIONS, 0.5)
    closest = "Did you mean " + " or ".join(form.format(one) for one in found) + "? " if found else ""
    return UsageError(message, hint=f"{closest}See {f'precompute {command} --help'.replace('  ', ' ')}.")


def _no_common(
    path: str, key: str, commands: Mapping[str, click.Command], common: Mapping[str, click.Parameter]
) -> UsageError:
    """A key before the first table: perhaps it belongs into one."""
    homes = [name for name, command in commands.items() if key in settings_of(command)]
    if homes:
        return UsageError(
            f"{path}: {key} is before the first table, where it would apply to all commands.",
            hint=f"Put it under [{homes[0]}], or the command that it is for. For all: {', '.join(sorted(common))}.",
        )
    return _unknown(f"{path}: there is no option {key} for all commands.", key, list(common), "{}")


def _from_file(parameter: click.Parameter, value: Any, where: str) -> Value:
    if is_flag(parameter):
        if not isinstance(value, bool):
            raise _wrong(where, value, "true or false")
        return Value(value, where)
    if _several(parameter):
        items = value if isinstance(value, list) else [value]
        return Value([_text(parameter, item, where) for item in items], where)
    if isinstance(value, list) and _joined_by_commas(parameter):
        return Value(",".join(_text(parameter, item, where) for item in value), where)
    return Value(_text(parameter, value, where), where)


def _several(parameter: click.Parameter) -> bool:
    return parameter.nargs == -1 or (isinstance(parameter, click.Option) and parameter.multiple)


def _joined_by_commas(parameter: click.Parameter) -> bool:
    """Whether on the command line it is one text with commas, such as --hidden 512,128."""
    return "," in (getattr(parameter, "metavar", None) or parameter.type.name)


def _text(parameter: click.Parameter, value: Any, where: str) -> str:
    """A value of TOML as it would be on the command line."""
    kind = parameter.type
    types: tuple[type, ...] = (str, int, float)
    words = "text or a number"
    if isinstance(kind, click.types.IntParamType):
        types, words = (int,), "a whole number"
    elif isinstance(kind, click.types.FloatParamType):
        types, words = (int, float), "a number"
    elif isinstance(kind, click.types.StringParamType | click.Path | click.Choice):
        types, words = (str,), "text in quotation marks"
    if isinstance(value, bool) or not isinstance(value, types):
        raise _wrong(where, value, words)
    try:
        return str(value)
    except ValueError as error:  # a whole number of thousands of digits
        raise UsageError(f"The number for {where} is too long.", hint="See docs/configuration.md.") from error


def _wrong(where: str, value: Any, words: str) -> UsageError:
    kinds = {
        bool: "true or false",
        int: "a whole number",
        float: "a number with a fraction",
        str: "text",
        list: "a list",
    }
    kind = kinds.get(type(value), "a table" if isinstance(value, dict) else "a date or time")
    return UsageError(f"{where} must be {words}. Got {kind} instead.", hint="See docs/configuration.md for an example.")


def switched_on(key: str, command: str, path: str | None) -> bool:
    """Whether a variable or the file sets a flag, also where the rest of them is wrong."""
    try:
        for variable in variables_of(command, key):
            if text := os.environ.get(variable):
                return truth(text, variable)
        content = {} if path is None else _parsed(path)
    except UsageError:
        return False
    table = content.get(command)
    if isinstance(table, dict) and key in table:
        return table[key] is True
    return content.get(key) is True and (not command or is_common(command, key))
