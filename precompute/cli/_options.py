"""Options that commands share; those of `extract` and `plan` say what is computed, and how."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import click

from precompute.cli._job_array import check_array

Command = Callable[..., Any]
TRANSFORM = (
    *("resize", "crop", "interpolation", "fast_decode", "decoder", "mean", "std"),
    *("window", "hop", "max_seconds", "windows", "max_length"),
)


class Triple(click.ParamType):  # type: ignore[type-arg]  # generic in newer releases of click only
    """Three numbers, one for each channel, separated by commas."""

    name = "R,G,B"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, float, float]:
        if isinstance(value, tuple):
            return value
        try:
            red, green, blue = (float(number) for number in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not three numbers such as 0.5,0.5,0.5", param, ctx)
        return red, green, blue


class Seconds(click.ParamType):  # type: ignore[type-arg]
    """A positive, finite number."""

    name = "SECONDS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            seconds = float(value)
        except ValueError:
            self.fail(f"{value!r} is not a number of seconds", param, ctx)
        if not 0 < seconds < math.inf:
            self.fail(f"{value!r} is not a positive, finite number of seconds", param, ctx)
        return seconds


SEED = click.IntRange(0, 2**32 - 1)  # what NumPy, torch and scikit-learn all take


def complete_backbone(
    ctx: click.Context,  # noqa: ARG001 - click's own form
    param: click.Parameter,  # noqa: ARG001
    incomplete: str,
) -> list[str]:
    """For the shell: names of backbones that begin with what is typed."""
    from precompute.backbones.families.completion import completions

    return completions(incomplete)


def _decorators(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def apply(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return apply


transform_options = _decorators(
    click.option("--resize", type=int, help="Shorter side in pixels, before the crop."),
    click.option("--crop", type=int, help="Side of the square cut from the centre, in pixels."),
    click.option("--interpolation", type=click.Choice(["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"])),
    click.option(
        "--fast-decode",
        is_flag=True,
        default=None,
        help="Decode JPEG far larger than the input at 1/2, 1/4 or 1/8; features differ slightly, so part of the key.",
    ),
    click.option(
        "--decoder",
        type=click.Choice(["cpu", "nvjpeg"]),
        help="nvjpeg: plain JPEG is decoded and resized on the GPU; features differ slightly, so part of the key.",
    ),
    click.option("--mean", type=Triple(), help="Mean to subtract, on a scale of 0 to 1."),
    click.option("--std", type=Triple(), help="Standard deviation to divide by, on a scale of 0 to 1."),
)
"""The preprocessing of images; `transform_taken` sorts the values."""

clip_options = _decorators(
    click.option(
        "--window", type=Seconds(), help="For clips: length of a window, the input of one pass of the network."
    ),
    click.option("--hop", type=Seconds(), help="Distance between the starts of two windows."),
    click.option("--max-seconds", type=Seconds(), help="Longer clips are skipped as too large.  [default: 300]"),
    click.option(
        "--windows",
        type=click.Choice(["pool", "keep"]),
        help="pool: a clip is the mean of its windows; keep: its windows are stored too, as views.  [default: pool]",
    ),
)
"""The preprocessing of clips."""

text_options = _decorators(
    click.option(
        "--max-length",
        type=click.IntRange(1),
        metavar="TOKENS",
        help="For texts: longer ones are truncated, and counted.  [default: the model's own]",
    ),
)
"""The preprocessing of texts."""

computation = _decorators(
    click.option(
        "-b",
        "--backbone",
        required=True,
        shell_complete=complete_backbone,
        help="tiny, a torchvision classification model, timm:NAME[.TAG], open_clip:MODEL/TAG, or "
        "package.module:factory; ngram-hash for texts; mel-statistics or resemblyzer for sound; hf:ORG/NAME[@REVISION] "
        "for all. A folder: timm:FOLDER, open_clip:FOLDER, hf:FOLDER.",
    ),
    click.option(
        "--weights", default="DEFAULT", show_default=True, help="Entry, `random[:SEED]`, or a .pth/.safetensors file."
    ),
    click.option(
        "--layer",
        multiple=True,
        help="Node to use instead of the input of the final classifier, NAME or NAME:POOLING. Several times: several "
        "layers in one pass. all-blocks: the output of each stage or block; input: the input of the network.",
    ),
    click.option(
        "--pooling",
        type=click.Choice(["auto", "none", "mean", "cls", "max", "mean_sqrt_len", "pooler", "projection"]),
        default="auto",
        show_default=True,
        help="mean: the average over positions of a map or of tokens (without a class token). cls, max, "
        "mean_sqrt_len, pooler and projection are for hf: backbones only.",
    ),
    transform_options,
    clip_options,
    text_options,
    click.option(
        "--engine",
        type=click.Choice(["auto", "torch", "openvino"]),
        default="auto",
        show_default=True,
        help="Engine of the forward pass; auto is OpenVINO if it is installed and there is no GPU.",
    ),
    click.option(
        "--precision",
        type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
        default="auto",
        show_default=True,
        help="Precision of the computation; auto is the first of a fixed list that matches fp32 on 32 of the samples.",
    ),
    click.option(
        "--compile",
        type=click.Choice(["auto", "on", "off"]),
        default="auto",
        show_default=True,
        help="Use torch.compile. auto uses it only for many samples, where it saves time (10,000 or more on a CPU).",
    ),
    click.option(
        "--dtype",
        type=click.Choice(["auto", "float16", "float32", "int8"]),
        default="auto",
        show_default=True,
        help="Of the stored features; auto is float32 for fp32, else float16. int8: 8 bits by channel for layers with "
        "positions, float16 for vectors.",
    ),
    click.option(
        "--views", type=int, default=1, show_default=True, help="Views of each image, each with a forward pass."
    ),
    click.option(
        "--augment",
        metavar="STEP,...",
        help="Augmentation of the views other than the first: flip, crop, color, or a torchvision v2 transform as "
        "package.module:name.",
    ),
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, ..."),
    click.option(
        "--batch-size",
        type=int,
        help="Inputs a forward pass: images, texts, or windows of clips.  [default: by engine and device]",
    ),
    click.option("--workers", type=int, help="Decoding threads, or processes.  [default: one for each core]"),
)
"""From --backbone to --workers; `taken_apart` sorts what they give."""


def computing(*names: str) -> Callable[[Command], Command]:
    """Some of the options of `computation`, by their parameters' names, for commands that leave the others open."""

    def apply(command: Command) -> Command:
        every = computation(lambda: None).__click_params__  # type: ignore[attr-defined]  # click's own place for them
        chosen = [option for option in every if option.name in names]
        command.__click_params__ = [*getattr(command, "__click_params__", []), *chosen]  # type: ignore[attr-defined]
        return command

    return apply


