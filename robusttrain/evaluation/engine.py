"""The engine: runs attacks over batches and keeps the verdicts of every image.

``evaluate.py`` and the validation callback are two callers of it. It knows nothing of how an attack
works, and the images may come from anywhere.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from robusttrain.attacks import Attack, Cost, Queried, Source, prepared
from robusttrain.attacks.asking import SLOW
from robusttrain.attacks.base import check_images
from robusttrain.attacks.parts.differentiation import input_gradients
from robusttrain.core.errors import UserError
from robusttrain.core.labels import check_labels
from robusttrain.core.rng import Rng
from robusttrain.evaluation.records import CLEAN, Records, Rows
from robusttrain.evaluation.scoring import verdicts
from robusttrain.models.declared import as_module
from robusttrain.models.defended import DefendedClassifier

#: What one stage, "clean" or an attack, writes down of a batch: a column by its name.
Entry = dict[str, Tensor]
#: Images of the first batch that are asked about twice, to see whether the target is random.
ASKED = 8
#: Draws that must all be wrong before an image counts as broken: it is then right in less than a
#: tenth (95 % sure).
CONFIRMING = 30


class Kept(Protocol):
    """A `Journal`, as far as the engine knows it: entries by stage ("clean", or an attack) and
    batch.
    """

    def get(self, stage: str, images: Tensor, labels: Tensor, indices: Tensor) -> Entry | None: ...

    def put(
        self, stage: str, images: Tensor, labels: Tensor, indices: Tensor, entry: Entry
    ) -> None: ...


@dataclass(frozen=True)
class Scenario:
    """One attack, ready to run: the algorithm, and what it differentiates.

    Args:
        attack: the algorithm.
        source: builds, from the target, what the attacker differentiates.
        knows: what the attacker must know, in words; printed beside every figure.
    """

    attack: Attack
    source: Source
    knows: str = ""

    @property
    def knowledge(self) -> str:
        return self.knows or self.source.knows

    def __call__(
        self,
        model: nn.Module | Callable[[Tensor], Any],
        images: Tensor,
        labels: Tensor,
        rng: Rng | None = None,
    ) -> Tensor:
        """Adversarial images (B, C, H, W) for a model, defended or not; arguments as for an
        `Attack`.
        """
        target = (
            model
            if isinstance(model, DefendedClassifier)
            else DefendedClassifier(None, as_module(model))
        )
        return self.attack(self.source(target), images, labels, rng)


def need_two(classes: int) -> None:
    """Raise UserError where data have a single class."""
    if classes < 2:
        raise UserError(
            f"the data set has {classes} class: a classifier that cannot be wrong is robust against"
            " everything; give images of two classes or more"
        )


def check_classes(model: nn.Module, images: Tensor, classes: int, what: str = "the model") -> None:
    """Raise UserError unless the model takes these images, (B, C, H, W), and answers with this
    number of classes.
    """
    need_two(classes)
    answered = classes_of(model, images, what)
    if answered != classes:
        raise UserError(
            f"{what} answers with {answered} classes, but the data set has {classes}: change one"
            " of them"
        )


def classes_of(model: nn.Module, images: Tensor, what: str = "the model") -> int:
    """How many classes a model answers with; a UserError unless it takes these images, (B, C, H,
    W).
    """
    images, queried = check_images(images), Queried.of(model)

    def asked(count: int) -> int:
        rng = Rng.for_images(0, torch.zeros(count, device=images.device))
        with prepared(queried), torch.no_grad():
            return int(queried(images[:count].clone(), rng).shape[1])

    try:
        return asked(1)
    # timm's transformers assert their size; others index, or call what an image has not
    except (RuntimeError, AssertionError, ValueError, IndexError, TypeError) as error:
        whole = len(images) if len(images) > 1 else 2
        if whole <= len(images) and _takes(asked, whole):
            raise UserError(
                f"{what} takes {whole} images and not one: attacks go on with the images that they"
                " have not broken, so it has to take any number"
            ) from error
        raise UserError(
            f"{what} cannot take images of {tuple(images.shape[1:])}:"
            f" {(str(error).splitlines() or [type(error).__name__])[0]} (images are floats in"
            " [0, 1], channels first)"
        ) from error


def _takes(asked: Callable[[int], int], count: int) -> bool:
    """Whether a model takes that many images."""
    try:
        asked(count)
    except (RuntimeError, AssertionError, ValueError, IndexError, TypeError):
        return False
    return True


def one_threat(scenarios: Mapping[str, Scenario]) -> None:
    """Raise UserError if threats differ between attacks."""
    different = {
        (each.attack.threat.norm, each.attack.threat.epsilon): name
        for name, each in scenarios.items()
    }
    if len(different) > 1:
        told = ", ".join(
            f"{name}: {norm} {epsilon:g}" for (norm, epsilon), name in different.items()
        )
        raise UserError(
            f"attacks of different threats have no common worst case ({told}): give --epsilon E"
        )


def refuse_outside(name: str, scenario: Scenario, adversarial: Tensor, images: Tensor) -> None:
    """Raise UserError if an attack broke the rules: nothing that it returned may be scored then."""
    if not len(images):
        return
    threat = scenario.attack.threat
    farthest = float(threat.distance(adversarial, images).max())
    low, high = (float(value) for value in torch.aminmax(adversarial))
    # Rounding of x + epsilon and of the difference, each half a unit in the last place of a number
    # up to 1.
    if not (farthest <= threat.epsilon + 1e-6 and low >= 0 and high <= 1):
        raise UserError(
            f"attack {name} left its threat: distance {farthest:.6g} (epsilon {threat.epsilon:g}),"
            f" pixel values in [{low:.6g}, {high:.6g}]; its figures would be worth nothing"
        )


def settle(target: DefendedClassifier, images: Tensor, indices: Tensor, seed: int = 0) -> bool:
    """Ask a target twice about a few images, on draws of their own: is it random?

    An `Engine` does so by itself with its first batch. Whoever has to know before, to choose
    attacks or to fix draws, asks here; the target remembers the answer.

    Args:
        target: the defended classifier.
        images: (B, C, H, W), pixel values in [0, 1], on the target's device.
        indices: (B,) int64, of the images in their data set.
        seed: of the evaluation.

    Returns:
        Whether it is: it says so, or two answers differed, or it drew from a global generator.
    """
    queried = Queried(target)
    rng = Rng.for_images(seed, indices[:ASKED]).fold("random")
    with prepared(queried):
        random = queried.settle(check_images(images[:ASKED]).clone().float(), rng)
    target.found_random = random
    return random


def _measured(source: Queried, rng: Rng, points: Tensor) -> list[Tensor]:
    """A loss (B,) of logits, whose gradient costs what any attack's costs."""
    return [source(points, rng).logsumexp(dim=1)]


