"""How far a change of a few pixels reaches into a network.

A convolution carries a change of a pixel to the pixels that its kernel sees, pooling to fewer of
them, and an activation nowhere else. So most of what the first layers compute for an image is what
they computed before a small square of it was changed. `traced` reads the order of such layers off a
network, and `Span` says which rows, or columns, of a layer's output a change can reach.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from robusttrain.models.copying import deep_copy
from robusttrain.models.normalize import Normalize

#: A layer of which a change reaches more than this share is computed in full.
LARGEST = 0.6
#: What moving a number costs, in multiplications, and what a step costs whose output is computed in
#: part, however few pixels these are.
MOVING, STEP = 16, 2**24
#: A change that saves less than this share of the work is answered in full.
WORTH = 0.25


@dataclass(frozen=True)
class Span:
    """What a change reaches along one axis of a layer's output, for each place of the change.

    Args:
        first: (A,) the first row that changes, by the first row of the change in the image.
        last: (A,) the last one.
        of: rows in all.
    """

    first: tuple[int, ...]
    last: tuple[int, ...]
    of: int

    @classmethod
    def of_change(cls, side: int, of: int) -> Span:
        """The change itself: ``side`` rows of ``of``, at each place where they fit; all where there
        are fewer.
        """
        side = min(side, of)
        places = range(of - side + 1)
        return cls(tuple(places), tuple(place + side - 1 for place in places), of)

    @cached_property
    def length(self) -> int:
        """The most rows that change, whatever the place."""
        return max(last - first + 1 for first, last in zip(self.first, self.last, strict=True))

    @cached_property
    def start(self) -> tuple[int, ...]:
        """(A,) where `length` rows begin that lie within the axis and hold all that changes."""
        return tuple(min(first, self.of - self.length) for first in self.first)

    def through(self, kernel: int, stride: int, padding: int, dilation: int) -> Span:
        """The same after a window has passed over the axis; row j of the output sees the rows from
        j stride - padding on.
        """
        reach = dilation * (kernel - 1)
        of = (self.of + 2 * padding - reach - 1) // stride + 1
        # A stride greater than the kernel leaves rows that nobody sees: then one row stands for
        # none.
        first = [min(max(0, -(-(row + padding - reach) // stride)), of - 1) for row in self.first]
        last = [
            max(min(of - 1, (row + padding) // stride), start)
            for row, start in zip(self.last, first, strict=True)
        ]
        return Span(tuple(first), tuple(last), of)

    def united(self, other: Span) -> Span:
        """What either reaches, on axes of one length."""
        return replace(
            self,
            first=tuple(map(min, self.first, other.first)),
            last=tuple(map(max, self.last, other.last)),
        )


@dataclass(frozen=True)
class Window:
    """A layer whose output pixels see a window each: a convolution, or pooling.

    Args:
        kernel, stride, padding, dilation: rows and columns.
        fill: what lies beyond the border.
        compute: from images (B, C, H, W) to the output, without padding.
        work: multiplications for a number of the output.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    fill: float
    compute: Callable[[Tensor], Tensor]
    work: int

    def through(self, spans: tuple[Span, Span]) -> tuple[Span, Span]:
        """Spans of rows and columns of the output."""
        rows, columns = (
            spans[axis].through(
                self.kernel[axis], self.stride[axis], self.padding[axis], self.dilation[axis]
            )
            for axis in range(2)
        )
        return rows, columns

    def seen(self, length: int, axis: int) -> int:
        """Rows of the input that so many rows of the output see."""
        reach = self.dilation[axis] * (self.kernel[axis] - 1)
        return (length - 1) * self.stride[axis] + reach + 1


@dataclass(frozen=True)
class Each:
    """A layer that treats each pixel by itself: an activation, batch norm, normalisation.

    Args:
        compute: from images (B, C, H, W) to the output; changes nothing in place.
    """

    compute: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Sum:
    """The sum of two tensors of one shape, as at the end of a residual block."""


Layer = Window | Each | Sum

#: Activations without weights. Exact classes: a subclass may do anything.
_ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid),
)
_NOTHING = (nn.Identity, nn.Dropout, nn.Dropout2d)  # in evaluation mode
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
    """Follows a forward pass down to the layers that `_of_module` knows."""

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
    return called and type(module.get_submodule(str(node.target))) in _NOTHING


