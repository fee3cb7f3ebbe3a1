"""head file x images -> labels, with the very features that the head was trained on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from precompute.backbones import Backbone, load_backbone
from precompute.cache import difference
from precompute.decode import quiet_pillow
from precompute.engine import TorchEngine, choose
from precompute.errors import HeadFormatError, HeadMismatchError
from precompute.heads import SavedHead, load_head
from precompute.heads.scores import wilson_interval
from precompute.sources import Listing, list_folder
from precompute.stream import forward
from precompute.transform import DECODER, Transform


@dataclass(frozen=True)
class Prediction:
    """One image. label: the most probable class · true: the class of its folder, None where that is no class."""

    id: str
    label: str
    probability: float
    true: str | None


@dataclass
class Predictions:
    """All images in the order of their ids. failed: (id, reason, detail) of those without a prediction."""

    classes: list[str]
    items: list[Prediction] = field(default_factory=list)
    failed: list[tuple[str, str, str]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def scored(self) -> int:
        """Images whose folder names a class that the head knows."""
        return sum(item.true is not None for item in self.items)

    @property
    def accuracy(self) -> float | None:
        """Share of the scored images that are right; None where none can be scored."""
        return self._hits() / self.scored if self.scored else None

    @property
    def accuracy_interval(self) -> tuple[float, float] | None:
        """Wilson's 95% interval of the accuracy."""
        return wilson_interval(self._hits(), self.scored) if self.scored else None

    def _hits(self) -> int:
        return sum(item.label == item.true for item in self.items)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "n": len(self.items),
            "classes": self.classes,
            "scored": self.scored,
            "accuracy": self.accuracy,
            "accuracy_interval": self.accuracy_interval,
            "predictions": [vars(item) for item in self.items],
            "failed": [{"id": name, "reason": reason, "detail": detail} for name, reason, detail in self.failed],
            "seconds": self.seconds,
        }


