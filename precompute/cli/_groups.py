"""Under which heading of `--help` an option and a command stand.

A new option needs a line here only where no option of its name has one, or where it means something else in one
command. One without a line is under OTHER, and tests/test_help.py names it.
"""

from __future__ import annotations

OTHER, OTHER_COMMANDS = "Other options", "Other commands"

OPTIONS: dict[str, tuple[str, ...]] = {
    "Input": (
        *("source", "root", "path-column", "text-column", "id-column", "label-column", "split-column", "keep-column"),
        *("limit", "shard", "images", "on-error", "rehash", "reuse", "join", "plain-view", "text", "audio"),
    ),
    "Labels and groups": (*("task", "labels", "expect", "label-separator", "groups", "groups-file", "groups-column"),),
    "Backbone": (*("backbone", "weights", "weights-a", "weights-b", "layer", "pooling", "tail", "freeze-to", "cut"),),
    "Preprocessing": (
        *("resize", "crop", "interpolation", "fast-decode", "decoder", "mean", "std"),
        *("window", "hop", "max-seconds", "windows", "max-length", "views", "augment"),
    ),
    "Head": (
        *("head", "C", "fraction", "queries", "hidden", "dropout", "batch-norm", "k", "temperature", "alpha", "metric"),
        "protocol",
    ),
    "Training": (
        *("label-smoothing", "mixup", "weight-decay", "learning-rate", "schedule", "warmup", "train-batch"),
        *("epochs", "max-epochs", "patience", "search", "time-budget", "seed", "checkpoint-seconds"),
        *("shots", "draws", "methods"),
    ),
    "Scores": ("calibrate", "per-class", "similarity", "average-views"),
    "Repair": ("repair",),
    "Page": ("thumbnails", "results", "compare", "map"),
    "Speed": ("engine", "precision", "compile", "device", "batch-size", "workers", "executor", "exact"),
    "Output": (
        *("output", "dtype", "features", "format", "name", "layers", "folder", "plot", "title"),
        *("report", "overwrite", "allow-skipped", "dry-run", "verbose", "json"),
    ),
    OTHER: (),
    "General": ("config", "debug", "version", "help"),
}
"""Headings in the order in which they are shown, each with the names of its options."""

IN_ONE_COMMAND: dict[tuple[str, str], str] = {
    ("train-head", "layer"): "Input",
    ("few-shot", "layer"): "Input",
    ("export", "layer"): "Input",
    ("train-head", "batch-size"): "Training",
    ("fine-tune", "batch-size"): "Training",
    ("report", "layer"): "Input",
    ("report", "seed"): "Page",
    **{(name, "label-column"): "Labels and groups" for name in ("train-head", "few-shot", "fine-tune")},
    **{(name, "split-column"): "Labels and groups" for name in ("train-head", "few-shot", "fine-tune")},
    **{("verify", name): "Repair" for name in ("backbone", "weights", "augment")},
    ("compare", "seed"): "Scores",
    ("fine-tune", "dropout"): "Training",
}
"""Where an option stands elsewhere than its name would say, by command and name."""

COMMANDS: dict[str, dict[str, str]] = {
    "Features": {
        "extract": "Run a frozen backbone once and keep its features.",
        "plan": "Say what an extraction would take: time, memory, disk.",
        "import": "Make a feature file of features from elsewhere.",
    },
    "Heads": {
        "train-head": "Train a head on features, and score it.",
        "fine-tune": "Train the last layers of a network, or all of it.",
        "predict": "Predict classes, labels or numbers of new samples.",
    },
    "Choose": {
        "rank": "Which backbone, and which layer?",
        "few-shot": "How many labels?",
        "depth": "How many layers to train?",
        "compare": "Is one head better than another?",
    },
    "Take along": {
        "export": "Write features, or a head and its network, for other programs.",
    },
    "Look": {
        "report": "Show results in a page that needs no network.",
        "info": "Show what a feature file or a head holds.",
        "verify": "Compare every row with its checksum, or its sample.",
        "backbones": "List backbones, or the layers of one.",
        "doctor": "Check this machine: devices, packages, folders, weights.",
        "schema": "Show what the JSON of a command holds.",
        "demo": "Try it all on data that needs no download.",
    },
    OTHER_COMMANDS: {},
}
"""The list of commands in `precompute --help`, in this order, each in a few words; without them click's own."""

_HOMES = {name: heading for heading, names in OPTIONS.items() for name in names}


def heading_of(command: str, name: str) -> str:
    """The heading of an option, by its long name without dashes."""
    return IN_ONE_COMMAND.get((command, name)) or _HOMES.get(name, OTHER)


def section_of(command: str) -> str:
    """The section of a command."""
    return next((section for section, names in COMMANDS.items() if command in names), OTHER_COMMANDS)
