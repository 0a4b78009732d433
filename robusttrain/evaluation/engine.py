"""The engine: runs attacks over batches and keeps the verdicts of every image.

Its callers are ``evaluate.py`` and the validation callback. The engine knows nothing of how an
attack works, and the images may come from anywhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from robusttrain.attacks import Attack, Cost, KnownDraw, Queried, Source, prepared
from robusttrain.attacks.asking import SLOW, UNSEEN
from robusttrain.attacks.base import check_images
from robusttrain.attacks.leaving import Leaving
from robusttrain.attacks.rounding import held_apart
from robusttrain.core.advice import warn
from robusttrain.core.errors import UserError
from robusttrain.core.labels import check_labels
from robusttrain.core.processor import finish, telling_size
from robusttrain.core.repeatable import repeatable
from robusttrain.core.rng import Rng
from robusttrain.core.telling import Advance, unwatched
from robusttrain.evaluation import pricing
from robusttrain.evaluation.covering import is_no_bound
from robusttrain.evaluation.fitting import ask_about, one_threat, refuse_outside
from robusttrain.evaluation.records import CLEAN, Records, Rows
from robusttrain.evaluation.scenario import Scenario
from robusttrain.evaluation.scoring import verdicts
from robusttrain.models.compiling import Mode, gradients_by
from robusttrain.models.defended import DefendedClassifier

#: The columns, by name, that one stage ("clean" or an attack) records of a batch.
Entry = dict[str, Tensor]
#: Draws that must all be wrong before an image counts as broken. One can then be 95 % sure that the
#: image is right in less than a tenth of all draws.
CONFIRMING = 30
SOMETIMES = (
    "the target draws random numbers for some images, and drew none for those that were asked about"
    " first: set random = True on it, so that all images are scored over several draws"
)


class EntryStore(Protocol):
    """What the engine needs of a `Journal`: entries by stage ("clean", or an attack) and batch."""

    def get(self, stage: str, images: Tensor, labels: Tensor, indices: Tensor) -> Entry | None: ...

    def put(
        self, stage: str, images: Tensor, labels: Tensor, indices: Tensor, entry: Entry
    ) -> None: ...


def _equal(one: Source, other: Source) -> bool:
    """Whether two sources say that they are equal; those that hold tensors cannot tell."""
    try:
        return bool(one == other)
    except Exception:  # noqa: BLE001 - a source of one's own may hold anything
        return False


@dataclass
class Counted:
    """Evaluations of single images that progress was told of.

    Args:
        total: all of them.
        given: those that an earlier run, or another process, has made.
    """

    total: float = 0.0
    given: float = 0.0


class Engine:
    """Evaluates one target under several attacks.

    The target may say that it is random. Otherwise the first batch tells: the engine asks twice
    about a few images, on draws of their own, and watches global generators (`Queried`). A random
    target, declared or not, is scored over ``draws`` draws that neither attack nor selection has
    seen.

    Up to rounding, figures depend on the seed, and not on batch size, order, number of processes or
    other draws from global generators. That holds for attacks and verdicts alike, if the target
    draws from the streams of the images or from global generators. It does not hold for a target
    with a generator of its own, which no seed reaches.

    Args:
        target: the model under attack; verdicts are float32 forward passes of it.
        scenarios: attacks by name.
        seed: of every random number; the same seed gives the same result.
        draws: fresh draws of a random target's randomness that score each image, and as many that
            select. The attribute is 1 as long as the target does not count as random.
        precision: in which attacks differentiate the classifier: one for all attacks, or one for
            each by its name.
        survivors: whether an image that an attack broke for good is spared the attacks that follow.
        keep_images: whether records hold the adversarial images, as "NAME/images".
        advance: called with the number of images of every evaluation, for progress bars, and with
            what images are spared.
        journal: keeps finished entries, for a run that goes on later.
        leave_early: whether an image leaves an attack as soon as its verdict is settled (`leaves`).
            Verdicts and adversarial images are the same without, for more evaluations.
        compiled: how attacks take gradients (`robusttrain.models.compiling`); verdicts are plain
            passes.

    Raises:
        UserError: a source that does not fit the target, or threats that differ between attacks.
    """

    def __init__(
        self,
        target: nn.Module,
        scenarios: Mapping[str, Scenario],
        seed: int = 0,
        draws: int = 10,
        precision: torch.dtype | Mapping[str, torch.dtype] = torch.float32,
        survivors: bool = False,
        keep_images: bool = False,
        advance: Advance = unwatched,
        journal: EntryStore | None = None,
        leave_early: bool = True,
        compiled: Mode = "off",
    ) -> None:
        self.target = DefendedClassifier.of(target)
        self.scenarios = dict(scenarios)
        self.seed, self.survivors, self.keep_images, self.advance = (
            seed,
            survivors,
            keep_images,
            advance,
        )
        self.counted = Counted()
        self.journal, self.leave_early, self.compiled = journal, leave_early, compiled
        self._draws, self._queried, self._settled = draws, Queried(self.target), False
        self._discloses = False
        one_threat(self.scenarios)
        each = (
            precision
            if isinstance(precision, Mapping)
            else dict.fromkeys(self.scenarios, precision)
        )
        #: In which each attack differentiates.
        self.types = dict(each)
        attacked = {dtype: self.target.fast(dtype) for dtype in {*each.values()}}
        self.sources = {}
        for name, scenario in self.scenarios.items():
            try:
                source = scenario.source(attacked[each[name]])
                scenario.attack.check(source)
                self.sources[name] = Queried(source, lambda count: self.count(count))
            except UserError as error:
                raise UserError(f"attack {name}: {error}") from error

    def count(self, count: float, spent: bool = True) -> None:
        """Note evaluations of single images, and show them."""
        self.counted.total += count
        self.counted.given += 0.0 if spent else count
        self.advance(count, spent)

    def varied(
        self,
        change: Callable[[Attack], Attack | None],
        keep_images: bool = False,
    ) -> Engine:
        """The same engine, its sources shared, with other versions of its attacks; images that one
        of them breaks are spared those that follow.

        Args:
            change: an attack to its other version; None leaves the attack out.
            keep_images: whether records hold the adversarial images.
        """
        other = copy(self)
        changed = {name: change(each.attack) for name, each in self.scenarios.items()}
        other.scenarios = {
            name: replace(self.scenarios[name], attack=attack)
            for name, attack in changed.items()
            if attack is not None
        }
        other.survivors, other.keep_images, other.journal = True, keep_images, None
        return other

    def disclosing(self) -> Engine:
        """The same engine for attackers who are given the draw that scores, the first of those that
        score here. For them the target is deterministic, and that draw alone scores.
        """
        other = copy(self)
        other.scenarios = {
            name: replace(
                each,
                attack=each.attack.for_one_draw(),
                knows=f"{each.knowledge_of(self.target)}, the draw that scores",
            )
            for name, each in self.scenarios.items()
        }
        other._discloses, other._queried = True, Queried(KnownDraw(self._queried))
        other._settled = True  # it repeats itself, whatever the target does
        other.sources = {name: Queried(KnownDraw.of(each)) for name, each in self.sources.items()}
        other.survivors, other.keep_images, other.journal = True, False, None
        return other

    @property
    def random(self) -> bool:
        """Whether the target is random: it says so, or `ask` has found out."""
        return self._queried.random

    @property
    def scoring_draws(self) -> int:
        """Draws that would score an image of a random target."""
        return self._draws

    @property
    def draws(self) -> int:
        """Draws that score an image, and as many that select."""
        return self._draws if self.random else 1

    @repeatable()
    def ask(self, images: Tensor, indices: Tensor) -> bool:
        """Find out, once, whether the target and the sources are random; `run` calls this method.

        Args:
            images: (B, C, H, W); the models are asked about a few of them.
            indices: (B,) int64, as for `run`.

        Returns:
            `random`, which stays the same from then on.

        Raises:
            UserError: an attack that needs more classes than the target has.
        """
        if self._settled or not len(images):
            return self.random
        for queried in (self._queried, *self.sources.values()):
            own = images.float() if queried is self._queried else images
            ask_about(queried, own, indices, self.seed)
        self._settled, self.target.observed_random = True, self.random
        self.target.observed_unseen = self._queried.draws_unseen
        for name, scenario in self.scenarios.items():
            try:
                scenario.attack.need_classes(self._queried.classes or 2)
            except UserError as error:
                raise UserError(f"attack {name}: {error}") from error
        if self._queried.draws_globally:
            warn(SLOW)
        elif self._queried.draws_unseen:
            warn(UNSEEN)
        return self.random

    def first_of_equal(self) -> dict[str, str]:
        """For each attack the first one whose source is equal, in the same precision: a suite has
        many of them, and what is asked of one holds for all.
        """
        first: dict[str, str] = {}
        for name, scenario in self.scenarios.items():
            first[name] = next(
                (
                    other
                    for other in dict.fromkeys(first.values())
                    if self.types[other] == self.types[name]
                    and _equal(self.scenarios[other].source, scenario.source)
                ),
                name,
            )
        return first

    @repeatable()
    def measure(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        """Seconds per image that each attack, and "scoring", will take, extrapolated from a few
        evaluations.
        """
        size = telling_size(len(images), images.device)
        images = check_images(images[:size]).clone()
        indices = torch.arange(len(images), device=images.device)
        self.ask(images, indices)
        labels = check_labels(labels[:size], images, self._queried.classes)
        rng = Rng.for_images(self.seed, indices).fold("measure")
        expected: dict[str, float] = {}
        gradients: dict[str, float] = {}
        queries: dict[tuple[str, bool], float] = {}
        first = self.first_of_equal()
        for name, source in self.sources.items():
            attack, same = self.scenarios[name].attack, first[name]
            cost, asked = self.cost(name), (same, attack.asks_g)
            if cost.gradients and same not in gradients:
                gradients[same] = pricing.of_gradient(source, images, rng, self.compiled)
            if cost.queries and asked not in queries:
                of_query = pricing.of_g if attack.asks_g else pricing.of_answer
                queries[asked] = of_query(source, images, rng)
            expected[name] = cost.gradients * gradients.get(same, 0.0)
            expected[name] += cost.queries * queries.get(asked, 0.0)
            source.reset()
        start = time.perf_counter()
        verdicts(self._queried, images, labels, rng, draws=1)
        expected["scoring"] = (time.perf_counter() - start) / len(images) * self.verdicts_per_image
        return expected

    def cost(self, name: str) -> Cost:
        """What an attack asks of its source, per image, at most."""
        return self.scenarios[name].attack.cost_on(self.sources[name])

    @property
    def passes_of_a_verdict(self) -> int:
        """Forward passes of the target that judge one image once."""
        return self.draws * (2 if self.random else 1)

    @property
    def verdicts_per_image(self) -> int:
        """Forward passes of the target that judge one image, clean and under all attacks."""
        return (len(self.scenarios) + 1) * self.passes_of_a_verdict

    @repeatable()
    def run(
        self, images: Tensor, labels: Tensor, indices: Tensor
    ) -> tuple[Records, dict[str, float]]:
        """Attack one batch.

        Args:
            images: (B, C, H, W), pixel values in [0, 1].
            labels: (B,) whole numbers, 0..K-1.
            indices: (B,) int64, each image's index in its data set. Index and seed determine the
                image's random streams.

        Returns:
            Records of the batch on the CPU, and seconds by attack.

        Raises:
            UserError: images outside [0, 1], labels for which the target has no class.
        """
        images = check_images(images)
        self.ask(images, indices)
        labels = check_labels(labels, images, self._queried.classes)
        rng = Rng.for_images(self.seed, indices)
        if self._discloses:
            rng = rng.disclosing(rng.fold("score").fold(0))
        rows: dict[str, Rows] = {}
        alive, seconds = torch.ones(len(images), dtype=torch.bool), {}
        for stage in (CLEAN, *self.scenarios):
            entry = self.journal.get(stage, images, labels, indices) if self.journal else None
            if entry is None:
                start, before = time.perf_counter(), self.counted.total
                entry = (
                    self._clean(images, labels, rng)
                    if stage == "clean"
                    else self._attack(stage, images, labels, rng, alive)
                )
                entry["seconds"] = torch.tensor(time.perf_counter() - start, dtype=torch.float64)
                # What images were spared that fell, or had fallen before
                spared = len(images) * self._planned(stage) - (self.counted.total - before)
                self.count(max(0.0, spared))
                if self.journal:
                    self.journal.put(stage, images, labels, indices, entry)
            else:
                self.count(len(images) * self._planned(stage), spent=False)
            alive = alive & ~entry["broken"]
            if stage != "clean":
                seconds[stage] = entry["seconds"].item()
            rows[stage] = self._rows(entry, indices, labels)
        return Records(rows), seconds

    def _rows(self, entry: Entry, indices: Tensor, labels: Tensor) -> Rows:
        """A stage's entry as rows; for the stage "clean" no image was attacked, at no cost."""
        nothing = torch.zeros(len(indices))
        return Rows(
            indices.cpu(),
            labels.cpu(),
            entry["score"],
            entry["select"],
            entry.get("attacked", nothing.bool()),
            entry.get("distance", nothing),
            entry.get("gradients", nothing),
            entry.get("queries", nothing),
            entry.get("images") if self.keep_images else None,
            entry["broken"],
        )

    def _planned(self, stage: str) -> float:
        """Evaluations that a stage takes for an image."""
        cost = self.cost(stage) if stage != "clean" else Cost(0, 0)
        return cost.gradients + cost.queries + self.passes_of_a_verdict

    def _clean(self, images: Tensor, labels: Tensor, rng: Rng) -> Entry:
        """Verdicts on the images as they are."""
        if self.scenarios and not self.random and not self._discloses:
            self._ask_again(images, rng)
        entry = self._judge(images, labels, rng)
        # A deterministic model that is wrong already stays wrong: no attack can make the verdict
        # worse. An image that a random model gets wrong in draw after draw counts as broken with
        # `survivors`, and is attacked without.
        everyone = torch.ones(len(images), dtype=torch.bool)
        spared = self.survivors or not self.random
        entry["broken"] = (
            self._broken(entry, "clean", everyone, images, labels, rng) if spared else ~everyone
        )
        return entry

    def _ask_again(self, images: Tensor, rng: Rng) -> None:
        """Raise UserError where a target that repeated itself so far answers otherwise."""
        with prepared(self._queried):
            if self._queried.settle(images.clone(), rng.fold("random")):
                raise UserError(SOMETIMES)

    def _attack(self, name: str, images: Tensor, labels: Tensor, rng: Rng, alive: Tensor) -> Entry:
        """Attack the images that are ``alive``, and judge all of them."""
        scenario, source = self.scenarios[name], self.sources[name]
        keep = alive.nonzero().squeeze(1).to(images.device)
        source.reset()
        start = time.perf_counter()
        adversarial = images.clone()
        if len(keep):
            streams = rng[keep].fold("attack").fold(name)
            returned = self._returned(name, images[keep], labels[keep], streams)
            adversarial[keep] = returned.to(adversarial.dtype)
            if self.touches(name):
                adversarial = held_apart(
                    *(adversarial, images, scenario.attack.threat),
                    partial(self._right, labels=labels, rng=rng.fold("touches")),
                )
        finish(images.device)
        seconds = time.perf_counter() - start
        refuse_outside(name, scenario, adversarial, images)
        entry = self._judge(adversarial, labels, rng)
        entry["seconds"] = torch.tensor(seconds, dtype=torch.float64)
        entry["attacked"] = alive
        entry["broken"] = torch.zeros_like(alive)
        if self.survivors:
            entry["broken"] = self._broken(entry, name, alive, adversarial, labels, rng)
        entry["distance"] = scenario.attack.threat.distance(adversarial, images).cpu()
        for kind, count in (("gradients", source.gradients), ("queries", source.queries)):
            entry[kind] = torch.where(alive, count / max(1, len(keep)), 0.0)
        if self.keep_images or self.journal:
            entry["images"] = adversarial.cpu()
        return entry

    def leaves(self, name: str) -> bool:
        """Whether an image's verdict under an attack is settled by the first point within the
        threat that the target misclassifies.

        The target has to repeat itself, and the attack has to ask a source that answers as the
        target does: an attacker with another model is not told what the target says. An attack
        that seeks the nearest adversarial image goes on after the first, and so does one that no
        radius bounds, since how far it goes is its figure.
        """
        scenario = self.scenarios[name]
        threat = scenario.attack.threat
        return (
            not self.random
            and not self._discloses
            and scenario.source.same_forward
            and not scenario.attack.seeks_nearest
            and not is_no_bound(threat.norm, threat.epsilon)
        )

    def touches(self, name: str) -> bool:
        """Whether what an attack returns may touch the boundary of the target's own classes, so
        that rounding alone decides.

        A batch of another size rounds differently. The verdict on such an image would be a matter
        of luck, however much room the threat leaves.
        """
        scenario = self.scenarios[name]
        attack = scenario.attack
        nearest = attack.seeks_nearest or attack.by_norm
        return nearest and not self.random and scenario.source.same_forward

    def _right(self, points: Tensor, labels: Tensor, rng: Rng) -> Tensor:
        """(B,) bool: a deterministic target's verdicts."""
        return verdicts(self._queried, points, labels, rng, draws=1)[:, 0].to(points.device)

    def _returned(self, name: str, images: Tensor, labels: Tensor, rng: Rng) -> Tensor:
        """What an attack returns for images (B, C, H, W); where an image's verdict was settled on
        the way, the point that settled it.
        """
        attack, source = self.scenarios[name].attack, self.sources[name]
        if not self.leaves(name):
            with gradients_by(self.compiled):
                return attack(source, images, labels, rng)

        def right(points: Tensor, places: Tensor) -> Tensor:
            return self._right(points, labels[places], rng[places].fold("settle"))

        leaving = Leaving(attack.threat, images, labels, right, self.leave_early)
        source.leaving = leaving
        try:
            with gradients_by(self.compiled):
                returned = attack(source, images, labels, rng.numbered())
        finally:
            source.leaving = None
        settled = leaving.settled[:, None, None, None]
        return torch.where(settled, leaving.points, returned.to(images.dtype))

    def _broken(
        self, entry: Entry, name: str, among: Tensor, images: Tensor, labels: Tensor, rng: Rng
    ) -> Tensor:
        """(B,) bool: those images ``among`` that are wrong in every selecting draw and, on a random
        target, in `CONFIRMING` more.

        A model that is right in 40 % of its draws is wrong in four draws once in eight times. A few
        draws would spare images that an attack broke by luck alone.
        """
        broken = among & ~entry["select"].any(dim=1)
        if self.random and broken.any():
            which = broken.nonzero().squeeze(1)
            there = which.to(images.device)
            streams = rng[there].fold("confirm").fold(name)
            broken[which] = ~verdicts(
                self._queried, images[there], labels[there], streams, CONFIRMING
            ).any(dim=1)
        return broken

    def score(self, images: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
        """(B, draws) bool: verdicts on versions ``images`` of the images ``indices``, on the draws
        that score those.
        """
        rng = Rng.for_images(self.seed, indices).fold("score")
        return verdicts(self._queried, images, labels, rng, self.draws)

    @repeatable()
    def judge(self, images: Tensor, labels: Tensor, indices: Tensor) -> Entry:
        """Verdicts on versions ``images`` of the images ``indices``, as on what attacks return:
        "score" and "select".
        """
        return self._judge(images, labels, Rng.for_images(self.seed, indices))

    def _judge(self, images: Tensor, labels: Tensor, rng: Rng) -> Entry:
        """Verdicts on ``images``. Attacks, selection and scoring each have streams of their own.

        The same draws, which no attack has seen, score clean and adversarial images. So an attack
        that changes nothing scores exactly as no attack.
        """
        random = self.random
        score = verdicts(self._queried, images, labels, rng.fold("score"), self.draws)
        if self.random and not random:
            raise UserError(SOMETIMES)
        select = (
            verdicts(self._queried, images, labels, rng.fold("select"), self.draws)
            if random
            else score
        )
        self.count(len(images) * self.passes_of_a_verdict)
        return {"score": score, "select": select}
