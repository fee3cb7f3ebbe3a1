"""Clips: what is decoded, to which values, in how much memory, and why what is not."""

from __future__ import annotations

import io
import math
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, run_python
from sounds import RATE, encoded, long_flac, sound, tone, wav

from precompute.errors import SampleError, UsageError
from precompute.inputs.audio.formats import CLIPS, clip_format, looks_like_clip

soundfile = pytest.importorskip("soundfile", reason="needs the extra `audio`")
soxr = pytest.importorskip("soxr", reason="needs the extra `audio`")

from precompute.inputs.audio.decode import decode  # noqa: E402 - needs both

LONG = 600.0


def refused(raw: bytes, *, seconds: float = LONG) -> SampleError:
    with pytest.raises(SampleError) as caught:
        decode(raw, RATE, seconds)
    return caught.value


@pytest.mark.parametrize("bits", [8, 16, 24, 32])
@pytest.mark.parametrize("channels", [1, 2, 8])
def test_wav_of_every_width_gives_its_values_and_channels_are_averaged(bits: int, channels: int) -> None:
    values = np.stack([sound(seed, 0.5) for seed in range(channels)], axis=1)
    found = decode(wav(values, bits=bits), RATE, LONG)
    assert (found.dtype, found.shape) == (np.float32, (RATE // 2,))
    np.testing.assert_allclose(found, values.mean(axis=1), atol=2.0 ** (2 - bits) + 1e-6)


@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
def test_wav_of_floats_keeps_what_is_beyond_one(subtype: str) -> None:
    values = 3 * sound(0, 0.2)
    np.testing.assert_allclose(decode(encoded(values, kind="WAV", subtype=subtype), RATE, LONG), values, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "subtype", "least"),
    [("FLAC", "PCM_16", 0.999999), ("FLAC", "PCM_24", 0.999999), ("OGG", "VORBIS", 0.98), ("MP3", None, 0.98)],
)
def test_every_format_gives_the_sound(kind: str, subtype: str | None, least: float) -> None:
    values = tone(440, 1) + tone(1000, 1, loud=0.2)
    found = decode(encoded(values, kind=kind, subtype=subtype), RATE, LONG)
    assert abs(len(found) - RATE) <= 1
    assert np.corrcoef(found[: len(values)], values[: len(found)])[0, 1] > least


def test_opus_comes_in_ogg_too() -> None:
    if "OPUS" not in soundfile.available_subtypes("OGG"):
        pytest.skip("this libsndfile has no Opus")
    found = decode(encoded(tone(440, 1, 48_000), 48_000, kind="OGG", subtype="OPUS"), RATE, LONG)
    assert np.corrcoef(found[: RATE - 100], tone(440, 1)[: RATE - 100])[0, 1] > 0.98


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000, 192_000])
def test_other_rates_are_resampled_as_soxr_does_it_in_one_piece(rate: int) -> None:
    raw = encoded(sound(0, 3, rate), rate, kind="WAV", subtype="FLOAT")
    values, _ = soundfile.read(io.BytesIO(raw), dtype="float32")
    expected = soxr.resample(values, rate, RATE, quality="HQ")
    found = decode(raw, RATE, LONG)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_tone_of_192_khz_with_8_channels_is_the_tone() -> None:
    values = np.repeat(tone(1000, 1, 192_000)[:, None], 8, axis=1)
    found = decode(wav(values, 192_000, bits=24), RATE, LONG)
    np.testing.assert_allclose(found[1000:-1000], tone(1000, 1)[1000:-1000], atol=1e-3)


def cut(kind: str, share: float) -> bytes:
    raw = encoded(sound(0, 2), kind=kind)
    return raw[: round(len(raw) * share)]


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_clip_that_is_cut_short_is_truncated(kind: str, share: float) -> None:
    assert refused(cut(kind, share)).reason == "TRUNCATED"


