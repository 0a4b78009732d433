"""How far a change of a few pixels reaches into a network.

A convolution carries a change of a pixel to the pixels that its kernel sees, pooling to fewer of
them, and an activation nowhere else. So most of what the first layers compute for an image is what
they computed before a small square of it was changed. `robusttrain.models.tracing` reads the order
of such layers off a network; `Span` says which rows, or columns, of a layer's output a change can
reach, and `planned` which layers are worth computing in part.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, fx

from robusttrain.models.layers import Layer, Sum, Window
from robusttrain.models.tracing import Traced

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
        return _through(layer, rows, 0), _through(layer, columns, 1)
    if isinstance(layer, Sum):
        one, other = entering
        if shapes[one] != shapes[other]:
            return None
        return rows.united(spans[other][0]), columns.united(spans[other][1])
    return rows, columns


def _through(window: Window, span: Span, axis: int) -> Span:
    """The span of a window's output along an axis."""
    return span.through(
        window.kernel[axis], window.stride[axis], window.padding[axis], window.dilation[axis]
    )
