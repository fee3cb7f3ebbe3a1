"""`package.module:factory`: a network of the user's own, which decides about its weights."""

from __future__ import annotations

from torch import nn

from precompute.backbones import layers
from precompute.backbones.families.base import DEFAULT, Entry, Family, Loaded, path_of, unlisted, with_file
from precompute.errors import BackboneError, WeightsError
from precompute.inputs.base import Preprocess
from precompute.inputs.images.transform import Transform
from precompute.system.code import current_folder_importable, load_attribute

USUAL = "the transform is ImageNet's usual one"


class Factories(Family):
    """Code, which may change from one run to the next."""

    def check(self, name: str) -> None:
        """Whether there is such a factory shows when it is imported."""

    def load(self, name: str, weights: str) -> Loaded:
        if weights.partition(":")[0] == "random":
            raise WeightsError(f"{name} chooses its own weights.", hint="Let the factory return random weights.")
        model, own = run_factory(name)
        base, notes = own or Transform(), () if own else (USUAL,)
        if weights == DEFAULT:
            return Loaded(name, model, {"kind": "factory"}, base, notes)
        return with_file(self, name, model, path_of(name, weights), base, notes)

    def build(self, name: str, *, seed: int | None) -> nn.Module:  # noqa: ARG002 - it chooses its own weights
        return run_factory(name)[0]

    def describe(self, name: str, *, quick: bool = False) -> Entry:  # noqa: ARG002 - nothing is known
        raise unlisted(name)

    def default_layer(self, name: str, model: nn.Module) -> tuple[str, str, tuple[str, ...]]:
        try:
            return super().default_layer(name, model)
        except BackboneError as error:
            return layers.OUTPUT, "none", (f"the output of {name} is the feature: {error.message}",)

    def loading_code(self, name: str, outputs: int) -> str:
        return f"{name.replace(':', '.')}(), its classifier replaced by one of {outputs} outputs"


def run_factory(name: str) -> tuple[nn.Module, Preprocess | None]:
    """Import `package.module:factory` (also from the current folder) and call it: a module, or one and its Preprocess.

    Raises BackboneError where the import or the call fails, or where no torch.nn.Module comes back.
    """
    module_name, _, attribute = name.partition(":")
    with current_folder_importable():
        try:
            made = load_attribute(name)()
        except Exception as error:
            raise BackboneError(
                f"The backbone factory {name} failed: {type(error).__name__}: {error}",
                hint=f"Check it with: python -c 'from {module_name} import {attribute}; {attribute}()'",
            ) from error
    model, own = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if own is not None and not isinstance(own, Preprocess):
        raise BackboneError(
            f"The backbone factory {name} returned a {type(own).__name__} together with its module.",
            hint="The second value must be a precompute.inputs.base.Preprocess.",
        )
    if not isinstance(model, nn.Module):
        raise BackboneError(
            f"The backbone factory {name} returned a {type(model).__name__}.",
            hint="It must return a torch.nn.Module that takes (B, 3, H, W) float images, or one and its Preprocess.",
        )
    return model.cpu().eval(), own  # it may come from a GPU; the engine decides where it runs


FAMILY = Factories()
