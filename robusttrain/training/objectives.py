"""Training objectives, which the weights of f_a minimise.

``objective(model, images, labels, rng)`` returns one loss per image, and the logits that training
accuracy is read from. An objective has two steps, so that wrappers (adversarial weight
perturbation) can come between them: ``craft`` gives adversarial images, and ``losses`` is
differentiated with respect to the weights. The inner maximisation is an attack like any other, on a
source like any other. So training through a random defense (identity backward, several draws) is
merely configuration.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import Field, dataclass, field, fields, is_dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from robusttrain.attacks import Attack, KLDivergence, ProjectedGradient, Source, Target
from robusttrain.attacks.sources.basic import Reader
from robusttrain.core.checked import NonNegative, Share, checked
from robusttrain.core.errors import OptionError, UserError
from robusttrain.core.rng import Rng
from robusttrain.evaluation import Scenario
from robusttrain.models.defended import DefendedClassifier
from robusttrain.storage.libraries import is_theirs
from robusttrain.training.crafting import BATCH_NORM_MODES, BatchNormMode, craft, judge


class Passes(NamedTuple):
    """The cost of an objective for one image of one batch.

    Args:
        inner: gradient evaluations with respect to the image (one forward and one backward pass
            each).
        queries: forward passes alone.
        training: forward and backward passes with respect to the weights.
    """

    inner: int = 0
    queries: int = 0
    training: int = 1


class TrainingObjective(ABC):
    """From a batch to losses and logits. Subclasses are frozen dataclasses that write
    ``losses``.
    """

    # No annotations here: command lines would resolve them in the module of each subclass, which
    # may lack the names.
    #: Whether labels may be shares of classes, (B, K), as CutMix and MixUp make them.
    takes_mixed_labels = True
    #: Whether a step may be the sum over several batches (gradient accumulation).
    accumulates = True
    #: The inner maximisation, or None.
    attack = None  # type: Attack | None
    #: What the inner maximisation differentiates.
    source = Target()  # type: Source
    #: Batch norm's mode while images are crafted.
    batch_norm = "eval"  # type: BatchNormMode
    #: Epochs at the start in which the objective is another one.
    warmup = 0

    @property
    def inside(self) -> TrainingObjective | None:
        """The objective that this one goes around; None for any other. What is asked of a wrapper
        and concerns the images or the model is asked of that one.
        """
        return None

    @property
    def replays(self) -> int:
        """How many batches in a row are the same images."""
        return 1

    @abstractmethod
    def losses(
        self, model: DefendedClassifier, images: Tensor, crafted: Tensor, labels: Tensor, rng: Rng
    ) -> tuple[Tensor, Tensor]:
        """Losses (B,) to minimise, and logits (B, K) that training accuracy is read from.

        Args:
            model: the defended classifier in training, in training mode.
            images: (B, C, H, W), pixel values in [0, 1].
            crafted: (B, C, H, W), what ``craft`` returned for the images.
            labels: (B,) int64, or (B, K) shares of classes if ``takes_mixed_labels``.
            rng: streams of the images, (B,).
        """

    def craft(self, model: DefendedClassifier, images: Tensor, labels: Tensor, rng: Rng) -> Tensor:
        """The adversarial images (B, C, H, W) of the inner attack; ``images`` where there is no
        attack.
        """
        inner = self.inner()
        if inner is None:
            return images
        return craft(model, inner.attack, inner.source, images, labels, rng, self.batch_norm)

    def __call__(
        self, model: DefendedClassifier, images: Tensor, labels: Tensor, rng: Rng
    ) -> tuple[Tensor, Tensor]:
        """Losses (B,) and logits (B, K); arguments as for ``losses``."""
        return self.losses(model, images, self.craft(model, images, labels, rng), labels, rng)

    def inner(self) -> Scenario | None:
        """The inner attack with its source; None where there is none."""
        if self.inside is not None:
            return self.inside.inner()
        return None if self.attack is None else Scenario(self.attack, self.source)

    def opened(self, read: Reader) -> TrainingObjective:
        """The same objective, with models in place of any files that it or its source names."""
        opened = self.source.opened(read)
        return self if opened is self.source else replace(self, source=opened)  # type: ignore[type-var]

    def at(self, epoch: int) -> TrainingObjective:
        """The objective of an epoch, counted from 0."""
        return self

    def strengthened(self) -> TrainingObjective | None:
        """The same objective with twice the steps of its inner attack, half as long and from a
        random start; None where there is none, or where the attack is no field of a dataclass.
        """
        named: set[str] = {each.name for each in fields(self)} if is_dataclass(self) else set()
        if not isinstance(self.attack, ProjectedGradient) or "attack" not in named:
            return None
        attack, half = self.attack, self.attack.alpha / 2
        finer = replace(attack, steps=2 * attack.steps, step_size=half, relative_step_size=None)
        return replace(self, attack=replace(finer, random_start=True))  # type: ignore[type-var]

    def check(self, model: DefendedClassifier) -> None:
        """Raise UserError if ``model`` cannot be trained with it; called before training."""
        if self.inside is not None:
            self.inside.check(model)
        elif (inner := self.inner()) is not None:
            inner.attack.check(inner.source(model))

    def check_images(self, model: DefendedClassifier, images: Tensor) -> None:
        """Raise UserError if models from files do not fit images (B, C, H, W) of the data."""
        if self.inside is not None:
            self.inside.check_images(model, images)

    @property
    def passes(self) -> int:
        """Forward and backward passes of the model in ``losses``, per image."""
        return 1

    @property
    def passes_at_once(self) -> int:
        """Passes of the model whose graphs are alive at once."""
        return self.passes

    def cost(self) -> Passes:
        """The cost of a batch, per image."""
        inner = self.inner()
        cost = inner.attack.cost() if inner else None
        return Passes(cost.gradients if cost else 0, cost.queries if cost else 0, self.passes)

    def state(self) -> dict[str, Tensor]:
        """What the objective carries from one batch to the next, for checkpoints: tensors with one
        row an image of the batch.
        """
        return {} if self.inside is None else self.inside.state()

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take up what ``state`` returned."""
        if self.inside is not None:
            self.inside.restore(state)


