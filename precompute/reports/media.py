"""Small pictures, beginnings of texts and short clips, for those samples of a report that somebody looks at.

How many there are is bounded (`--thumbnails`); the budget goes to mistakes, pairs, cells of the confusion matrix and
points of the map in turn, so that none of them takes all. What is shown is decoded by the code that made the features,
with its limits, and encoded anew: no metadata of the original goes along.
"""

from __future__ import annotations

import base64
import contextlib
import io
import itertools
import wave
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from precompute.cache import Cache
from precompute.errors import PrecomputeError, SampleError
from precompute.heads.base.progress import report
from precompute.reports.places import readable
from precompute.reports.samples import CHANGED, ShownSamples, find_samples, why
from precompute.system import cores
from precompute.system.samples import AUDIO, IMAGE, TEXT, modality_of_spec

BUDGET = {IMAGE: 600, TEXT: 3000, AUDIO: 100}
"""Samples that are shown unless somebody says how many: about 3 MB of pictures, 1 MB of texts, up to 10 MB of sound."""
MOST = 20_000
SIDE = 112  # pixels: the page shows them so large, and a phone has three in a row
QUALITY = 80  # of JPEG
LETTERS = 400  # of a text
RATE, SECONDS = 16_000, 2.5  # of a clip
LONGEST = 300.0  # seconds of a clip that is decoded, where the cache does not say
AHEAD = 4  # samples for each thread


@dataclass(frozen=True)
class Media:
    """kind: a modality · of: by row, a data URI, or the text itself · missing: how many could not be shown, by the
    reason · notes: for the reader."""

    kind: str
    of: dict[int, str] = field(default_factory=dict)
    missing: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)


def shared_out(streams: Sequence[tuple[int, Iterable[int]]], budget: int) -> list[int]:
    """Up to `budget` different rows from several streams, each of which gives so many in its turn as its weight says.

    What one does not use is left to the others.
    """
    chosen: dict[int, None] = {}
    waiting = deque((weight, iter(stream)) for weight, stream in streams)
    while waiting and len(chosen) < budget:
        weight, stream = waiting.popleft()
        taken = 0
        for row in stream:
            if row not in chosen:
                chosen[row] = None
                taken += 1
            if taken == weight or len(chosen) == budget:
                waiting.append((weight, stream))
                break
    return list(chosen)


def in_turn(lists: Iterable[Iterable[int]]) -> Iterator[int]:
    """The first of each list, then the second of each, and so on."""
    missing = object()
    for layer in itertools.zip_longest(*lists, fillvalue=missing):
        yield from (one for one in layer if one is not missing)  # type: ignore[misc]


def shown_media(
    cache: Cache, rows: Sequence[int], source: Any = None, *, root: Any = None, columns: Any = None
) -> Media:
    """What there is to show of these rows. source, root, columns: see `find_samples`.

    A sample that is gone, has changed or cannot be decoded is left out, and `notes` count it; so where the source
    cannot be read none is shown, unless it was named: then its error is raised.
    """
    kind, unit = modality_of_spec(cache.spec), cache.words.plural
    media = Media(kind)
    if not len(rows):
        return media
    try:
        samples = find_samples(cache, np.array(sorted(rows), np.int64), source, root=root, columns=columns)
        make = _maker(cache, kind)
    except PrecomputeError as error:
        if source is not None:
            raise
        media.notes.append(readable(f"No {unit} are shown. {why(error)}"))
        return media
    for done, (row, found) in enumerate(_made(samples, sorted(rows), make, kind), start=1):
        report(f"{unit} to show", done, len(rows))
        if isinstance(found, str):
            media.of[row] = found
        else:
            media.missing[found.reason] += 1
    media.notes.extend(_notes(media, len(rows), unit, samples.name if source is not None else None))
    return media


def _notes(media: Media, asked: int, unit: str, name: str | None) -> Iterator[str]:
    missing = dict(media.missing)
    changed, gone = missing.pop(CHANGED, 0), missing.pop("VANISHED", 0)
    if changed:
        yield f"{changed:,} of {asked:,} {unit} have changed since their features were computed, and are not shown"
    if gone:
        where = "the source" if name is None else readable(shown_name(name))
        hint = "" if gone < asked else f"; say where the {unit} are: --source SOURCE"
        yield f"{gone:,} of {asked:,} {unit} are no longer in {where}, and are not shown{hint}"
    if others := sum(missing.values()):
        yield f"{others:,} of {asked:,} {unit} cannot be read, and are not shown ({', '.join(sorted(missing))})"


def shown_name(name: str) -> str:
    """The last part of a path."""
    return name.rstrip("/").rpartition("/")[2] or name


Maker = Callable[[bytes], str]


def _maker(cache: Cache, kind: str) -> Maker:
    if kind == TEXT:
        return text_of_sample
    if kind == AUDIO:
        from precompute.inputs.audio.decode import libraries

        libraries()
        transform = cache.spec.get("transform")
        limit = transform.get("max_seconds") if isinstance(transform, dict) else None
        longest = float(limit) if isinstance(limit, int | float) and 0 < limit <= 24 * 3600 else LONGEST
        return lambda data: clip_uri(data, longest)
    return picture_uri


def picture_uri(data: bytes) -> str:
    """A small JPEG of a picture as a data URI. Raises SampleError."""
    from precompute.inputs.images.decode import thumbnail

    stream = io.BytesIO()
    thumbnail(data, SIDE).save(stream, "JPEG", quality=QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"


def text_of_sample(data: bytes) -> str:
    """The first letters of a text. Raises SampleError."""
    from precompute.inputs.text.decode import text_of

    text = text_of(data)
    return readable(text if len(text) <= LETTERS else f"{text[: LETTERS - 1]}…")


def clip_uri(data: bytes, longest: float) -> str:
    """The beginning of a clip as WAV, mono, 16 bits, in a data URI. Raises SampleError."""
    from precompute.inputs.audio.decode import decode

    sound = decode(data, RATE, longest)[: int(RATE * SECONDS)]
    values = np.rint(np.clip(sound, -1, 1) * (2**15 - 1)).astype("<i2")
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(values.tobytes())
    return f"data:audio/wav;base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"


def _made(
    samples: ShownSamples, rows: Sequence[int], make: Maker, kind: str
) -> Iterator[tuple[int, str | SampleError]]:
    """In order of the rows; a few are in progress at a time, so that the bytes of few are in memory."""

    def one(row: int) -> str | SampleError:
        try:
            return make(samples.read(row))
        except SampleError as error:
            return error
        except PrecomputeError as error:  # of the source as a whole, which has gone away meanwhile
            return SampleError(error.message, reason="UNREADABLE")

    with _session(kind), _threads(kind) as pool:
        todo, pending = iter(rows), deque[tuple[int, Future[str | SampleError]]]()
        while True:
            while len(pending) < AHEAD * cores() and (row := next(todo, None)) is not None:
                pending.append((row, pool.submit(one, row)))
            if not pending:
                return
            row, future = pending.popleft()
            yield row, future.result()


def _threads(kind: str) -> ThreadPoolExecutor:
    if kind == TEXT:
        return ThreadPoolExecutor(cores())
    from precompute.extraction.pipeline import decode_threads

    return decode_threads(cores())


def _session(kind: str) -> contextlib.AbstractContextManager[None]:
    if kind != IMAGE:
        return contextlib.nullcontext()
    from precompute.inputs.images.decode import quiet_pillow

    return quiet_pillow()
