"""Auto-PGD: projected gradient ascent that chooses its own step size."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import product

import torch
from torch import Tensor, nn

from robusttrain.attacks.answers import misclassified, names_a_class
from robusttrain.attacks.asking import Queried, SourceModel, call_model, loss_terms
from robusttrain.attacks.base import Attack, Cost, times
from robusttrain.attacks.parts.gradients import Backprop, GradientEstimator
from robusttrain.attacks.parts.loss import Loss
from robusttrain.attacks.parts.objectives import CrossEntropy, Objective, rank_targets
from robusttrain.attacks.parts.threats import Linf, Threat, need_norm, per_image
from robusttrain.attacks.parts.updates import STEEPEST
from robusttrain.core.checked import Count, checked
from robusttrain.core.errors import OptionError
from robusttrain.core.rng import Rng

#: alpha: how much of the new step is taken; the rest is momentum (section 3.1).
ALPHA = 0.75
#: rho: the share of steps between two checkpoints that must raise the loss (section 3.2).
RHO = 0.75


def checkpoints(steps: int) -> list[int]:
    """W: the steps after which the step size is reconsidered (Croce & Hein 2020, section 3.2).

    w_j = ceil(p_j N) with p_1 = 0.22 and p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06). The
    code counts in whole percent, because 0.22 has no exact float and the ceiling would show it.
    """
    reconsidered, percent, stride = set(), 22, 22
    while percent <= 100:
        reconsidered.add(-(-percent * steps // 100))
        stride = max(stride - 3, 6)
        percent += stride
    return sorted(reconsidered)


class _Watched(SourceModel):
    """The source, with a note of the images that it misclassified in every pass since `wipe`."""

    asks_queried = True

    def __init__(self, source: nn.Module, labels: Tensor, named: Tensor) -> None:
        super().__init__()
        self.source, self.labels, self.named = source, labels, named
        self.fuses_losses = Queried.of(source).fuses_losses
        self.wipe()

    def wipe(self) -> None:
        self.wrong = torch.ones_like(self.labels, dtype=torch.bool)

    def forward(self, images: Tensor, rng: Rng | None = None) -> Tensor:
        logits = call_model(self.source, images, rng)
        self._note(logits.detach())
        return logits

    def loss_terms(self, images: Tensor, rng: Rng | None = None) -> list[tuple[float, Tensor]]:
        """The source's `loss_terms`; the note takes the weighted mean of their logits."""
        terms = loss_terms(self.source, images, rng)
        self._note(torch.stack([weight * logits.detach() for weight, logits in terms]).sum(dim=0))
        return terms

    def _note(self, seen: Tensor) -> None:
        # Estimators stack copies of the batch: (n * B, K). An answer that names no class is wrong,
        # as in scoring; a model that names none of the image itself has not been fooled.
        copies = len(seen) // max(1, len(self.labels))
        wrong = misclassified(seen, self.labels.repeat(copies), self.named.repeat(copies))
        self.wrong = self.wrong & wrong.view(copies or 1, -1).all(dim=0)


