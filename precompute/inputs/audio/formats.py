"""Which files are clips of sound, by their names and first bytes; and those that nothing here decodes. No torch."""

from __future__ import annotations

from precompute.sources.base import FileKind
from precompute.system.samples import AUDIO, WORDS

DECODED = b".wav .wave .flac .ogg .oga .opus .mp3"
FOREIGN = b".m4a .aac .wma .aif .aiff .aifc .au .caf .amr .ape .wv .ac3"
EXTENSIONS = frozenset(DECODED.split() + FOREIGN.split())
"""A file with one of these is a sample whatever it holds: should it not be decoded, that is worth reporting."""

NAMES = "WAV, FLAC, OGG or MP3"
HEAD_BYTES = 16  # of a file decide what it is
WAV_IDS = (b"RIFF", b"RIFX", b"RF64")
ID3 = b"ID3"
LAYER_3 = (0xFA, 0xFB, 0xF2, 0xF3, 0xE2, 0xE3)
"""Second byte of a frame of MP3: MPEG 1, 2 and 2.5, layer III, with a checksum and without."""

HOW = {
    "MP4 or AAC": (b"\xff\xf1", b"\xff\xf9"),
    "WMA": (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",),
    "AIFF": (b"FORM",),
    "AU": (b".snd",),
    "CAF": (b"caff",),
    "AMR": (b"#!AMR",),
    "WavPack": (b"wvpk",),
    "Monkey's Audio": (b"MAC ",),
}
"""How files of sound begin that are not decoded here."""


def clip_format(head: bytes) -> str | None:
    """WAV, FLAC, OGG or MP3 for a file with these first HEAD_BYTES; None for all others."""
    if head[:4] in WAV_IDS and head[8:12] == b"WAVE":
        return "WAV"
    if head.startswith(b"fLaC"):
        return "FLAC"
    if head.startswith(b"OggS"):
        return "OGG"
    if head.startswith(ID3) or _is_frame(head):
        return "MP3"
    return None


def foreign_format(head: bytes) -> str | None:
    """The key of HOW for a file with these first HEAD_BYTES; None for all others."""
    if head[4:8] == b"ftyp" and head[8:12] in (b"M4A ", b"M4B "):
        return "MP4 or AAC"
    if head.startswith(b"FORM") and head[8:12] not in (b"AIFF", b"AIFC"):
        return None
    return next((name for name, begins in HOW.items() if head.startswith(begins)), None)


def looks_like_clip(head: bytes) -> bool:
    """Whether the first HEAD_BYTES of a file are those of sound, whether it can be decoded or not."""
    return clip_format(head) is not None or foreign_format(head) is not None


def _is_frame(head: bytes) -> bool:
    """Whether a file begins with a frame of MP3, whose bit rate and sampling rate are values with a meaning."""
    return (
        len(head) > 2
        and head[0] == 0xFF
        and head[1] in LAYER_3
        and head[2] >> 4 not in (0, 15)
        and head[2] >> 2 & 3 != 3
    )


CLIPS = FileKind(WORDS[AUDIO].single, WORDS[AUDIO].plural, NAMES, EXTENSIONS, HEAD_BYTES, looks_like_clip)
"""Which files of a folder are samples."""
