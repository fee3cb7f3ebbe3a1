"""Section: what this machine is."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

from check_gpu.running import Report
from check_gpu.settings import Settings

PACKAGES = ("torch", "torchvision", "triton", "numpy", "scipy", "scikit-learn", "h5py", "pillow", "safetensors")
MODULES = ("simplejpeg", "openvino", "xxhash", "threadpoolctl", "joblib", "rich", "click", "pytest", "hypothesis")
QUERY = "name,driver_version,memory.total,memory.used,utilization.gpu,clocks.max.sm,power.limit,temperature.gpu"


def measure(settings: Settings, report: Report) -> None:
    import torch

    found = torch.cuda.is_available()
    if settings.device == "cuda" and not found:
        report.error("device", "--device cuda was asked for, and torch finds no CUDA device")
        return
    device = ("cuda" if found else "cpu") if settings.device == "auto" else settings.device
    report.row("device", value=device)
    with report.attempt("processor"):
        report.row("processor", value=processor(), cores=settings.cores, memory=memory())
        shm = shutil.disk_usage("/dev/shm").free if os.path.isdir("/dev/shm") else 0
        free = shutil.disk_usage(settings.place).free
        report.row("space", value=f"/dev/shm {shm / 2**30:.1f} GiB, temporary folder {free / 2**30:.1f} GiB free")
    with report.attempt("packages"):
        report.row("python", value=f"{platform.python_version()} on {platform.platform()}")
        report.row("versions", value=", ".join(f"{name} {_version(name)}" for name in PACKAGES))
        report.row("also", value=", ".join(f"{name} {_version(name, module=True)}" for name in MODULES))
    report.row("compilers", value=", ".join(name for name in ("gcc", "g++", "clang++", "nvcc") if shutil.which(name)))
    if device == "cuda":
        with report.attempt("gpu"):
            _gpu(report)


def _gpu(report: Report) -> None:
    import torch

    properties = torch.cuda.get_device_properties(0)
    report.row(
        "gpu",
        value=properties.name,
        count=torch.cuda.device_count(),
        capability=f"{properties.major}.{properties.minor}",
        memory=f"{properties.total_memory / 2**30:.1f} GiB",
        multiprocessors=properties.multi_processor_count,
        bf16=torch.cuda.is_bf16_supported(),
        cuda=torch.version.cuda,
        cudnn=torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
    )
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
        report.row("nvidia-smi", value=(done.stdout or done.stderr).strip()[:400], fields=QUERY)


def processor() -> str:
    """The processor's name, as far as the system says it."""
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def memory() -> str:
    """Physical memory."""
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"


def _version(name: str, *, module: bool = False) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        pass
    if not module:
        return "not found"
    try:
        return str(getattr(import_module(name), "__version__", "found"))
    except ImportError:
        return "not found"
