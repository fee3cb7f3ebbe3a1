"""How `train-head` and `fine-tune` print a training: notes, scores, confusions, and what was chosen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from precompute.cli._output import note, print_pairs, print_table
from precompute.cli._scores import calibration_lines, leak_lines, print_each, print_scores

if TYPE_CHECKING:
    from precompute.heads import Scores
    from precompute.training.head import Training

MOST_CLASSES = 12  # a confusion table with more columns cannot be read


def report_training(
    result: Training,
    output: str | None,
    *,
    per_class: bool,
    more: Iterable[tuple[str, object]] = (),
    next_lines: str | None = None,
) -> None:
    """Print notes, scores and what was chosen. more: pairs of a name and a value of this command alone · next_lines:
    commands that a user may want next."""
    for line in result.notes:
        note(f"Note: {line}")
    if result.selected_on:
        note(f"Note: {result.selected_on} chose a setting, so its score is optimistic; the other scores chose nothing")
    print_scores(result)
    if per_class:
        print_each(result)
    if result.task == "classes":
        for split, scores in result.scores.items():
            _confusion(split, scores, result.classes, result.unit)
    print_pairs(
        None,
        [
            ("head", f"{result.kind} on {_layers(result)}, {_predicted(result)}"),
            ("protocol", _protocol(result.protocol)),
            ("trained on", f"{result.rows['train']:,} {result.unit} in {result.seconds:.2f} s"),
            ("searched", _searched(result.choices)),
            ("kept", _kept(result)),
            *_settings(result.head.summary()),
            *more,
            *leak_lines(result),
            *calibration_lines(result),
            ("saved", output or "nowhere: -o FILE.safetensors keeps the head"),
            ("next", next_lines),
        ],
    )


def _layers(result: Training) -> str:
    names = result.layers
    return f"{len(names)} layers, {names[0]} to {names[-1]}" if len(names) > 1 else result.layer


def _kept(result: Training) -> str | None:
    """How many features of each layer the selected head kept, of so many."""
    counts, widths = result.choices.get("kept_by_layer"), getattr(result.head, "layers", None)
    if counts is None or widths is None:
        return None
    found = zip(result.layers, counts, widths, strict=True)
    return "\n".join(f"{count:,} of {width:,} of {name}" for name, count, width in found if count)


def _predicted(result: Training) -> str:
    if result.task == "classes":
        return f"{len(result.classes)} classes"
    if result.task == "number":
        return "a number"
    return "1 label" if len(result.labels) == 1 else f"{len(result.labels)} labels"


def _settings(summary: str) -> Iterator[tuple[str, str]]:
    """What the fit chose; of a head that chooses nothing, what it goes by."""
    given = summary.removeprefix("nothing: ")
    if given:
        yield "chosen" if given == summary else "settings", given


def _protocol(found: dict[str, Any] | None) -> str | None:
    if found is None:
        return None
    low, high = found["interval"] or (None, None)
    interval = "" if low is None else f" (95%: {low:.1%} to {high:.1%})"
    dataset = f" for {found['dataset']}" if found["dataset"] else ""
    return f"{found['name']}{dataset}: {found['metric']} {found['value']:.1%}{interval} on test"


def _searched(choices: dict[str, Any]) -> str | None:
    """What a search tried and found, its best five trials first."""
    if "trials" not in choices or "best_params" not in choices:
        return None
    trials = [trial for trial in choices["trials"] if trial["validation_loss"] is not None]
    trials.sort(key=lambda trial: trial["validation_loss"])
    lines = [
        f"{'*' if number == 0 else ' '} validation loss {trial['validation_loss']:.4f}, accuracy "
        f"{trial['validation_accuracy']:.1%}, epoch {trial['best_epoch']}: "
        + ", ".join(f"{name} {trial[name]}" for name in choices["best_params"])
        for number, trial in enumerate(trials[:5])
    ]
    ended = "; the time budget ended it" if choices["cut_short"] else ""
    untried = f", {choices['n_untried']} untried" if choices["n_untried"] else ""
    return "\n".join([f"{len(choices['trials'])} settings{untried}{ended}", *lines])


def _confusion(split: str, scores: Scores, classes: list[str], unit: str) -> None:
    """The whole table for a few classes, the most frequent confusions for many."""
    if len(classes) <= MOST_CLASSES:
        rows = [(name, *counts) for name, counts in zip(classes, scores.confusion.tolist(), strict=True)]
        print_table(f"{split}: rows are the truth, columns the prediction", ("", *classes), rows, right=1)
        return
    cells = zip(*(values.tolist() for values in scores.confusions()), strict=True)
    wrong = sorted(((count, i, j) for i, j, count in cells if i != j), reverse=True)
    rows = [(classes[i], classes[j], count) for count, i, j in wrong[:10]]
    if rows:
        title = f"{split}: the most frequent of {len(wrong):,} confusions"
        print_table(title, ("truth", "prediction", unit), rows, right=2)
