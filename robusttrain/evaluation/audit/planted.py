"""The binarisation test: an adversarial image is planted within the radius, and the attack has to
find it or another one.

Zimmermann et al. 2022, "Increasing Confidence in Adversarial Robustness Evaluations". For one image
at a time, the last layer is replaced by a linear readout of the same features. The readout
separates points inside the ball (class 0) from one corner of the ball (class 1). The corner is then
an adversarial image for certain, so a strong enough attack succeeds on this model, whatever the
truth about the original one.

This test takes 200 inner points instead of 999, a readout in closed form (Fisher's linear
discriminant) instead of one by gradient descent, and one attack for each of up to 16 images.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robusttrain.attacks import Attack, ProjectedGradient, prepared
from robusttrain.core.rng import Rng
from robusttrain.evaluation.audit.changes import parts
from robusttrain.evaluation.audit.finding import (
    LEVEL,
    ZIMMERMANN,
    Finding,
    Needless,
    NotRun,
    significant,
)
from robusttrain.evaluation.audit.subject import DRAWS, LEAST, Subject
from robusttrain.evaluation.scoring import verdicts
from robusttrain.models.declared import says_random, takes_streams
from robusttrain.models.defended import DefendedClassifier

#: Images that get a planted weakness.
IMAGES = 16
#: Points of the ball that the readout must call class 0.
INNER = 200
#: Share of planted weaknesses that a sound attack may miss. The paper asks for a success rate of at
#: least 0.95.
MISSED = 0.05
#: Where the boundary lies between the highest inner point (0) and the planted corner (1): the
#: margin is shared evenly. Near the corner, PGD with a fixed step size fails now and then on models
#: that APGD breaks without exception.
CLOSENESS = 0.5
#: Share of the mean variance that is added to each feature's own variance. A few hundred points say
#: little about directions in which they hardly vary (units that are off in most of the ball), and a
#: readout along such directions has no gradient at all.
SHRINKAGE = 0.1


class _Readout(nn.Module):
    """A classifier whose last linear layer is replaced by readouts of two classes, one for each
    image of a batch.

    Args:
        classifier: f_a.
        wide: whether to add two classes that never win, which DLR needs.
    """

    def __init__(self, classifier: nn.Module, wide: bool) -> None:
        super().__init__()
        self.classifier, self.wide = classifier, wide
        self.takes_rng, self.random = takes_streams(classifier), says_random(classifier)
        linear = [module for module in classifier.modules() if isinstance(module, nn.Linear)]
        # The list hides the layer, which is registered inside the classifier already
        self._last = [linear[-1]] if linear else []
        self.weight, self.bias = torch.zeros(0, 0), torch.zeros(0)

    def features(self, images: Tensor, rng: Rng | None = None) -> Tensor:
        """(B, F): inputs of the last linear layer; the logits where there is no such layer, or it
        sees other batches, as of several draws.
        """
        seen: list[Tensor] = []

        def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen.append(inputs[0])

        handle = self._last[0].register_forward_pre_hook(look) if self._last else None
        try:
            given = (images, rng) if self.takes_rng else (images,)
            logits: Tensor = self.classifier(*given)
        finally:
            if handle is not None:
                handle.remove()
        inputs_of_last = seen[-1].flatten(1) if seen and len(seen[-1]) == len(images) else logits
        return inputs_of_last.float()

    def forward(self, images: Tensor, rng: Rng | None = None) -> Tensor:
        """Logits (n * B, 2 or 4) of n stacked copies of the batch whose readouts are in place."""
        features, copies = self.features(images, rng), len(images) // len(self.weight)
        score = (features * self.weight.repeat(copies, 1)).sum(dim=1) - self.bias.repeat(copies)
        logits = torch.stack([-score, score], dim=1)
        if self.wide:
            never = -logits.detach().abs().amax(dim=1, keepdim=True) - 1
            logits = torch.cat([logits, never, never - 1], dim=1)
        return logits


def plant(
    readout: _Readout,
    defense: nn.Module | None,
    image: Tensor,
    corner: Tensor,
    inner: Tensor,
    rng: Rng,
) -> tuple[Tensor, Tensor] | None:
    """Weight (F,) and bias () that make ``corner`` class 1 and ``inner`` class 0; None where that
    is impossible.

    Args:
        readout: gives the features.
        defense: g, or None.
        image: (1, C, H, W).
        corner: (1, C, H, W), the planted adversarial image.
        inner: (m, C, H, W), points inside the ball.
        rng: the image's streams, (1,).
    """

    def features(points: Tensor, purpose: str) -> Tensor:
        streams = rng.fold(purpose).tile(len(points))
        inside = points if defense is None else defense(points, streams)
        return readout.features(inside, streams.fold("classifier")).double()

    random = readout.random or (defense is not None and defense.random)
    draws = DRAWS if random else 1
    there = features(corner.repeat(draws, 1, 1, 1), "corner")
    around = features(torch.cat([image, inner]), "inner")
    mean = around.mean(dim=0)
    spread = around - mean
    covariance = spread.T @ spread / len(around)
    # Features of any size: the least number that is added keeps a matrix of zeros solvable.
    tiny = torch.finfo(covariance.dtype).tiny
    covariance.diagonal().add_((SHRINKAGE * covariance.diagonal().mean()).clamp_min(tiny))
    weight = torch.linalg.solve(covariance, there.mean(dim=0) - mean)
    low, high = (around @ weight).max(), (there @ weight).mean()
    gap = high - low
    if not gap > 1e-4 * (high - (around @ weight).mean()).abs():
        return None  # the corner looks like an inner point
    bias = low + CLOSENESS * gap
    again = features(corner.repeat(draws, 1, 1, 1), "again") @ weight > bias
    fresh = features(torch.cat([image, inner[:50]]), "fresh") @ weight > bias
    # On a random model the corner and the inner points must hold in fresh draws, too.
    if again.float().mean() < 0.9 or fresh.float().mean() > 0.05:
        return None
    # Logits of ordinary size: the gap between corner and inner points becomes ten.
    return (10 / gap * weight).float(), (10 / gap * bias).float()


def _needs_more(attack: Attack) -> bool:
    """Whether a part of the attack maximises what needs more than two classes, as DLR does."""
    objectives = [part.maximises for part in parts(attack)]
    return any(each is not None and each.least_classes > 2 for each in objectives)


def planted_weakness(subject: Subject) -> Finding | None:
    """Whether the strongest attack finds adversarial images that exist for certain."""
    scenario, target = subject.scenario, subject.target
    threat = scenario.attack.threat
    if threat.epsilon <= 0:
        raise Needless("the radius is zero")
    if not subject.knows_target(subject.main) or scenario.source.knows.startswith(
        ("another", "other", "kind")
    ):
        # Such an attack succeeds on the target by likeness. A planted weakness is like nothing.
        raise NotRun("the attack works on a model that does not contain the whole target")
    readout = _Readout(target.classifier, _needs_more(scenario.attack))
    planted = DefendedClassifier(target.defense, readout)
    source = scenario.source(planted)
    if not any(isinstance(part, _Readout) for part in source.modules()):
        raise NotRun("the source of gradients does not contain the network that it is given")
    places, readouts = [], []
    for i in range(min(IMAGES, subject.size)):
        image, rng = subject.images[i : i + 1].float(), subject.rng("planted")[i : i + 1]
        signs = rng.fold("corner").integers(image.shape[1:], 0, 2).float() * 2 - 1
        corner = threat.project(
            image + signs * (threat.epsilon if threat.norm == "linf" else 1e3), image
        )
        inner = threat.random_start(image.repeat(INNER, 1, 1, 1), rng.fold("points").tile(INNER))
        with prepared(planted), torch.no_grad():
            weakness = plant(readout, target.defense, image, corner, inner, rng)
        if weakness is not None:
            places.append(i)
            readouts.append(weakness)
    tried, missed = len(places), 0
    if tried < min(LEAST, subject.size):
        raise NotRun(
            f"a weakness could be planted beside {tried} of {min(IMAGES, subject.size)} images only"
        )
    # Each image has a readout of its own, so an attack that drops images from the batch runs on
    # one image at a time.
    size = tried if isinstance(scenario.attack, ProjectedGradient) else 1
    for start in range(0, tried, size):
        which = torch.tensor(places[start : start + size], device=subject.images.device)
        weights, biases = zip(*readouts[start : start + size], strict=True)
        readout.weight, readout.bias = torch.stack(weights), torch.stack(biases)
        images, labels, rng = (
            subject.images[which].float(),
            subject.labels.new_zeros(len(which)),
            subject.rng("planted"),
        )
        adversarial = scenario.attack(source, images, labels, rng[which].fold("attack")).to(
            images.dtype
        )
        draws = DRAWS if subject.random else 1
        right = verdicts(planted, adversarial, labels, rng[which].fold("judge"), draws)
        missed += int((right.double().mean(dim=1) > 0.5).sum())
    if not significant(missed, tried, MISSED):
        return None
    return Finding(
        check="planted weakness",
        severity="weak",
        attack=subject.main,
        measured=(
            f"the attack misses {missed} of {tried} adversarial images that were planted within the"
            " radius"
        ),
        threshold=f"success on at least {1 - MISSED:.0%} (one-sided binomial test at {LEVEL:.0%})",
        source=f"{ZIMMERMANN} (binarization test)",
        remedy=(
            "the attack cannot find what is there: give it more steps (--attack.steps),"
            " restarts (--attack pgd-restarts), or another source of gradients (--attack bpda-i)"
        ),
        value=missed / tried,
    )
