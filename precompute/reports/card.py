"""A model card: what a head was trained on, how good it is and what it may be used for, as Markdown with the front
matter that the Hugging Face hub reads.

Everything in it comes from the metadata of the head's file. Names of classes and files are strangers' text: in the
front matter they are JSON strings, which YAML reads as such, and in Markdown every character that means something there
is escaped.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from precompute.errors import HeadError
from precompute.reports.commands import without_folders
from precompute.system.output import Kind, check_output

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
    "image": {
        "classes": "image-classification",
        "labels": "image-classification",
        "number": "image-feature-extraction",
    },
    "text": {"classes": "text-classification", "labels": "text-classification", "number": "text-classification"},
    "audio": {"classes": "audio-classification", "labels": "audio-classification", "number": "audio-classification"},
}
ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
LEAKS = ("byte-identical", "share a group", "look nearly like", "near-duplicates", "byte for byte")
"""In the notes of a training; see training.leaks.leak_notes."""
MARKUP = re.compile(r"([\\`*_{}\[\]<>#!|~&$])|(https?:|www\.|@)")


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
        transform = _object(self.spec.get("transform"))
        modality = transform.get("modality")
        self.modality = modality if modality in TASKS else "image"

    @property
    def backbone(self) -> str:
        return _line(self.spec.get("backbone", "unknown"))

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

    def headlines(self) -> list[dict[str, Any]]:
        """Each split's scores that have a name, with their interval."""
        found = []
        for split, scores in _object(self.training.get("scores")).items():
            for key, words in SCORES.items():
                value = _object(scores).get(key)
                if isinstance(value, int | float) and not isinstance(value, bool):
                    found.append(
                        {"split": str(split), "name": words, "value": value, "interval": _interval(scores, key)}
                    )
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
        lines += ["library_name: precompute", f"pipeline_tag: {TASKS[self.modality].get(self.task, 'other')}", "tags:"]
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
            "number": "predicts a number",
        }.get(self.task, "predicts")
        made = "a head on frozen features" if self.kind == "head" else "the last layers and a new output layer, trained"
        thing = {"image": "picture", "text": "text", "audio": "clip"}[self.modality]
        return f"It {what} to a {thing}: {made} of `{_code(self.backbone)}`. Made by precompute."

    def _data(self) -> Iterator[str]:
        rows = _object(self.training.get("rows"))
        unit = _line(self.training.get("unit", "samples"))
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
            yield f"Features from `{_code(os.path.basename(cache))}`, key `{_code(self.metadata.get('key'))}`."
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
        if not found:
            yield f"None found: no scored sample is byte-identical or nearly alike to one of the training {unit}."
        for note in found:
            yield f"- {escaped(without_folders(note))}"

    def _calibration(self) -> Iterator[str]:
        calibration = _object(self.training.get("calibration"))
        temperature = self.metadata.get("temperature")
        if isinstance(temperature, int | float):
            yield f"Probabilities are divided by the temperature {temperature:.4g} (Guo et al. 2017)."
        elif self.task == "classes":
            yield "Probabilities are those of the head; no temperature is applied."
        else:
            yield "No temperature is applied."
        for split, scores in _object(self.training.get("scores")).items():
            error = _object(scores).get("calibration_error")
            chance = _object(scores).get("calibration_error_by_chance")
            if isinstance(error, int | float):
                expected = (
                    f"; a perfectly calibrated head has {chance:.4g} here" if isinstance(chance, int | float) else ""
                )
                yield f"- calibration error on {escaped(split)}: {error:.4g}{expected}"
        if calibration.get("fitted_on"):
            yield f"- the temperature was fitted on {escaped(calibration['fitted_on'])}"

    def _weights(self) -> Iterator[str]:
        described = {name: value for name, value in self.source.items() if isinstance(value, str | int)}
        if isinstance(described.get("path"), str):
            described["path"] = os.path.basename(str(described["path"]).rstrip("/"))
        words = ", ".join(f"{escaped(name)} {escaped(value)}" for name, value in described.items()) or "unknown"
        layers = self.training.get("layers") or [self.metadata.get("layer")]
        yield f"- backbone: `{_code(self.backbone)}`"
        yield f"- weights: {words}"
        yield f"- SHA-256 of the weights: `{_code(self.spec.get('weights'))}`"
        yield f"- licence of the weights: {self.licence or UNKNOWN}"
        yield f"- layer: {', '.join(f'`{_code(layer)}`' for layer in layers)}"
        yield f"- precision and storage of the features: {escaped(self.spec.get('precision'))}, " + escaped(
            self.spec.get("storage")
        )
        yield f"- preprocessing: `{_code(json.dumps(_object(self.spec.get('transform'))))}`"

    def _use(self) -> Iterator[str]:
        name = shlex.quote(_line(self.file_name))
        yield "```console"
        yield f"$ precompute predict {name} new-data"
        yield f"$ precompute info {name}"
        if self.modality == "image":
            yield f"$ precompute export {name} -o model.onnx"
        yield "```"
        yield ""
        yield f"The weights of the backbone are not part of `{_code(self.file_name)}`: precompute finds them by their"
        yield "source and compares their digest."

    def _limits(self) -> Iterator[str]:
        if self.task == "classes":
            yield "- It knows the classes above and no others: anything else gets one of them too."
        yield "- The scores hold for data like those it was scored on: other cameras, places or years may differ."
        yield "- Intervals say how much the scores vary with the samples that were scored, not with other data."
        notes = self.training.get("notes")
        for note in notes if isinstance(notes, list) else []:
            if not any(word in str(note) for word in LEAKS):
                yield f"- {escaped(without_folders(str(note)))}"


def escaped(value: Any) -> str:
    """Text as Markdown that shows it: one line, nothing in it is markup."""
    return MARKUP.sub(_escape, _line(value))


def _escape(found: re.Match[str]) -> str:
    if found[2]:  # what would become a link by itself
        return found[2].replace(":", "&#58;").replace(".", "&#46;").replace("@", "&#64;")
    return ENTITIES.get(found[1], f"\\{found[1]}")


def _code(value: Any) -> str:
    """Text inside single backticks."""
    return _line(value).replace("`", "'")


def _line(value: Any) -> str:
    """One line of printable characters: others, such as those that turn the writing direction, as escapes."""
    text = " ".join(str(value).split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "not known"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _metric(name: str) -> str:
    return {"macro F1": "f1", "micro F1": "f1", "AUC": "roc_auc"}.get(name, name.replace(" ", "_").replace("'", ""))


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _interval(scores: Any, key: str) -> tuple[float, float] | None:
    return _pair(_object(scores).get(f"{key}_interval")) or _pair(_object(_object(scores).get("intervals")).get(key))


def _pair(value: Any) -> tuple[float, float] | None:
    if isinstance(value, Sequence) and len(value) == 2 and all(isinstance(one, int | float) for one in value):
        return float(value[0]), float(value[1])
    return None


def _refuse(path: str) -> None:
    raise HeadError(f"{path!r} exists, and whose text it holds cannot be known.", hint="")


CARD = Kind(HeadError, _refuse)
