"""Windows of clips, mel spectrograms, and the backbones that take clips, each compared with another way to it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from contracts import BackboneContract, PreprocessContract
from scipy.signal import get_window
from sounds import RATE, encoded, sound, tone, wav

from precompute import load_backbone
from precompute.backbones.load import Backbone
from precompute.backbones.mel_statistics import MelStatistics
from precompute.errors import BackboneError, UsageError, WeightsError
from precompute.inputs.audio.mel import MelSpectrogram, hz_to_mel, mel_to_hz
from precompute.inputs.audio.options import options_of
from precompute.inputs.audio.partials import PartialsPreprocess
from precompute.inputs.audio.preprocess import LogMelPreprocess
from precompute.inputs.audio.windows import Layout, layout_of
from precompute.inputs.base import Preprocess

pytest.importorskip("soundfile", reason="needs the extra `audio`")
pytest.importorskip("soxr", reason="needs the extra `audio`")


def slaney_filters(mels: int, high: float, frame: int = 400) -> np.ndarray:
    """(bins, mels), band by band and bin by bin, as the Auditory Toolbox has it."""

    def mel(hertz: float) -> float:
        return 3 * hertz / 200 if hertz < 1000 else 15 + 27 * math.log(hertz / 1000) / math.log(6.4)

    def hertz(value: float) -> float:
        return 200 * value / 3 if value < 15 else 1000 * 6.4 ** ((value - 15) / 27)

    edges = [hertz(mel(high) * k / (mels + 1)) for k in range(mels + 2)]
    found = np.zeros((frame // 2 + 1, mels))
    for band in range(mels):
        left, centre, right = edges[band : band + 3]
        for number in range(frame // 2 + 1):
            place = number * RATE / frame
            if left < place < right:
                share = (place - left) / (centre - left) if place <= centre else (right - place) / (right - centre)
                found[number, band] = share * 2 / (right - left)
    return found


def power_mel(values: np.ndarray, mels: int, high: float) -> np.ndarray:
    """(frames, mels) by NumPy's FFT in float64; frames from the first sample on."""
    frames = np.lib.stride_tricks.sliding_window_view(values, 400)[::160]
    spectrum = np.abs(np.fft.rfft(frames * get_window("hann", 400), axis=1)) ** 2
    return np.asarray(spectrum @ slaney_filters(mels, high))


@pytest.mark.parametrize("mels", [40, 64])
def test_mel_spectrograms_are_those_of_an_fft_in_float64(mels: int) -> None:
    values = np.stack([sound(seed, 1.5) for seed in range(3)])
    module = MelSpectrogram(RATE, frame=400, step=160, mels=mels, high=8000.0)
    found = module(torch.from_numpy(values).float()).numpy()
    for one, other in zip(found, values, strict=True):
        expected = power_mel(other, mels, 8000.0)
        assert one.shape == expected.shape
        np.testing.assert_allclose(one, expected, rtol=1e-3, atol=1e-5 * expected.max())


def test_mels_and_hertz_are_inverse() -> None:
    hertz = np.array([0.0, 100.0, 999.0, 1000.0, 1001.0, 8000.0])
    np.testing.assert_allclose(mel_to_hz(hz_to_mel(hertz)), hertz, rtol=1e-12)


def test_a_tone_is_loudest_in_its_own_band() -> None:
    module = MelSpectrogram(RATE, frame=400, step=160, mels=64, high=8000.0)
    edges = mel_to_hz(np.linspace(0, hz_to_mel(np.array(8000.0)).item(), 66))
    for hertz in (440.0, 1000.0, 3000.0):
        loudest = int(module(torch.from_numpy(tone(hertz, 0.5)).float()[None])[0].mean(0).argmax())
        assert edges[loudest] <= hertz <= edges[loudest + 2]


