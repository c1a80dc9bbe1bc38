"""Inside a module that was not written for it: the input of its last linear layer, the outputs of its top-level stages.

An ordinary module is listened to with hooks. TorchScript calls no hooks: its graph is given another output.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.common.models.architectures import Classifier


class Parts(NamedTuple):
    """One pass of a module taken apart: its output, the last linear layer's input, the outputs of its stages."""

    output: Any
    features: Tensor | None
    stages: list[Tensor]


class Opened(NamedTuple):
    """A module that can be taken apart: `parts` of images as the module takes them, and its last linear layer."""

    parts: Callable[[Tensor], Parts]
    head: Callable[[Tensor], Tensor]


def opened(module: nn.Module, probe: Tensor, classes: int) -> Opened | None:
    """`module`, which maps the images `probe` to `classes` scores, taken apart; None where it has no linear layer of so
    many outputs. Whether that layer's outputs are the module's scores is for the caller to see.
    """
    if isinstance(module, Classifier):
        return _ours(module)
    if isinstance(module, torch.jit.ScriptModule):
        return _script(module, probe)
    return _hooked(module, probe, classes)


def _ours(module: Classifier) -> Opened:
    def parts(x: Tensor) -> Parts:
        *stages, features = module.layers(x)
        return Parts(module.head(features), features, stages)

    return Opened(parts, module.head)


def _hooked(module: nn.Module, probe: Tensor, classes: int) -> Opened | None:
    called: list[nn.Linear] = []
    linear = [layer for layer in module.modules() if isinstance(layer, nn.Linear) and layer.out_features == classes]
    listening = [layer.register_forward_hook(lambda layer, x, out: called.append(layer)) for layer in linear]
    try:
        module(probe)
    finally:
        for handle in listening:
            handle.remove()
    if not called:
        return None
    head = called[-1]
    stages = _stages(module, head)

    def parts(x: Tensor) -> Parts:
        features: list[Tensor] = []
        outputs: list[Tensor] = []
        listening = [head.register_forward_pre_hook(lambda layer, inputs: features.extend(inputs[:1]))]
        listening += [stage.register_forward_hook(lambda layer, inputs, out: outputs.append(out)) for stage in stages]
        try:
            output = module(x)
        finally:
            for handle in listening:
                handle.remove()
        maps = [out for out in outputs if isinstance(out, Tensor) and out.ndim in (3, 4) and len(out) == len(x)]
        return Parts(output, features[-1] if features else None, maps)

    return Opened(parts, head)


def _stages(module: nn.Module, head: nn.Module) -> list[nn.Module]:
    """The parts of a module that have parts themselves, but for the one that holds its `head`; where there is but one
    of them, the parts of that.
    """
    found = [part for part in module.children() if len(list(part.children())) > 0 and head not in part.modules()]
    if len(found) != 1:
        return found
    inner = _stages(found[0], head)
    return inner if len(inner) > 1 else found


def _script(module: torch.jit.ScriptModule, probe: Tensor) -> Opened | None:
    graph = module.inlined_graph.copy()
    linear = [node for node in graph.nodes() if node.kind() == "aten::linear"]
    if not linear:
        return None
    for value in linear[-1].inputs():
        graph.registerOutput(value)
    graph.makeMultiOutputIntoTuple()
    run = torch._C._create_function_from_graph("forward", graph)
    _, _, weight, bias = run(module._c, probe)

    def parts(x: Tensor) -> Parts:
        output, features, _, _ = run(module._c, x)
        return Parts(output, features, [])

    return Opened(parts, lambda features: F.linear(features, weight, bias))
