"""A network as a list of steps, read off its forward pass."""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from robusttrain.models.copying import deep_copy
from robusttrain.models.layers import NOTHING, Each, Layer, Sum, Window, hooked, of_module
from robusttrain.models.normalize import Normalize

_FUNCTIONS: tuple[Any, ...] = (F.relu, torch.relu, F.silu, F.gelu, torch.tanh, torch.sigmoid)
_SUMS = (operator.add, operator.iadd, torch.add)


#: fx replaces, for all threads, how modules are called: two at once would never undo it.
_following = threading.RLock()


class Tracer(fx.Tracer):
    """Follows a forward pass of its own thread, while others call any modules as ever."""

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        with _following:
            self._thread = threading.get_ident()
            return super().trace(root, concrete_args)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: dict[str, Any]
    ) -> Any:
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)


class _Tracer(Tracer):
    """Follows a forward pass down to the layers that `of_module` knows."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        known = isinstance(m, (Normalize, _BatchNorm))
        return known or super().is_leaf_module(m, module_qualified_name)


@dataclass(frozen=True)
class Traced:
    """A network as a list of steps.

    Args:
        module: the steps, to be run one by one.
        layers: those steps that carry a change no farther than a window, by their nodes; what
            enters them is the images or comes out of such steps.
    """

    module: fx.GraphModule
    layers: dict[fx.Node, Layer]

    @property
    def images(self) -> fx.Node:
        """The step that stands for the images."""
        return next(node for node in self.module.graph.nodes if node.op == "placeholder")

    @staticmethod
    def entering(node: fx.Node) -> list[fx.Node]:
        """The steps that a step takes its tensors from, one for each argument."""
        return [each for each in node.args if isinstance(each, fx.Node)]

    def multiplications(self, node: fx.Node) -> int:
        """For a number of what a step gives."""
        layer = self.layers.get(node)
        if isinstance(layer, Window):
            return layer.work
        called = self.module.get_submodule(str(node.target)) if node.op == "call_module" else None
        weight = getattr(called, "weight", None)
        return weight[0].numel() if isinstance(weight, Tensor) and weight.dim() > 1 else 0


def traced(network: nn.Module) -> Traced | None:
    """A network in evaluation mode as a list of steps; None if it cannot be read as one, none of
    its steps is a window, a hook looks at more than a step, or `_reads_written`.

    Whoever runs the steps has to compare them with the network: reading follows one way through
    its code, for images of any shape. The steps share the network's weights.
    """
    tracer = _Tracer()
    whole = {network} | {
        part for name, part in network.named_modules() if not tracer.is_leaf_module(part, name)
    }
    if any(map(hooked, whole)):
        return None
    try:
        # Reading leaves stand-ins for tensors in whatever attributes `forward` assigns.
        scratch = deep_copy(network, shared=network.parameters())
        module = fx.GraphModule(scratch, tracer.trace(scratch))
    except Exception:  # noqa: BLE001 - forward is any code
        return None
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    if not inputs:
        return None
    layers: dict[fx.Node, Layer] = {}
    local = {inputs[0]}
    for node in module.graph.nodes:
        entering = node.all_input_nodes
        if entering and all(each in local for each in entering):
            layer = _layer(module, node)
            if layer is not None:
                layers[node] = layer
                local.add(node)
    some = any(isinstance(layer, Window) for layer in layers.values())
    return Traced(module, layers) if some and not _reads_written(module) else None


def _reads_written(module: fx.GraphModule) -> bool:
    """Whether a step reads a tensor that an earlier one, which is not its own, wrote to in place.

    Steps in part write to nothing: what such a step reads would be as it was before. Where that is
    seldom another value (a bound that few reach), no comparison would show it.
    """
    order = {node: number for number, node in enumerate(module.graph.nodes)}
    same: dict[fx.Node, list[fx.Node]] = {}  # steps that give one tensor, by each of them
    for node in module.graph.nodes:
        first = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        writes = _writes(module, node)
        if first is None or not (writes or _hands_on(module, node)):
            same[node] = [node]
            continue
        if writes:
            readers = {user for each in same[first] for user in each.users}
            if any(order[user] > order[node] for user in readers):
                return True
        same[node] = same[first]
        same[node].append(node)
    return False


def _writes(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a step writes to its first tensor."""
    if node.op == "call_module":
        return bool(getattr(module.get_submodule(str(node.target)), "inplace", False))
    if node.op == "call_method":
        name = str(node.target)
        return name.endswith("_") and not name.endswith("__")
    if node.op != "call_function":
        return False
    # An in-place operator, y += z, is read as one that makes a new tensor: any sum tells.
    return getattr(node.target, "__name__", "").endswith("_") or bool(node.kwargs.get("inplace"))


def _hands_on(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a step gives the tensor that it takes."""
    called = node.op == "call_module"
    return called and type(module.get_submodule(str(node.target))) in NOTHING


def _layer(module: fx.GraphModule, node: fx.Node) -> Layer | None:
    """What a step does, if it carries a change no farther than a window."""
    if node.op == "call_module":
        if len(node.args) != 1 or node.kwargs:
            return None
        return of_module(module.get_submodule(str(node.target)))
    if node.op != "call_function":
        return None
    if node.target in _SUMS and len(node.args) == 2 and not node.kwargs:
        return Sum() if all(isinstance(each, fx.Node) for each in node.args) else None
    if node.target in _FUNCTIONS and len(node.args) == 1:
        # F.relu(x, inplace=True) among them
        options = {key: value for key, value in node.kwargs.items() if key != "inplace"}
        function: Any = node.target
        return Each(lambda images: function(images, **options))
    return None
