"""How many images are evaluated at once where one image is evaluated many times."""

from __future__ import annotations

#: Images that are evaluated at once by default, and the most pixel values of these images together:
#: those of 256 images of 3 x 64 x 64. 256 images of 224 x 224 pixels take more than 20 GiB in a
#: small EfficientNet.
AT_ONCE = 256
PIXELS_AT_ONCE = AT_ONCE * 3 * 64 * 64
#: Copies of a batch that are differentiated at once by default, at most. A hundred draws then
#: need the memory of twenty, whatever the batch. On a CPU twenty copies of a single image take at
#: most a sixth longer than any other number of them, and a hundred may take longer than twenty
#: (`benchmarks/eot_memory.py`).
GRADIENTS_AT_ONCE = 20


def copies_at_once(chunk: int | None, batch: int, pixels: int) -> int:
    """How many copies of a batch are evaluated at once: ``chunk`` of them, or as many as memory is
    likely to hold.

    Args:
        chunk: what was asked for, if anything.
        batch: images of the batch.
        pixels: pixel values of an image, C H W.
    """
    return chunk or max(1, min(AT_ONCE, PIXELS_AT_ONCE // max(1, pixels)) // max(1, batch))


def gradients_at_once(chunk: int | None, batch: int, pixels: int) -> int:
    """How many copies of a batch are differentiated at once; arguments as for `copies_at_once`.

    What a backward pass keeps of each copy is most of an attack's memory, so there is a limit of
    copies beside that of images.
    """
    return chunk or min(GRADIENTS_AT_ONCE, copies_at_once(None, batch, pixels))
