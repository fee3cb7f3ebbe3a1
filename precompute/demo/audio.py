"""The main job on sounds that it makes itself: six kinds, with a length, a pitch and a loudness by chance."""

from __future__ import annotations

import contextlib
import os
import tempfile
import wave
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from precompute.cache import open_cache
from precompute.demo import DRAWS, SEED, SHOTS, DemoResult, DemoRow
from precompute.evaluation.learning_curve import few_shot
from precompute.extraction.extract import extract
from precompute.extraction.output import check_cache_output
from precompute.heads.persistence.head_file import HEAD
from precompute.system.output import check_output
from precompute.training.head import train_head

RATE = 16_000
CLIPS = 60  # of each kind, half of them in train
SECONDS = (0.3, 2.5)
LOUD_DB = (-30.0, -6.0)
BACKGROUND_DB = -20.0  # of noise beside the sound

Sound = NDArray[np.float64]


def _tone(draw: np.random.Generator, time: Sound) -> Sound:
    return np.asarray(np.sin(2 * np.pi * draw.uniform(150, 3000) * time))


def _chord(draw: np.random.Generator, time: Sound) -> Sound:
    lowest = draw.uniform(150, 800)
    return sum((np.sin(2 * np.pi * lowest * ratio * time) for ratio in (1.0, 1.25, 1.5, 2.0)), np.zeros_like(time)) / 4


def _chirp(draw: np.random.Generator, time: Sound) -> Sound:
    """From one pitch to another, evenly in octaves."""
    first, last = draw.uniform(150, 600), draw.uniform(1500, 5000)
    first, last = (first, last) if draw.random() < 0.5 else (last, first)
    hertz = first * (last / first) ** (time / time[-1])
    return np.asarray(np.sin(2 * np.pi * np.cumsum(hertz) / RATE))


def _warble(draw: np.random.Generator, time: Sound) -> Sound:
    hertz = draw.uniform(300, 2500) * (1 + draw.uniform(0.1, 0.3) * np.sin(2 * np.pi * draw.uniform(4, 9) * time))
    return np.asarray(np.sin(2 * np.pi * np.cumsum(hertz) / RATE))


def _noise(draw: np.random.Generator, time: Sound) -> Sound:
    """White noise, smoothed over a few samples or not."""
    width = int(draw.integers(1, 5))
    return np.convolve(draw.normal(0, 0.3, len(time)), np.ones(width) / width, mode="same")


def _clicks(draw: np.random.Generator, time: Sound) -> Sound:
    beats = np.arange(0, len(time), RATE / draw.uniform(5, 15)).astype(np.int64)
    found = np.zeros_like(time)
    found[beats] = 1.0
    decay = np.exp(-np.arange(400) / draw.uniform(20, 80)) * draw.choice([-1.0, 1.0], 400)
    return np.convolve(found, decay)[: len(time)]


KINDS: dict[str, Callable[[np.random.Generator, Sound], Sound]] = {
    "chirp": _chirp,
    "chord": _chord,
    "clicks": _clicks,
    "noise": _noise,
    "tone": _tone,
    "warble": _warble,
}


def run_audio_demo(
    folder: str | os.PathLike[str] | None = None,
    *,
    overwrite: bool = False,
    say: Callable[[str], None] | None = None,
) -> DemoResult:
    """Write sounds as WAV files, extract them with `mel-statistics`, train heads on 30 labels and on all.

    The arguments are those of `run_demo`. Raises UsageError where the extra `audio` is not installed.
    """
    say = say or (lambda _: None)
    with contextlib.ExitStack() as stack:
        place = os.fspath(folder) if folder is not None else stack.enter_context(tempfile.TemporaryDirectory())
        os.makedirs(place, exist_ok=True)
        sounds, cache = os.path.join(place, "sounds"), os.path.join(place, "sounds.h5")
        head = os.path.join(place, "sounds.safetensors")
        check_cache_output(cache, overwrite=overwrite)  # before the work, not after it
        check_output(head, HEAD, overwrite=overwrite)
        say(f"1. Writing {CLIPS * len(KINDS)} sounds as WAV files below {sounds}")
        write_sounds(sounds)
        say("2. Extracting them: precompute extract sounds -b mel-statistics -o sounds.h5")
        done = extract(sounds, cache, backbone="mel-statistics", overwrite=overwrite)
        say("3. Training a head: precompute train-head sounds.h5 -o sounds.safetensors")
        training = train_head(cache, head, overwrite=overwrite, seed=SEED)
        labels = SHOTS * len(KINDS)
        say(f"4. Training heads on {labels} labels: precompute few-shot sounds.h5 --shots {SHOTS} --draws {DRAWS}")
        (curve,) = few_shot([cache], shots=[SHOTS], draws=DRAWS, seed=SEED)
        width = int(open_cache(cache).features().shape[1])
    few = curve.points[0]
    row = DemoRow(
        "mel-statistics", width, few.accuracy, float(np.std(few.accuracies)), training.scores["test"].accuracy
    )
    return DemoResult(
        rows=(row,),
        labels=labels,
        draws=DRAWS,
        trained=training.rows["train"],
        tested=training.rows["test"],
        extract_seconds=done.seconds,
        train_seconds=training.seconds,
    )


def write_sounds(folder: str) -> None:
    """`folder`/train/KIND/NUMBER.wav for one half and test/ for the other; files that are there are left alone."""
    draws = np.random.default_rng(SEED).spawn(len(KINDS) * CLIPS)
    for place, (kind, make) in enumerate(KINDS.items()):
        for number in range(CLIPS):
            split = "train" if number < CLIPS // 2 else "test"
            path = os.path.join(folder, split, kind, f"{number:03}.wav")
            if not os.path.lexists(path):
                os.makedirs(os.path.dirname(path), exist_ok=True)
                _write(path, _sound(draws[place * CLIPS + number], make))


def _sound(draw: np.random.Generator, make: Callable[[np.random.Generator, Sound], Sound]) -> Sound:
    time = np.arange(int(draw.uniform(*SECONDS) * RATE)) / RATE
    sound = make(draw, time)
    sound = sound / np.abs(sound).max() * 10 ** (draw.uniform(*LOUD_DB) / 20)
    background = draw.normal(0, 1, len(time)) * np.sqrt(np.mean(sound**2)) * 10 ** (BACKGROUND_DB / 20)
    return np.asarray(np.clip(sound + background, -1, 1))


def _write(path: str, sound: Sound) -> None:
    with wave.open(path, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(np.rint(sound * 32767).astype("<i2").tobytes())