running_options = computing(
    *("resize", "crop", "interpolation", "fast_decode", "decoder", "mean", "std"),
    *("engine", "precision", "device", "batch_size", "workers"),
)
"""Of commands that choose layers, storage and views themselves."""


source_options = _decorators(
    click.option(
        "--root",
        type=click.Path(),
        help="Folder or s3://bucket/prefix that paths in a table or list are relative to, by default where it lies; "
        "or folder with the files of torchvision:NAME.",
    ),
    click.option(
        "--path-column",
        metavar="NAME",
        help="Column of a table with the paths, or of a data set with the images.  [default: path; image]",
    ),
    click.option(
        "--text-column",
        metavar="NAME",
        help="Column of a table with the texts themselves, for backbones that take texts.  [default: text]",
    ),
    click.option("--id-column", metavar="NAME", help="Column with the ids.  [default: in a table id, else the paths]"),
    click.option(
        "--label-column",
        metavar="NAME",
        help="Column with the classes.  [default: label, if there is one; of shards .cls]",
    ),
    click.option(
        "--split-column",
        metavar="NAME",
        help="Column with train, val or test, or nothing.  [default: split, if there is one]",
    ),
)
"""How tables and lists of files are read; `columns_taken` sorts what they give."""


keep_option = click.option(
    "--keep-column",
    "keep",
    metavar="NAME",
    multiple=True,
    help="Also store this column of the table, or field of the .json in shards: groups, targets, texts. Several times: "
    "several columns.",
)
executor_options = _decorators(
    click.option(
        "--executor",
        metavar="NAME",
        default="auto",
        show_default=True,
        help="Who computes: local, threads here; processes, which read and decode here; auto, one of these by device; "
        "ray, an actor for each GPU here (or of the cluster of RAY_ADDRESS); ray://HOST:PORT, of a cluster. See "
        "docs/scale.md.",
    ),
    click.option("--exact", is_flag=True, help="With ray: refuse nodes whose GPU, or processor, is another model."),
)
"""Where rows are computed."""


def _part(ctx: click.Context, parameter: click.Parameter, part: str | None) -> str | None:  # noqa: ARG001
    if part is not None:
        check_array(part, os.environ)
    return part


