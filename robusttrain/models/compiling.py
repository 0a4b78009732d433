"""Gradients through compiled networks (`torch.compile`), where somebody asked for them.

What is compiled is a network's forward pass and the backward pass that belongs to it. Passes
without a gradient stay as they are, so no verdict is ever compiled. The code reads the weights anew
in each call, and so follows their training. A network keeps its names: nothing is put around it.

One graph serves all batches of `SMALLEST` images and more (images leave an attack early). Smaller
ones, for which torch would compile once more, are left alone. Random draws inside a network are
those of torch's own generators, as without compilation.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map_only

from robusttrain.core.advice import warn
from robusttrain.core.errors import first_line
from robusttrain.core.processor import instructions

#: How networks run: as they are; compiled; compiled and recorded as CUDA graphs.
Mode = Literal["off", "default", "reduce-overhead"]
#: The least batch. torch takes other convolutions below 16 images, and would compile anew.
SMALLEST = 16
#: What compiles.
BACKEND: Any = "inductor"
#: How many graphs one piece of code may have before torch refuses. Networks of one kind share it.
GRAPHS = 64
#: Those who would speak of machines and options that nobody asked about.
TALKATIVE = ("torch._dynamo", "torch._inductor", "torch.utils.cpp_extension")


class CompilationFailed(UserWarning):
    """A network could not be compiled; its gradients are taken as if nobody had asked."""


class Compiled:
    """A network's compiled forward pass; the network's own as soon as something fails.

    Args:
        network: images (B, C, H, W) to anything; held, not changed.
        mode: not "off".

    Attributes:
        failed: whether it fell back.
    """

    def __init__(self, network: nn.Module, mode: Mode) -> None:
        self.network, self.mode = network, mode
        self.failed = False
        self._call: Any = None

    def __call__(self, images: Tensor) -> Any:
        if self.failed or len(images) < SMALLEST:
            return self.network(images)
        try:
            with _quiet() if self._call is None else nullcontext():
                if self._call is None:
                    self._call = _compiled(self.network, self.mode)
                return (
                    self._replayed(images) if self.mode == "reduce-overhead" else self._run(images)
                )
        except Exception as error:  # noqa: BLE001 - compilers fail in any way
            self.failed = True
            name = type(self.network).__name__
            warn(f"compile: {name}: {reason(error)}", CompilationFailed)
            return self.network(images)

    def _run(self, images: Tensor) -> Any:
        torch._dynamo.maybe_mark_dynamic(images, 0)  # type: ignore[no-untyped-call]
        return self._call(images)

    def _replayed(self, images: Tensor) -> Any:
        """The answer of a recorded graph, in memory of its own: a graph writes its results into the
        same memory each time.

        Each size of a batch is a recording, and images leave an attack one by one. So a batch is
        filled up to a power of two, unless its images depend on each other.
        """
        count = len(images)
        size = count if self._mixes() else 1 << (count - 1).bit_length()
        images = _Own.apply(images)
        if size > count:
            images = torch.cat([images, images[:1].detach().expand(size - count, -1, -1, -1)])

        def own(part: Tensor) -> Tensor:
            return (part[:count] if part.dim() and len(part) == size else part).clone()

        return tree_map_only(Tensor, own, self._run(images))

    def _mixes(self) -> bool:
        """Whether what the network says of an image depends on the others of its batch: it is in
        training mode, or batch norm normalises with the batch in evaluation mode, too.
        """
        return (
            self.network.training
            or _together.get()
            or any(
                isinstance(layer, _BatchNorm) and layer.running_mean is None
                for layer in self.network.modules()
            )
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Compiled:
        return Compiled(deepcopy(self.network, memo), self.mode)

    def __reduce__(self) -> Any:
        return Compiled, (self.network, self.mode)


@dataclass(frozen=True)
class InTraining:
    """A network that is trained, with its compiled passes: one for each of its modes, which are
    graphs of their own.

    Args:
        network: the classifier.
        mode: not "off".
    """

    network: nn.Module
    mode: Mode
    _passes: dict[bool, Compiled] = field(default_factory=dict)

    def __call__(self, images: Tensor) -> Any:
        now = self.network.training
        if now not in self._passes:
            self._passes[now] = Compiled(self.network, self.mode)
        return self._passes[now](images)


_mode: ContextVar[Mode] = ContextVar("mode", default="off")
_trained: ContextVar[InTraining | None] = ContextVar("trained", default=None)
_together: ContextVar[bool] = ContextVar("together", default=False)


@contextmanager
def normalised_together() -> Iterator[None]:
    """Within this context, batch norm may normalise with the batch in a network that is in
    evaluation mode, so recorded graphs get batches as they are.
    """
    token = _together.set(True)
    try:
        yield
    finally:
        _together.reset(token)


@contextmanager
def gradients_by(mode: Mode, trained: InTraining | None = None) -> Iterator[None]:
    """Within this context, and in this thread, fast copies give gradients of ``mode``.

    Args:
        mode: "off" for a stretch without, within a stretch with.
        trained: the network that is trained now, which then does so, too.
    """
    tokens = _mode.set(mode), _trained.set(trained if mode != "off" else None)
    try:
        yield
    finally:
        _mode.reset(tokens[0])
        _trained.reset(tokens[1])


def wanted() -> Mode:
    """The mode of this context, where gradients are being recorded."""
    return _mode.get() if torch.is_grad_enabled() else "off"


def asked_mode() -> Mode:
    """The mode of this context."""
    return _mode.get()


def called(network: nn.Module, images: Tensor) -> Any:
    """``network(images)``, compiled if it is the network that is trained now."""
    trained = _trained.get()
    if trained is not None and trained.network is network and torch.is_grad_enabled():
        return trained(images)
    return network(images)


def reason(error: Exception) -> str:
    """Why something could not be compiled, in a line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # "backend='inductor' raised:", and the error itself in the next line.
    text = lines[1] if len(lines) > 1 and lines[0].endswith("raised:") else first_line(error)
    return text if len(text) <= 200 else f"{text[:197]}..."


