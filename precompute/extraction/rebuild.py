"""The spec that a head or a feature file carries -> the backbone it refers to, and no other."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from precompute.backbones.families import family_of, is_factory, prefix_of
from precompute.backbones.load import MAX_LAYERS, Backbone, load_backbone
from precompute.cache import INT8, difference, plain_spec
from precompute.errors import PrecomputeError
from precompute.inputs.images.augmentation import augment_names
from precompute.inputs.images.transform import Transform
from precompute.inputs.kinds import options_of
from precompute.system.code import is_code
from precompute.system.samples import words_of_spec

EXTERNAL = "external"
"""The backbone of imported features, in the settings of a file."""


@dataclass(frozen=True)
class Origin:
    """The words for the file that carries a spec: `The head a.safetensors`, `was trained`, `on`; what to raise."""

    file: str
    verb: str
    preposition: str
    mismatch: type[PrecomputeError]
    malformed: type[PrecomputeError]


def rebuild_backbone(
    spec: Any,
    source: Any,
    origin: Origin,
    *,
    backbone: str | None = None,
    weights: str | None = None,
    layers: Collection[str] | None = None,
    augment: str | Sequence[str] | None = None,
    plain: bool = False,
) -> tuple[Backbone, dict[str, Any]]:
    """The backbone of `spec`, its weights found by `source` (see `Backbone`) or given, and the spec, checked.

    layers: those that are needed, whatever their order; all by default, in the order of the spec. augment: names of
    transforms that are code and are trusted. plain: of several views the plain one is enough.
    The file may come from a stranger: it does not decide what code runs, and weights are compared by their contents.
    Raises origin.malformed for a spec that is none, origin.mismatch where weights, transform or layer differ.
    """
    if isinstance(spec, dict) and spec.get("backbone") == EXTERNAL:
        raise origin.mismatch(
            f"{origin.file} {origin.verb} {origin.preposition} imported features, and no "
            f"{words_of_spec(spec).one} can be turned into those here.",
            hint="Give it features that were imported under the same --name: precompute predict HEAD CACHE.",
        )
    spec = _checked(spec, origin)
    if plain:
        spec = plain_spec(spec)
    name, steps = spec["backbone"], _steps(spec, origin)
    if backbone is not None and backbone != name and family_of(backbone).canonical(backbone) != name:
        raise origin.mismatch(
            f"{origin.file} {origin.verb} {origin.preposition} {name}, not {origin.preposition} {backbone}.",
            hint="Leave -b out, or take another file.",
        )
    if is_factory(name) and backbone is None:
        raise origin.mismatch(
            f"{origin.file} names a backbone that is code: {name}. A file does not decide which code runs.",
            hint=f"If you trust that code, confirm it: -b {name}",
        )
    code = [step for step in steps if is_code(step)]
    if untrusted := sorted({*code} - {*augment_names(augment)}):
        raise origin.mismatch(
            f"{origin.file} names a transform that is code: {untrusted[0]}. A file does not decide which code runs.",
            hint=f"If you trust that code, confirm it: --augment {','.join(code)}",
        )
    needed = [one for one in spec["layers"] if layers is None or one["name"] in layers]
    if not needed:
        raise origin.malformed(
            f"{origin.file} refers to a layer {', '.join(map(repr, layers or ()))} that its own settings do not name.",
            hint="Use one that precompute made.",
        )
    own = "crop" not in spec["transform"]  # no images': a factory's own has no options
    found, choice = (backbone or name, weights) if weights else _find(name, source, origin, given=backbone)
    model = load_backbone(
        found,
        weights=choice,
        layer=[f"{one['name']}:{one['pooling']}" for one in needed],
        transform=(options_of(spec) or None) if own else vars(Transform.from_spec(spec["transform"])),
        views=spec["views"] if steps else 1,
        augment=steps,
    )
    model = model.plain() if plain else model
    now = model.spec(precision=spec["precision"], storage=spec["storage"])
    if layers is not None:
        place = {one["name"]: number for number, one in enumerate(now["layers"])}
        needed.sort(key=lambda one: place.get(one["name"], len(place)))
    if lines := difference({**spec, "layers": needed}, now):
        listed = "\n".join(f"  {line}" for line in lines)
        raise origin.mismatch(
            f"{origin.file} {origin.verb} {origin.preposition} other features (then -> now):\n{listed}",
            hint=_other_library(lines)
            or "Use the original weights (--weights PATH), or make features with these weights.",
        )
    return model, spec


def _other_library(lines: Sequence[str]) -> str | None:
    """What to do where nothing differs but the release of the library that the network's code comes from."""
    if not all(line.startswith("backend.") for line in lines):
        return None
    package, _, releases = lines[0].removeprefix("backend.").partition(": ")
    return f"Install the original release, {package} {releases.partition(' -> ')[0]}, or make features with this one."