def predict(
    head: str | os.PathLike[str],
    source: str | os.PathLike[str],
    *,
    backbone: str | None = None,
    weights: str | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Predictions:
    """Classify the images below `source` (or the one image it is) with a saved head.

    Backbone, layer, transform and precision come from the head file; the weights are found again where they came
    from, or at `weights`, and must have the digest that the head was trained with.

    backbone: must be given, as a confirmation, for a head whose backbone is code of the user's own. progress: called
    with (done, total).
    Raises HeadFormatError, HeadMismatchError, BackboneError, WeightsError, SourceError, DeviceError.
    """
    began = time.monotonic()
    saved = load_head(head)
    listing = list_folder(source)
    model, precision, storage = rebuild(saved, os.fspath(head), backbone=backbone, weights=weights)
    engine = TorchEngine(
        model.module, model.transform, choose(device=device, precision=precision, batch_size=batch_size)
    )
    result = Predictions(classes=[str(name) for name in saved.head.classes_])
    rows = np.arange(len(listing))
    done = 0
    with quiet_pillow():
        for block in forward(listing, rows, engine, model.transform, workers=workers or len(os.sched_getaffinity(0))):
            if block.features is not None:
                # Rounded as in the cache, so that a prediction equals one from cached features.
                X = block.features.astype(storage).astype(np.float32).reshape(len(block.decoded), -1)
                for item, row in zip(block.decoded, saved.head.predict_proba(X), strict=True):
                    best = int(row.argmax())
                    name, true = _name(listing, item.row), _true(listing, item.row, result.classes)
                    result.items.append(Prediction(name, result.classes[best], float(row[best]), true))
            for item in block.failed:
                assert item.error is not None  # that is what puts it here
                result.failed.append((_name(listing, item.row), item.error.reason, item.error.message))
            done += len(block)
            if progress is not None:
                progress(done, len(listing))
    result.seconds = time.monotonic() - began
    return result


def _name(listing: Listing, row: int) -> str:
    return os.fsdecode(bytes(listing.ids[row])) or os.path.basename(os.fsdecode(listing.root))


def _true(listing: Listing, row: int, classes: list[str]) -> str | None:
    label = int(listing.labels[row])
    name = os.fsdecode(listing.classes[label]) if label >= 0 else None
    return name if name in classes else None


def rebuild(
    saved: SavedHead, path: str, *, backbone: str | None = None, weights: str | None = None
) -> tuple[Backbone, str, np.dtype[Any]]:
    """The backbone that a head was trained on, its precision and the dtype its features were stored in.

    Raises HeadMismatchError where weights, transform or layer differ from those of the training.
    """
    spec, source, width = _read_metadata(saved, path)
    name = spec["backbone"]
    if backbone is not None and backbone != name:
        raise HeadMismatchError(
            f"The head {path} was trained on {name}, not on {backbone}.", hint="Leave -b out, or take another head."
        )
    if ":" in name and backbone is None:
        raise HeadMismatchError(
            f"The head {path} names a backbone that is code: {name}. A head file does not decide what code runs.",
            hint=f"If you trust that code, say so: -b {name}",
        )
    layer = spec["layers"][0]
    model = load_backbone(
        name,
        weights=weights or _find_weights(source, path),
        layer=layer["name"],
        pooling=layer["pooling"],
        transform=vars(Transform.from_spec(spec["transform"])),
    )
    now = model.spec(decoder=DECODER, precision=spec["precision"], storage=spec["storage"])
    if lines := difference(spec, now):
        raise HeadMismatchError(
            "\n".join(
                [f"The head {path} was trained on other features (then -> now):", *(f"  {line}" for line in lines)]
            ),
            hint="Name the weights it was trained with (--weights PATH), or train a head on features made with these.",
        )
    if int(np.prod(model.shape)) != width:
        raise HeadMismatchError(
            f"The head {path} takes {width} features; {name} gives {model.shape}.", hint="Train the head again."
        )
    return model, spec["precision"], np.dtype(spec["storage"])


def _read_metadata(saved: SavedHead, path: str) -> tuple[dict[str, Any], dict[str, Any], int]:
    """(spec, where the weights came from, width), their types checked: the file may come from a stranger."""
    spec, source = saved.metadata.get("spec"), saved.metadata.get("weights_source", {})
    good = (
        isinstance(spec, dict)
        and isinstance(source, dict)
        and all(isinstance(spec.get(name), str) for name in ("backbone", "weights", "precision"))
        and spec.get("storage") in ("float16", "float32")
        and isinstance(spec.get("transform"), dict)
        and isinstance(spec.get("layers"), list)
        and len(spec["layers"]) == 1
        and isinstance(spec["layers"][0], dict)
        and all(isinstance(spec["layers"][0].get(name), str) for name in ("name", "pooling"))
    )
    if not good:
        raise HeadFormatError(
            f"The head {path} does not say which features it was trained on.",
            hint="Use a head saved by `precompute train-head -o`.",
        )
    assert isinstance(spec, dict)  # checked above; mypy does not see through `good`
    return spec, source, int(saved.head.n_features_in_)


def _find_weights(source: dict[str, Any], path: str) -> str:
    """The --weights that leads to the weights of the training."""
    kind = source.get("kind")
    if kind in ("embedded", "factory"):
        return "DEFAULT"
    if kind == "entry" and isinstance(source.get("entry"), str):
        return str(source["entry"])
    if kind == "random" and isinstance(source.get("seed"), int):
        return f"random:{source['seed']}"
    if kind == "file" and isinstance(source.get("path"), str):
        if os.path.isfile(source["path"]):
            return str(source["path"])
        raise HeadMismatchError(
            f"The weights that the head {path} was trained with are no longer at {source['path']}.",
            hint="Say where they are now: --weights PATH (their contents are checked, the name does not matter).",
        )
    raise HeadFormatError(
        f"The head {path} does not say where its weights came from.", hint="Name them: --weights PATH or an entry."
    )
