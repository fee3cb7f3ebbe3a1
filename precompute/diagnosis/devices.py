"""Processor, memory and GPUs, as far as they decide how fast an extraction is."""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from precompute.diagnosis.finding import NOTE, OK, Finding
from precompute.errors import PrecomputeError
from precompute.system import cores, cpu_flags, physical_memory

INSTRUCTIONS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_bf16": "AVX-512 bf16",
    "amx_bf16": "AMX bf16",
    "amx_int8": "AMX int8",
    "asimd": "NEON",
    "sve": "SVE",
    "bf16": "bf16",
}
"""Instruction sets that engines use, by the kernel's names."""
BF16 = ("avx512_bf16", "amx_bf16", "bf16")
GIB = 2**30
LITTLE_MEMORY = 4 * GIB
ARCHITECTURE = re.compile(r"(sm|compute)_(\d+)(\d)([a-z]*)")
"""One of `torch.cuda.get_arch_list()`: the last digit is the minor version."""
DRIVER = Path("/proc/driver/nvidia/version")
MEMORY_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def processor() -> Iterator[Finding]:
    """Model, cores and instruction sets; memory."""
    usable, there = cores(), os.cpu_count() or 1
    model = _model()
    text = f"{model}, {usable} of {there} cores are this process's own"
    yield Finding("devices", "processor", OK, text, details={"model": model, "cores": usable, "all_cores": there})
    flags = cpu_flags()
    known = [words for flag, words in INSTRUCTIONS.items() if flag in flags]
    found = {"instructions": [flag for flag in INSTRUCTIONS if flag in flags]}
    if not flags:
        yield Finding("devices", "instructions", OK, "this system does not say which there are", details=found)
    else:
        bf16 = "auto may take bf16" if flags & {*BF16} else "none for bf16, so that auto takes fp32"
        yield Finding("devices", "instructions", OK, f"{', '.join(known) or 'none of use'}; {bf16}", details=found)
    limit = _memory_limit()
    total = min(physical_memory(), limit or physical_memory())
    details: dict[str, Any] = {"bytes": physical_memory(), "limit": limit}
    text = f"{total / GIB:.1f} GiB" + (" (a limit of this container)" if limit and limit == total else "")
    if total < LITTLE_MEMORY:
        yield Finding("devices", "memory", NOTE, text, "Where memory runs out: --batch-size 8 --workers 2.", details)
    else:
        yield Finding("devices", "memory", OK, text, details=details)


def _model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        text = ""
    match = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1].strip() if match else platform.processor() or platform.machine()


def _memory_limit() -> int | None:
    for place in MEMORY_LIMITS:
        try:
            text = Path(place).read_text().strip()
        except OSError:
            continue
        if text.isdecimal() and int(text) < 2**60:
            return int(text)
    return None


def accelerators() -> Iterator[Finding]:
    """GPUs that torch can use, or why it can use none."""
    import torch

    build: str | None = torch.version.cuda
    details: dict[str, Any] = {"cuda_build": build, "driver": _driver()}
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            yield _gpu(number, details)
        return
    if torch.backends.mps.is_available():
        yield Finding("devices", "GPU", OK, "Apple GPU (MPS): --device mps, in fp32", details={"mps": True})
        return
    seen = details["driver"] is not None or shutil.which("nvidia-smi") is not None
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if seen and build is None:
        hint = "Install torch and torchvision for CUDA: https://pytorch.org/get-started/locally/"
        yield Finding("devices", "GPU", NOTE, "a driver of NVIDIA is here, but torch is built for CPUs", hint, details)
    elif seen and hidden is not None:
        hint = "CUDA_VISIBLE_DEVICES says which GPUs a process may see."
        yield Finding("devices", "GPU", NOTE, f"none is visible: CUDA_VISIBLE_DEVICES={hidden!r}", hint, details)
    elif seen:
        text = f"a driver of NVIDIA is here, but torch, built for CUDA {build}, finds no GPU"
        yield Finding("devices", "GPU", NOTE, text, "See nvidia-smi: the driver may be too old for it.", details)
    else:
        yield Finding("devices", "GPU", OK, "none; the processor computes", details=details)


def refusal(device: str) -> PrecomputeError | None:
    """Why `extract --device` would refuse this one; None where it would not."""
    from precompute.engines.devices import check_device

    try:
        check_device(device)
    except PrecomputeError as error:
        return error
    return None


def _gpu(number: int, details: dict[str, Any]) -> Finding:
    import torch

    properties = torch.cuda.get_device_properties(number)
    name, memory = properties.name, properties.total_memory
    capability = f"{properties.major}.{properties.minor}"
    driver = f", driver {details['driver']}" if details["driver"] else ""
    text = f"{name}, {memory / GIB:.0f} GiB, compute capability {capability}; CUDA {details['cuda_build']}{driver}"
    more = {**details, "name": name, "bytes": memory, "capability": capability}
    if not has_code_for(properties.major, properties.minor, torch.cuda.get_arch_list()):
        hint = "Where kernels are missing, install a torch that is built for it."
        return Finding("devices", f"cuda:{number}", NOTE, f"{text}; this torch has no code made for it", hint, more)
    return Finding("devices", f"cuda:{number}", OK, text, details=more)


def has_code_for(major: int, minor: int, architectures: Sequence[str]) -> bool:
    """Whether a build for these architectures, such as sm_86, sm_90a and compute_90, runs on a GPU of this capability.

    A binary (sm) runs on the minor version that it is made for and on higher ones of the same major version; PTX
    (compute) is compiled for any GPU that is not below it. With the suffix `a` it is that one capability alone, with
    `f` one major version. See "Compute capabilities" in the CUDA C++ Programming Guide. True where no architecture
    is one of NVIDIA's, as in builds for other GPUs.
    """
    found = [match.groups() for one in architectures if (match := ARCHITECTURE.fullmatch(one))]
    for kind, *numbers, suffix in found:
        made_for = tuple(map(int, numbers))
        reaches = suffix != "a" and (made_for[0] == major or (kind, suffix) == ("compute", ""))
        if made_for == (major, minor) or (reaches and made_for < (major, minor)):
            return True
    return bool(architectures) and not found


def _driver() -> str | None:
    try:
        match = re.search(r"Kernel Module\D*([\d.]+)", DRIVER.read_text())
    except OSError:
        return None
    return match[1] if match else None
