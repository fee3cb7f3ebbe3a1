"""A model card: what a head was trained on, how good it is and what it may be used for, as Markdown with the front
matter that the Hugging Face hub reads.

Everything in it comes from the metadata of the head's file. Names of classes and files are strangers' text: in the
front matter they are JSON strings, which YAML reads as such, and in Markdown every character that means something there
is escaped.
"""

from __future__ import annotations

import json
import math
import os
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from precompute.errors import HeadError
from precompute.extraction.rebuild import EXTERNAL
from precompute.inputs.images.transform import NVJPEG
from precompute.reports.commands import without_folders
from precompute.reports.markdown import code, escaped, line
from precompute.system.output import Kind, check_output
from precompute.training.views import averaged

UNKNOWN = "unknown: ask the author of the weights"
LICENCES = {"embedded": "bsd-3-clause"}
"""By where weights came from. precompute knows only that of `tiny`."""
MOST_NAMES = 50  # of classes, in the table
SCORES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "top5_accuracy": "top-5 accuracy",
    "auc": "AUC",
    "log_loss": "log loss",
    "mean_average_precision": "mean average precision",
    "map": "mean average precision",
    "micro_f1": "micro F1",
    "r2": "R2",
    "mae": "mean absolute error",
    "rmse": "root mean squared error",
    "spearman": "Spearman's correlation",
}
TASKS = {
    "image": {"classes": "image-classification", "labels": "image-classification"},
    "text": {"classes": "text-classification", "labels": "text-classification"},
    "audio": {"classes": "audio-classification", "labels": "audio-classification"},
}
LEAKS = ("byte-identical", "share a group", "look nearly like", "near-duplicates", "byte for byte")
"""In the notes of a training; see training.leaks.leak_notes."""
NAMED = "named "  # what `import --name` puts in place of a digest of weights


