"""Audio models of transformers: windows of a clip, as their feature extractor makes them.

Its settings, preprocessor_config.json, may come from a stranger: each value is looked at before memory is taken for it,
and what would make features random or depend on their neighbours is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from precompute.backbones.families.hf_audio_encoders import (
    ClapEncoder,
    SpectrogramEncoder,
    WaveformEncoder,
    WhisperEncoder,
)
from precompute.backbones.families.hf_encoder import Parts
from precompute.backbones.families.hf_folder import CONFIG, HFFolder
from precompute.backbones.families.hf_models import ModelType
from precompute.errors import BackboneError, WeightsError
from precompute.inputs.audio.decode import libraries
from precompute.inputs.audio.filterbanks import STEP, FilterbankPreprocess
from precompute.inputs.audio.spectrograms import PADDINGS, ClapPreprocess, WhisperPreprocess
from precompute.inputs.audio.waveform import WaveformPreprocess, receptive_field

SETTINGS, NESTED = "preprocessor_config.json", "processor_config.json"
RATES = (1_000, 384_000)
LONGEST_WINDOW = 120  # seconds
MOST_SAMPLES = 2**23  # of a window
MOST_FFT = 4096  # whose DFT, as a matrix, takes 67 MB
MOST_FRAMES = 2**14  # of a spectrogram
MOST_PIECES = 256
"""Frames are assembled of pieces as long as the common divisor of a frame and the step to the next."""

MASKED = "masked_spec_embed"
"""Replaces frames that training hides; published weights lack it, and features do not need it."""


def load(folder: HFFolder, kind: ModelType) -> Parts:
    """What `hf_encoder` says. Raises BackboneError and WeightsError for a folder that is none of sound."""
    libraries()  # before the work, not at the first clip
    found: Parts = LOADERS[folder.config["model_type"]](folder, kind)
    return found


def _waveform(folder: HFFolder, kind: ModelType) -> Parts:
    given = _Extractor(folder, "Wav2Vec2FeatureExtractor")
    config, where = folder.config, f"{folder.path}/{CONFIG}"
    for name in ("add_adapter", "conv_pos_batch_norm"):
        if config.get(name):
            raise BackboneError(
                f"{where} has {name}, which precompute does not compute.",
                hint="Give the network in your own factory: package.module:factory.",
            )
    kernels = _sizes(where, config, "conv_kernel", (10, 3, 3, 3, 3, 2, 2))
    strides = _sizes(where, config, "conv_stride", (5, 2, 2, 2, 2, 2, 2))
    if len(kernels) != len(strides):
        raise _bad(where, "conv_stride", strides)
    frame, step = receptive_field(kernels, strides)
    rate = given.whole("sampling_rate", 16_000, *RATES)
    if frame > rate or step > frame:
        raise WeightsError(
            f"{where} describes convolutions whose outputs see {frame:,} samples each, {step:,} from one to the next.",
            hint="Use a folder saved by transformers.",
        )
    given.fixed("feature_size", 1)
    given.fixed("padding_value", 0)
    base = WaveformPreprocess(rate=rate, frame=frame, step=step, normalize=given.flag("do_normalize", default=True))
    return Parts(lambda network: WaveformEncoder(network, kind, frame, step), base, pooler=MASKED)


def _whisper(folder: HFFolder, kind: ModelType) -> Parts:
    given = _Extractor(folder, "WhisperFeatureExtractor")
    given.fixed("dither", 0)
    given.fixed("padding_value", 0)
    rate, seconds = given.whole("sampling_rate", 16_000, *RATES), given.whole("chunk_length", 30, 1, LONGEST_WINDOW)
    fft, step, mels = given.spectrogram(rate * seconds, fft=("n_fft", 400), step=160, mels=80)
    positions, bands = folder.config.get("max_source_positions", 1500), folder.config.get("num_mel_bins", 80)
    if (rate * seconds // step, mels) != (2 * positions if isinstance(positions, int) else None, bands):
        raise WeightsError(
            f"{given.where} makes {rate * seconds // step:,} frames of {mels} bands, and the network takes twice "
            f"{repr(positions)[:20]} of {repr(bands)[:20]}.",
            hint="Use a folder saved by transformers.",
        )
    base = WhisperPreprocess(
        float(seconds), float(seconds), rate=rate, chunk=float(seconds), fft=fft, mel_step=step, mels=mels
    )
    return Parts(lambda network: WhisperEncoder(network, kind), base)


def _clap(folder: HFFolder, kind: ModelType) -> Parts:
    given = _Extractor(folder, "ClapFeatureExtractor")
    audio = folder.config.get("audio_config")
    fused = isinstance(audio, dict) and bool(audio.get("enable_fusion"))
    if fused or given.values.get("truncation", "fusion") != "rand_trunc":
        raise BackboneError(
            f"{given.where} and {CONFIG} describe a CLAP with feature fusion (truncation "
            f"{given.values.get('truncation', 'fusion')!r:.40}, enable_fusion {fused}): in a batch without a long clip "
            "the library treats a random one as long, so features do not depend on the clip alone.",
            hint="Use one without fusion, such as laion/clap-htsat-unfused.",
        )
    given.fixed("padding_value", 0)
    rate, seconds = given.whole("sampling_rate", 48_000, *RATES), given.whole("max_length_s", 10, 1, LONGEST_WINDOW)
    fft, step, mels = given.spectrogram(rate * seconds, fft=("fft_window_size", 1024), step=480, mels=64)
    low = given.number("frequency_min", 0.0, 0.0, rate / 2)
    high = given.number("frequency_max", 14_000.0, 0.0, rate / 2)
    padding = given.values.get("padding", "repeatpad")
    if padding not in PADDINGS or high <= low:
        raise _bad(given.where, *(("padding", padding) if padding not in PADDINGS else ("frequency_max", high)))
    window = float(seconds)
    base = ClapPreprocess(
        *(window, window),
        rate=rate,
        chunk=window,
        fft=fft,
        mel_step=step,
        mels=mels,
        low=low,
        high=high,
        padding=padding,
    )
    return Parts(lambda network: ClapEncoder(network, kind), base)


def _filterbank(folder: HFFolder, kind: ModelType) -> Parts:
    given = _Extractor(folder, "ASTFeatureExtractor")
    given.fixed("sampling_rate", 16_000)
    given.fixed("padding_value", 0)
    frames, mels = given.whole("max_length", 1024, 1, MOST_FRAMES), given.whole("num_mel_bins", 128, 1, 256)
    positions, bands = folder.config.get("max_length", 1024), folder.config.get("num_mel_bins", 128)
    if (frames, mels) != (positions, bands):
        raise WeightsError(
            f"{given.where} makes {frames:,} frames of {mels} bands, and the network takes {repr(positions)[:20]} of "
            f"{repr(bands)[:20]}.",
            hint="Use a folder saved by transformers.",
        )
    mean, deviation = 0.0, 0.5
    if given.flag("do_normalize", default=True):
        mean = given.number("mean", -4.2677393, -1e6, 1e6)
        deviation = given.number("std", 4.5689974, 1e-6, 1e6)
    window = frames * STEP / 16_000
    base = FilterbankPreprocess(window, window, frames=frames, mels=mels, mean=mean, deviation=deviation)
    return Parts(lambda network: SpectrogramEncoder(network, kind), base)


LOADERS: dict[str, Callable[[HFFolder, ModelType], Parts]] = {
    "wav2vec2": _waveform,
    "hubert": _waveform,
    "wavlm": _waveform,
    "whisper": _whisper,
    "clap": _clap,
    "audio-spectrogram-transformer": _filterbank,
}


class _Extractor:
    """The settings of a feature extractor of one class. Raises for those of another, and for values out of bounds."""

    def __init__(self, folder: HFFolder, name: str) -> None:
        self.where = f"{folder.path}/{SETTINGS}"
        found = folder.optional_json(SETTINGS)
        if found is None:
            nested = (folder.optional_json(NESTED) or {}).get("feature_extractor")
            self.where = f"{folder.path}/{NESTED}"
            if not isinstance(nested, dict):
                raise BackboneError(
                    f"{folder.path} has no {SETTINGS}, which says how clips enter the network.",
                    hint=f"Save it with the weights: {name}(...).save_pretrained(FOLDER).",
                )
            found = nested
        self.values: Mapping[str, Any] = found
        kind = found.get("feature_extractor_type", name)
        if kind != name:
            raise BackboneError(
                f"{self.where} requires {str(kind)[:64]!r}, and precompute has {name} for this kind of model.",
                hint="Use a folder saved by transformers.",
            )

    def whole(self, name: str, default: int, low: int, high: int) -> int:
        value = self.values.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise _bad(self.where, name, value)
        return value

    def number(self, name: str, default: float, low: float, high: float) -> float:
        value = self.values.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise _bad(self.where, name, value)
        return float(value)

    def flag(self, name: str, *, default: bool) -> bool:
        value = self.values.get(name, default)
        if not isinstance(value, bool):
            raise _bad(self.where, name, value)
        return value

    def fixed(self, name: str, only: float) -> None:
        """Raise where a setting has another value than the one that is computed here."""
        value = self.values.get(name, only)
        if isinstance(value, bool) or not isinstance(value, int | float) or value != only:
            raise WeightsError(
                f"{self.where} gives {name} as {repr(value)[:64]}, and precompute computes with {only} alone.",
                hint="Give the network and its preprocessing in your own factory: package.module:factory.",
            )

    def spectrogram(self, samples: int, *, fft: tuple[str, int], step: int, mels: int) -> tuple[int, int, int]:
        """(samples of a frame, from one to the next, bands)."""
        frame = self.whole(*fft, 16, MOST_FFT)
        hop = self.whole("hop_length", step, 1, frame)
        bands = self.whole("feature_size", mels, 1, 512)
        if samples > MOST_SAMPLES or samples // hop > MOST_FRAMES or frame // math.gcd(frame, hop) > MOST_PIECES:
            raise WeightsError(
                f"{self.where} describes windows of {samples:,} samples in {samples // hop:,} frames of {frame:,}, "
                f"{hop:,} apart, which is out of range.",
                hint="Use a folder saved by transformers.",
            )
        return frame, hop, bands


def _sizes(where: str, config: Mapping[str, Any], name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    value = config.get(name, default)
    good = isinstance(value, list | tuple) and 1 <= len(value) <= 32
    if not good or not all(isinstance(one, int) and not isinstance(one, bool) and 1 <= one <= 1024 for one in value):
        raise _bad(where, name, value)
    return tuple(value)


def _bad(where: str, name: str, value: Any) -> WeightsError:
    return WeightsError(
        f"{where} gives {name} as {repr(value)[:64]}, which is out of range.",
        hint="Use a folder saved by transformers.",
    )
