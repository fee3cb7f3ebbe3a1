"""BatchNorm folded into the layer before it, for inference.

torch.fx.experimental has such a pass, whose import warns of a deprecation with torch 2.11 on Python 3.12.
"""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

FOLDED: dict[tuple[type, type], Any] = {
    (nn.Conv1d, nn.BatchNorm1d): fuse_conv_bn_eval,
    (nn.Conv2d, nn.BatchNorm2d): fuse_conv_bn_eval,
    (nn.Conv3d, nn.BatchNorm3d): fuse_conv_bn_eval,
    (nn.Linear, nn.BatchNorm1d): fuse_linear_bn_eval,
}


def fold_batch_norms(network: fx.GraphModule) -> fx.GraphModule:
    """A network in eval mode with each BatchNorm made part of the layer in front of it; `network` stays as it is.

    Exact up to rounding: both are affine. A layer whose output something else uses too, or that is run twice, keeps
    its BatchNorm.
    """
    result = fx.GraphModule(network, copy.deepcopy(network.graph))
    runs = Counter(node.target for node in result.graph.nodes if node.op == "call_module")
    for node in list(result.graph.nodes):
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        layer, norm = result.get_submodule(str(before.target)), result.get_submodule(str(node.target))
        fuse = FOLDED.get((type(layer), type(norm)))
        if fuse is None or runs[before.target] > 1 or not getattr(norm, "track_running_stats", False):
            continue
        result.set_submodule(str(before.target), fuse(layer, norm))
        node.replace_all_uses_with(before)
        result.graph.erase_node(node)
    result.delete_all_unused_submodules()
    result.recompile()
    return result
