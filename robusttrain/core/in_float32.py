"""What a LightningModule says of the images that a data module gives it."""

from __future__ import annotations


class InFloat32:
    """A LightningModule that takes images in float32, whatever type its Trainer gives its weights:
    attacks need pixel values that are not rounded, and a model rounds them to its own type.
    """