def plain_statistics(values: np.ndarray) -> np.ndarray:
    """mel-statistics of a clip in NumPy, over windows of 100 frames."""
    padded = np.concatenate([values, np.zeros(max(0, 400 - len(values)))])
    mel = np.log(power_mel(padded, 64, 8000.0) + 1e-6)
    parts, weights = [], []
    for start in range(0, len(mel), 100):
        part = mel[start : start + 100]
        changes = np.diff(part, axis=0)
        square = (changes**2).mean(0) if len(part) > 1 else np.zeros(64)
        parts.append(np.concatenate([part.mean(0), np.sqrt(part.var(0) + 1e-6), np.sqrt(square + 1e-6)]))
        weights.append(len(part))
    return np.asarray(np.average(parts, axis=0, weights=weights))


def features_of(backbone: Backbone, raw: bytes) -> np.ndarray:
    made = backbone.preprocess.inputs(raw)
    with torch.inference_mode():
        (features,) = backbone.body()(*(torch.stack(one) for one in zip(*made.tensors, strict=True)))
    return backbone.preprocess.merge(features.numpy(), made.weights or ())


@pytest.mark.parametrize("samples", [1, 300, 400, 559, 560, 7000, 16_000, 16_240, 16_399, 16_400, 16_401, 50_001])
def test_mel_statistics_are_those_of_numpy_for_every_length(samples: int) -> None:
    raw = encoded(sound(samples, 4)[:samples], kind="WAV", subtype="FLOAT")
    values = np.asarray(sound(samples, 4)[:samples], dtype=np.float32).astype(np.float64)
    found = features_of(load_backbone("mel-statistics"), raw)
    np.testing.assert_allclose(found, plain_statistics(values), rtol=1e-3, atol=5e-3)


def test_means_over_windows_are_means_over_the_clip() -> None:
    values = sound(5, 7.3)
    found = features_of(load_backbone("mel-statistics"), encoded(values, kind="WAV", subtype="FLOAT"))
    mean = np.log(power_mel(values, 64, 8000.0) + 1e-6).mean(0)
    np.testing.assert_allclose(found[:64], mean, atol=5e-3)


def test_padding_leaves_no_trace() -> None:
    """What stands behind the real frames of a window changes nothing."""
    front, network = LogMelPreprocess().device(), MelStatistics()
    wave, counts = torch.from_numpy(sound(0, 1.015)).float()[None], torch.tensor([[37]])
    other = wave.clone()
    other[:, 36 * 160 + 400 :] = torch.randn(1, wave.shape[1] - 36 * 160 - 400)
    assert torch.equal(network(*front(wave, counts)), network(*front(other, counts)))


