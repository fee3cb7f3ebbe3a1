"""What cache/FORMAT.md says of clips, worked out from the settings of a file alone, beside what is computed."""

from __future__ import annotations

from math import ceil, floor
from typing import Any

import numpy as np
import pytest
from sounds import make_clips

from precompute import extract, open_cache
from precompute.inputs.audio.filterbanks import FilterbankPreprocess
from precompute.inputs.audio.partials import PartialsPreprocess
from precompute.inputs.audio.preprocess import AudioPreprocess, LogMelPreprocess
from precompute.inputs.audio.spectrograms import ClapPreprocess, WhisperPreprocess
from precompute.inputs.audio.waveform import WaveformPreprocess

pytest.importorskip("soundfile", reason="needs the extra `audio`")
pytest.importorskip("soxr", reason="needs the extra `audio`")


def windows_by_the_page(spec: dict[str, Any], samples: int) -> list[tuple[int, int, int]]:
    """(first sample, samples, real frames) of each window."""
    frame, step, rate = spec["frame"], spec["step"], spec["rate"]
    if "least_covered" in spec:
        firsts = [77 * step * k for k in range(samples) if 77 * k < max(1, ceil((samples + 1) / step) - 82)]
        if len(firsts) > 1 and samples - firsts[-1] < spec["least_covered"] * 160 * step:
            firsts.pop()
        return [(first - 200, 159 * step + frame, 160) for first in firsts]

    def frames(x: int) -> int:
        return max(1, 1 + floor((x - frame) / step))

    n, h = (max(1, round(spec[name] * rate / step)) for name in ("window", "hop"))
    reflected = spec.get("centred") == "reflect"
    size = int(spec["window"] * rate) if reflected else n * step + frame - step
    count = 1 + max(0, ceil((frames(samples) - frames(size)) / h))
    length = (
        next((one for one in spec.get("lengths", ()) if one >= samples), spec["lengths"][-1])
        if "lengths" in spec
        else size
    )
    found = []
    for k in range(count):
        real = min(size, samples - k * h * step)
        whisper = "range" in spec.get("log", ())
        found.append((k * h * step, length, ceil(real / step) if whisper else frames(real)))
    return found


@pytest.mark.rotates(3)
@pytest.mark.parametrize(
    "preprocess",
    [
        LogMelPreprocess(),
        LogMelPreprocess(window=0.5, hop=0.2),
        PartialsPreprocess(),
        WaveformPreprocess(window=2.0, hop=2.0),
        WaveformPreprocess(window=1.0, hop=0.37, rate=8000),
        WhisperPreprocess(2.0, 1.0, chunk=2.0),
        ClapPreprocess(1.0, 1.0, chunk=1.0),
        FilterbankPreprocess(1.28, 1.0, frames=128),
    ],
    ids=lambda one: type(one).__name__,
)
def test_windows_are_those_of_the_page(preprocess: AudioPreprocess) -> None:
    generator = np.random.default_rng(0)
    rate = preprocess.rate
    ends = [1, 399, 400, 401, rate, rate + 1, 2 * rate, 2 * rate + 79, 2 * rate + 80, 2 * rate + 81]
    for samples in (*ends, *generator.integers(1, 9 * rate, 60).tolist()):
        places, made = preprocess.places(samples), preprocess.windows_of(np.full(samples, 0.5, np.float32))
        expected = windows_by_the_page(preprocess.spec(), samples)
        assert [(one.start, one.frames) for one in places] == [(first, count) for first, _, count in expected]
        assert [len(one[0]) for one in made.tensors] == [size for _, size, _ in expected]
        assert made.weights == tuple(float(count) for _, _, count in expected)


def test_views_are_the_mean_and_the_windows_from_the_first_again(tmp_path: Any) -> None:
    clips = make_clips(tmp_path / "clips", per_class=2)
    options = {"window": 0.5, "hop": 0.5, "max_seconds": 2.0}
    extract(
        clips, tmp_path / "a.h5", backbone="mel-statistics", engine="torch", transform={**options, "windows": "keep"}
    )
    cache = open_cache(tmp_path / "a.h5")
    spec, views = cache.spec["transform"], cache.spec["views"]
    assert cache.spec["augment"] == {"windows": "keep"}
    assert views == 1 + len(windows_by_the_page(spec, floor(spec["max_seconds"] * spec["rate"]))) == 5
    ids = [bytes(one).rstrip(b"\0").decode() for one in cache.column("samples/id")]
    for row, name in enumerate(ids):
        seed = 1 + ("train/high", "train/low", "val/high", "val/low").index(name.rpartition("/")[0]) * 2
        seed += int(name.rpartition("/")[2][0])
        places = windows_by_the_page(spec, round((0.2 + 0.2 * (seed % 12)) * 16_000))
        values = np.asarray(cache.features()[row], dtype=np.float64)
        for view in range(1, views):
            assert np.array_equal(values[view], values[1 + (view - 1) % len(places)])
        mean = np.average(values[1 : 1 + len(places)], axis=0, weights=[count for _, _, count in places])
        np.testing.assert_allclose(values[0], mean, rtol=1e-5, atol=1e-5)
