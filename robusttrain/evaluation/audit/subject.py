"""What a check may ask: the evaluation as it is configured, a sample of its images, and new runs of
its attacks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from robusttrain.attacks import (
    Attack,
    Loss,
    Queried,
    prepared,
)
from robusttrain.core.rng import Rng
from robusttrain.evaluation.audit.changes import objective_of
from robusttrain.evaluation.audit.finding import (
    MORE_THAN_LUCK,
    Beaten,
    Finding,
    Needless,
    Severity,
    beaten,
    words,
)
from robusttrain.evaluation.audit.trace import Trace, watched
from robusttrain.evaluation.engine import Engine
from robusttrain.evaluation.records import Records
from robusttrain.evaluation.scenario import Scenario
from robusttrain.evaluation.scoring import verdicts, worst_case

#: Images of the sample, if the budget allows.
SAMPLE = 32
#: Fewer images that were right prove nothing: one image of eight is a rate of 13 % already.
LEAST = 8
#: Draws that judge an image of a random model. By luck, two means of ten draws differ by 0.5 once
#: in sixty times.
DRAWS = 10
#: Share of draws in which an image must still be right, under the worst attack, to stand. The share
#: is low because images that are right now and then make up a random model's accuracy, too.
STANDING = 0.15


@dataclass
class Subject:
    """An evaluation under audit.

    Args:
        engine: of the evaluation.
        images: (n, C, H, W), a sample of its images that the target gets right, on the target's
            device.
        labels: (n,) int64.
        indices: (n,) int64, the images' indices in the data set.
        records: of all images of the evaluation; None before the evaluation ran.
        rest: more images of the evaluation, for a check that is undecided on these; None where
            there are none.
    """

    engine: Engine
    images: Tensor
    labels: Tensor
    indices: Tensor
    records: Records | None = None
    rest: Subject | None = None
    everyone: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.everyone = torch.arange(len(self.images), device=self.images.device)
        self.target, self.random = self.engine.target, self.engine.random
        self.asked = Queried(self.target)
        self.streams = Rng.for_images(self.engine.seed, self.indices)

    @property
    def size(self) -> int:
        return len(self.images)

    def rng(self, purpose: str, which: Tensor | None = None) -> Rng:
        """Streams of the sample's images (or some) for one purpose of the audit."""
        streams = self.streams if which is None else self.streams[which]
        return streams.fold("audit").fold(purpose)

    def judge(
        self,
        images: Tensor,
        which: Tensor | None = None,
        target: nn.Module | None = None,
        draws: int | None = None,
        purpose: str = "judge",
    ) -> Tensor:
        """(m,) float64 on the CPU: the share of fresh draws in which ``images`` are right.

        All versions are judged with the same draws, so they differ by the images alone.

        Args:
            images: (m, C, H, W), versions of the sample's images ``which``.
            which: (m,) places in the sample; None for all.
            target: another model; None for the target.
            draws: how many draws; None for `DRAWS` where the model is random, else 1.
            purpose: name of the draws; other names give other draws.
        """
        which = self.everyone if which is None else which
        draws = (DRAWS if self.random else 1) if draws is None else draws
        model = self.asked if target is None else target
        return (
            verdicts(model, images, self.labels[which], self.rng(purpose, which), draws)
            .double()
            .mean(dim=1)
        )

    def attack(
        self,
        attack: Attack,
        source: nn.Module,
        which: Tensor | None = None,
        purpose: str = "attack",
        rng: Rng | None = None,
    ) -> Tensor:
        """Adversarial images (m, C, H, W) of the sample's images ``which``, with streams of the
        audit's own.
        """
        which = self.everyone if which is None else which
        if not len(which):
            return self.images[which]
        rng = self.rng(purpose, which) if rng is None else rng
        return attack(source, self.images[which], self.labels[which], rng).to(self.images.dtype)

    def source(self, name: str) -> Queried:
        """The source of the attack ``name``, as the engine built it, with a count of its own."""
        source = self.engine.sources[name]
        queried = Queried(source.model)
        queried.draws_unseen = source.draws_unseen
        return queried

    # From the records.

    @cached_property
    def places(self) -> Tensor:
        """(n,) places of the sample's images in the records."""
        assert self.records is not None
        return torch.searchsorted(self.records.index, self.indices.cpu())

    def recorded(self, name: str, kind: str = "score") -> Tensor:
        """(n,) float64: recorded scores of the sample's images, under an attack or "clean"."""
        assert self.records is not None
        rows = self.records.of(name)
        return (rows.chosen_by if kind == "select" else rows.right)[self.places]

    @cached_property
    def main(self) -> str:
        """The strongest attack: the one with the lowest mean score.

        Of equals, an attack that follows gradients comes before others, then the one that spends
        most, then the first.

        With ``survivors``, an early attack had the easy images and a late attack the rest, so
        neither sums nor shares compare them. The strongest attack is then a white box if any was
        given images: the one with the lowest score on its own images.
        """
        assert self.records is not None
        ranks: dict[str, tuple[float, ...]] = {}
        for name, each in self.engine.scenarios.items():
            select = self.records.of(name).chosen_by
            spent = each.attack.cost()
            blind = 0 if spent.gradients else 1
            cheap = -float(spent.gradients), -float(spent.queries)
            if self.engine.survivors:
                given = select[self.records.of(name).attacked]
                mean = given.mean().item() if len(given) else 1.0
                late = not len(given), not self.follows_target(name)
                ranks[name] = (*late, mean, blind, *cheap)
            else:
                ranks[name] = (select.mean().item(), blind, *cheap)
        return min(ranks, key=lambda name: ranks[name])

    @property
    def scenario(self) -> Scenario:
        """The strongest attack, with its source."""
        return self.engine.scenarios[self.main]

    @cached_property
    def standing(self) -> Tensor:
        """(m,) places in the sample of images that no attack of the evaluation broke.

        The robust accuracy rests on these images.
        """
        names = ("clean", *self.engine.scenarios)
        worst = worst_case(
            *(
                torch.stack([self.recorded(name, kind) for name in names])
                for kind in ("select", "score")
            )
        )
        return (worst > STANDING).nonzero().squeeze(1).to(self.images.device)

    @cached_property
    def standing_by_return(self) -> Tensor:
        """(m,) places of the images that stand, and of those that the strongest attack had broken
        on its way and lost again: the evaluation counts them as fallen (`Engine.leaves`), and what
        the attack returned is right.
        """
        lost = torch.zeros(self.size, dtype=torch.bool)
        if not self.random:
            fell = (self.recorded("clean") > STANDING) & (self.recorded(self.main) <= STANDING)
            lost = fell & (self.score > STANDING)
        lost[self.standing.cpu()] = True
        return lost.nonzero().squeeze(1).to(self.images.device)

    # The strongest attack, run again.

    @cached_property
    def trace(self) -> Trace:
        """A run of the strongest attack on the sample, with the engine's streams: it returns the
        images that the engine scored.
        """
        trace = Trace(self.size)
        again = watched(self.scenario.attack, trace)
        streams = self.streams.fold("attack").fold(self.main)
        trace.close(self.attack(again, self.source(self.main), rng=streams))
        return trace

    @cached_property
    def score(self) -> Tensor:
        """(n,) scores of the strongest attack's images, on the audit's draws."""
        return self.judge(self.trace.returned)

    def beaten_by(self, adversarial: Tensor) -> Beaten:
        """How many standing images their versions (m, C, H, W) break."""
        return beaten(self.ours, self.judge(adversarial, self.standing), self.size, self.random)

    def rival(
        self,
        adversarial: Tensor,
        check: str,
        severity: Severity,
        measured: str,
        source: str,
        remedy: str,
        within_luck: bool = False,
    ) -> Finding | None:
        """The finding about a rival of the strongest attack; None if the rival breaks no more
        images than luck allows.

        Args:
            adversarial: (m, C, H, W), the rival's versions of the standing images.
            check, severity, source, remedy: of the finding.
            measured: in words, with {count} for the images that the rival breaks and {size} for
                the size of the sample.
            within_luck: whether to report, as a note, also what luck explains.
        """
        result = self.beaten_by(adversarial)
        return self.finding(
            result, self.size, check, severity, measured, source, remedy, within_luck
        )

    def finding(
        self,
        result: Beaten,
        size: int,
        check: str,
        severity: Severity,
        measured: str,
        source: str,
        remedy: str,
        within_luck: bool = False,
    ) -> Finding | None:
        """The finding about a rival that broke ``result`` of ``size`` images; other arguments as
        for `rival`.
        """
        count, more = result
        if not (more or within_luck):
            return None
        return Finding(
            check=check,
            severity=severity if more else "note",
            attack=self.main,
            measured=measured.format(count=words(count), size=size),
            threshold=MORE_THAN_LUCK,
            source=source,
            remedy=remedy if more else "",
            value=count / size,
        )

    @property
    def ours(self) -> Tensor:
        """(m,) scores of the standing images under the strongest attack."""
        return self.score[self.standing.cpu()]

    # The kinds of attacks.

    def knows_target(self, name: str) -> bool:
        """Whether an attack works on the target itself, its defense included."""
        knowledge = self.engine.scenarios[name].source.knows
        return "classifier" in knowledge and ("defense" in knowledge or self.target.defense is None)

    def follows_target(self, name: str) -> bool:
        """Whether an attack differentiates the target itself, its defense included: a white box."""
        gradients = self.engine.scenarios[name].attack.cost().gradients
        return bool(gradients) and self.knows_target(name)

    @cached_property
    def classes(self) -> int:
        """K."""
        with prepared(self.asked), torch.no_grad():
            first = self.everyone[:1]
            return self.asked(self.images[:1].float(), self.rng("classes", first)).shape[1]

    def need_standing(self) -> Tensor:
        """`standing`; raises `Needless` where nothing stands, and no figure could be too high."""
        if not len(self.standing):
            raise Needless("no image of the sample stands")
        return self.standing

    @property
    def exact(self) -> bool:
        """Whether the strongest attack's gradient claims to be the derivative of the target."""
        return self.scenario.source.exact and bool(self.scenario.attack.cost().gradients)

    @property
    def same_forward(self) -> bool:
        """Whether the strongest attack's source answers as the target does."""
        return self.scenario.source.same_forward

    def loss(self, model: nn.Module) -> Loss:
        """The strongest attack's loss on a model, for the whole sample."""
        objective = objective_of(self.scenario.attack)
        goal = objective.aim(model, self.images, self.labels, self.rng("aim"))
        return Loss(model, objective, goal)
