"""Sources for randomization layers: the attacker tries some of the patterns that the layers may draw [P4 3.2, 4].

Vanilla attack: the bare classifier (`ClassifierOnly`). Single pattern and ensemble of patterns: here. EOT, which the
paper did not try: `Average` on the target itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from robusttrain.attacks.sources import Source, defense_of
from robusttrain.attacks.surrogates import fused
from robusttrain.defended import DefendedClassifier
from robusttrain.errors import OptionError, UserError, at_least, one_of
from robusttrain.resize import POSITIONS, Position


def _layers(target: DefendedClassifier, source: Source, needed: tuple[str, ...] = ("canvas", "mode")) -> Any:
    """The target's randomization layers, or one pattern of them."""
    defense = defense_of(target, source)
    if not all(hasattr(defense, name) for name in needed):
        raise UserError(
            f"source {type(source).__name__}: {type(defense).__name__} draws no patterns; this source is for "
            "robusttrain.defenses.RandomResizePad"
        )
    return defense


def _fixed(layers: Any, classifier: nn.Module, size: int | None, position: Position) -> DefendedClassifier:
    from robusttrain.defenses import FixedResizePad  # defenses hold attacks, so they cannot be imported before them

    return DefendedClassifier(FixedResizePad(layers.canvas, size, position, layers.mode), classifier)


@dataclass(frozen=True)
class SinglePattern(Source):
    """f_a behind one fixed pattern: by default the image in the middle, not resized [P4 4.4].

    Args:
        size: side after resizing, in pixels; None resizes nothing.
        position: where the image stands in the padding.
    """

    size: int | None = None
    position: Position = "center"
    knows = "classifier, defense"

    def __post_init__(self) -> None:
        at_least("size", 1 if self.size is None else self.size, 1)
        one_of("position", self.position, POSITIONS)

    def __call__(self, target: DefendedClassifier) -> nn.Module:
        return _fixed(_layers(target, self), target.classifier, self.size, self.position)


@dataclass(frozen=True)
class EnsemblePattern(Source):
    """f_a behind several fixed patterns at once, all of which are to fail [P4 4.5].

    Sizes are evenly spaced from the layers' least one up, each at every position, and the whole canvas once: with the
    paper's layers {299, 307, 315, 323} at five positions and 331, 21 patterns.

    Args:
        sizes: how many sizes below the canvas.
        positions: where each resized image stands.
        fuse: "logits", "probabilities" or "losses" of the patterns.
    """

    sizes: int = 4
    positions: list[Position] = field(default_factory=lambda: list(POSITIONS))
    fuse: Literal["logits", "probabilities", "losses"] = "logits"
    knows = "classifier, defense"

    def __post_init__(self) -> None:
        at_least("sizes", self.sizes, 1)
        one_of("fuse", self.fuse, ("logits", "probabilities", "losses"))
        for position in self.positions:
            one_of("positions", position, POSITIONS)
        if not self.positions:
            raise OptionError("positions", [], "name at least one position")

    def __call__(self, target: DefendedClassifier) -> nn.Module:
        layers = _layers(target, self, ("low", "canvas", "mode"))
        reach = layers.canvas - layers.low
        if self.sizes > reach:
            raise OptionError("sizes", self.sizes, f"the layers draw from {reach} sizes: give at most as many")
        sizes = [layers.low + number * reach // self.sizes for number in range(self.sizes)]
        patterns = [(size, position) for size in sizes for position in self.positions]
        patterns.append((layers.canvas, "center"))
        return fused([_fixed(layers, target.classifier, *pattern) for pattern in patterns], None, self.fuse)
