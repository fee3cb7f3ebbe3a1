"""Backbones that take clips: `mel-statistics`, which is embedded, and `resemblyzer`, with weights from a file."""

from __future__ import annotations

import torch
from torch import nn

from precompute.backbones.families.base import DEFAULT, Entry, Family, Loaded, path_of, random_seed, with_file
from precompute.backbones.families.registry import MEL_STATISTICS, RESEMBLYZER
from precompute.backbones.layers import OUTPUT
from precompute.backbones.mel_statistics import MelStatistics
from precompute.backbones.meta import ParametersOnMeta
from precompute.backbones.resemblyzer import WIDTH, VoiceEncoder
from precompute.errors import BackboneError, WeightsError
from precompute.inputs.audio.decode import libraries
from precompute.inputs.audio.partials import PartialsPreprocess
from precompute.inputs.audio.preprocess import AudioPreprocess, LogMelPreprocess
from precompute.inputs.kinds import AUDIO


class Sound(Family):
    """Two names; the feature of each is the output."""

    packages = ("soundfile", "soxr")

    def names(self) -> list[str]:
        return [MEL_STATISTICS, RESEMBLYZER]

    def check(self, name: str) -> None:
        """Their names are all there is."""

    def load(self, name: str, weights: str) -> Loaded:
        libraries()  # before the work, not at the first clip
        base = _preprocess(name)
        if name == MEL_STATISTICS:
            if weights != DEFAULT:
                raise WeightsError(f"{name} has no weights: it computes statistics.", hint="Leave --weights out.")
            return Loaded(name, self.build(name, seed=0), {"kind": "embedded"}, base)
        seed = random_seed(weights)
        if seed is not None:
            source = {"kind": "random", "seed": seed}
            return Loaded(name, self.build(name, seed=seed), source, base, ("weights are random",))
        if weights == DEFAULT:
            raise WeightsError(
                f"The weights of {name} are not included.",
                hint="Name the file of them, .safetensors or .pth: --weights FILE (see docs/audio.md).",
            )
        return with_file(self, name, self.build(name, seed=None), path_of(name, weights), base)

    def build(self, name: str, *, seed: int | None) -> nn.Module:
        if name == MEL_STATISTICS:
            return MelStatistics().eval()
        if seed is None:
            with ParametersOnMeta():
                return VoiceEncoder().eval()
        with torch.random.fork_rng(devices=[]):  # the caller's random state stays as it was
            torch.manual_seed(seed)
            return VoiceEncoder().eval()

    def describe(self, name: str, *, quick: bool = False) -> Entry:  # noqa: ARG002 - it is quick
        params = sum(parameter.numel() for parameter in self.build(name, seed=None).parameters())
        preprocess = _preprocess(name)
        width = 3 * preprocess.mels if isinstance(preprocess, LogMelPreprocess) else WIDTH
        weights = (DEFAULT,) if name == MEL_STATISTICS else ()
        return Entry(name, width, None, params, None, None, OUTPUT, weights, AUDIO)

    def default_layer(self, name: str, model: nn.Module) -> tuple[str, str, tuple[str, ...]]:  # noqa: ARG002
        return OUTPUT, "none", ()

    def final_classifier(self, model: nn.Module) -> str:  # noqa: ARG002
        raise BackboneError("A backbone that takes clips has no classifier.", hint="Use its output.")


def _preprocess(name: str) -> AudioPreprocess:
    return LogMelPreprocess() if name == MEL_STATISTICS else PartialsPreprocess()


FAMILY = Sound()