def _compiled(network: nn.Module, mode: Mode) -> Any:
    """``network`` by `torch.compile`, as one graph or not at all: what is only half compiled, or
    compiled over and over, would be slow in silence.
    """
    import torch._dynamo.config as tracing
    import torch._functorch.config as differentiation
    import torch._inductor.config as generation

    name = "recompile_limit" if hasattr(tracing, "recompile_limit") else "cache_size_limit"
    setattr(tracing, name, max(getattr(tracing, name), GRAPHS))
    # Some attacks take several gradients of one pass.
    differentiation.donated_buffer = False
    # Draws inside the network are those of torch's generators.
    generation.fallback_random = True
    # CUDA graphs of many sizes would be recorded one by one, and each holds its memory.
    generation.triton.cudagraph_skip_dynamic_graphs = False
    cache_by_instructions()
    other = mode if BACKEND == "inductor" and mode != "default" else None
    return torch.compile(network, backend=BACKEND, fullgraph=True, mode=other)


def cache_by_instructions() -> None:
    """Keep this process's compiled code apart from that of other instructions, in a folder of its
    own within torch's cache.

    torch looks graphs up without regard to the vector width they were written for. Code for 8
    numbers at a time, compiled anew for 16, writes beyond its arrays: the process dies, or counts
    wrong (seen with torch 2.14, AVX2 and then AVX-512 on one cache).
    """
    from torch._inductor.codecache import cache_dir  # type: ignore[attr-defined]

    folder, own = Path(cache_dir()), f"instructions-{instructions()}"
    if folder.name != own:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / own)


@contextmanager
def _quiet() -> Iterator[None]:
    """Let compilers keep to themselves what is no error."""
    loggers = [logging.getLogger(name) for name in TALKATIVE]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class _Own(torch.autograd.Function):
    """The identity, whose gradient is a copy of its own."""

    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        return images.view_as(images)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].clone()
