"""What a model says of itself: two attributes that any ``nn.Module`` may have, and that none needs.

``takes_rng = True``: ``forward(images, rng)`` draws from the streams of the images, and from
nowhere else. ``random``: whether two answers to one image may differ. A model that says neither is
called as torch calls it.
"""

from __future__ import annotations

from torch import Tensor, nn

from robusttrain.core.rng import Rng


def takes_streams(model: nn.Module) -> bool:
    """Whether the model takes its randomness from outside."""
    return bool(getattr(model, "takes_rng", False))


def says_random(model: nn.Module) -> bool:
    """Whether the model says that it is random; who takes streams and says nothing else is taken at
    that word.
    """
    return bool(getattr(model, "random", takes_streams(model)))


def answer(model: nn.Module, images: Tensor, rng: Rng | None) -> Tensor:
    """``model(images, rng)`` for models that take streams, ``model(images)`` for all others."""
    logits: Tensor = model(images, rng) if takes_streams(model) else model(images)
    return logits
