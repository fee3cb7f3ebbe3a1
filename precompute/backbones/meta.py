"""Networks without memory for their parameters, to look at their layers or to fill them from a file."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class ParametersOnMeta(TorchFunctionMode):
    """Inside, parameters take no memory and no time: torch's modules make theirs by torch.empty.

    torch.device("meta") would be simpler, but some builders (RegNet) compute their sizes with tensors. What fills them
    is left out: on the meta device torch imports its whole compiler for that (0.9 s).
    """

    _FILLS = (torch.Tensor.normal_, torch.Tensor.uniform_)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function is torch.empty:
            kwargs["device"] = "meta"
        elif getattr(function, "__module__", None) == "torch.nn.init" and function.__name__.endswith("_"):
            return args[0] if args else kwargs["tensor"]
        elif function in self._FILLS and args[0].is_meta:
            return args[0]
        return function(*args, **kwargs)