@checked
@dataclass(frozen=True)
class APGD(Attack):
    """Auto-PGD (Croce & Hein 2020, "Reliable evaluation of adversarial robustness ...", algorithm
    1, section 3).

        z^(k+1) = P(x^(k) + eta u(grad f(x^(k))))
        x^(k+1) = P(x^(k) + alpha (z^(k+1) - x^(k)) + (1 - alpha) (x^(k) - x^(k-1)))

    Symbols: f the loss, P projection into the threat, u direction of steepest ascent, alpha = 0.75,
    eta step size (2 epsilon at first), x_max and f_max the best point so far and its loss, W the
    checkpoints. At a checkpoint w_j eta is halved, and the search goes back to x_max, if since the
    checkpoint before

    - condition 1: fewer than rho = 75 % of the steps have raised f, or
    - condition 2: neither eta was halved there nor f_max has risen.

    Each image has an eta of its own. Where the text and the released code differ, this
    implementation follows the text: "fewer than" where the code has "at most"; the ceiling in w_j
    where the code rounds down (no difference at 100 steps); after going back, a step is compared
    with f_max instead of with the loss of the point that was given up.

    The attack returns, for each image, the visited point with the largest loss. On a model that
    repeats itself a misclassified point comes before any other, and its image is spared further
    restarts and targets. On a random model (two passes over the clean image tell) one misclassified
    draw is luck, so the estimator's loss alone decides; with `Average` that is a mean over draws.
    The returned loss is the largest of many estimates and flatters the attack. So fresh draws must
    score the image, as they do in the engine.

    Args:
        steps: N_iter.
        restarts: runs from starting points of their own; for a targeted attack, that many for each
            target.
        targets: for a targeted objective, how many target classes to try, at most all wrong
            classes, in the order of the objective's ``target`` ("second": likeliest wrong class
            first); None for the objective's own one.
        random_start: whether the first run, too, starts at a random point of the ball, instead of
            at the image.
        threat: where adversarial images may go; Linf or L2.
        objective: f. For "APGD-T": `TargetedDLR` and 9 targets.
        gradient: how f and its gradient are estimated.
    """

    steps: Count = 100
    restarts: Count = 1
    targets: Count | None = None
    random_start: bool = True
    threat: Threat = field(default_factory=Linf)
    objective: Objective = field(default_factory=CrossEntropy)
    gradient: GradientEstimator = field(default_factory=Backprop)

    def __post_init__(self) -> None:
        if self.targets is not None and self.objective.target is None:
            name = type(self.objective).__name__
            raise OptionError(
                "targets", self.targets, f"{name} has no target; take a targeted objective or none"
            )
        need_norm(self, self.threat, ("linf", "l2"))

    def scaled(self, effort: float) -> APGD:
        return replace(self, steps=times(self.steps, effort))

    def with_objective(self, objective: Objective) -> APGD:
        """The same attack with another objective; an untargeted one has no targets to go
        through.
        """
        targets = None if objective.target is None else self.targets
        return replace(self, objective=objective, targets=targets)

    def goals(self, source: nn.Module, images: Tensor, labels: Tensor, rng: Rng) -> Tensor | None:
        return None if self.targets else super().goals(source, images, labels, rng)

    def cost(self) -> Cost:
        """An upper bound: broken images are spared further restarts and targets."""
        points = (self.steps + 1) * self.restarts * (self.targets or 1)
        aim = int(self.objective.asks and self.targets is None)
        queries = self.gradient.queries + self.gradient.asks_elsewhere
        return Cost(points * self.gradient.evaluations, 2 + aim + points * queries)

    def run(self, source: nn.Module, images: Tensor, labels: Tensor, rng: Rng) -> Tensor:
        logits, random = Queried.of(source).asked_twice(images, rng.fold("ask"))
        named = names_a_class(logits)
        best = images
        f_best = torch.full_like(logits[:, 0], -torch.inf)
        broken = torch.zeros_like(random)
        left = torch.arange(len(images), device=images.device)
        runs = product(
            range(self.restarts), self._goals(source, images, labels, logits, rng.fold("aim"))
        )
        for number, (restart, goal) in enumerate(runs):
            if number:
                left = (~broken).nonzero().squeeze(1)
                if not len(left):
                    break
            x, streams = images[left], rng[left].fold(number)
            start = (
                x
                if restart == 0 and not self.random_start
                else self.threat.random_start(x, streams.fold("start"))
            )
            point, f, wrong = self.climb(
                source, start, x, labels[left], goal[left], random[left], streams, named[left]
            )
            point, f = point.to(best.dtype), f.to(f_best.dtype)
            better = (wrong & ~broken[left]) | ((wrong == broken[left]) & (f > f_best[left]))
            best = best.index_copy(0, left, torch.where(per_image(better), point, best[left]))
            f_best = f_best.index_copy(0, left, torch.where(better, f, f_best[left]))
            broken = broken.index_copy(0, left, broken[left] | wrong)
        return best

    def _goals(
        self, source: nn.Module, images: Tensor, labels: Tensor, logits: Tensor, rng: Rng
    ) -> list[Tensor]:
        """What to strive for, one goal (B, ...) for each target; ``logits`` (B, K) are those of the
        clean images.
        """
        if self.targets is None:
            return [self.objective.aim(source, images, labels, rng)]
        assert self.objective.target is not None  # __post_init__
        targets = rank_targets(logits, labels, rng, self.objective.target, self.targets)
        return [self.objective.toward(labels, target) for target in targets.unbind(dim=1)]

    def climb(
        self,
        source: nn.Module,
        start: Tensor,
        images: Tensor,
        labels: Tensor,
        goal: Tensor,
        random: Tensor,
        rng: Rng,
        named: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Algorithm 1, from x^(0) = ``start`` within the threat around ``images``.

        Args:
            source: the model, prepared.
            start, images: (B, C, H, W).
            labels: (B,), true classes.
            goal: (B, ...), what the objective strives for.
            random: (B,) bool, whether the model is random for that image.
            rng: streams of the images, (B,).
            named: (B,) bool, whether the model names a class of the image itself, so that one that
                it names none of has fallen; None: no image falls so.

        Returns:
            The best points (B, C, H, W), their losses (B,), and (B,) bool: whether the model, if it
            is not random, misclassifies them.
        """
        named = torch.zeros_like(random) if named is None else named
        watched = _Watched(Queried.of(source), labels, named)
        direction = STEEPEST[self.threat.norm]
        loss_fn = Loss(watched, self.objective, goal)

        def evaluate(x: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
            watched.wipe()
            streams = rng.fold(k)
            f, gradient = self.gradient(loss_fn, x, streams)
            if self.gradient.asks_elsewhere:
                # The answers were about copies, and one about x itself may be another.
                watched.wipe()
                with torch.no_grad():
                    watched(x, streams.fold("verdict"))
            # NaN would never be exceeded: a start without a loss would stay the best for ever.
            return torch.where(f.isnan(), -torch.inf, f), gradient, watched.wrong & ~random

        x = x_before = start
        f, gradient, wrong = evaluate(x, 0)
        x_max, f_max, gradient_max = x, f, gradient
        best, f_best, wrong_best = x, f, wrong
        eta = torch.full_like(f, 2 * self.threat.epsilon)
        # The last checkpoint, f_max there, and whether eta was halved there; the steps since then
        # that raised f.
        last, f_max_then, halved_then = 0, f_max, torch.zeros_like(wrong)
        rises = torch.zeros_like(f)
        reconsidered = checkpoints(self.steps)
        for k in range(1, self.steps + 1):
            step, _ = direction.step(gradient, None)
            z = self.threat.project(x + per_image(eta) * step, images)
            alpha = ALPHA if k > 1 else 1.0
            x_next = self.threat.project(x + alpha * (z - x) + (1 - alpha) * (x - x_before), images)
            x_before, x, f_before = x, x_next, f
            f, gradient, wrong = evaluate(x, k)
            rises = rises + (f > f_before)

            higher = f > f_max
            f_max = torch.where(higher, f, f_max)
            x_max = torch.where(per_image(higher), x, x_max)
            gradient_max = torch.where(per_image(higher), gradient, gradient_max)

            better = (wrong & ~wrong_best) | ((wrong == wrong_best) & (f > f_best))
            f_best, wrong_best = torch.where(better, f, f_best), wrong_best | wrong
            best = torch.where(per_image(better), x, best)

            if k in reconsidered:
                halve = (rises < RHO * (k - last)) | (~halved_then & (f_max == f_max_then))
                eta = torch.where(halve, eta / 2, eta)
                f = torch.where(halve, f_max, f)
                x = torch.where(per_image(halve), x_max, x)
                gradient = torch.where(per_image(halve), gradient_max, gradient)
                rises, f_max_then, halved_then, last = torch.zeros_like(f), f_max, halve, k
        return best, f_best, wrong_best