def hooked(module: nn.Module) -> bool:
    """Whether hooks look at or change the input or output of this very layer."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _layer(module: fx.GraphModule, node: fx.Node) -> Layer | None:
    """What a step does, if it carries a change no farther than a window."""
    if node.op == "call_module":
        if len(node.args) != 1 or node.kwargs:
            return None
        return _of_module(module.get_submodule(str(node.target)))
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


def _of_module(layer: nn.Module) -> Layer | None:
    kind = type(layer)
    if hooked(layer) or layer.training:
        return None
    if kind in _NOTHING:
        return Each(lambda images: images)
    if kind in _ACTIVATIONS:
        return Each(_out_of_place(layer))
    if kind is Normalize or (kind is nn.BatchNorm2d and layer.running_mean is not None):
        return Each(layer)  # without running statistics it is about the whole batch
    if kind is nn.Conv2d and isinstance(layer, nn.Conv2d):
        if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
            return None
        weight, bias, groups = layer.weight, layer.bias, layer.groups
        stride, dilation = _pair(layer.stride), _pair(layer.dilation)
        return Window(
            _pair(layer.kernel_size),
            stride,
            _pair(layer.padding),
            dilation,
            0.0,
            lambda images: F.conv2d(images, weight, bias, stride, 0, dilation, groups),
            weight[0].numel(),
        )
    if kind is nn.MaxPool2d and isinstance(layer, nn.MaxPool2d):
        if layer.return_indices or layer.ceil_mode:
            return None
        kernel, stride = _pair(layer.kernel_size), _pair(layer.stride)
        dilation = _pair(layer.dilation)
        return Window(
            kernel,
            stride,
            _pair(layer.padding),
            dilation,
            -torch.inf,
            lambda images: F.max_pool2d(images, kernel, stride, 0, dilation),
            kernel[0] * kernel[1],
        )
    if kind is nn.AvgPool2d and isinstance(layer, nn.AvgPool2d):
        kernel, stride = _pair(layer.kernel_size), _pair(layer.stride)
        plain = _pair(layer.padding) == (0, 0) and layer.divisor_override is None
        if layer.ceil_mode or not plain:
            return None
        return Window(
            kernel,
            stride,
            (0, 0),
            (1, 1),
            0.0,
            lambda images: F.avg_pool2d(images, kernel, stride),
            kernel[0] * kernel[1],
        )
    return None


def _out_of_place(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    """An activation on a tensor that others still need."""
    if getattr(layer, "inplace", False):
        return lambda images: layer(images.clone())
    return layer


def _pair(value: Any) -> tuple[int, int]:
    numbers = (value, value) if isinstance(value, int) else tuple(value)
    return int(numbers[0]), int(numbers[-1])


@dataclass(frozen=True)
class Plan:
    """Which layers a change leaves whole but for a window.

    Args:
        spans: rows and columns that change, of those layers and of the images.
        work: of the network in full, for an image, in multiplications.
        saved: how much of it is saved.
    """

    spans: dict[fx.Node, tuple[Span, Span]]
    work: float = 0.0
    saved: float = 0.0

    def worth(self, batch: int) -> bool:
        """Whether the change is computed in part, for so many images."""
        saved = self.saved * batch - STEP * len(self.spans)
        return saved > WORTH * self.work * batch

    @cached_property
    def starts(self) -> dict[fx.Node, tuple[Tensor, Tensor]]:
        """Where these rows and columns begin, by the place of the change: tables (A,)."""
        return {
            node: (torch.tensor(rows.start), torch.tensor(columns.start))
            for node, (rows, columns) in self.spans.items()
        }


def planned(network: Traced, side: int, shapes: dict[fx.Node, torch.Size]) -> Plan:
    """What a change of ``side`` times ``side`` pixels leaves to be computed.

    Args:
        network: its steps.
        side: of the change.
        shapes: of what each step gives.
    """
    _, _, height, width = shapes[network.images]
    spans = {network.images: (Span.of_change(side, height), Span.of_change(side, width))}
    whole = saved = 0.0
    for node, shape in shapes.items():
        layer = network.layers.get(node)
        reached = None if layer is None else _reached(layer, node, spans, shapes)
        work = shape[1:].numel() * (MOVING + network.multiplications(node))
        whole += work
        if reached is not None:
            rows, columns = reached
            share = rows.length * columns.length / (rows.of * columns.of)
            if share <= LARGEST:
                spans[node] = reached
                saved += work * (1 - share)
    return Plan(spans, whole, saved)


def _reached(
    layer: Layer,
    node: fx.Node,
    spans: dict[fx.Node, tuple[Span, Span]],
    shapes: dict[fx.Node, torch.Size],
) -> tuple[Span, Span] | None:
    """Spans of a layer's output; None if the change reaches its input as a whole."""
    entering = Traced.entering(node)
    if not all(each in spans for each in entering):
        return None
    rows, columns = spans[entering[0]]
    if isinstance(layer, Window):
        return layer.through((rows, columns))
    if isinstance(layer, Sum):
        one, other = entering
        if shapes[one] != shapes[other]:
            return None
        return rows.united(spans[other][0]), columns.united(spans[other][1])
    return rows, columns
