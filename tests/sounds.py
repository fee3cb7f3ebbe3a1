"""Sounds for tests: tones, noise, and files of them, by the standard library where that can write them."""

from __future__ import annotations

import io
import wave
from pathlib import Path
from typing import Any

import numpy as np

RATE = 16_000


def tone(hertz: float, seconds: float, rate: int = RATE, *, loud: float = 0.3) -> np.ndarray:
    """(samples,) float64."""
    return loud * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def sound(seed: int, seconds: float, rate: int = RATE) -> np.ndarray:
    """(samples,) float64 in [-1, 1]: two tones and noise, different for each seed."""
    generator = np.random.default_rng(seed)
    first, second = generator.uniform(200, 3000, 2)
    noise = generator.normal(0, 0.02, round(seconds * rate))
    return np.clip(tone(first, seconds, rate) + tone(second, seconds, rate, loud=0.2) + noise, -1, 1)


def wav(values: np.ndarray, rate: int = RATE, *, bits: int = 16) -> bytes:
    """A WAV file of integers, (samples,) or (samples, channels), by the standard library."""
    values = values[:, None] if values.ndim == 1 else values
    whole = np.rint(values * (2 ** (bits - 1) - 1)).astype("<i8")
    if bits == 8:
        whole += 128  # the one width without a sign
    data = whole.reshape(-1, 1).view("u1").reshape(-1, 8)[:, : bits // 8].tobytes()
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setnchannels(values.shape[1])
        file.setsampwidth(bits // 8)
        file.setframerate(rate)
        file.writeframes(data)
    return stream.getvalue()


def encoded(values: np.ndarray, rate: int = RATE, *, kind: str, subtype: str | None = None) -> bytes:
    """A file of any kind, by soundfile."""
    import soundfile

    stream = io.BytesIO()
    soundfile.write(stream, values, rate, format=kind, subtype=subtype)
    return stream.getvalue()


def long_flac(seconds: int, *, known: bool = True) -> bytes:
    """A FLAC file of so many seconds of a tone at 2 kHz, written in blocks; known: its header says how long it is."""
    import soundfile

    stream, second = io.BytesIO(), tone(440, 1, 2000).astype(np.float32)
    with soundfile.SoundFile(stream, "w", 2000, 1, format="FLAC", subtype="PCM_16") as file:
        for _ in range(seconds):
            file.write(second)
    raw = bytearray(stream.getvalue())
    if not known:  # STREAMINFO: 36 bits of the number of samples, 0 for unknown
        raw[21] &= 0xF0
        raw[22:26] = bytes(4)
    return bytes(raw)


def make_clips(folder: Path, *, per_class: int = 6, **options: Any) -> Path:
    """train and val of two classes, WAV and FLAC in turn, 0.2 to 2.4 s."""
    seed = 0
    for split in ("train", "val"):
        for label in ("high", "low"):
            place = folder / split / label
            place.mkdir(parents=True)
            for number in range(per_class):
                seed += 1
                values = sound(seed, 0.2 + 0.2 * (seed % 12), **options)
                values[: len(values) // 2] += tone(4000 if label == "high" else 300, len(values) / RATE)[
                    : len(values) // 2
                ]
                values = np.clip(values, -1, 1)
                name = place / f"{number}.{'flac' if number % 2 else 'wav'}"
                name.write_bytes(encoded(values, kind="FLAC") if number % 2 else wav(values))
    return folder