@pytest.mark.parametrize("kind", ["FLAC", "OGG"])
def test_damage_inside_is_found(kind: str) -> None:
    raw = bytearray(encoded(sound(0, 2), kind=kind))
    middle = len(raw) // 2
    raw[middle : middle + 200] = np.random.default_rng(0).integers(0, 256, 200, dtype=np.uint8).tobytes()
    assert refused(bytes(raw)).reason == "TRUNCATED"


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "no WAV"),
        (b"\0" * 1000, "no WAV"),
        (b"<html>not found</html>", "no WAV"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 100, "no WAV"),
        (b"#!AMR\n" + b"\0" * 100, "AMR, which precompute does not decode"),
        (b"\0\0\0\x1cftypM4A " + b"\0" * 100, "MP4 or AAC"),
        (b"FORM\0\0\0\x10AIFF" + b"\0" * 100, "AIFF"),
    ],
)
def test_what_is_no_sound_is_undecodable(raw: bytes, words: str) -> None:
    error = refused(raw)
    assert error.reason == "UNDECODABLE"
    assert words in error.message


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
def test_a_clip_without_samples_has_a_reason(kind: str) -> None:
    assert refused(encoded(np.zeros(0), kind=kind)).reason in ("UNDECODABLE", "TRUNCATED")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_samples_that_are_no_numbers_are_undecodable(value: float) -> None:
    values = sound(0, 1)
    values[12_345] = value
    error = refused(encoded(values, kind="WAV", subtype="FLOAT"))
    assert (error.reason, "are not finite" in error.message) == ("UNDECODABLE", True)


def test_a_clip_beyond_the_limit_is_too_large_and_one_at_it_is_not() -> None:
    assert len(decode(wav(sound(0, 2)), RATE, 2.0)) == 2 * RATE
    error = refused(wav(sound(0, 2.001)), seconds=2.0)
    assert error.reason == "TOO_LARGE"
    assert "--max-seconds" in error.message


def lying_flac() -> bytes:
    """One second that claims 2^36 - 1 samples, all that FLAC can say."""
    raw = bytearray(encoded(sound(0, 1), kind="FLAC"))
    raw[21] |= 0x0F
    raw[22:26] = b"\xff" * 4
    return bytes(raw)


def lying_wav(size: int) -> bytes:
    raw = bytearray(wav(sound(0, 1)))
    raw[40:44] = struct.pack("<I", size)
    return bytes(raw)


def lying_rf64(samples: int) -> bytes:
    """One second whose sizes, of 64 bits, claim so many samples."""
    data = wav(sound(0, 1))[44:]
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, RATE, 2 * RATE, 2, 16)
    sizes = struct.pack("<4sIQQQI", b"ds64", 28, 2 * samples + 72, 2 * samples, samples, 0)
    return b"RF64\xff\xff\xff\xffWAVE" + sizes + form + b"data\xff\xff\xff\xff" + data


def test_a_header_that_claims_more_than_there_is_takes_no_memory_and_has_a_reason() -> None:
    assert refused(lying_flac()).reason == "TOO_LARGE"
    assert refused(lying_flac(), seconds=1e9).reason == "TRUNCATED"
    assert refused(lying_wav(2**30)).reason == "TRUNCATED"
    assert refused(lying_rf64(2**40)).reason in ("TOO_LARGE", "TRUNCATED")


def test_a_wav_whose_writer_did_not_know_its_size_is_whole() -> None:
    """As programs write it to a pipe."""
    assert len(decode(lying_wav(2**32 - 1), RATE, LONG)) == RATE


@pytest.mark.parametrize("rate", [0, 1, 999, 2_000_000, 2**32 - 1])
def test_rates_of_no_sound_are_refused(rate: int) -> None:
    raw = bytearray(wav(sound(0, 1)))
    raw[24:28] = struct.pack("<I", rate)
    assert refused(bytes(raw)).reason in ("UNDECODABLE", "TRUNCATED")


