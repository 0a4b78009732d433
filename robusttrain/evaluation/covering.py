"""Radii that are no bound: 8, where 8/255 was meant."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import cast

import torch

from robusttrain.attacks import Threat
from robusttrain.attacks.parts.threats import described
from robusttrain.attacks.sources.unrolled import Searching
from robusttrain.data import Facts
from robusttrain.models.defense import Defense


def covering(threats: Iterable[tuple[str, Threat]], facts: Facts) -> Iterator[str]:
    """A line for each radius that is larger than the box of all images, [0, 1], is wide, and looks
    like one for pixel values up to 255.

    A radius as large as the box, or a thousand, is a way to say that there is no bound, and needs
    no line.

    Args:
        threats: with the option that sets each of them.
        facts: of the images.
    """
    shape = (facts.channels, facts.image_size, facts.image_size)
    yield from wider_than(threats, shape)


def wider_than(threats: Iterable[tuple[str, Threat]], shape: Sequence[int]) -> Iterator[str]:
    """`covering` for images of this shape, (C, H, W)."""
    said = set()
    for option, threat in threats:
        widest = float(threat.distance(torch.ones(1, *shape), torch.zeros(1, *shape)))
        if widest < threat.epsilon <= 255 and (option, threat.epsilon) not in said:
            said.add((option, threat.epsilon))
            yield (
                f"warning: {option} {threat.epsilon:g} is no bound: pixel values lie in [0, 1], and"
                f" no two images are farther apart than {widest:.4g} ({threat.norm}); for values up"
                f" to 255 write {threat.epsilon:g}/255"
            )


def is_no_bound(norm: str, epsilon: float) -> bool:
    """Whether a radius says that there is no bound, as those of attacks do that look for the
    nearest adversarial image: any two images lie within Linf 1, and nobody means 256 in another
    norm.
    """
    return epsilon >= 1 if norm == "linf" else epsilon > 255


def boundless(threats: Mapping[str, Threat]) -> list[str]:
    """A line about attacks, by name, that no radius bounds; none where there are none."""
    free = [
        name
        for name, each in threats.items()
        if "ball" not in described(each)  # of another one the radius is not the whole bound
        and is_no_bound(each.norm, each.epsilon)
        # Of a radius like 8, which wants to be 8/255, `covering` tells.
        and not (each.norm == "linf" and 1 < each.epsilon <= 255)
    ]
    if not free:
        return []
    return [
        f"{', '.join(free)}: no radius bounds what may change, so that hardly an image stays right:"
        " the accuracy says little, and how far the images went says more (median_perturbation);"
        " --epsilon sets a radius"
    ]


def threats_of(defense: Defense | None) -> list[tuple[str, Threat]]:
    """The threats that a defense searches in itself, with the option that sets them."""
    parts = [] if defense is None else [part for part in defense.parts if part.searches]
    return [("--defense.radius", cast(Searching, part).attack.threat) for part in parts]
