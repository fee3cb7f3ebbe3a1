"""Bytes -> mono float32 at the model's rate, in memory that the limit of seconds bounds.

soundfile (libsndfile) decodes block by block, channels are averaged, and soxr resamples the stream; both free the
interpreter lock. The length in a file's header is used to refuse it early, and never to take memory.
"""

from __future__ import annotations

import io
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from precompute.errors import SampleError, UsageError, reason_of
from precompute.inputs.audio import formats
from precompute.inputs.audio.containers import check_whole

if TYPE_CHECKING:
    from types import ModuleType

INSTALL = "pip install 'precompute[audio]'"
QUALITY = "HQ"  # of soxr: 20 bits, passband to 0.91 of the lower Nyquist frequency
BLOCK_VALUES = 2**18  # of all channels at once: 1 MiB
RATES = (1_000, 1_000_000)  # samples a second that are taken for sound
MP3_SLACK = 2 * 1152
"""Samples of MP3 that may be missing at its end: some headers count what the encoder put in front and behind."""

UNKNOWN_FRAMES = 2**62  # from here on libsndfile means that a header leaves it open


def libraries() -> tuple[ModuleType, ModuleType]:
    """soundfile and soxr. Raises UsageError with the way to install them."""
    try:
        import soundfile
        import soxr
    except (ImportError, OSError) as error:  # OSError: libsndfile, where no wheel brings it along
        raise UsageError(f"Sound needs soundfile and soxr: {error}.", hint=f"Install them: {INSTALL}") from error
    return soundfile, soxr


@cache
def decoder() -> dict[str, str]:
    """What decodes and resamples, with the releases of the code that does it: part of the key."""
    soundfile, soxr = libraries()
    return {
        "soundfile": str(soundfile.__version__),
        "libsndfile": str(soundfile.__libsndfile_version__),
        "soxr": str(soxr.__version__),
        "quality": QUALITY,
    }


def decode(raw: bytes, rate: int, max_seconds: float) -> NDArray[np.float32]:
    """(samples,) in [-1, 1], or beyond it where a file of floats is: the mean of all channels at `rate`.

    It takes, with `raw`, at most twice the bytes of what it gives, and some MiB; so at most 8 bytes for each sample of
    `max_seconds` at `rate`, however long the clip is.
    Raises SampleError: UNDECODABLE for what is not sound, holds no samples, or samples that are no numbers; TRUNCATED
    where data is missing or damaged; TOO_LARGE beyond `max_seconds`. Raises UsageError where an extra is missing.
    """
    soundfile, soxr = libraries()
    kind = formats.clip_format(raw[: formats.HEAD_BYTES])
    if kind is None:
        raise _unidentified(raw)
    check_whole(kind, raw)
    try:
        with soundfile.SoundFile(io.BytesIO(raw)) as file:
            return _resampled(file, kind, rate, max_seconds, soxr)
    except soundfile.SoundFileError as error:
        raise SampleError(f"{kind}: {_said(error)}", reason="TRUNCATED") from error


def _resampled(file: Any, kind: str, rate: int, max_seconds: float, soxr: ModuleType) -> NDArray[np.float32]:
    own, channels, claimed = int(file.samplerate), int(file.channels), int(file.frames)
    if not RATES[0] <= own <= RATES[1]:
        raise SampleError(f"{own:,} samples a second, which is not sound", reason="UNDECODABLE")
    limit = int(max_seconds * own)
    if limit < claimed < UNKNOWN_FRAMES:
        raise _too_long(claimed / own, max_seconds)
    stream = None if own == rate else soxr.ResampleStream(own, rate, 1, dtype="float32", quality=QUALITY)
    block, parts, done = max(1, BLOCK_VALUES // channels), list[NDArray[np.float32]](), 0
    while True:
        read = file.read(block, dtype="float32", always_2d=True)
        mono = read[:, 0] if channels == 1 else read.mean(axis=1, dtype=np.float32)
        done += len(mono)
        if done > limit:
            raise _too_long(done / own, max_seconds)
        if not np.isfinite(mono).all():
            raise SampleError("some of its samples are not finite", reason="UNDECODABLE")
        last = len(read) < block
        if stream is not None:
            mono = stream.resample_chunk(np.ascontiguousarray(mono), last=last)
        parts.append(mono.copy() if stream is None else mono)
        if last:
            break
    if not done:
        raise SampleError("it holds no samples", reason="UNDECODABLE")
    if done < claimed < UNKNOWN_FRAMES and not (kind == "MP3" and claimed - done < MP3_SLACK):
        raise SampleError(f"its header promises {claimed:,} samples, and {done:,} are there", reason="TRUNCATED")
    whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
    if not len(whole):  # a sample or two, of which resampling leaves nothing
        raise SampleError(f"too short: {done} samples at {own:,} a second", reason="UNDECODABLE")
    return whole


def _too_long(seconds: float, limit: float) -> SampleError:
    return SampleError(f"{seconds:,.0f} s, more than the limit of {limit:,g} s (--max-seconds)", reason="TOO_LARGE")


def _unidentified(raw: bytes) -> SampleError:
    kind = formats.foreign_format(raw[: formats.HEAD_BYTES])
    if kind is not None:
        return SampleError(f"{kind}, which precompute does not decode: convert it to FLAC", reason="UNDECODABLE")
    return SampleError(f"no {formats.NAMES} header", reason="UNDECODABLE")


def _said(error: BaseException) -> str:
    """Of what libsndfile says, without the address of an object in memory."""
    words = reason_of(error)
    return words.rpartition(" : ")[2] if " : " in words else words