@pytest.mark.parametrize("samples", [1, 2, 5, 100, 399, 400, 401])
def test_very_short_clips_are_decoded_or_have_a_reason(samples: int) -> None:
    assert len(decode(wav(sound(0, 1)[:samples]), RATE, LONG)) == samples
    fast = wav(sound(0, 1, 48_000)[:samples], 48_000)
    try:
        assert len(decode(fast, RATE, LONG)) <= samples // 3 + 1
    except SampleError as error:
        assert (error.reason, samples < 5) == ("UNDECODABLE", True)


def test_threads_do_not_disturb_each_other() -> None:
    raws = [encoded(sound(seed, 2, 44_100), 44_100, kind=kind) for seed in range(4) for kind in ("FLAC", "OGG", "MP3")]
    alone = [decode(raw, RATE, LONG).tobytes() for raw in raws]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            assert [one.tobytes() for one in pool.map(lambda raw: decode(raw, RATE, LONG), raws)] == alone


MEASURED = """
import resource, sys
from pathlib import Path
from precompute.errors import SampleError
from precompute.inputs.audio.decode import decode
decode(Path(sys.argv[1]).read_bytes(), 16_000, 600.0)
raw = Path(sys.argv[2]).read_bytes()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    decode(raw, 16_000, float(sys.argv[3]))
    said = "decoded"
except SampleError as error:
    said = error.reason
print(said, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def memory(folder: Path, raw: bytes, seconds: float) -> tuple[str, float]:
    """What became of a clip in a process of its own, and by how many MiB it raised the peak that a second had left."""
    (folder / "short.flac").write_bytes(long_flac(1))
    (folder / "long.flac").write_bytes(raw)
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, folder / "short.flac", folder / "long.flac", str(seconds)],
        *(),
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        check=True,
    )
    said, taken = done.stdout.split()
    return said, int(taken) / (2**20 if sys.platform == "darwin" else 2**10)


@pytest.mark.rotates(3)
def test_two_hours_take_no_more_memory_than_the_limit_allows(tmp_path: Path) -> None:
    """8 bytes for each sample of the limit, and the blocks of libraries: also where no header says how long it is."""
    limit, allowed = 120.0, 120 * RATE * 8 / 2**20 + 16
    said, taken = memory(tmp_path, long_flac(7200, known=False), limit)
    assert (said, taken < allowed) == ("TOO_LARGE", True), taken
    said, taken = memory(tmp_path, long_flac(7200), limit)
    assert (said, taken < 8) == ("TOO_LARGE", True), taken
    said, taken = memory(tmp_path, long_flac(119), limit)
    assert (said, taken < allowed) == ("decoded", True), taken


def test_which_files_are_clips() -> None:
    for kind in ("WAV", "FLAC", "OGG", "MP3"):
        assert clip_format(encoded(sound(0, 0.1), kind=kind)[:16]) == kind
    assert clip_format(b"ID3\x04" + b"\0" * 12) == "MP3"
    assert looks_like_clip(b"caff\0\1\0\0")
    utf16, jpeg, webp = "ÿþ text".encode("utf-16"), b"\xff\xd8\xff\xe0\0\x10JFIF", b"RIFF\0\0\0\0WEBPVP8 "
    for other in (b"", b"\xff", utf16, jpeg, webp, b"FORM\0\0\0\0ILBM", b"%PDF-1.7"):
        assert not looks_like_clip(other), other
    assert b".wav" in CLIPS.extensions
    assert CLIPS.recognises is looks_like_clip


@pytest.mark.parametrize("missing", ["soundfile", "soxr"])
def test_without_the_extra_the_install_line_is_named(missing: str) -> None:
    done = run_python(
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from precompute.inputs.audio.decode import decode\n"
        "from precompute.errors import UsageError\n"
        "try: decode(b'RIFF', 16_000, 1.0)\n"
        "except UsageError as error: print(error.hint)\n"
    )
    assert "pip install 'precompute[audio]'" in done.stdout, done.stderr


def test_usage_error_is_no_sample_error() -> None:
    """A missing extra ends the run, and does not fail each sample of it."""
    assert not issubclass(UsageError, SampleError)
