"""Gradients of models that clip their own input, as preprocessing does: `clips`, `inward`.

torch's derivative of ``x.clamp(0, 1)`` at 0 and at 1 is zero (as of 2.14). Whoever follows it
leaves black and white pixels where they are, among them all that a step before has brought there,
and finds the model stronger than it is. So a model that clips is asked for gradients a rounding
inside of [0, 1], or inside of what it clips to, ``x.clamp(1e-6)``. Powers and roots of pixels, as
of gamma curves and colour spaces, have a derivative of zero, infinity or NaN at 0: they are asked
`ROOTS` inside. Answers without a gradient, and so verdicts, are about the images themselves. What
a network does in compiled or scripted code of its own is not seen.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn

#: Models that were looked at when they were first asked for a gradient; those of them that clip,
#: and how far inside of [0, 1] they are asked, besides the rounding.
looked_at: WeakSet[nn.Module] = WeakSet()
clipping: WeakKeyDictionary[nn.Module, float] = WeakKeyDictionary()
#: How many were ever found to clip, in a list of one number.
_found = [0]
#: What the nodes of a graph are called that clip: clamp, clip, relu6, hardtanh, threshold, relu.
NODES = ("Clamp", "Hardtanh", "Threshold", "Relu", "Logit")
#: Those of powers and roots, and how far inside these are asked: a quarter of a grey level. Much
#: nearer, roots are so steep that within an L2 radius nothing but black pixels would move.
POWERS, ROOTS = ("Pow", "Sqrt", "Rsqrt"), 1e-3
#: Where nodes keep what they clip to; bounds further inside are no guard against rounding.
BOUNDS, FARTHEST = ("min", "max", "min_val", "max_val", "threshold", "eps"), 0.01


def found() -> int:
    """How many models were found to clip so far. Whoever computes something anew for its backward
    pass has to begin again where this has changed: the pass that found it was made twice.
    """
    return _found[0]


def look_at(model: nn.Module, logits: Tensor, images: Tensor) -> bool:
    """`clips`, and remember it of the model."""
    looked_at.add(model)
    depth = clips(logits, images)
    if depth is not None:
        clipping[model] = depth
        _found[0] += 1
    return depth is not None


def clips(logits: Tensor, images: Tensor) -> float | None:
    """Whether something that looks like the images is clipped between them and the logits: pictures
    of as many channels or of one, those with the channels elsewhere, or as many numbers in rows. A
    layer of as many channels, or of one, is taken for it, too.

    Args:
        logits: (B, K), computed from the images, with their graph.
        images: (B, C, H, W), which require a gradient.

    Returns:
        How far inside of [0, 1] there is a derivative, besides the rounding; None: nothing is
        clipped.
    """
    depths: list[float] = []
    left, seen = [logits.grad_fn], {images.grad_fn}
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name().startswith(NODES + POWERS) and _like(node, images):
            depths.append(_depth(node))
        left += [following for following, _ in node.next_functions]
    return max(depths, default=None)


def _depth(node: torch.autograd.graph.Node) -> float:
    """How far inside of [0, 1] a node that clips, or a power, has a derivative."""
    if node.name().startswith(POWERS):
        return ROOTS
    bounds = [getattr(node, f"_saved_{name}", None) for name in BOUNDS]
    inside = [min(b, 1 - b) for b in bounds if isinstance(b, float) and 0 < b < 1]
    return max((each for each in inside if each <= FARTHEST), default=0.0)


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


def inward(images: Tensor, dtype: torch.dtype, depth: float = 0.0) -> Tensor:
    """The images, with pixels within half a rounding of 0 and 1 moved inside by that much; the
    derivative is that of the identity.

    Args:
        images: (B, C, H, W).
        dtype: in which the model computes, whose rounding it is.
        depth: by how much more; at it there may be no derivative, either.
    """
    rounding = torch.finfo(dtype).eps / 2
    least = depth + 2 * rounding if depth else rounding
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
