"""Answers about points that lie near earlier ones, for the price of what changed.

A random search changes a small square of an image, asks, and mostly takes the change back. Within
`remembering`, a fast copy keeps what its first layers computed for the points that the search
keeps, computes anew what the square can reach (`robusttrain.models.reach`), and goes on in full
from where that is most of a layer. It compares pixels to see what changed, so nobody has to say,
and points that changed everywhere are answered as ever.

The answers are those of the network up to rounding. The first one to a change of each size, and
every 200th, is compared with it; a network that answers otherwise, or whose steps fail on what was
cut, is asked in full from then on.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn

from robusttrain.models.layers import Each, Layer, Sum, Window
from robusttrain.models.reach import Plan, planned
from robusttrain.models.tracing import traced

logger = logging.getLogger(__name__)

#: Bytes of what is kept of a network's layers, at most.
MEMORY = 2**29
#: Answers that differ by no more than this share of an image's largest logit are the same.
SAME = 1e-4
#: Of so many answers in part, to changes of one size, the first is compared with the network.
OFTEN = 200

Ask = Callable[[Tensor], Tensor]
#: The borders that layers need, by what lies there.
Borders = dict[fx.Node, dict[float, tuple[int, int]]]


class Kept:
    """What one layer gave for the points that are kept, with a border.

    Args:
        values: (B, C, H, W), what it gave.
        border: rows above and below, columns left and right.
        fill: what lies there.
    """

    def __init__(self, values: Tensor, border: tuple[int, int], fill: float) -> None:
        batch, channels, height, width = values.shape
        self.border, self.fill = border, fill
        size = (batch, height + 2 * border[0], width + 2 * border[1], channels)
        self.pixels = values.new_full(size, fill)
        self.whole().copy_(values)

    def whole(self, border: tuple[int, int] = (0, 0)) -> Tensor:
        """(B, C, H, W) with so much of the border; a view."""
        above, left = self.outside(border)
        _, height, width, _ = self.pixels.shape
        return self.pixels[:, above : height - above, left : width - left].permute(0, 3, 1, 2)

    def outside(self, border: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the border that lie outside of a smaller one."""
        return self.border[0] - border[0], self.border[1] - border[1]

    def among(self, which: Tensor) -> None:
        """Keep the images ``which`` alone."""
        self.pixels = self.pixels.index_select(0, which)


@lru_cache(maxsize=256)
@torch.inference_mode(False)  # an inference tensor would outlive its context here
def _offsets(columns: int, height: int, width: int) -> Tensor:
    """(height width,): numbers of a window's pixels from that of its corner on, in an image of so
    many columns.
    """
    return (torch.arange(height)[:, None] * columns + torch.arange(width)).flatten()


def places(pixels: Tensor, top: Tensor, left: Tensor, height: int, width: int) -> Tensor:
    """(B, height width): the numbers, among all pixels (B, H, W, C), of those of a window.

    Args:
        pixels: (B, H, W, C), contiguous.
        top, left: (B,), the window's corner in each image.
        height, width: of the window.
    """
    batch, rows, columns, _ = pixels.shape
    corner = torch.arange(0, batch * rows * columns, rows * columns) + top * columns + left
    return corner[:, None] + _offsets(columns, height, width)


def taken(pixels: Tensor, numbers: Tensor, height: int, width: int) -> Tensor:
    """(B, C, height, width): pixels (B, H, W, C) by their numbers, in channels_last."""
    flat = pixels.flatten(0, 2).index_select(0, numbers.flatten())
    return flat.view(len(numbers), height, width, -1).permute(0, 3, 1, 2)


