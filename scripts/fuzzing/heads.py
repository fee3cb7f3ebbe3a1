"""Mutated heads."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
from hostile.good import make_heads

from .edits import scrambled
from .target import Target, WrongError, reason


class HeadTarget(Target):
    """Half of the files are damaged; half are forged, with a digest that is right."""

    def __init__(self, folder: Path) -> None:
        from precompute.heads import load_head

        super().__init__(folder)
        self.bases = []
        for path in make_heads(folder):
            saved = load_head(path)
            self.bases.append((path.read_bytes(), self.arrays(saved.head), saved.metadata))
        self.forged = False
        self.base = self.bases[0]

    @staticmethod
    def arrays(head: Any) -> dict[str, Any]:
        names = (
            *("coef_", "intercept_", "mean_", "scale_", "weights_", "biases_", "classes_", "labels_"),
            *("centroids_", "directions_", "targets_", "thresholds_"),
        )
        rows = {"features_": head.features_[:].tobytes()} if hasattr(head, "features_") else {}
        return rows | {
            name: [np.asarray(part).tobytes() for part in value] if isinstance(value, list) else value.tobytes()
            for name in names
            if (value := getattr(head, name, None)) is not None
        }

    def mutate(self, rng: random.Random) -> None:
        from precompute.heads.persistence import encoding

        self.base = rng.choice(self.bases)
        data = scrambled(self.base[0], rng)
        self.forged = rng.random() < 0.5
        if self.forged:
            import hashlib

            length = int.from_bytes(self.base[0][:8], "little")
            text = scrambled(self.base[0][8 : 8 + length], rng) if rng.random() < 0.8 else data[8 : 8 + length]
            data = len(text).to_bytes(8, "little") + text + data[8 + length :]
            blank = encoding.DIGEST.sub(f'"digest":"{encoding.NO_DIGEST}"'.encode(), text)
            digest = hashlib.sha256(data[:8] + blank + data[8 + len(text) :]).hexdigest()
            text = encoding.DIGEST.sub(f'"digest":"{digest}"'.encode(), text)
            data = data[:8] + text + data[8 + len(text) :]
        self.path.write_bytes(data)

    def check(self) -> str:
        from precompute.errors import HeadFormatError
        from precompute.heads import load_head

        try:
            saved = load_head(self.path)
        except HeadFormatError as error:
            return reason(error.message, self.path)
        if not self.forged:
            if self.arrays(saved.head) != self.base[1] or saved.metadata != self.base[2]:
                raise WrongError("other arrays or metadata than in the original")
            return "opened"
        features = np.zeros((2, saved.head.n_features_in_), dtype=np.float32)
        with np.errstate(all="ignore"):  # what a forger writes may overflow; it must not break anything
            if len(saved.head.predict(features)) != 2:
                raise WrongError("a forged head that does not predict")
        return "opened, forged"
