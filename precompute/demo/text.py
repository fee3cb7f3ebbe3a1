"""The same on texts: questions that are assembled here, since none come with scikit-learn."""

from __future__ import annotations

import contextlib
import csv
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from precompute.extraction.extract import extract
from precompute.extraction.output import check_cache_output
from precompute.heads.persistence.head_file import HEAD
from precompute.system.output import check_output
from precompute.training.head import train_head

SEED = 0


@dataclass(frozen=True)
class TextDemoResult:
    """What the demo on texts measured. accuracy: on texts none of whose subjects were in training."""

    texts: int
    trained: int
    tested: int
    classes: tuple[str, ...]
    accuracy: float
    extract_seconds: float
    train_seconds: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def run_text_demo(
    folder: str | os.PathLike[str] | None = None,
    *,
    overwrite: bool = False,
    say: Callable[[str], None] | None = None,
) -> TextDemoResult:
    """Write made-up questions to a table, extract them with `ngram-hash`, train a head on the kind of question.

    The arguments are those of `run_demo`. Files stay in `folder` where one is given.
    """
    say = say or (lambda _: None)
    with contextlib.ExitStack() as stack:
        place = os.fspath(folder) if folder is not None else stack.enter_context(tempfile.TemporaryDirectory())
        os.makedirs(place, exist_ok=True)
        names = ("questions.csv", "questions.h5", "questions.safetensors")
        table, cache, head = (os.path.join(place, name) for name in names)
        check_cache_output(cache, overwrite=overwrite)
        check_output(head, HEAD, overwrite=overwrite)
        rows = questions()
        say(f"1. Writing {len(rows)} made-up questions to {table}")
        if not os.path.lexists(table):
            with open(table, "w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([("text", "label", "split"), *rows])
        say("2. Extracting them: precompute extract questions.csv -b ngram-hash -o questions.h5")
        done = extract(table, cache, backbone="ngram-hash", overwrite=overwrite)
        say("3. Training a head: precompute train-head questions.h5 -o questions.safetensors")
        trained = train_head(cache, head, overwrite=overwrite, seed=SEED)
    return TextDemoResult(
        texts=done.rows,
        trained=trained.rows["train"],
        tested=trained.rows["test"],
        classes=tuple(sorted(ASKED)),
        accuracy=trained.scores["test"].accuracy,
        extract_seconds=done.seconds,
        train_seconds=trained.seconds,
    )


ASKED = {
    "number": ("How many people live in {}?", "What share of {} is flat?", "How large is the area of {}?"),
    "person": ("Who governs {} today?", "Which painter was born in {}?", "Whom did the people of {} elect?"),
    "place": ("Where does {} end?", "Which sea is next to {}?", "In what part of the world is {}?"),
    "reason": ("Why do so many tourists visit {}?", "What made {} famous?", "For what cause was {} divided?"),
    "time": ("When was {} founded?", "In which year did {} have its first railway?", "How long ago was {} settled?"),
}
"""Questions by what they ask about; what they are about is no help."""

SUBJECTS = (
    *("Norway", "Chile", "Kenya", "Portugal", "Ghana", "Peru", "Iceland", "Nepal", "Malta", "Laos", "Cuba", "Oman"),
    *("Bern", "Lima", "Oslo", "Accra", "Porto", "Hanoi", "Quito", "Riga", "Turin", "Osaka", "Lagos", "Leeds"),
)


def questions() -> list[tuple[str, str, str]]:
    """(text, label, split) of each; the second half of SUBJECTS is for the test."""
    return [
        (form.format(subject), label, "train" if number < len(SUBJECTS) // 2 else "test")
        for label, forms in ASKED.items()
        for form in forms
        for number, subject in enumerate(SUBJECTS)
    ]
