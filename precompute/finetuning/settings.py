"""How a tail is trained, and at which rate in which step."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from precompute.errors import UsageError
from precompute.heads.base.inputs import check_number

SCHEDULES = ("cosine", "constant")
PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class TailSettings:
    """Settings of the second step of LP-FT (A. Kumar et al., ICLR 2022): tail and output layer together.

    The first step, the linear head, has none: its C is chosen. The rates are those of AdamW (I. Loshchilov and F.
    Hutter, ICLR 2019). A small one, since the weights begin where they are good already: a large one distorts them.

    epochs: at most · learning_rate: the highest · weight_decay: of weights, not of biases and norms · warmup: epochs in
    which the rate rises from 0, may be a fraction · batch_size: samples a step · patience: epochs without a lower loss
    on the selection set, after which the training ends · dropout: of the features in front of the output layer ·
    label_smoothing: share of the target that is spread over all classes · schedule: "cosine" lowers the rate to 0 over
    `epochs`, step by step; "constant" leaves it · seed: of the linear head's folds, the hold-out, the batches, the
    views and dropout · device: cpu, cuda, cuda:1, ... · precision: "fp32", or "bf16" mixed on CUDA.
    """

    epochs: int = 30
    learning_rate: float = 1e-4
    weight_decay: float = 1e-4
    warmup: float = 1.0
    batch_size: int = 32
    patience: int = 8
    dropout: float = 0.0
    label_smoothing: float = 0.0
    schedule: str = "cosine"
    seed: int = 0
    device: str = "cpu"
    precision: str = "fp32"

    def check(self) -> None:
        """Raise UsageError for values that no training has."""
        try:
            for name in ("epochs", "batch_size", "patience"):
                check_number(name, getattr(self, name), whole=True, low=1)
            check_number("learning_rate", self.learning_rate, low=0, high=1e6, open_low=True)
            check_number("weight_decay", self.weight_decay, low=0, high=1e6)
            check_number("warmup", self.warmup, low=0, high=self.epochs + 1e-9)
            check_number("dropout", self.dropout, low=0, high=1)
            check_number("label_smoothing", self.label_smoothing, low=0, high=1)
            check_number("seed", self.seed, whole=True, low=0, high=2**32)
        except ValueError as error:
            raise UsageError(str(error), hint="See `precompute fine-tune --help`.") from error
        for name, known in (("schedule", SCHEDULES), ("precision", PRECISIONS)):
            if (value := getattr(self, name)) not in known:
                raise UsageError(
                    f"{name} must be one of {', '.join(known)}. Got {value!r} instead.", hint="See --help."
                )

    def factor(self, step: int, steps_per_epoch: int) -> float:
        """What the learning rate is multiplied by in a step, counted from 0 over all epochs."""
        rising = round(self.warmup * steps_per_epoch)
        if step < rising:
            return (step + 1) / rising
        if self.schedule == "constant":
            return 1.0
        falling = max(1, self.epochs * steps_per_epoch - rising)
        return (1 + math.cos(math.pi * (step - rising) / falling)) / 2

    def record(self) -> dict[str, Any]:
        """JSON-ready, for a file; less the device, which describes a machine."""
        return {name: value for name, value in asdict(self).items() if name != "device"}