class Near:
    """One network near the points that a search keeps.

    Args:
        network: in evaluation mode, in float32.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = traced(network)  # None once it is asked in full for good
        # The points that the search keeps, and the last ones that it asked about, (B, C, H, W)
        self.points: Tensor | None = None
        self.asked: Tensor | None = None
        # What the steps give for the points that are kept; empty where that is not known
        self.layers: dict[fx.Node, list[Kept]] = {}
        # What was written to it for the last points: pixels, their numbers, and what was there
        self.written: list[tuple[Tensor, Tensor, Tensor]] = []
        self.shapes: dict[fx.Node, torch.Size] = {}
        self._plan = Plan({})  # of the last points
        self._plans: dict[int, Plan] = {}
        self._needed: Borders | None = None
        self._passes: Counter[int] = Counter()  # in part, by the size of the change

    def __call__(self, points: Tensor, ask: Ask) -> Tensor:
        """Logits (B, K) of points (B, C, H, W); ``ask`` asks the network in full."""
        if self.asked is not None or (
            self.points is not None and self.points.shape != points.shape
        ):
            self._give_up()  # it is asked more than once for a step, or about other images
        if self.network is None:
            return ask(points)
        self.asked = points
        if self.points is None:
            self.points = points
            return ask(points)
        side, corner = window(points, self.points)
        if not (self.shapes or self._learn(ask)):
            return ask(points)
        try:
            logits = self._in_part(points, side, corner)
        except Exception:  # noqa: BLE001 - steps are any code: some take no tensors that were cut
            self._give_up()
            logits = None
        if logits is None:
            return ask(points)
        self._passes[side] += 1
        if self._passes[side] % OFTEN == 1:
            plain = ask(points)
            if not same(logits, plain):
                self._give_up()
                return plain
        return logits

    def _in_part(self, points: Tensor, side: int, corner: tuple[Tensor, Tensor]) -> Tensor | None:
        """Logits (B, K), computed in part; None where the change is answered in full."""
        plan = self._planned(side)
        if not plan.worth(len(points)) or not (self._knows(plan) or self._record()):
            return None
        self._plan = plan
        logits: Tensor = _Pass(self, plan, corner).run(points)
        return logits

    def keep(self, accepted: Tensor) -> None:
        """The search goes on from the points ``accepted``, (B,) bool, that it asked about last, and
        from the earlier ones elsewhere.
        """
        if self.asked is None or self.points is None:
            return
        if len(accepted) != len(self.asked):
            self._give_up()
            return
        stays = accepted.nonzero().squeeze(1)
        for flat, numbers, before in self.written:
            # Whoever asked may have done so in inference mode, which the search is not in.
            with torch.inference_mode(flat.is_inference()):
                here = numbers.index_select(0, stays).flatten()
                now = flat.index_select(0, here).view(len(stays), *before.shape[1:])
                before.index_copy_(0, stays, now)
                flat.index_copy_(0, numbers.flatten(), before.flatten(0, 1))
        self.written = []
        if bool(accepted.any()):
            # What was computed in full is that of points that are no longer kept.
            known = self._plan.spans
            self.layers = {node: each for node, each in self.layers.items() if node in known}
        self.points = torch.where(accepted[:, None, None, None], self.asked, self.points)
        self.asked, self._plan = None, Plan({})

    def among(self, which: Tensor) -> None:
        """The search goes on with the images ``which``, (b,), of its batch alone."""
        if self.points is not None:
            self.points = self.points.index_select(0, which)
        for each in self.layers.values():
            for layers in each:
                layers.among(which)

    def _knows(self, plan: Plan) -> bool:
        """Whether all is known of the points kept that a plan goes on from."""
        return all(node in self.layers for node in self._borders() if node in plan.spans)

    def _planned(self, side: int) -> Plan:
        """What a change of so many pixels leaves to be computed."""
        assert self.network is not None
        if side not in self._plans:
            self._plans[side] = planned(self.network, side, self.shapes)
        return self._plans[side]

    def _learn(self, ask: Ask) -> bool:
        """Learn the shapes of what the steps give; whether the steps answer as the network does."""
        assert self.points is not None
        run = _Pass(self, Plan({}))
        try:
            logits = run.run(self.points.clone())  # steps may write to what they are given
        except Exception:  # noqa: BLE001 - the steps may be those of another kind of images
            logits = None
        if not isinstance(logits, Tensor) or not same(logits, ask(self.points)):
            self._give_up()
            return False
        self.shapes = run.shapes
        return True

    def _record(self) -> bool:
        """Learn what the layers give for the points that are kept; False where that is too much to
        keep.
        """
        assert self.points is not None
        borders = self._borders()
        numbers = sum(len(each) * self.shapes[node][1:].numel() for node, each in borders.items())
        if numbers * len(self.points) * self.points.element_size() > MEMORY:
            return False
        _Pass(self, Plan({}), record=borders).run(self.points.clone())
        return True

    def _borders(self) -> Borders:
        """The borders that each layer to be kept needs, by what lies there."""
        assert self.network is not None
        if self._needed is not None:
            return self._needed
        spans = self._planned(1).spans
        needed: Borders = {}
        for node in spans:
            users = [self.network.layers.get(user) for user in node.users]
            if all(isinstance(user, Each) for user in users):
                continue
            borders = needed.setdefault(node, {})
            for user in users:
                if isinstance(user, Window) and user.padding != (0, 0):
                    before = borders.get(user.fill, (0, 0))
                    borders[user.fill] = (
                        max(before[0], user.padding[0]),
                        max(before[1], user.padding[1]),
                    )
            if not borders:
                borders[0.0] = (0, 0)
        self._needed = needed
        return needed

    def _give_up(self) -> None:
        logger.debug("a network is asked in full: its layers cannot be computed in part")
        self.network, self.points, self.asked = None, None, None
        self.layers, self.written = {}, []

    def bordered(self, node: fx.Node, layer: Layer) -> Kept:
        """What is kept of a step, with the border that a layer needs."""
        each = self.layers[node]
        if isinstance(layer, Window) and layer.padding != (0, 0):
            return next(kept for kept in each if kept.fill == layer.fill)
        return each[0]


class _Pass(fx.Interpreter):
    """One pass through the steps of a network.

    Args:
        near: the network, and what is kept of it.
        plan: what is computed in part.
        corner: top and left of the change, (B,) each; None where nothing is computed in part.
        record: what is kept of this pass, and the borders that it needs.
    """

    def __init__(
        self,
        near: Near,
        plan: Plan,
        corner: tuple[Tensor, Tensor] | None = None,
        record: Borders | None = None,
    ) -> None:
        assert near.network is not None
        super().__init__(near.network.module)
        self.near, self.plan, self.record = near, plan, record
        self.network, self.corner = near.network, corner
        self.shapes: dict[fx.Node, torch.Size] = {}

    def run_node(self, n: fx.Node) -> Any:
        layer = self.network.layers.get(n)
        if n in self.plan.spans:
            return self._part(n, layer)
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.shapes[n] = result.shape
        if self.record is not None and n in self.record:
            self.near.layers[n] = [
                Kept(result, border, fill) for fill, border in self.record[n].items()
            ]
        return result

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> Any:
        """A step that is computed in full takes its inputs in full, as tensors of its own: it may
        write to them.
        """

        def whole(node: fx.Node) -> Any:
            if node in self.plan.spans:
                return self.near.layers[node][0].whole().clone(memory_format=torch.channels_last)
            return self.env[node]

        return fx.node.map_arg(n.args, whole), fx.node.map_arg(n.kwargs, whole)

    def _part(self, node: fx.Node, layer: Layer | None) -> Tensor:
        """What changes of a step's output, (B, C, h, w); what is kept of the whole is brought up to
        date.
        """
        rows, columns = self.plan.spans[node]
        height, width = rows.length, columns.length
        assert self.corner is not None
        top, left = (
            start.index_select(0, first)
            for start, first in zip(self.plan.starts[node], self.corner, strict=True)
        )
        entering = self.network.entering(node)
        if layer is None:
            pixels = next(self.args_iter).permute(0, 2, 3, 1).contiguous()
            part = taken(pixels, places(pixels, top, left, height, width), height, width)
        elif isinstance(layer, Each):
            part = layer.compute(self.env[entering[0]])
        elif isinstance(layer, Sum):
            one, other = (
                self.env[each]
                if self.plan.spans[each] == self.plan.spans[node]
                else cut(self.near.layers[each][0], (0, 0), (top, left), (height, width))
                for each in entering
            )
            part = one + other
        else:
            kept = self.near.bordered(entering[0], layer)
            seen = layer.seen(height, 0), layer.seen(width, 1)
            corner = top * layer.stride[0], left * layer.stride[1]
            part = layer.compute(cut(kept, layer.padding, corner, seen))
        for kept in self.near.layers.get(node, ()):
            above, beside = kept.border
            numbers = places(kept.pixels, top + above, left + beside, height, width)
            flat = kept.pixels.view(-1, kept.pixels.shape[-1])
            before = flat.index_select(0, numbers.flatten()).view(*numbers.shape, -1)
            now = part.permute(0, 2, 3, 1).reshape(-1, flat.shape[1])
            flat.index_copy_(0, numbers.flatten(), now)
            self.near.written.append((flat, numbers, before))
        return part


def cut(
    kept: Kept, border: tuple[int, int], corner: tuple[Tensor, Tensor], size: tuple[int, int]
) -> Tensor:
    """A window out of what is kept, its corner counted with so much of a border."""
    above, beside = kept.outside(border)
    numbers = places(kept.pixels, corner[0] + above, corner[1] + beside, *size)
    return taken(kept.pixels, numbers, *size)


def window(points: Tensor, others: Tensor) -> tuple[int, tuple[Tensor, Tensor]]:
    """The least square that holds, in each image, all pixels in which two points differ.

    Args:
        points, others: (B, C, H, W).

    Returns:
        Its side, one for all, and its top and left, (B,), such that the square lies within.
    """
    batch, channels, height, width = points.shape
    # Rows of the images, channels beside each other: that is how they lie in memory.
    differ = (points != others).permute(0, 2, 3, 1).reshape(batch, height, width * channels)
    corners, sides = [], []
    for lines in (
        differ.any(dim=2),
        differ.any(dim=1).view(batch, width, channels).any(dim=2),
    ):
        first = lines.to(torch.uint8).argmax(dim=1)
        last = lines.shape[1] - 1 - lines.flip(1).to(torch.uint8).argmax(dim=1)
        corners.append(first)
        sides.append(torch.where(lines.any(dim=1), last - first + 1, 1))
    side = int(torch.stack(sides).max())
    top, left = (
        corner.clamp_max(max(0, size - side))
        for corner, size in zip(corners, (height, width), strict=True)
    )
    return side, (top, left)


def same(logits: Tensor, others: Tensor) -> bool:
    """Whether two answers differ by rounding alone, for each image."""
    if logits.shape != others.shape:
        return False
    # Each by its own largest logit: one sure image would hide what is wrong with another.
    off, largest = (
        (each.abs().reshape(len(each), -1).amax(dim=1)) for each in (logits - others, others)
    )
    return bool((off <= SAME * largest).all())


class Memory:
    """What is kept of the networks that one search asks."""

    def __init__(self) -> None:
        self._networks: WeakKeyDictionary[nn.Module, Near] = WeakKeyDictionary()

    def logits(self, network: nn.Module, points: Tensor, ask: Ask) -> Tensor:
        """Logits (B, K) of points (B, C, H, W); ``ask`` asks the network in full."""
        if network not in self._networks:
            self._networks[network] = Near(network)
        return self._networks[network](points, ask)

    def keep(self, accepted: Tensor) -> None:
        """`Near.keep` of all of them."""
        for near in self._networks.values():
            near.keep(accepted)

    def among(self, which: Tensor) -> None:
        """`Near.among` of all of them."""
        for near in self._networks.values():
            near.among(which)


_memory: ContextVar[Memory | None] = ContextVar("memory", default=None)


@contextmanager
def remembering() -> Iterator[Memory]:
    """Within this context, and in this thread, fast copies answer as this module says."""
    memory = Memory()
    token = _memory.set(memory)
    try:
        yield memory
    finally:
        _memory.reset(token)


def remembered() -> Memory | None:
    """The memory of this context."""
    return _memory.get()
