"""CUDA graphs: a forward pass is recorded once and then launched by one call instead of one for each kernel.

For small batches launching takes longer than computing. The kernels are the same, and so is every bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from precompute.errors import DeviceError, reason_of

Tensors = tuple[torch.Tensor, ...]

GRAPHS_UP_TO = 64
"""Samples of a batch. MobileNetV2 on an H100 in bf16, batches of 32: 20,982 images/s with a graph, 9,457 without;
ResNet-50 11,638 and 9,582. From 256 on computing takes longer than launching, and a graph would only hold memory."""
WARM_UP = 3  # passes before recording, as torch asks for: libraries choose their kernels and take their memory in these
SPARE = 1.25  # of the memory that a pass has taken
NO_MEMORY = "the device has too little memory for it"
INDEXING = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default)
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class NotRecordableError(Exception):
    """A forward pass needs the host in its middle, or its graph would not fit into the device's memory."""


class Graph:
    """`run` over `inputs`, recorded. The memory of both inputs and outputs is used again in each replay.

    Raises NotRecordableError before anything is recorded, since a recording that fails leaves torch's allocator, its
    random numbers and the current stream in the middle of it: where that happens nevertheless, DeviceError.
    """

    def __init__(self, run: Callable[..., Tensors], inputs: Tensors) -> None:
        device = inputs[0].device
        side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            check_recordable(run, inputs)
            held = torch.cuda.memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)
            for _ in range(WARM_UP):
                run(*inputs)
        torch.cuda.current_stream(device).wait_stream(side)
        torch.cuda.synchronize(device)
        needed = SPARE * (torch.cuda.max_memory_allocated(device) - held)
        if needed > torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - held:
            raise NotRecordableError(NO_MEMORY)
        self._graph = torch.cuda.CUDAGraph()
        try:
            # Memory that another thread takes on this device meanwhile must not spoil the recording
            with torch.cuda.device(device), torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._outputs = run(*inputs)
        except Exception as error:
            raise DeviceError(
                f"The network cannot be recorded as a CUDA graph: {reason_of(error)}",
                hint=f"Take a larger --batch-size: batches of more than {GRAPHS_UP_TO} are not recorded.",
            ) from error

    def replay(self) -> Tensors:
        """Launch it on the current stream; the outputs hold until the next replay of this graph."""
        self._graph.replay()
        return self._outputs


def check_recordable(run: Callable[..., Tensors], inputs: Tensors) -> None:
    """Raise NotRecordableError where `run` looks at a value on the host, or copies between host and device."""
    # Within inference mode an operation is seen as it is called, without those that it consists of
    try:
        with torch.inference_mode(False), torch.no_grad(), _NeedsNoHost():  # type: ignore[no-untyped-call]
            run(*inputs)
    except torch.OutOfMemoryError as error:
        raise NotRecordableError(NO_MEMORY) from error


class _NeedsNoHost(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Of this thread alone, where torch.cuda.set_sync_debug_mode would hold for those that decode as well."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        tensors = [one for one in tree_leaves((args, kwargs, found)) if isinstance(one, torch.Tensor)]
        looks = torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags
        if func in INDEXING:
            looks = any(one is not None and one.dtype in (torch.bool, torch.uint8) for one in args[1])
        devices = {one.device for one in tensors if one.dim() or func in COPIES}
        if looks or len(devices) > 1:
            raise NotRecordableError(f"{func} needs the host in the middle of the forward pass")
        return found
