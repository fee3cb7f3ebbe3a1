"""What of this machine decides which engine and precision a run takes; and the table that says in which order."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from importlib.util import find_spec

import torch

from precompute.system import cpu_flags

ENGINE_VARIABLE, PRECISION_VARIABLE = "PRECOMPUTE_ENGINE", "PRECOMPUTE_PRECISION"
"""Environment variables that say what `auto` stands for, where many machines shall make the same choice."""


@dataclass(frozen=True)
class Machine:
    """Devices, instructions and programs of one machine, and what its user says about `auto`.

    cuda: there is a CUDA device · cuda_bf16: it computes in bf16 itself · bf16: the processor has instructions for
    it · openvino: precisions that OpenVINO computes in itself on this processor, () where it is not installed ·
    compiler: there is a C++ compiler, which torch.compile needs on a CPU · engine, precision: what the environment
    variables above say, "auto" where they are not set.
    """

    cuda: bool = False
    cuda_bf16: bool = False
    bf16: bool = False
    openvino: tuple[str, ...] = ()
    compiler: bool = False
    engine: str = "auto"
    precision: str = "auto"

    @classmethod
    def here(cls) -> Machine:
        """This machine, as the process finds it now."""
        cuda = torch.cuda.is_available()
        return cls(
            cuda=cuda,
            cuda_bf16=cuda and torch.cuda.is_bf16_supported(including_emulation=False),
            bf16=_computes_bf16(),
            openvino=_openvino_precisions(),
            compiler=any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))),
            engine=os.environ.get(ENGINE_VARIABLE) or "auto",
            precision=os.environ.get(PRECISION_VARIABLE) or "auto",
        )

    def computes(self, engine: str, kind: str, precision: str) -> bool:
        """Whether `engine` computes in `precision` on a device of this kind by instructions made for it."""
        if engine == "openvino":
            return kind == "cpu" and precision in self.openvino
        if kind == "cuda":
            return precision != "bf16" or self.cuda_bf16
        return precision == "fp32" or (kind == "cpu" and precision == "bf16" and self.bf16)


@dataclass(frozen=True)
class Preference:
    """One line of the table: on a device of this kind, this engine in this precision; and what put it there."""

    kind: str
    engine: str
    precision: str
    why: str


PREFERENCES = (
    Preference("cuda", "torch", "bf16", "ResNet-50 on an H100: 11,574 images/s, 2,903 in fp32; it cannot overflow"),
    Preference(
        "cuda",
        "torch",
        "fp16",
        "MobileNetV2 on an H100: cosine 0.9995 where bf16 has 0.9907; 25,991 images/s, 9,765 in fp32",
    ),
    Preference("cuda", "torch", "fp32", "the reference"),
    Preference("mps", "torch", "fp32", "the reference; lower precisions have not been measured"),
    Preference(
        "cpu", "openvino", "bf16", "ResNet-50: 6.6 times eager fp32 torch on AVX-512, 203 images/s on two AMX cores"
    ),
    Preference("cpu", "openvino", "fp32", "MobileNetV2: 5.1 times eager fp32 torch"),
    Preference("cpu", "torch", "bf16", "where OpenVINO is missing or cannot convert the network"),
    Preference("cpu", "torch", "fp32", "the reference"),
)
"""What `auto` tries, in this order: the first that the machine computes in and that keeps its features is taken.

fp16 by OpenVINO is not in it: on a CPU it was slower than fp32 wherever both were measured (MobileNetV2 on two AMX
cores: 97 against 122, 128 against 157 and 263 against 301 images/s).
"""

COMPILE_FROM = {"cpu": 10_000, "cuda": 500_000}
"""Images from which torch.compile repays itself, by device; on others it is never used by default.

On a CPU it takes up to a minute and saves a third of the forward pass at least. ResNet-50 on an H100: 9.8 s to compile,
then 22,151 images/s instead of 11,574, so that 240,000 images repay it if nothing else limits them; twice as many here.
"""


def _openvino_precisions() -> tuple[str, ...]:
    if find_spec("openvino") is None:
        return ()
    from precompute.engines.openvino import supported_precisions

    return supported_precisions()


def _computes_bf16() -> bool:
    """By oneDNN, with instructions for it: without them it goes by way of fp32, slower than fp32 itself."""
    onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return onednn and not cpu_flags().isdisjoint({"avx512_bf16", "amx_bf16", "bf16"})