def innermost(objective: TrainingObjective) -> TrainingObjective:
    """The objective that wrappers go around; of any other, itself."""
    while objective.inside is not None:
        objective = objective.inside
    return objective


def refuse_undeclared(objective: TrainingObjective) -> None:
    """Raise UserError if an objective of the user's says of itself what nothing can follow."""
    objective = innermost(objective)
    cls = type(objective)
    if not is_theirs(cls.__module__):
        return
    said = f"--training.objective: {cls.__name__}"
    for name in ("attack", "source", "warmup", "batch_norm", "passes"):
        value = getattr(objective, name)
        if isinstance(value, Field):
            raise UserError(
                f"{said}.{name} is a dataclasses.field(): write @dataclass(frozen=True) above the"
                " class"
            )
        if callable(value) and getattr(value, "__self__", None) is objective:
            raise UserError(f"{said}.{name} is a method: write @property above it")
    attack, source = objective.attack, objective.source
    wrong = {
        "attack": (attack is None or isinstance(attack, Attack), "an Attack, or None"),
        "source": (isinstance(source, Source), "a Source"),
        "warmup": (isinstance(objective.warmup, int), "a whole number of epochs"),
        "batch_norm": (objective.batch_norm in BATCH_NORM_MODES, " or ".join(BATCH_NORM_MODES)),
        "passes": (isinstance(objective.passes, int), "a whole number"),
    }
    for name, (right, wanted) in wrong.items():
        if not right:
            value = getattr(objective, name)
            raise UserError(f"{said}.{name} must be {wanted}, and is {value!r:.80}")


@checked
@dataclass(frozen=True)
class Standard(TrainingObjective):
    """Cross entropy on the images as they are (behind the defense, if there is one).

    Args:
        label_smoothing: share of the target distribution that is spread over all classes.
    """

    label_smoothing: Share = 0.0

    def losses(
        self, model: DefendedClassifier, images: Tensor, crafted: Tensor, labels: Tensor, rng: Rng
    ) -> tuple[Tensor, Tensor]:
        logits = model(images, rng)
        return F.cross_entropy(
            logits, labels, reduction="none", label_smoothing=self.label_smoothing
        ), logits