shard_option = click.option(
    "--shard",
    "part",
    metavar="I/N",
    callback=_part,
    help="Use only part I of N of the samples, for jobs that share the work.",
)
task_option = click.option(
    "--task",
    type=click.Choice(["auto", "classes", "labels", "number"]),
    default="auto",
    show_default=True,
    help="The task: predict one class, several labels, or a number.",
)
label_column_option = click.option(
    "--label-column",
    metavar="NAME",
    multiple=True,
    help="A further column with the labels, instead of the cache's own. Several: columns of 0 and 1, a label each.",
)
label_separator_option = click.option(
    "--label-separator",
    metavar="TEXT",
    help="Separator between several labels in one text.  [default: ;]",
)
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace any ordinary file of that name.")
allow_skipped_option = click.option("--allow-skipped", is_flag=True, help="Exit with 0 even if samples were skipped.")


group_options = _decorators(
    click.option(
        "--groups", help="Regular expression whose first (...) extracts from an id the group to keep on one side."
    ),
    click.option(
        "--groups-file", type=click.Path(), help="CSV file with the columns id and group, instead of --groups."
    ),
)
learning_options = _decorators(
    group_options,
    click.option(
        "--groups-column", metavar="NAME", help="Column of the cache that holds the groups, instead of --groups."
    ),
    label_column_option,
    label_separator_option,
    click.option(
        "--split-column",
        metavar="NAME",
        help="Column of the cache that holds train, val and test, instead of its own splits.",
    ),
    click.option(
        "--labels",
        type=click.Path(),
        help="CSV file with the columns id (or path) and label, instead of the cache's labels.",
    ),
    click.option("--expect", type=int, metavar="N", help="Samples that --labels must name at least."),
    click.option(
        "--similarity",
        type=float,
        help="Cosine from which a sample is a suspected near-duplicate.  [default: 0.9, of clips 0.98]",
    ),
    click.option("--plain-view", is_flag=True, help="Train only on the plain view, with a cache of several."),
    click.option(
        "--average-views", is_flag=True, help="Predict and score by the mean over all views instead of the plain view."
    ),
)
"""What is learned of a cache, and how it is scored."""


def layer_lines(layers: dict[str, tuple[int, ...]], dtype: str, views: int = 1) -> str:
    """A line for each layer, such as `layer4, 512 x 7 x 7 float16`."""
    return "\n".join(
        f"{layer}, {shape_words(shape, views)} {_stored_as(dtype, len(shape) - (views > 1))}"
        for layer, shape in layers.items()
    )


def _stored_as(dtype: str, axes: int) -> str:
    """The dtype of a layer with so many axes, where that of the file is `dtype`: vectors are not stored in 8 bits."""
    return "float16" if dtype == "int8" and axes == 1 else dtype


def view_words(views: int, windows: int, one: str) -> str:
    """Such as `8 of each image`; for clips, `the mean of each clip's windows, and 7 of these`."""
    return f"the mean of each clip's windows, and {windows} of these" if windows else f"{views} of each {one}"


def shape_words(shape: Sequence[int], views: int = 1) -> str:
    """Such as `512 x 7 x 7`, or `8 views x 512`."""
    first = [f"{views} views"] if views > 1 else []
    return " x ".join([*first, *map(str, shape[len(first) :])])


def columns_taken(options: dict[str, Any]) -> dict[str, Any]:
    """Options with the names of a table's columns that were given, in a separate dictionary."""
    rest = {name: value for name, value in options.items() if not name.endswith("_column")}
    columns = {name.removesuffix("_column"): value for name, value in options.items() if name not in rest}
    return {**rest, "columns": {part: name for part, name in columns.items() if name is not None}}


def one_or_several(names: Sequence[str]) -> str | list[str] | None:
    """What an option that may be given again names: nothing, one, or several."""
    return names[0] if len(names) == 1 else list(names) or None


def taken_apart(options: dict[str, Any]) -> dict[str, Any]:
    """Options as `extract` takes them: those of the transform that were given, in a separate dictionary."""
    options = transform_taken(columns_taken(options))
    return {**options, "layer": one_or_several(options.pop("layer"))}


def transform_taken(options: dict[str, Any]) -> dict[str, Any]:
    """Options with those of the transform that were given, in a separate dictionary."""
    rest = {name: value for name, value in options.items() if name not in TRANSFORM}
    given = {name: options[name] for name in TRANSFORM if options.get(name) is not None}
    return {**rest, "transform": given}