@pytest.mark.parametrize(("window", "hop"), [(1.0, 1.0), (2.0, 1.0), (0.5, 0.1), (3.0, 2.0)])
def test_each_whole_frame_lies_in_a_window(window: float, hop: float) -> None:
    layout = layout_of(RATE, window, hop, frame=400, step=160)
    for samples in (1, 399, 400, 16_000, 16_240, 16_241, 16_401, 100_000):
        places = layout.windows(samples)
        assert [one.start for one in places] == [k * layout.hop for k in range(len(places))]
        seen = {one.start // 160 + frame for one in places for frame in range(one.frames)}
        assert seen == set(range(max(1, 1 + (samples - 400) // 160)))
        assert all(1 <= one.frames <= layout.frames(layout.size) for one in places)
        if window == hop:
            assert sum(one.frames for one in places) == len(seen)


@pytest.mark.parametrize(("window", "hop"), [(0, 1), (1, 0), (1, 2), (math.nan, 1), (1, math.inf), (4000, 1)])
def test_lengths_out_of_range_are_refused(window: float, hop: float) -> None:
    with pytest.raises(UsageError, match="window"):
        layout_of(RATE, window, hop, frame=400, step=160)


def test_options_of_clips_and_of_images_are_not_mixed_up() -> None:
    with pytest.raises(UsageError, match="crop cannot be set"):
        load_backbone("mel-statistics", transform={"crop": 3})
    with pytest.raises(UsageError, match="hop cannot be set"):
        load_backbone("tiny", transform={"hop": 3})
    with pytest.raises(UsageError, match="windows must be"):
        load_backbone("mel-statistics", transform={"windows": "all"})
    with pytest.raises(UsageError, match="can be kept"):
        load_backbone("mel-statistics", transform={"windows": "keep", "window": 0.1, "hop": 0.1})
    with pytest.raises(UsageError, match="max_seconds"):
        load_backbone("mel-statistics", transform={"max_seconds": 0.0})
    with pytest.raises(UsageError, match=r"windows of 1\.6 s"):
        load_backbone("resemblyzer", weights="random", transform={"window": 1.0})
    with pytest.raises(UsageError, match="its own preprocessing"):
        load_backbone("mel-statistics", views=2, augment="flip")


def test_weights_of_sounds() -> None:
    with pytest.raises(WeightsError, match="has no weights"):
        load_backbone("mel-statistics", weights="random")
    with pytest.raises(WeightsError, match="are not included"):
        load_backbone("resemblyzer")
    assert (
        load_backbone("resemblyzer", weights="random:1").weights
        != load_backbone("resemblyzer", weights="random:2").weights
    )


def test_layers_with_positions_are_refused() -> None:
    with pytest.raises(BackboneError, match="has positions"):
        load_backbone("resemblyzer", weights="random", layer="getitem", pooling="none")


def test_settings_lead_back_to_the_options() -> None:
    for options in ({}, {"window": 0.5, "hop": 0.25, "max_seconds": 3.0}, {"windows": "keep", "max_seconds": 4.0}):
        model = load_backbone("mel-statistics", transform=options)
        spec = model.spec(precision="fp32", storage="float32")
        again = load_backbone("mel-statistics", transform=options_of(spec))
        assert again.spec(precision="fp32", storage="float32") == spec
    assert options_of({"transform": {"window": "x", "hop": True}, "augment": [1]}) == {}


def test_windows_that_are_kept_follow_their_mean() -> None:
    raw = wav(sound(3, 2.3))  # three windows
    kept = load_backbone("mel-statistics", transform={"windows": "keep", "max_seconds": 5.0})
    pooled = features_of(load_backbone("mel-statistics", transform={"max_seconds": 5.0}), raw)
    found = features_of(kept, raw)
    assert found.shape == kept.stored[0].shape == (6, 192)
    assert np.array_equal(found[0], pooled)
    assert np.array_equal(found[1:4], np.stack([features_of(load_backbone("mel-statistics"), part) for part in [
        *(wav(sound(3, 2.3)[start : start + 16_240]) for start in (0, 16_000, 32_000))
    ]]))  # fmt: skip
    assert np.array_equal(found[4:], found[1:3])  # beginning again


class TestLogMelPreprocess(PreprocessContract):
    @pytest.fixture(params=["pool", "keep"])
    def preprocess(self, request: pytest.FixtureRequest) -> Preprocess:
        return LogMelPreprocess(max_seconds=4.0, windows=request.param)

    @pytest.fixture
    def raws(self) -> list[bytes]:
        return [wav(sound(0, 2.5)), encoded(sound(1, 0.3, 44_100), 44_100, kind="FLAC")]


class TestPartialsPreprocess(TestLogMelPreprocess):
    @pytest.fixture
    def preprocess(self) -> Preprocess:
        return PartialsPreprocess()


@pytest.mark.parametrize("name", ["mel-statistics", "resemblyzer"])
class TestSoundBackbones(BackboneContract):
    @pytest.fixture
    def backbone(self, name: str) -> Backbone:
        return load_backbone(name, weights="DEFAULT" if name == "mel-statistics" else "random")


# Resemblyzer, by its own description


def embedding(values: np.ndarray, state: dict[str, torch.Tensor]) -> np.ndarray:
    """An utterance's embedding in plain NumPy, step by step: level, partials, mel, LSTM, mean."""
    level = 10 * math.log10(np.mean(values**2))
    values = values * 10 ** ((-30 - level) / 20) if level < -30 else values
    frames = math.ceil((len(values) + 1) / 160)
    starts = list(range(0, max(1, frames - 160 + 77 + 1), 77))
    if len(starts) > 1 and (len(values) - starts[-1] * 160) / 25_600 < 0.75:
        starts = starts[:-1]
    end = (starts[-1] + 160) * 160
    padded = np.concatenate([values, np.zeros(max(0, end - len(values)))])
    mel = power_mel(np.concatenate([np.zeros(200), padded, np.zeros(200)]), 40, 8000.0)
    weights = {name: one.double().numpy() for name, one in state.items()}
    found = []
    for start in starts:
        states = mel[start : start + 160]
        assert len(states) == 160
        for layer in range(3):
            states = lstm(states, *(weights[f"lstm.{kind}_l{layer}"] for kind in LSTM))
        raw = np.maximum(weights["linear.weight"] @ states[-1] + weights["linear.bias"], 0)
        found.append(raw / np.linalg.norm(raw))
    mean = np.mean(found, axis=0)
    return np.asarray(mean / np.linalg.norm(mean))


LSTM = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def lstm(
    inputs: np.ndarray, w_in: np.ndarray, w_state: np.ndarray, b_in: np.ndarray, b_state: np.ndarray
) -> np.ndarray:
    width = w_state.shape[1]
    state, cell, found = np.zeros(width), np.zeros(width), []
    for one in inputs:
        gates = w_in @ one + b_in + w_state @ state + b_state
        first, forget, last = (1 / (1 + np.exp(-gates[k * width : (k + 1) * width])) for k in (0, 1, 3))
        cell = forget * cell + first * np.tanh(gates[2 * width : 3 * width])
        state = last * np.tanh(cell)
        found.append(state)
    return np.array(found)


@pytest.mark.rotates(3)
@pytest.mark.parametrize("seconds", [0.2, 1.0, 1.6, 2.0, 2.8, 3.3, 5.0])
def test_resemblyzer_is_what_its_description_says(resemblyzer_weights: Path, seconds: float) -> None:
    from safetensors.torch import load_file

    backbone = load_backbone("resemblyzer", weights=str(resemblyzer_weights))
    values = np.asarray(0.02 * sound(round(10 * seconds), seconds), dtype=np.float32)
    found = features_of(backbone, encoded(values, kind="WAV", subtype="FLOAT"))
    expected = embedding(values.astype(np.float64), load_file(resemblyzer_weights))
    assert found.min() >= 0
    np.testing.assert_allclose(np.linalg.norm(found), 1.0, rtol=1e-6)
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.rotates(3)
def test_resemblyzer_hears_who_speaks(resemblyzer_weights: Path, spoken_digits: Path) -> None:
    """Two takes of each speaker, of five digits in a row: the nearest of the others is the same speaker's."""
    import soundfile

    backbone = load_backbone("resemblyzer", weights=str(resemblyzer_weights))
    speakers = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
    found = []
    for take in (2, 3):
        for speaker in speakers:
            parts = [
                soundfile.read(spoken_digits / "train" / f"{digit}" / f"{digit}_{speaker}_{take}.wav")[0]
                for digit in range(5)
            ]
            found.append(features_of(backbone, encoded(np.concatenate(parts), 8000, kind="WAV", subtype="FLOAT")))
    likeness = np.array(found[:6]) @ np.array(found[6:]).T
    assert (likeness.argmax(1) == np.arange(6)).sum() >= 5


def test_partials_lie_as_described() -> None:
    layout = PartialsPreprocess().layout
    assert layout == Layout(25_840, 12_320, 400, 160)
    for samples, count in ((100, 1), (25_600, 1), (31_000, 1), (31_519, 1), (31_520, 2), (60_000, 4)):
        places = PartialsPreprocess().places(samples)
        assert (len(places), places[0].start) == (count, -200), samples