def default_attack() -> ProjectedGradient:
    """PGD-10 against the labels, in steps of 0.007 within 0.031."""
    return ProjectedGradient(steps=10, step_size=0.007)


@checked
@dataclass(frozen=True)
class Adversarial(TrainingObjective):
    """Cross entropy on adversarial images (Madry et al. 2018, eq. 2.1).

    One step of 1.25 epsilon from a random start, with batch norm in training mode, is fast
    adversarial training (Wong et al. 2020, algorithm 3): ``configs/training/fast.yaml``.

    Args:
        attack: the inner maximisation.
        source: what the inner attack differentiates; IdentityBackward to train through a defense.
        label_smoothing: share of the target distribution that is spread over all classes.
        batch_norm: batch norm's mode while the images are crafted, "eval" or "train"; for the loss
            the mode is always "train".
    """

    attack: Attack = field(default_factory=default_attack)
    source: Source = field(default_factory=Target)
    label_smoothing: Share = 0.0
    batch_norm: BatchNormMode = "eval"

    def losses(
        self, model: DefendedClassifier, images: Tensor, crafted: Tensor, labels: Tensor, rng: Rng
    ) -> tuple[Tensor, Tensor]:
        logits = model(crafted, rng)
        judge(logits, labels)
        return F.cross_entropy(
            logits, labels, reduction="none", label_smoothing=self.label_smoothing
        ), logits


def _trades_attack() -> ProjectedGradient:
    return ProjectedGradient(steps=10, step_size=0.007, objective=KLDivergence())


@checked
@dataclass(frozen=True)
class TRADES(TrainingObjective):
    """CE(f(x), y) + beta max_{x'} KL(f(x) || f(x')) (Zhang et al. 2019, eq. 5).

    Clean and adversarial images see the same draws of a random defense, so the KL term measures the
    attack alone. The inner attack starts at a uniform point of the ball; the released code starts
    at the image plus 0.001 times a standard normal.

    Args:
        beta: weight of the robust term (1 / lambda in the paper).
        attack: the inner maximisation; its objective must be KLDivergence.
        source: what the inner attack differentiates; IdentityBackward to train through a defense.
        batch_norm: batch norm's mode while the images are crafted, "eval" (as the released code) or
            "train"; for the loss the mode is always "train".
    """

    beta: NonNegative = 6.0
    attack: Attack = field(default_factory=_trades_attack)
    source: Source = field(default_factory=Target)
    batch_norm: BatchNormMode = "eval"

    def __post_init__(self) -> None:
        for goal in goals(self.attack):
            if not isinstance(goal, KLDivergence):
                fix = "TRADES maximises KLDivergence: leave it out"
                raise OptionError("attack.objective", type(goal).__name__, fix)

    @property
    def passes(self) -> int:
        return 2

    def losses(
        self, model: DefendedClassifier, images: Tensor, crafted: Tensor, labels: Tensor, rng: Rng
    ) -> tuple[Tensor, Tensor]:
        clean = model(images, rng)
        robust = model(crafted, rng)
        judge(robust, labels)
        divergence = kl_divergence(clean, robust)
        return F.cross_entropy(clean, labels, reduction="none") + self.beta * divergence, clean


def goals(attack: Attack) -> list[Any]:
    """What an attack maximises; for a wrapper, what its members maximise."""
    return [goal for member in attack.members for goal in goals(member)] or [attack.maximises]


def kl_divergence(first: Tensor, second: Tensor) -> Tensor:
    """(B,): KL(softmax(first) || softmax(second)) of logits (B, K); gradients flow through both.

    A class of probability 0 in the first adds nothing, also where its logit is -inf.
    """
    # In bfloat16, in which autocast returns logits, small divergences are mostly rounding.
    first, second = (
        logits.to(torch.promote_types(logits.dtype, torch.float32)) for logits in (first, second)
    )
    p, log_q = first.softmax(dim=1), second.log_softmax(dim=1)
    # 0 * -inf would be NaN, and so is the derivative of p log p at 0, which the mask stops as well.
    without = p == 0
    p, log_q = p.masked_fill(without, 0), log_q.masked_fill(without, 0)
    return F.kl_div(log_q, p, reduction="none").sum(dim=1)
