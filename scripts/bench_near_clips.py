"""How well `train-head` tells near-duplicates from other clips, for two backbones: the table of docs/scores.md.

    python scripts/bench_near_clips.py spoken_digits --weights resemblyzer.safetensors

FOLDER has clips in train/ and test/. Prints for some similarities how many test clips have a training clip that is as
similar, and how many changed copies of the test clips are as similar to their original.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from precompute import extract, open_cache

Features = NDArray[np.floating[Any]]
BARS = (0.9, 0.95, 0.98, 0.99)
AS_TRAINING = "another recording"


def changed(wave: NDArray[np.float64], rate: int, rng: np.random.Generator) -> dict[str, tuple[Any, str]]:
    """Name of the change -> (samples,) and the kind of file it is saved as."""
    noise = rng.normal(0, wave.std() / 10**1.5, wave.shape)
    return {
        "copy as OGG": (wave, "OGG"),
        "copy as MP3": (wave, "MP3"),
        "copy with a twentieth cut off in front": (wave[len(wave) // 20 :], "FLAC"),
        "copy with noise of -30 dB": (np.clip(wave + noise, -1, 1), "FLAC"),
        "copy at half the loudness": (wave / 2, "FLAC"),
        "copy behind 0.1 s of silence": (np.concatenate([np.zeros(rate // 10), wave]), "FLAC"),
    }


def write(folder: Path, place: Path) -> list[str]:
    """Clips as train/, test/ and one folder for each change; the changes. Files of one clip have one stem."""
    rng, names = np.random.default_rng(0), dict[str, None]()
    for split in ("train", "test"):
        (place / split).mkdir()
        for path in sorted(one for one in (folder / split).rglob("*") if one.is_file()):
            wave, rate = soundfile.read(path)
            wave = wave if wave.ndim == 1 else wave.mean(1)
            soundfile.write(place / split / f"{path.stem}.flac", wave, rate)
            for name, (values, kind) in changed(wave, rate, rng).items() if split == "test" else ():
                names[name] = None
                (place / name).mkdir(exist_ok=True)
                soundfile.write(place / name / f"{path.stem}.{kind.lower()}", values, rate, format=kind)
    return [*names]


def shares(place: Path, names: list[str], backbone: str, weights: str) -> dict[str, list[float]]:
    """Name of the change -> the share of clips at each of BARS."""

    def features(name: str) -> Features:
        path = place / f"{backbone}-{name}.h5"
        extract(place / name, path, backbone=backbone, weights=weights, dtype="float32")
        return np.asarray(open_cache(path).features())  # by id, and so in the same order

    train = features("train")
    mean = train.mean(0)

    def unit(rows: Features) -> Features:
        rows = rows - mean
        scaled: Features = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return scaled

    test = unit(features("test"))
    found = {AS_TRAINING: (test @ unit(train).T).max(1)}
    found |= {name: (unit(features(name)) * test).sum(1) for name in names}
    return {name: [float((values >= bar).mean()) for bar in BARS] for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", required=True, help="of resemblyzer")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        names = write(given.folder, Path(folder))
        tables = [
            shares(Path(folder), names, backbone, weights)
            for backbone, weights in (("mel-statistics", "DEFAULT"), ("resemblyzer", given.weights))
        ]
    for name in (AS_TRAINING, *names):
        cells = [f"{100 * share:.1f}%" for table in tables for share in table[name]]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
