"""Attacks made of attacks: several runs of one, one after another on what is left, the best of
several.

All of them run on one source, the wrapper's, and within one threat, the wrapper's: those that
members bring along are replaced, so that one ``epsilon`` holds for all. Attacks on several sources
go into a suite with ``survivors: true``.

Success is misclassification by the source, whatever a member strives for. Whether the source is
random for an image it says itself, or two passes over the image tell. Where it is not, one more
pass judges what a member returned, and an image that is misclassified as it stands is left alone.
Where it is, ``votes`` draws judge: draws that no member has seen, the same for all members, and
none of those that will score the image. The share of them that is wrong, and of equal shares the
mean margin max_{i != y} z_i - z_y, decides between members. An image counts as broken, and is
spared the rest, only if all are wrong: with 30 draws one can be 95 % sure that at least nine tenths
are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from robusttrain.attacks.algorithms.apgd import APGD
from robusttrain.attacks.algorithms.projected_gradient import ProjectedGradient
from robusttrain.attacks.algorithms.square import Square
from robusttrain.attacks.asking import Queried
from robusttrain.attacks.base import Attack, Cost
from robusttrain.attacks.parts.objectives import Margin
from robusttrain.attacks.parts.threats import Linf, Threat, per_image
from robusttrain.attacks.queries import ask
from robusttrain.core.checked import Count, checked
from robusttrain.core.errors import OptionError, under
from robusttrain.core.rng import Rng

#: Draws of a random model that judge what a member returned.
VOTES = 30


def within(attack: Attack, threat: Threat, where: str) -> Attack:
    """The attack in another threat; ``where`` it stands, for error messages.

    Raises:
        OptionError: the attack does not know that threat.
    """
    with under(where):
        return attack.within(threat)


def judge(
    source: nn.Module, points: Tensor, labels: Tensor, random: Tensor, rng: Rng, votes: int
) -> tuple[Tensor, Tensor]:
    """The share of draws in which points are misclassified, and their mean margin, (B,) each.

    Args:
        source: prepared for attack.
        points: (B, C, H, W).
        labels: (B,).
        random: (B,) bool, for which images the source is random; the others are asked once.
        rng: streams of the images, (B,).
        votes: draws for those that it is random for.

    A logit that is not finite is no right answer, as in scoring; a margin that is NaN is minus
    infinity.
    """
    share, margin = (points.new_zeros(len(points)) for _ in range(2))
    for chosen, draws in ((~random, 1), (random, votes)):
        which = chosen.nonzero().squeeze(1)
        if len(which):
            logits = ask(source, points[which], rng[which], draws)
            y = labels[which]
            right = (logits.argmax(dim=2) == y) & logits.isfinite().all(dim=2)
            share[which] = 1 - right.to(share.dtype).mean(dim=0)
            margins = (
                Margin()(logits.flatten(0, 1), y.repeat(draws)).view(draws, len(which)).mean(dim=0)
            )
            margin[which] = margins.nan_to_num(
                nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf
            ).to(margin.dtype)
    return share, margin


def known(source: nn.Module, images: Tensor, labels: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
    """(B,) bool each: for which images the source is random, and which of the others it gets wrong
    as they stand.
    """
    logits, random = Queried.of(source).asked_twice(images, rng.fold("ask"))
    return random, ~random & ((logits.argmax(dim=1) != labels) | ~logits.isfinite().all(dim=1))


def strongest(
    attacks: Sequence[Attack],
    source: nn.Module,
    images: Tensor,
    labels: Tensor,
    rng: Rng,
    votes: int,
    spare: bool,
) -> Tensor:
    """For each image what is worst for the model of all that the attacks return, one after another,
    (B, C, H, W).

    Args:
        attacks: in their order; number k takes the streams ``rng.fold(k)``.
        source, images, labels, rng: as for ``Attack.run``.
        votes: draws of a random model that judge.
        spare: whether images that are broken are spared the attacks that follow.
    """
    random, wrong = known(source, images, labels, rng)
    best = images.to(torch.promote_types(images.dtype, torch.float32), copy=True)
    most, highest = (best.new_full((len(images),), -torch.inf) for _ in range(2))
    left = (~wrong).nonzero().squeeze(1)
    for number, attack in enumerate(attacks):
        if not len(left):
            break
        x, y, streams = images[left], labels[left], rng[left]
        found = attack.run(source, x, y, streams.fold(number)).detach().to(best.dtype)
        share, margin = judge(source, found, y, random[left], streams.fold("judge"), votes)
        better = (share > most[left]) | ((share == most[left]) & (margin > highest[left]))
        best[left] = torch.where(per_image(better), found, best[left])
        most[left] = torch.where(better, share, most[left])
        highest[left] = torch.where(better, margin, highest[left])
        if spare:
            left = left[most[left] < 1]
    return best


def common_goals(
    attacks: Sequence[Attack], source: nn.Module, images: Tensor, labels: Tensor, rng: Rng
) -> Tensor | None:
    """What all attacks strive for, (B,), attack k with the streams ``rng.fold(k)``; None where they
    differ.
    """
    first: Tensor | None = None
    for number, attack in enumerate(attacks):
        goals = attack.goals(source, images, labels, rng.fold(number))
        if goals is None or not (first is None or torch.equal(goals, first)):
            return None
        first = goals
    return first


def total(attacks: Sequence[Attack], votes: int) -> Cost:
    """What `strongest` costs at most: where a random model is asked ``votes`` times, another is
    asked once.
    """
    costs = [attack.cost() for attack in attacks]
    queries = 2 + sum(cost.queries + votes for cost in costs)
    return Cost(sum(cost.gradients for cost in costs), queries)


@checked
@dataclass(frozen=True)
class Restarts(Attack):
    """Several runs of one attack, each with random streams of its own.

    Args:
        attack: any attack; its own threat does not count. Without randomness every run is the same.
        restarts: runs.
        keep: "first": an image that is broken is spared further runs; "best": all runs, the worst
            for the model counts.
        votes: draws of a random model that judge each run.
        threat: where adversarial images may go.
    """

    attack: Attack = field(default_factory=ProjectedGradient)
    restarts: Count = 5
    keep: Literal["first", "best"] = "first"
    votes: Count = VOTES
    threat: Threat = field(default_factory=Linf)

    def __post_init__(self) -> None:
        self.members  # noqa: B018 - refuses threats that the attack does not know

    @property
    def members(self) -> tuple[Attack, ...]:
        """The runs."""
        return (within(self.attack, self.threat, "attack"),) * self.restarts

    def with_members(self, members: Sequence[Attack]) -> Restarts:
        return replace(self, attack=members[0])

    @property
    def asks_g(self) -> bool:  # type: ignore[override]
        return self.attack.asks_g

    @property
    def rounds_well(self) -> bool:
        return self.attack.rounds_well

    def cost(self) -> Cost:
        """At most: broken images are spared further runs."""
        return total(self.members, self.votes)

    def check(self, source: nn.Module) -> None:
        self.attack.check(source)

    def goals(self, source: nn.Module, images: Tensor, labels: Tensor, rng: Rng) -> Tensor | None:
        return common_goals(self.members, source, images, labels, rng)

    def run(self, source: nn.Module, images: Tensor, labels: Tensor, rng: Rng) -> Tensor:
        return strongest(
            self.members, source, images, labels, rng, self.votes, self.keep == "first"
        )


@checked
@dataclass(frozen=True)
class Several(Attack):
    """Several attacks: a cascade, in which only survivors go on, or the best of all.

    Args:
        attacks: in their order, the cheap ones first; their own threats do not count.
        keep: "first": an image that is broken is spared the attacks that follow, and where none
            breaks it, the best that one of them returned comes back; "best": every image goes
            through all of them, and the worst for the model counts.
        votes: draws of a random model that judge what each returned.
        threat: where adversarial images may go.
    """

    attacks: list[Attack] = field(default_factory=lambda: [APGD(), Square()])
    keep: Literal["first", "best"] = "first"
    votes: Count = VOTES
    threat: Threat = field(default_factory=Linf)

    def __post_init__(self) -> None:
        if not self.attacks:
            raise OptionError("attacks", [], "name at least one attack")
        self.members  # noqa: B018 - refuses threats that an attack does not know

    @property
    def members(self) -> tuple[Attack, ...]:
        """The attacks in one threat."""
        return tuple(
            within(attack, self.threat, f"attacks[{number}]")
            for number, attack in enumerate(self.attacks)
        )

    def with_members(self, members: Sequence[Attack]) -> Several:
        return replace(self, attacks=[*members])

    @property
    def asks_g(self) -> bool:  # type: ignore[override]
        return any(attack.asks_g for attack in self.attacks)

    @property
    def rounds_well(self) -> bool:
        return all(attack.rounds_well for attack in self.attacks)

    def cost(self) -> Cost:
        """At most: broken images are spared what follows."""
        return total(self.members, self.votes)

    def check(self, source: nn.Module) -> None:
        for attack in self.attacks:
            attack.check(source)

    def goals(self, source: nn.Module, images: Tensor, labels: Tensor, rng: Rng) -> Tensor | None:
        return common_goals(self.members, source, images, labels, rng)

    def run(self, source: nn.Module, images: Tensor, labels: Tensor, rng: Rng) -> Tensor:
        return strongest(
            self.members, source, images, labels, rng, self.votes, self.keep == "first"
        )
