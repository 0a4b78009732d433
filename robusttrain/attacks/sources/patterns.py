"""Sources for randomization layers: the attacker tries some of the patterns that the layers may
draw [P4 3.2, 4].

The paper's vanilla attack is `ClassifierOnly`, on the bare classifier. Its single pattern and its
ensemble of patterns are here. EOT, which the paper did not try, is `Average` on the target itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from robusttrain.attacks.sources.basic import Source, defense_of
from robusttrain.attacks.sources.surrogates import fused
from robusttrain.core.checked import Count, checked
from robusttrain.core.errors import OptionError, UserError, one_of
from robusttrain.core.resize import POSITIONS, Position
from robusttrain.models.defended import DefendedClassifier
from robusttrain.models.defense import Defense


def _behind(
    target: DefendedClassifier, source: Source, patterns: Sequence[tuple[int | None, Position]]
) -> list[DefendedClassifier]:
    """f_a behind each of the patterns (size, position) of the target's randomization layers; the
    other parts of a chain stay.
    """
    whole = defense_of(target, source)
    layers = _layers(whole, source)
    try:
        fixed = [layers.pattern(*pattern) for pattern in patterns]
        return [
            DefendedClassifier(
                whole.rebuilt(lambda part, one=one: one if part is layers else part),  # type: ignore[misc]
                target.classifier,
            )
            for one in fixed
        ]
    except OptionError:
        raise
    except UserError as error:
        raise UserError(f"source {type(source).__name__}: {error}") from error


def _layers(defense: Defense, source: Source) -> Defense:
    """The one part of a defense that draws patterns; the defense itself if no part does."""
    drawing = [part for part in defense.parts if part.draws_patterns]
    if len(drawing) > 1:
        raise UserError(
            f"source {type(source).__name__}: {len(drawing)} parts of the defense draw patterns:"
            " average over all of them, --attack eot (in Python, source Target, gradient Average)"
        )
    return drawing[0] if drawing else defense


@checked
@dataclass(frozen=True)
class SinglePattern(Source):
    """f_a behind one fixed pattern: by default the image in the middle, not resized [P4 4.4].

    Args:
        size: side after resizing, in pixels; None resizes nothing.
        position: where the image stands in the padding.
    """

    size: Count | None = None
    position: Position = "center"
    knows = "classifier, defense"

    def __call__(self, target: DefendedClassifier) -> nn.Module:
        (model,) = _behind(target, self, [(self.size, self.position)])
        return model


@checked
@dataclass(frozen=True)
class EnsemblePattern(Source):
    """f_a behind several fixed patterns at once, all of which are to fail [P4 4.5].

    Sizes are evenly spaced from the layers' least one up. Each size stands at every position, and
    the whole canvas once. The paper's layers give {299, 307, 315, 323} at five positions and 331:
    21 patterns.

    Args:
        sizes: how many sizes below the canvas.
        positions: where each resized image stands.
        fuse: "logits", "probabilities" or "losses" of the patterns.
    """

    sizes: Count = 4
    positions: list[Position] = field(default_factory=lambda: list(POSITIONS))
    fuse: Literal["logits", "probabilities", "losses"] = "logits"
    knows = "classifier, defense"

    def __post_init__(self) -> None:
        for position in self.positions:
            one_of("positions", position, POSITIONS)
        if not self.positions:
            raise OptionError("positions", [], "name at least one position")

    def __call__(self, target: DefendedClassifier) -> nn.Module:
        layers = _layers(defense_of(target, self), self)
        if not layers.draws_patterns:
            _behind(target, self, [(None, "center")])  # says what this source is for
            raise UserError(
                f"source EnsemblePattern: {type(layers).__name__} is one pattern: --attack"
                " single-pattern (in Python, source SinglePattern)"
            )
        low, canvas = layers.sides.start, layers.sides.stop
        reach = len(layers.sides)
        if self.sizes > reach:
            raise OptionError(
                "sizes", self.sizes, f"the layers draw from {reach} sizes: give at most as many"
            )
        sizes = [low + number * reach // self.sizes for number in range(self.sizes)]
        patterns: list[tuple[int | None, Position]] = [
            (size, place) for size in sizes for place in self.positions
        ]
        patterns.append((canvas, "center"))
        return fused([*_behind(target, self, patterns)], None, self.fuse)