def _checked(spec: Any, origin: Origin) -> dict[str, Any]:
    """`spec` with its types known to be right."""
    good = (
        isinstance(spec, dict)
        and all(isinstance(spec.get(name), str) for name in ("backbone", "weights", "precision"))
        and spec.get("storage") in ("float16", "float32", INT8)
        and isinstance(spec.get("transform"), dict)
        and isinstance(spec.get("layers"), list)
        and 1 <= len(spec["layers"]) <= MAX_LAYERS
        and all(isinstance(one, dict) for one in spec["layers"])
        and all(isinstance(one.get(name), str) for one in spec["layers"] for name in ("name", "pooling"))
    )
    if not good:
        raise origin.malformed(
            f"{origin.file} does not say which features it {origin.verb} {origin.preposition}.",
            hint="Use one that precompute made.",
        )
    checked: dict[str, Any] = spec
    return checked


def _steps(spec: dict[str, Any], origin: Origin) -> list[str]:
    """Names of the transforms that make the views, from a file that may come from a stranger."""
    augment = spec.get("augment")
    if isinstance(augment, dict) and "windows" in augment:
        return []  # views that are windows of a clip: `options_of` speaks of them
    steps = augment.get("steps") if isinstance(augment, dict) else None
    if augment is None:
        return []
    names = [step.get("name") if isinstance(step, dict) else None for step in steps] if isinstance(steps, list) else []
    if not names or not all(isinstance(name, str) for name in names) or not isinstance(spec.get("views"), int):
        raise origin.malformed(
            f"{origin.file} does not say what its views were made by.", hint="Use one that precompute made."
        )
    return [str(name) for name in names]


def _find(name: str, source: Any, origin: Origin, *, given: str | None) -> tuple[str, str]:
    """The name and the --weights that lead to the weights of then. given: the name that the user gave."""
    if isinstance(source, dict) and source.get("kind") == "folder" and isinstance(source.get("path"), str):
        if given is None and not os.path.isdir(source["path"]):
            raise origin.mismatch(
                f"The folder of the backbone that {origin.file[0].lower()}{origin.file[1:]} {origin.verb} "
                f"{origin.preposition} is no longer at {source['path']}.",
                hint=f"Say where it is now: -b {prefix_of(name)}:FOLDER (its contents are checked, not its name).",
            )
        place = f"{prefix_of(name)}:{source['path']}" if given in (None, name) else str(given)
        seed, path = source.get("seed"), source.get("weights")
        return place, f"random:{seed}" if isinstance(seed, int) else path if isinstance(path, str) else "DEFAULT"
    if isinstance(source, dict) and source.get("kind") == "hub" and given in (None, name):
        seed, path = source.get("seed"), source.get("weights")
        place = f"{prefix_of(name)}:{source.get('repository')}@{source.get('revision')}"
        return place, f"random:{seed}" if isinstance(seed, int) else path if isinstance(path, str) else "DEFAULT"
    return given or name, _find_weights(source, origin)


def _find_weights(source: Any, origin: Origin) -> str:
    """The --weights that leads to the weights of then."""
    source = source if isinstance(source, dict) else {}
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
        raise origin.mismatch(
            f"The weights that {origin.file[0].lower()}{origin.file[1:]} {origin.verb} with are no longer at "
            f"{source['path']}.",
            hint="Say where they are now: --weights PATH (their contents are checked, the name does not matter).",
        )
    raise origin.malformed(
        f"{origin.file} does not say where its weights came from.", hint="Name them: --weights PATH or an entry."
    )
