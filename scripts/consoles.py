"""The ```console blocks of a page: their commands, their output, running them and comparing the two.

A command is a line that begins with `$ `; what follows it is its output. A line `...` stands for any lines.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
PROGRESS = re.compile(
    r"^((extract|train-head|predict|few-shot|fine-tune|rank|depth|report|verify): .*|\S+\.h5: \d+ numbers of shots.*"
    r"|Note: torch: OpenVINO, which is faster .*)$"
)
"""Lines that come or not as a machine is slow or fast, and has OpenVINO or not."""


@dataclass(frozen=True)
class Block:
    """One block of a page. language: "console", "python", ... · text: what stands in it · line: where it begins."""

    language: str
    text: str
    line: int


@dataclass(frozen=True)
class Step:
    """A command of a console block, and its output, where the page shows any."""

    command: str
    output: str


def blocks(page: str) -> list[Block]:
    return [
        Block(m[2], re.sub(rf"^{m[1]}", "", m[3], flags=re.M), page.count("\n", 0, m.start()) + 1)
        for m in BLOCK.finditer(page)
    ]


def steps(block: str) -> list[Step]:
    """Of the text of a console block. A command may go on over lines that end with a backslash."""
    found: list[Step] = []
    lines = iter(block.splitlines())
    for line in lines:
        if line.startswith("$ "):
            command = line[2:]
            while command.endswith("\\"):
                command = command[:-1].rstrip() + " " + next(lines).strip()
            found.append(Step(re.sub(r" +# .*$", "", command), ""))
        elif found:
            found[-1] = Step(found[-1].command, f"{found[-1].output}{line}\n")
    return found


def shown(output: str) -> str:
    """What a page shows of an output: no progress, no blanks at the ends of lines."""
    lines = [line.rstrip() for line in output.splitlines()]
    return "\n".join(line for line in lines if not PROGRESS.match(line)).strip("\n") + "\n"


def comparable(line: str) -> str:
    """A line without what differs between two machines: numbers, widths of columns, engine and precision, digests."""
    line = re.sub(r"─+", "─", line)
    line = re.sub(r"\b[0-9a-f]{40,}\b", "#", line)
    line = re.sub(r"with \w+ in (fp32|bf16|fp16) on \w+", "with ENGINE", line)
    line = re.sub(r"\bfloat(16|32)\b", "float#", line)
    line = re.sub(r"(?<![A-Za-z\d])[+-]?\d[\d,.:]*(e[+-]?\d+)?", "#", line)
    line = re.sub(r"# (bytes|kB|MB|GB)\b", "# bytes", line)
    return " ".join(line.split())


def elided(expected: list[str], actual: list[str]) -> bool:
    """Whether the lines are the same, where `...` in `expected` stands for any number of lines."""
    if "..." not in expected:
        return expected == actual
    first = expected.index("...")
    rest = expected[first + 1 :]
    if expected[:first] != actual[:first]:
        return False
    return any(elided(rest, actual[start:]) for start in range(first, len(actual) + 1))


def difference(expected: str, actual: str) -> str:
    """ "" where two outputs are equal up to numbers, else both as they were compared."""
    first, second = (
        [comparable(line) for line in shown(text).splitlines() if line.strip()] for text in (expected, actual)
    )
    if elided(first, second):
        return ""
    return "the page says:\n" + "\n".join(first) + "\nthe command says:\n" + "\n".join(second)


def run(command: str, folder: Path, environment: Mapping[str, str]) -> str:
    """stdout and stderr of a command line, as a terminal would show them. Raises ValueError where it fails."""
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env={**environment, "COLUMNS": "120"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    if done.returncode:
        raise ValueError(f"{command} ended with {done.returncode}:\n{done.stdout}")
    return done.stdout


def narrowed(lines: list[str]) -> list[str]:
    """The lines of a table without the blanks that only rows which are left out need: at most 3 between columns."""
    rules = [line for line in lines if set(line.strip()) == {"─"}]
    if not rules:
        return lines
    width = max(map(len, lines))
    padded = [line.ljust(width, "─" if line in rules else " ") for line in lines]
    gap = [all(line[column] in " ─" for line in padded) for column in range(width)]
    keep = [column for column in range(width) if column < 3 or not all(gap[column - 3 : column + 1])]
    return ["".join(line[column] for column in keep).rstrip() for line in padded]


def abridged(before: str, output: str) -> str:
    """`output` as it is shown; where `before` left lines out, with as many around them, in a narrower table."""
    lines = shown(output).splitlines()
    old = before.splitlines()
    if "..." in old:
        place = old.index("...")
        head, tail = place, len(old) - place - 1
        if head + tail < len(lines):
            lines = [*narrowed(lines[:head]), "...", *(lines[-tail:] if tail else [])]
    return "\n".join(lines) + "\n" if lines else ""


def renewed(page: str, folder: Path, environment: Mapping[str, str]) -> Iterator[str]:
    """The page in parts, with the output of each of its precompute commands as a run inside `folder` gives it."""
    at = 0
    for match in BLOCK.finditer(page):
        if match[2] != "console":
            continue
        yield page[at : match.start(3)]
        at = match.end(3)
        for step in steps(match[3]):
            yield f"$ {step.command}\n"
            if step.command.startswith(("precompute", "scripts/demo")):
                yield abridged(step.output, run(step.command, folder, environment))
            else:
                yield step.output
    yield page[at:]