def write_card(
    path: str | os.PathLike[str],
    metadata: Mapping[str, Any],
    *,
    kind: str,
    file_name: str,
    task: str = "classes",
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write the card of a head; returns its title, licence and its scores, ready for JSON.

    metadata: the JSON object in the head's file · kind: "head" or "tail" · file_name: of the head.
    Raises HeadError where it cannot be written, or another file is in its place.
    """
    card = Card(metadata, kind, file_name, task)
    output = check_output(path, CARD, overwrite=overwrite)
    text = card.text()
    output.write(lambda file: file.write(text.encode("utf-8", "backslashreplace")))
    return {"title": card.title, "licence": card.licence, "scores": card.headlines()}


class Card:
    """See `write_card`."""

    def __init__(self, metadata: Mapping[str, Any], kind: str, file_name: str, task: str) -> None:
        self.metadata, self.kind, self.file_name = metadata, kind, file_name
        self.spec, self.training = _object(metadata.get("spec")), _object(metadata.get("training"))
        self.task = str(self.training.get("task") or task)
        self.source = _object(metadata.get("weights_source"))
        self.transform = _object(self.spec.get("transform"))
        modality = self.transform.get("modality")
        self.modality = modality if isinstance(modality, str) and modality in TASKS else "image"

    @property
    def backbone(self) -> str:
        return line(self.spec.get("backbone", "unknown"))

    @property
    def title(self) -> str:
        what = {"labels": "several labels", "number": "a number"}.get(self.task, "classes")
        return f"{self.backbone}, a {self.kind} for {what}"

    @property
    def licence(self) -> str | None:
        """Of the weights, where it is known."""
        return LICENCES.get(str(self.source.get("kind")))

    @property
    def names(self) -> list[str]:
        """Classes or labels."""
        found = self.training.get("classes") or self.training.get("labels") or []
        return [str(name) for name in found] if isinstance(found, list) else []

    @property
    def imported(self) -> bool:
        """Whether its features were made outside precompute."""
        return self.spec.get("backbone") == EXTERNAL

    @property
    def has_graph(self) -> bool:
        """Whether `export` can write it as a graph, as far as its file says; see graphs.network.check_graph."""
        decoded = NVJPEG in str(self.transform.get("decoder")) or bool(self.transform.get("fast_decode"))
        return self.modality == "image" and not (self.imported or averaged(dict(self.metadata)) or decoded)

    @property
    def groups(self) -> int | None:
        """How many groups of the user's were kept whole, None without."""
        found = self.training.get("groups")
        return found if isinstance(found, int) and not isinstance(found, bool) else None

    def headlines(self) -> list[dict[str, Any]]:
        """Each split's scores that have a name, with their interval."""
        found = []
        for split, scores in _object(self.training.get("scores")).items():
            for key, words in SCORES.items():
                value = _finite(_object(scores).get(key))
                if value is not None:
                    interval = _interval(scores, key, grouped=self.groups is not None)
                    found.append({"split": str(split), "name": words, "value": value, "interval": interval})
        return found

    def text(self) -> str:
        """The whole card."""
        parts = [self._front_matter(), f"# {escaped(self.title)}", "", self._about()]
        sections = (
            ("Data", self._data()),
            ("Scores", self._scores()),
            ("Leaks", self._leaks()),
            ("Calibration", self._calibration()),
            ("Backbone and weights", self._weights()),
            ("How to use it", self._use()),
            ("Limits", self._limits()),
        )
        for title, lines in sections:
            parts += ["", f"## {title}", "", *lines]
        return "\n".join(parts) + "\n"

    def _front_matter(self) -> str:
        tags = ["precompute", "transfer-learning", "linear-probe" if self.kind == "head" else "fine-tuning"]
        lines = ["---", f"license: {self.licence or 'other'}"]
        if self.licence is None:
            lines.append(f"license_name: {json.dumps('unknown')}")
        lines.append("library_name: precompute")
        if not self.imported and self.task in TASKS[self.modality]:  # the hub has no task for the others
            lines.append(f"pipeline_tag: {TASKS[self.modality][self.task]}")
        lines.append("tags:")
        lines += [f"- {json.dumps(tag)}" for tag in tags]
        lines += [f"base_model_relation: {json.dumps('finetune' if self.kind == 'tail' else 'adapter')}"]
        metrics = sorted({_metric(one["name"]) for one in self.headlines()})
        if metrics:
            lines += ["metrics:", *(f"- {json.dumps(name)}" for name in metrics)]
        return "\n".join([*lines, "---", ""])

    def _about(self) -> str:
        what = {
            "classes": "gives one class",
            "labels": "gives several labels, each with its own probability,",
        }.get(self.task)
        made = "a head on frozen features" if self.kind == "head" else "the last layers and a new output layer, trained"
        thing = {"image": "picture", "text": "text", "audio": "clip"}[self.modality]
        thing = "sample" if self.imported else thing
        gives = f"predicts a number for a {thing}" if what is None else f"{what} to a {thing}"
        if self.imported:
            return f"It {gives}: a head on features that were made outside precompute. Made by precompute."
        return f"It {gives}: {made} of `{code(self.backbone)}`. Made by precompute."

    def _data(self) -> Iterator[str]:
        rows = _object(self.training.get("rows"))
        unit = line(self.training.get("unit", "samples"))
        if rows:
            yield "| split | " + escaped(unit) + " |"
            yield "|---|---|"
            for split, count in rows.items():
                yield f"| {escaped(split)} | {_number(count)} |"
            yield ""
        if self.names:
            shown = self.names[:MOST_NAMES]
            more = f" and {len(self.names) - len(shown):,} more" if len(self.names) > len(shown) else ""
            called = "labels" if self.task == "labels" else "classes"
            yield f"{len(self.names):,} {called}: {', '.join(escaped(name) for name in shown)}{more}."
        cache = self.training.get("cache")
        if isinstance(cache, str):
            yield ""
            yield f"Features from `{code(os.path.basename(cache))}`, key `{code(self.metadata.get('key'))}`."
        yield ""
        yield "Where the data come from, who may use them, and what they leave out: written by the author of the head."

    def _scores(self) -> Iterator[str]:
        found = self.headlines()
        if not found:
            yield "The head has not been scored: its data had no split to score on."
            return
        yield "| split | score | value | 95% interval |"
        yield "|---|---|---|---|"
        for one in found:
            interval = one["interval"]
            between = "not known" if interval is None else f"{interval[0]:.4g} to {interval[1]:.4g}"
            yield f"| {escaped(one['split'])} | {one['name']} | {one['value']:.4g} | {between} |"
        if self.groups is not None:
            yield ""
            yield f"{self.groups:,} groups were kept whole in folds and in a hold-out. The intervals of these scores"
            yield "draw groups; those by class ignore them."
        selected = self.training.get("selected_on")
        if isinstance(selected, str):
            yield ""
            yield f"The split {escaped(selected)} also decided settings of the head, so its scores are too good."
        yield from self._per_class()

    def _per_class(self) -> Iterator[str]:
        for split, scores in _object(self.training.get("scores")).items():
            per_class = _object(scores).get("per_class")
            if not isinstance(per_class, list) or len(per_class) != len(self.names) or len(per_class) > MOST_NAMES:
                continue
            yield ""
            yield f"By class, on {escaped(split)}:"
            yield ""
            yield "| class | samples | precision | recall | 95% interval of the recall |"
            yield "|---|---|---|---|---|"
            for name, one in zip(self.names, map(_object, per_class), strict=True):
                interval = _pair(one.get("recall_interval"))
                between = "not known" if interval is None else f"{interval[0]:.4g} to {interval[1]:.4g}"
                cells = (_number(one.get("images")), _number(one.get("precision")), _number(one.get("recall")))
                yield f"| {escaped(name)} | {' | '.join(cells)} | {between} |"

    def _leaks(self) -> Iterator[str]:
        notes, unit = self.training.get("notes"), escaped(self.training.get("unit", "samples"))
        if not isinstance(notes, list):
            yield "Whether samples of the scored splits are also in the training data is not recorded."
            return
        found = [str(note) for note in notes if any(word in str(note) for word in LEAKS)]
        if not found and not self.headlines():
            yield "No split was scored, so no leaks were searched."
        elif not found:
            yield f"None found: no scored sample is byte-identical or nearly alike to one of the training {unit}."
        for note in found:
            yield f"- {escaped(without_folders(note))}"

    def _calibration(self) -> Iterator[str]:
        calibration = _object(self.training.get("calibration"))
        temperature = _finite(self.metadata.get("temperature"))
        if temperature is not None:
            yield f"The logarithms of the probabilities are divided by the temperature {temperature:.4g} and normalised"
            yield "again (Guo et al. 2017)."
        elif self.task == "classes":
            yield "Probabilities are those of the head; no temperature is applied."
        else:
            yield "No temperature is applied."
        for split, scores in _object(self.training.get("scores")).items():
            error = _finite(_object(scores).get("calibration_error"))
            chance = _finite(_object(scores).get("calibration_error_by_chance"))
            if error is not None:
                expected = "" if chance is None else f"; a perfectly calibrated head has {chance:.4g} here"
                yield f"- calibration error on {escaped(split)}: {error:.4g}{expected}"
        if temperature is not None and calibration.get("fitted_on"):
            yield f"- the temperature was fitted on {escaped(calibration['fitted_on'])}"

    def _weights(self) -> Iterator[str]:
        described = {name: value for name, value in self.source.items() if isinstance(value, str | int)}
        if isinstance(described.get("path"), str):
            described["path"] = os.path.basename(str(described["path"]).rstrip("/"))
        words = ", ".join(f"{escaped(name)} {escaped(value)}" for name, value in described.items()) or "unknown"
        layers = self.training.get("layers")
        layers = layers if isinstance(layers, list) and layers else [self.metadata.get("layer")]
        if self.imported:
            yield "- the features were imported: precompute does not know the network that made them, nor its licence"
            yield f"- storage of the features: {escaped(self.spec.get('storage'))}"
            return
        yield f"- backbone: `{code(self.backbone)}`"
        yield f"- weights: {words}"
        yield f"- SHA-256 of the weights: `{code(self.spec.get('weights'))}`"
        yield f"- licence of the weights: {self.licence or UNKNOWN}"
        yield f"- layer: {', '.join(f'`{code(layer)}`' for layer in layers)}"
        yield f"- precision and storage of the features: {escaped(self.spec.get('precision'))}, " + escaped(
            self.spec.get("storage")
        )
        yield f"- preprocessing: `{code(json.dumps(self.transform))}`"

    def _use(self) -> Iterator[str]:
        name = shlex.quote(line(self.file_name))
        yield "```console"
        made_by = self._name_of_features()
        if made_by is not None:
            yield f"$ precompute import new-features.npz -o new-features.h5 --name {shlex.quote(made_by)}"
        yield f"$ precompute predict {name} {'new-features.h5' if self.imported else 'new-data'}"
        yield f"$ precompute info {name}"
        if self.has_graph:
            yield f"$ precompute export {name} -o model.onnx"
        yield "```"
        yield ""
        if self.imported:
            yield "It takes a feature file: imported features of the same network and layer."
            if made_by is None:
                yield "Since its own were imported without `--name`, it predicts on the same features only."
            return
        yield f"The weights of the backbone are not part of `{code(self.file_name)}`: precompute finds them by their"
        yield "source and compares their digest."

    def _name_of_features(self) -> str | None:
        """By which imported features count as those of one network."""
        weights = self.spec.get("weights")
        if not self.imported or not isinstance(weights, str) or not weights.startswith(NAMED):
            return None
        return line(weights.removeprefix(NAMED))

    def _limits(self) -> Iterator[str]:
        if self.task == "classes":
            yield "- It knows the classes above and no others: anything else gets one of them too."
        yield "- The scores hold for data like those it was scored on: other cameras, places or years may differ."
        yield "- Intervals say how much the scores vary with the samples that were scored, not with other data."
        notes = self.training.get("notes")
        for note in notes if isinstance(notes, list) else []:
            if not any(word in str(note) for word in LEAKS):
                yield f"- {escaped(without_folders(str(note)))}"


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "not known"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _metric(name: str) -> str:
    return {"macro F1": "f1", "micro F1": "f1", "AUC": "roc_auc"}.get(name, name.replace(" ", "_").replace("'", ""))


def _finite(value: Any) -> float | None:
    """A number as a float, None of all else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _interval(scores: Any, key: str, *, grouped: bool) -> tuple[float, float] | None:
    """grouped: one that draws groups. Wilson's, of accuracies, takes each sample for one observation."""
    drawn = _pair(_object(_object(scores).get("intervals")).get(key))
    return drawn if grouped else _pair(_object(scores).get(f"{key}_interval")) or drawn


def _pair(value: Any) -> tuple[float, float] | None:
    if not isinstance(value, list | tuple) or len(value) != 2:
        return None
    low, high = map(_finite, value)
    return None if low is None or high is None else (low, high)


def _refuse(path: str) -> None:
    raise HeadError(f"{path!r} exists, and whose text it holds cannot be known.", hint="")


CARD = Kind(HeadError, _refuse)