class Engine:
    """Evaluates one target under several attacks.

    Whether the target is random it says itself, or the first batch tells: it is asked twice about a
    few images, on draws of their own, and global generators are watched (`Queried`). A random
    target is scored over ``draws`` draws that neither attack nor selection has seen, whether or not
    it says anything.

    Figures depend on the seed, and on neither batch size, order, number of processes nor on what
    else draws from global generators, up to rounding. That holds for attacks and verdicts alike,
    where the target draws from the streams of the images or from global generators; not where it
    has a generator of its own, which no seed reaches.

    Args:
        target: the model under attack; verdicts are float32 forward passes of it.
        scenarios: attacks by name.
        seed: of every random number; one seed, one result.
        draws: fresh draws of a random target's randomness that score each image (and as many that
            select); the attribute is 1 as long as the target is not known as random.
        precision: in which attacks differentiate the classifier: one for all, or one for each by
            its name.
        survivors: whether an image that an attack broke for good is spared those that follow.
        keep_images: whether records hold the adversarial images, as "NAME/images".
        advance: called with the number of images of every evaluation of a source, for progress
            bars.
        kept: where what is finished is kept, and found again.

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
        advance: Callable[[float], None] = lambda count: None,
        kept: Kept | None = None,
    ) -> None:
        self.target = (
            target if isinstance(target, DefendedClassifier) else DefendedClassifier(None, target)
        )
        self.scenarios = dict(scenarios)
        self.seed, self.survivors, self.keep_images, self.advance = (
            seed,
            survivors,
            keep_images,
            advance,
        )
        self.kept = kept
        self._draws, self._queried, self._settled = draws, Queried(self.target), False
        one_threat(self.scenarios)
        each = (
            precision
            if isinstance(precision, Mapping)
            else dict.fromkeys(self.scenarios, precision)
        )
        attacked = {dtype: self.target.fast(dtype) for dtype in {*each.values()}}
        self.sources = {}
        for name, scenario in self.scenarios.items():
            try:
                source = scenario.source(attacked[each[name]])
                scenario.attack.check(source)
                self.sources[name] = Queried(source, lambda count: self.advance(count))
            except UserError as error:
                raise UserError(f"attack {name}: {error}") from error

    def varied(self, change: Callable[[Attack], Attack | None], kept: Kept | None = None) -> Engine:
        """The same engine, its sources shared, with other versions of its attacks; images that one
        of them breaks are spared those that follow.

        Args:
            change: an attack to its other version; None leaves the attack out.
            kept: where what is finished is kept.
        """
        other = copy(self)
        changed = {name: change(each.attack) for name, each in self.scenarios.items()}
        other.scenarios = {
            name: replace(self.scenarios[name], attack=attack)
            for name, attack in changed.items()
            if attack is not None
        }
        other.survivors, other.keep_images, other.kept = True, False, kept
        return other

    @property
    def random(self) -> bool:
        """Whether the target is random, as far as is known: it says so, or `ask` has found out."""
        return self._queried.random

    @property
    def draws(self) -> int:
        """Draws that score an image, and as many that select."""
        return self._draws if self.random else 1

    def ask(self, images: Tensor, indices: Tensor) -> bool:
        """Find out whether the target is random, and the sources, unless that is known; `run` does
        it by itself.

        Args:
            images: (B, C, H, W), of which a few are asked about.
            indices: (B,) int64, as for `run`.

        Returns:
            `random`, as it stays from then on.

        Raises:
            UserError: an attack that needs more classes than the target has.
        """
        if self._settled or not len(images):
            return self.random
        few = images[:ASKED].clone()
        rng = Rng.for_images(self.seed, indices[:ASKED]).fold("random")
        for queried in (self._queried, *self.sources.values()):
            with prepared(queried):
                queried.settle(few.float() if queried is self._queried else few, rng)
        self._settled, self.target.found_random = True, self.random
        for name, scenario in self.scenarios.items():
            try:
                scenario.attack.need_classes(self._queried.classes or 2)
            except UserError as error:
                raise UserError(f"attack {name}: {error}") from error
        if self._queried.draws_globally:
            warnings.warn(SLOW, UserWarning, stacklevel=2)
        return self.random

    def measure(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        """Seconds per image that each attack, and "scoring", will take: extrapolated from a few
        evaluations.
        """
        images = check_images(images[:16]).clone()
        self.ask(images, torch.arange(len(images), device=images.device))
        labels = check_labels(labels[:16], images, self._queried.classes)
        rng = Rng.for_images(self.seed, torch.arange(len(images), device=images.device)).fold(
            "measure"
        )
        expected: dict[str, float] = {}
        for name, source in self.sources.items():
            seconds = []
            for _ in range(3):  # the first one warms up
                start = time.perf_counter()
                with prepared(source):
                    loss_fn = partial(_measured, source, rng)
                    list(input_gradients(loss_fn, images.clone()))
                seconds.append((time.perf_counter() - start) / len(images))
            attack = self.scenarios[name].attack
            cost = attack.cost()
            query = self._seconds_of_g(source, images, rng) if attack.asks_g else min(seconds[1:])
            expected[name] = min(seconds[1:]) * cost.gradients + query * cost.queries
            source.reset()
        start = time.perf_counter()
        verdicts(self._queried, images, labels, rng, draws=1)
        expected["scoring"] = (time.perf_counter() - start) / len(images) * self.verdicts_per_image
        return expected

    def _seconds_of_g(self, source: Queried, images: Tensor, rng: Rng) -> float:
        """Seconds per image of the source's g alone."""
        start = time.perf_counter()
        with torch.no_grad():
            source.transform(images, rng)
        return (time.perf_counter() - start) / len(images)

    @property
    def verdicts_per_image(self) -> int:
        """Forward passes of the target that judge one image, over all attacks and none."""
        return (len(self.scenarios) + 1) * self.draws * (2 if self.random else 1)

    def run(
        self, images: Tensor, labels: Tensor, indices: Tensor
    ) -> tuple[Records, dict[str, float]]:
        """Attack one batch.

        Args:
            images: (B, C, H, W), pixel values in [0, 1].
            labels: (B,) whole numbers, 0..K-1.
            indices: (B,) int64, each image's index in its data set: its random streams depend on
                nothing else.

        Returns:
            Records of the batch on the CPU, and seconds by attack.

        Raises:
            UserError: images outside [0, 1], labels for which the target has no class.
        """
        images = check_images(images)
        self.ask(images, indices)
        labels = check_labels(labels, images, self._queried.classes)
        rng = Rng.for_images(self.seed, indices)
        rows: dict[str, Rows] = {}
        alive, seconds = torch.ones(len(images), dtype=torch.bool), {}
        for stage in (CLEAN, *self.scenarios):
            entry = self.kept.get(stage, images, labels, indices) if self.kept else None
            if entry is None:
                start = time.perf_counter()
                entry = (
                    self._clean(images, labels, rng)
                    if stage == "clean"
                    else self._attack(stage, images, labels, rng, alive)
                )
                entry["seconds"] = torch.tensor(time.perf_counter() - start, dtype=torch.float64)
                if self.kept:
                    self.kept.put(stage, images, labels, indices, entry)
            else:
                self.advance(len(images) * self._planned(stage))
            alive = alive & ~entry["broken"]
            if stage != "clean":
                seconds[stage] = entry["seconds"].item()
            rows[stage] = self._rows(entry, indices, labels)
        return Records(rows), seconds

    def _rows(self, entry: Entry, indices: Tensor, labels: Tensor) -> Rows:
        """What a stage wrote down, as rows; where no attack was, nothing was attacked or spent."""
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
        """Evaluations that an image costs at a stage."""
        cost = self.scenarios[stage].attack.cost() if stage != "clean" else Cost(0, 0)
        return cost.gradients + cost.queries + self.draws * (2 if self.random else 1)

    def _clean(self, images: Tensor, labels: Tensor, rng: Rng) -> Entry:
        """Verdicts on the images as they are."""
        entry = self._judge(images, labels, rng)
        # A deterministic model that is wrong already stays wrong: no attack can make the verdict
        # worse. A random one that is wrong in draw after draw is taken for wrong where images are
        # handed on, and attacked elsewhere.
        everyone = torch.ones(len(images), dtype=torch.bool)
        spared = self.survivors or not self.random
        entry["broken"] = (
            self._broken(entry, "clean", everyone, images, labels, rng) if spared else ~everyone
        )
        return entry

    def _attack(self, name: str, images: Tensor, labels: Tensor, rng: Rng, alive: Tensor) -> Entry:
        """Attack the images that are ``alive``, and judge all of them."""
        scenario, source = self.scenarios[name], self.sources[name]
        keep = alive.nonzero().squeeze(1).to(images.device)
        source.reset()
        start = time.perf_counter()
        adversarial = images.clone()
        if len(keep):
            found = scenario.attack(
                source, images[keep], labels[keep], rng[keep].fold("attack").fold(name)
            )
            adversarial[keep] = found.to(adversarial.dtype)
        if images.is_cuda:
            torch.cuda.synchronize(images.device)
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
        if self.keep_images or self.kept:
            entry["images"] = adversarial.cpu()
        return entry

    def _broken(
        self, entry: Entry, name: str, among: Tensor, images: Tensor, labels: Tensor, rng: Rng
    ) -> Tensor:
        """(B,) bool: images of those ``among`` that are wrong in every selecting draw and, if
        random, in 30 more.

        A model that is right in 40 % of its draws is wrong in four of them once in eight times: a
        few draws would spare images that an attack broke by luck alone.
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
        """(B, draws) bool: verdicts on other images in the place of these, on the draws that score
        them.
        """
        rng = Rng.for_images(self.seed, indices).fold("score")
        return verdicts(self._queried, images, labels, rng, self.draws)

    def _judge(self, images: Tensor, labels: Tensor, rng: Rng) -> Entry:
        """Verdicts on ``images``. Attacks, selection and scoring each have streams of their own.

        Clean and adversarial images are scored with the same draws: none of the attacks has seen
        them, and an attack that changes nothing then scores exactly as no attack.
        """
        random = self.random
        score = verdicts(self._queried, images, labels, rng.fold("score"), self.draws)
        if self.random and not random:
            raise UserError(
                "the target draws random numbers for some images, and drew none for those that were"
                " asked about first: set random = True on it, so that all images are scored over"
                " several draws"
            )
        select = (
            verdicts(self._queried, images, labels, rng.fold("select"), self.draws)
            if random
            else score
        )
        self.advance(len(images) * self.draws * (2 if self.random else 1))
        return {"score": score, "select": select}
