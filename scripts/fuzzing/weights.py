"""Mutated checkpoints."""

from __future__ import annotations

import io
import random
import zipfile
from pathlib import Path

from hostile.good import make_weights

from .edits import scrambled
from .target import Target, WrongError, reason


class WeightsTarget(Target):
    """Checkpoints of both of torch's formats, whose pickles are edited behind right checksums, and safetensors."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.folder = folder
        paths = make_weights(folder)
        self.bases = [(path.suffix, path.read_bytes()) for path in paths]
        for path in paths:
            self.path = path
            if self.check() != "opened":  # the first load also imports much, which is not to count as a case's memory
                raise WrongError(f"{self.path} is to be mutated, and does not load")

    def mutate(self, rng: random.Random) -> None:
        suffix, data = rng.choice(self.bases)
        if zipfile.is_zipfile(io.BytesIO(data)) and rng.random() < 0.7:
            data = self.rewritten(data, rng)
        elif suffix == ".safetensors" and rng.random() < 0.7:
            length = int.from_bytes(data[:8], "little")
            text = scrambled(data[8 : 8 + length], rng)
            data = len(text).to_bytes(8, "little") + text + data[8 + length :]
        else:
            data = scrambled(data, rng)
        self.path = self.folder / f"mutated{suffix}"
        self.path.write_bytes(data)

    @staticmethod
    def rewritten(data: bytes, rng: random.Random) -> bytes:
        result = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(result, "w", zipfile.ZIP_STORED) as new:
            for name in old.namelist():
                spoilt = name.endswith("data.pkl") or rng.random() < 0.05
                new.writestr(zipfile.ZipInfo(name), scrambled(old.read(name), rng) if spoilt else old.read(name))
        return result.getvalue()

    def check(self) -> str:
        from precompute.backbones.checkpoints import load_file
        from precompute.backbones.weights import digest_of
        from precompute.errors import WeightsError

        try:
            state = load_file(str(self.path))
        except WeightsError as error:
            return reason(error.message, self.path)
        digest_of(state)  # reads every byte that the tensors claim to have
        return "opened"
