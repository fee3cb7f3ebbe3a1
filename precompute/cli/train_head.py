"""`precompute train-head`: a feature file in, a head and its scores out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from precompute.cli._output import json_option, note, print_json, print_pairs, print_table

if TYPE_CHECKING:
    from precompute.heads import Scores
    from precompute.training import Training

MOST_CLASSES = 12  # a confusion table with more columns cannot be read
MLP_ONLY = (
    *("hidden", "dropout", "batch_norm", "label_smoothing", "mixup", "weight_decay", "learning_rate", "schedule"),
    *("max_epochs", "patience", "search", "time_budget", "plot"),
)


class Widths(click.ParamType):  # type: ignore[type-arg]  # generic in newer releases of click only
    """Widths of the hidden layers, separated by commas; 0 for none."""

    name = "WIDTHS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(int(width) for width in value.split(",")) if value != "0" else ()
        except ValueError:
            self.fail(f"{value!r} is not a list of widths such as 256,128", param, ctx)


class Strength(click.ParamType):  # type: ignore[type-arg]  # generic in newer releases of click only
    """A positive number, or auto."""

    name = "NUMBER|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | str:
        try:
            return "auto" if value == "auto" else float(value)
        except ValueError:
            self.fail(f"{value!r} is neither a number nor auto", param, ctx)


@click.command("train-head", no_args_is_help=True)
@click.argument("cache", type=click.Path())
@click.option("-o", "--output", type=click.Path(), help="Save the head to this .safetensors file.")
@click.option("--head", type=click.Choice(["logistic", "mlp"]), default="logistic", show_default=True)
@click.option("--layer", help="Which layer of the cache, where it holds several.")
@click.option("--C", "C", type=Strength(), help="Logistic: inverse strength of the L2 penalty.  [default: auto]")
@click.option("--hidden", type=Widths(), help="MLP: widths of the hidden layers.  [default: 256]")
@click.option("--dropout", type=float, help="MLP: probability of dropping a hidden unit.  [default: 0.2]")
@click.option("--batch-norm", is_flag=True, default=None, help="MLP: normalise hidden layers over the batch.")
@click.option("--label-smoothing", type=float, help="MLP: share of the target spread over all classes.  [default: 0]")
@click.option("--mixup", type=float, help="MLP: alpha by which pairs of features are mixed.  [default: 0, none]")
@click.option("--weight-decay", type=float, help="MLP: AdamW's weight decay.  [default: 1e-4]")
@click.option("--learning-rate", type=float, help="MLP: AdamW's learning rate.  [default: 1e-3]")
@click.option("--schedule", type=click.Choice(["constant", "cosine"]), help="MLP: learning rate.  [default: cosine]")
@click.option("--max-epochs", type=int, help="MLP: stop after this many epochs at the latest.  [default: 200]")
@click.option("--patience", type=int, help="MLP: stop after this many epochs without improvement.  [default: 20]")
@click.option("--search", is_flag=True, default=None, help="MLP: try 24 settings at once, less what is given here.")
@click.option(
    "--time-budget",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="MLP: end the search after the epoch in which they run out.",
)
@click.option("--plot", type=click.Path(), help="MLP: draw loss and accuracy by epoch (.png, .svg, .pdf).")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the hold-out, the folds and the MLP.")
@json_option
def train_head(
    cache: str,
    output: str | None,
    head: str,
    layer: str | None,
    seed: int,
    as_json: bool,
    plot: str | None,
    **given: Any,
) -> None:
    """Train a light head on the features in CACHE and score it on images it has not seen.

    Trains on split train and scores on val and test; without such splits on a stratified hold-out of a fifth, in
    which byte-identical images never stand on both sides.

    \b
    Examples:
      precompute train-head photos.h5
      precompute train-head photos.h5 -o photos.safetensors
      precompute train-head photos.h5 --C 0.1 --json
      precompute train-head photos.h5 --head mlp --hidden 512,128 --dropout 0.5
      precompute train-head photos.h5 --head mlp --search --time-budget 60 --plot curves.png
    """
    from precompute.training import train_head as run

    settings = {name: value for name, value in given.items() if value is not None}
    foreign = [name for name in (*settings, *(["plot"] if plot else [])) if (name in MLP_ONLY) == (head == "logistic")]
    if foreign:
        raise click.UsageError(f"--{foreign[0].replace('_', '-')} does not belong to --head {head}.")
    if plot:
        from precompute.plots import check_plot, plot_history

        check_plot(plot)  # before the training, not after it
    result = run(cache, output, head=head, layer=layer, seed=seed, **settings)
    if plot:
        plot_history(result.choices["history"], plot, best_epoch=result.choices["best_epoch"])
    if as_json:
        print_json({**result.to_dict(), "cache": cache, "output": output})
    else:
        _report(result, output)


def _report(result: Training, output: str | None) -> None:
    for line in result.notes:
        note(f"Note: {line}")
    if result.selected_on:
        note(f"Note: {result.selected_on} chose a setting, so its score flatters; the other scores chose nothing")
    rows = [
        (
            split,
            f"{scores.n:,}",
            f"{scores.accuracy:.1%}",
            "{:.1%} to {:.1%}".format(*scores.accuracy_interval),
            f"{scores.balanced_accuracy:.1%}",
            f"{scores.macro_f1:.3f}",
        )
        for split, scores in result.scores.items()
    ]
    print_table(None, ("split", "images", "accuracy", "95% interval", "balanced accuracy", "macro F1"), rows, right=1)
    for split, scores in result.scores.items():
        _confusion(split, scores, result.classes)
    print_pairs(
        None,
        [
            ("head", f"{result.kind} on {result.layer}, {len(result.classes)} classes"),
            ("trained on", f"{result.rows['train']:,} images in {result.seconds:.2f} s"),
            ("chosen", _chosen(result.choices)),
            ("searched", _searched(result.choices)),
            ("saved", output),
        ],
    )


def _chosen(choices: dict[str, Any]) -> str:
    if "C" in choices:
        late = "" if choices["converged"] else "; the solver stopped before it converged"
        return f"C = {choices['C']:g} ({choices['C_source']}{late})"
    return f"epoch {choices['best_epoch']} of {choices['epochs']} (validation: {choices['stopped_on']})"


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


def _confusion(split: str, scores: Scores, classes: list[str]) -> None:
    """The whole table for a few classes, the most frequent confusions for many."""
    counts = scores.confusion
    if len(classes) <= MOST_CLASSES:
        rows = [(name, *counts[number].tolist()) for number, name in enumerate(classes)]
        print_table(f"{split}: rows are the truth, columns the prediction", ("", *classes), rows, right=1)
        return
    wrong = sorted(
        (
            (int(counts[i, j]), i, j)
            for i in range(len(classes))
            for j in range(len(classes))
            if i != j and counts[i, j]
        ),
        reverse=True,
    )
    rows = [(classes[i], classes[j], count) for count, i, j in wrong[:10]]
    print_table(
        f"{split}: the most frequent of {len(wrong)} confusions", ("truth", "prediction", "images"), rows, right=2
    )
