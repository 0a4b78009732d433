"""Attacks made of attacks: several runs of one attack, a cascade, or the best of several attacks.

The members run on the wrapper's source and within the wrapper's threat. The threats that members
bring along are replaced, so that one ``epsilon`` holds for all. Attacks on several sources go into
a suite with ``survivors: true``.

Success is misclassification by the source, whatever a member strives for. The source says whether
it is random, or two passes over an image tell. On a deterministic source one more pass judges what
a member returned, and an image that is misclassified as it stands is left alone. On a random source
``votes`` draws judge. No member has seen these draws, they are the same for all members, and none
of them will score the image. The share of wrong draws decides between members, and of equal shares
the mean margin max_{i != y} z_i - z_y. An image counts as broken, and is spared the rest, only if
all draws are wrong: with 30 draws one can be 95 % sure that at least nine tenths are.
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
from robusttrain.attacks.answers import misclassified
from robusttrain.attacks.asking import Queried
from robusttrain.attacks.base import Attack, Cost
from robusttrain.attacks.parts.threats import Linf, Threat, per_image
from robusttrain.attacks.queries import all_or_none, ask, by_draws, mean_margin, share_of_wrong
from robusttrain.core.checked import Count, checked
from robusttrain.core.errors import OptionError, under
from robusttrain.core.rng import Rng

#: Draws of a random model that judge what a member returned.
VOTES = 30


def within(attack: Attack, threat: Threat, where: str) -> Attack:
    """The attack in another threat.

    Args:
        attack: any attack.
        threat: the other threat.
        where: the place of the attack in its wrapper, for error messages.

    Raises:
        OptionError: the attack does not know that threat.
    """
    with under(where):
        return attack.within(threat)


def judge(
    source: nn.Module,
    points: Tensor,
    labels: Tensor,
    random: Tensor,
    rng: Rng,
    votes: int,
    alike: bool | None,
) -> tuple[Tensor, Tensor]:
    """The share of draws in which points are misclassified (`share_of_wrong`), and their
    `mean_margin`, (B,) each.

    Args:
        source: prepared for attack.
        points: (B, C, H, W).
        labels: (B,).
        random: (B,) bool, for which images the source is random.
        rng: streams of the images, (B,).
        votes: draws for these images; the others are asked about once.
        alike: as for `by_draws`.
    """
    share, margin = (points.new_zeros(len(points)) for _ in range(2))
    for which, draws in by_draws(random, votes, alike):
        logits = ask(source, points[which], rng[which], draws)
        share[which] = share_of_wrong(logits, labels[which]).to(share.dtype)
        margin[which] = mean_margin(logits, labels[which]).to(margin.dtype)
    return share, margin


def random_and_wrong(
    source: nn.Module, images: Tensor, labels: Tensor, rng: Rng
) -> tuple[Tensor, Tensor]:
    """(B,) bool each: the images for which the source is random, and those others that it gets
    wrong as they stand.
    """
    logits, random = Queried.of(source).asked_twice(images, rng.fold("ask"))
    return random, ~random & misclassified(logits, labels)


def strongest(
    attacks: Sequence[Attack],
    source: nn.Module,
    images: Tensor,
    labels: Tensor,
    rng: Rng,
    votes: int,
    spare: bool,
) -> Tensor:
    """For each image the result of the attack that is worst for the model, (B, C, H, W).

    Args:
        attacks: in their order; number k takes the streams ``rng.fold(k)``.
        source, images, labels, rng: as for ``Attack.run``.
        votes: draws of a random model that judge.
        spare: whether images that are broken are spared the attacks that follow.
    """
    random, wrong = random_and_wrong(source, images, labels, rng)
    best = images.clone()
    most, highest = (best.new_full((len(images),), -torch.inf) for _ in range(2))
    alike, left = all_or_none(random), (~wrong).nonzero().squeeze(1)
    for number, attack in enumerate(attacks):
        if not len(left):
            break
        x, y, streams = images[left], labels[left], rng[left]
        adversarial = attack.run(source, x, y, streams.fold(number)).detach().to(best.dtype)
        judged = (adversarial, y, random[left], streams.fold("judge"))
        share, margin = judge(source, *judged, votes, alike)
        better = (share > most[left]) | ((share == most[left]) & (margin > highest[left]))
        best[left] = torch.where(per_image(better), adversarial, best[left])
        most[left] = torch.where(better, share, most[left])
        highest[left] = torch.where(better, margin, highest[left])
        if spare:
            left = left[most[left] < 1]
    return best


def common_goals(
    attacks: Sequence[Attack], source: nn.Module, images: Tensor, labels: Tensor, rng: Rng
) -> Tensor | None:
    """The classes (B,) that all attacks strive for; None if their classes differ.

    Attack k takes the streams ``rng.fold(k)``.
    """
    first: Tensor | None = None
    for number, attack in enumerate(attacks):
        goals = attack.goals(source, images, labels, rng.fold(number))
        if goals is None or not (first is None or torch.equal(goals, first)):
            return None
        first = goals
    return first


def total(costs: Sequence[Cost], votes: int) -> Cost:
    """What `strongest` costs at most, of attacks that cost as much: a deterministic model is asked
    once instead of ``votes`` times.
    """
    queries = 2 + sum(cost.queries + votes for cost in costs)
    return Cost(sum(cost.gradients for cost in costs), queries)


@checked
@dataclass(frozen=True)
class Restarts(Attack):
    """Several runs of one attack, each with random streams of its own.

    Args:
        attack: any attack; its own threat does not count. Without randomness every run is the same.
        restarts: runs.
        keep: "first" spares a broken image further runs; "best" makes all runs, and the worst one
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
        """An upper bound: broken images are spared further runs."""
        return total([each.cost() for each in self.members], self.votes)

    def cost_on(self, source: nn.Module) -> Cost:
        return total([each.cost_on(source) for each in self.members], self.votes)

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
        keep: "first" spares a broken image the attacks that follow; of an image that no attack
            breaks, the best result comes back. "best" runs all attacks on every image, and the
            worst result for the model counts.
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
        """An upper bound: broken images are spared the attacks that follow."""
        return total([each.cost() for each in self.members], self.votes)

    def cost_on(self, source: nn.Module) -> Cost:
        return total([each.cost_on(source) for each in self.members], self.votes)

    def check(self, source: nn.Module) -> None:
        for attack in self.attacks:
            attack.check(source)

    def goals(self, source: nn.Module, images: Tensor, labels: Tensor, rng: Rng) -> Tensor | None:
        return common_goals(self.members, source, images, labels, rng)

    def run(self, source: nn.Module, images: Tensor, labels: Tensor, rng: Rng) -> Tensor:
        return strongest(
            self.members, source, images, labels, rng, self.votes, self.keep == "first"
        )
