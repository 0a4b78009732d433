"""Gradients of models that clip their own input, as preprocessing does: `clips`, `inward`.

torch's derivative of ``x.clamp(0, 1)`` at 0 and at 1 is zero (as of 2.14). Whoever follows it
leaves black and white pixels where they are, among them all that a step before has brought there,
and finds the model stronger than it is. So a model that clips is asked for gradients a rounding
inside of [0, 1]. Answers without a gradient, and so verdicts, are about the images themselves. What
a network does in compiled or scripted code of its own is not seen.
"""

from __future__ import annotations

from weakref import WeakSet

import torch
from torch import Tensor, nn

#: Models that were looked at when they were first asked for a gradient; those of them that clip.
looked_at: WeakSet[nn.Module] = WeakSet()
clipping: WeakSet[nn.Module] = WeakSet()
#: How many were ever found to clip, in a list of one number.
_found = [0]
#: What the nodes of a graph are called that clip: clamp, clip, relu6, hardtanh, threshold, relu.
NODES = ("Clamp", "Hardtanh", "Threshold", "Relu")


def found() -> int:
    """How many models were found to clip so far. Whoever computes something anew for its backward
    pass has to begin again where this has changed: the pass that found it was made twice.
    """
    return _found[0]


def look_at(model: nn.Module, logits: Tensor, images: Tensor) -> bool:
    """`clips`, and remember it of the model."""
    looked_at.add(model)
    if clipped := clips(logits, images):
        clipping.add(model)
        _found[0] += 1
    return clipped


def clips(logits: Tensor, images: Tensor) -> bool:
    """Whether something that looks like the images is clipped between them and the logits: pictures
    of as many channels or of one, those with the channels elsewhere, or as many numbers in rows. A
    layer of as many channels, or of one, is taken for it, too.

    Args:
        logits: (B, K), computed from the images, with their graph.
        images: (B, C, H, W), which require a gradient.
    """
    left, seen = [logits.grad_fn], {images.grad_fn}
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name().startswith(NODES) and _like(node, images):
            return True
        left += [following for following, _ in node.next_functions]
    return False


def _like(node: torch.autograd.graph.Node, images: Tensor) -> bool:
    # Saved tensors would tell, too, but those of a checkpoint are computed anew when asked for.
    of = getattr(node, "_input_metadata", None)
    if not of:
        return True
    shape = torch.Size(of[0].shape)
    if len(shape) == 4:  # shades of grey have one channel; others put the channels last
        channels = (1, images.shape[1])
        return shape[1] in channels or sorted(shape[1:]) == sorted(images.shape[1:])
    grey = len(shape) == 3 and shape[1:] == images.shape[2:]
    return grey or shape.numel() == images.numel()


def inward(images: Tensor, dtype: torch.dtype) -> Tensor:
    """The images, with pixels within half a rounding of 0 and 1 moved inside by that much; the
    derivative is that of the identity.

    Args:
        images: (B, C, H, W).
        dtype: in which the model computes, whose rounding it is.
    """
    least = torch.finfo(dtype).eps / 2
    with torch.no_grad():
        inside = images.clamp(least, 1 - least)
        change = torch.where((images >= 0) & (images <= 1), inside - images, 0)
    return images + change


def clipped(values: Tensor, low: float, high: float) -> Tensor:
    """``values.clamp(low, high)``, with a derivative of 1 at ``low`` and ``high`` themselves.

    torch's is 0 there (as of 2.14): black and white pixels would have no gradient, although they
    may move into the interval.
    """
    within = (values >= low) & (values <= high)
    return torch.where(within, values, values.detach().clamp(low, high))
