"""Randomized smoothing: what a vote over Gaussian noise certifies [Cohen et al. 2019].

The smoothed classifier answers with the class that a classifier f most often gives to an image
behind noise:

    g(x) = argmax over c of P(f(x + N(0, sigma^2)) = c).

If the likeliest class has a probability of at least p > 1/2, then g answers with that class for
every image within a Euclidean distance of sigma Phi^-1(p) (theorem 1). Nobody knows p. It is
bounded from below by counting draws, so that a certificate is wrong with a probability of at most
alpha.

A certificate is about g alone, a vote with infinitely many draws. A single draw of f, or a vote
with few draws, may err within the radius.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.stats import beta, binom, norm
from torch import Tensor

from robusttrain.attacks import Queried
from robusttrain.core.errors import UserError
from robusttrain.core.rng import Rng
from robusttrain.evaluation.scoring import top_classes
from robusttrain.models.defended import DefendedClassifier

#: The answer where too few draws agree.
ABSTAIN = -1
#: Draws that are counted before the next ones are asked for: memory does not grow with the draws.
BLOCK = 1000


def lower_bound(successes: Tensor, draws: int, alpha: float) -> Tensor:
    """The one-sided bound of Clopper & Pearson: (n,) float64, each at most the probability of
    success except with a probability of alpha.

    Args:
        successes: (n,) whole numbers, of ``draws`` independent draws.
        draws: of each.
        alpha: how likely the bound may be wrong.
    """
    count = successes.double()
    bound = torch.from_numpy(beta.ppf(alpha, count.numpy(), draws - count.numpy() + 1))
    return bound.where(count > 0, 0.0)  # scipy has no distribution for no success


def radius(bound: Tensor, sigma: float) -> Tensor:
    """(n,) float64: sigma Phi^-1(bound), a Euclidean length in pixel values; 0, and so no
    certificate, where the bound is 1/2 or less.
    """
    length = sigma * torch.from_numpy(norm.ppf(bound.double().numpy()))
    return length.where(bound > 0.5, 0.0)


def decided(counts: Tensor, alpha: float) -> Tensor:
    """The class that draws prefer, (n,) int64; `ABSTAIN` where the two-sided binomial test of the
    two leading counts could be luck with a probability above alpha [``Predict`` of the paper].

    Args:
        counts: (n, K) whole numbers, draws by class.
        alpha: how likely a wrong answer may be.
    """
    leading, second = counts.sort(dim=1, descending=True, stable=True).values[:, :2].unbind(dim=1)
    first, both = leading.numpy(), (leading + second).numpy()
    # Of a fair coin both tails are alike, and together they are at most 1.
    p = torch.from_numpy(2 * binom.sf(first - 1, both, 0.5)).clamp_max(1.0)
    return counts.argmax(dim=1).where((p <= alpha) & (leading > 0), ABSTAIN)


def counted(model: Queried, images: Tensor, rng: Rng, draws: int, classes: int) -> Tensor:
    """How many draws chose each class, (B, classes) int64, in float32 forward passes.

    An answer that is not finite counts for no class.

    Args:
        model: images to logits, one draw of its noise a pass.
        images: (B, C, H, W), pixel values in [0, 1].
        rng: streams of the images, (B,).
        draws: passes an image.
        classes: K.
    """
    counts = torch.zeros(len(images), classes + 1, dtype=torch.int64)
    for number, start in enumerate(range(0, draws, BLOCK)):
        size = min(BLOCK, draws - start)
        answers = top_classes(model, images, rng.fold(number), size, top=1)[..., 0]
        answers = answers.where(answers >= 0, classes)
        counts.scatter_add_(1, answers, torch.ones_like(answers))
    return counts[:, :classes]


@dataclass(frozen=True)
class Certificates:
    """What the smoothed classifier certifies of images, a row each.

    Args:
        answer: (n,) int64, the certified class; `ABSTAIN` where there is none.
        radius: (n,) float64, Euclidean, in pixel values of [0, 1]: of every image nearer than that
            the answer is the same; 0 where there is none.
        predicted: (n,) int64, the answer without a radius (`decided`), on the draws of the bound.
    """

    answer: Tensor
    radius: Tensor
    predicted: Tensor


@dataclass(frozen=True)
class Smoothed:
    """The smoothed classifier behind a target.

    Args:
        model: answers to one draw of the noise a pass.
        sigma: standard deviation of the noise, in pixel values.
        classes: K.
        draws: n, that bound the probability of a class, or predict.
        choosing: n_0, that choose the class that is certified.
        alpha: how likely a certificate, or a prediction, may be wrong.
    """

    model: Queried
    sigma: float
    classes: int
    draws: int = 1000
    choosing: int = 100
    alpha: float = 0.001

    @classmethod
    def of(
        cls,
        target: DefendedClassifier,
        classes: int,
        draws: int = 1000,
        choosing: int = 100,
        alpha: float = 0.001,
    ) -> Smoothed:
        """That of a target whose defense begins with Gaussian noise. Where it votes on the noise,
        the smoothed classifier is the vote with infinitely many draws.

        Raises:
            UserError: no such noise.
        """
        defense = target.defense
        if defense is None or defense.certified_sigma is None:
            what = "has no defense" if defense is None else f"is behind {type(defense).__name__}"
            raise UserError(
                f"--certify true: the target {what}, and a certificate needs Gaussian noise in"
                " front of everything: --defense noise or smoothing, or a Chain that begins with it"
                " (a vote on it: with --defense.rule majority)"
            )
        single = Queried(DefendedClassifier(defense.single_draw(), target.classifier))
        return cls(single, defense.certified_sigma, classes, draws, choosing, alpha)

    @property
    def largest(self) -> float:
        """The radius where all draws agree: with this many draws no certificate reaches farther."""
        return float(
            radius(lower_bound(torch.tensor([self.draws]), self.draws, self.alpha), self.sigma)
        )

    def counts(self, images: Tensor, rng: Rng) -> Tensor:
        """``draws`` draws by class, (B, K); arguments as for `counted`."""
        return counted(self.model, images, rng, self.draws, self.classes)

    def chosen(self, images: Tensor, rng: Rng) -> Tensor:
        """``choosing`` draws by class, (B, K), with streams of their own."""
        return counted(self.model, images, rng.fold("choose"), self.choosing, self.classes)

    def certificates(self, chosen: Tensor, counts: Tensor) -> Certificates:
        """Certificates from the draws that choose and those that bound, (n, K) each
        [``Certify`` of the paper].
        """
        answer = chosen.argmax(dim=1)
        agreed = counts.gather(1, answer[:, None]).squeeze(1)
        radii = radius(lower_bound(agreed, self.draws, self.alpha), self.sigma)
        return Certificates(answer.where(radii > 0, ABSTAIN), radii, decided(counts, self.alpha))

    def certify(self, images: Tensor, rng: Rng) -> Certificates:
        """Certificates of images (B, C, H, W), with streams (B,)."""
        rng = streams(rng)
        return self.certificates(self.chosen(images, rng), self.counts(images, rng.fold("bound")))

    def predict(self, images: Tensor, rng: Rng) -> Tensor:
        """Classes (B,), or `ABSTAIN`, on draws that no certificate uses."""
        return decided(self.counts(images, streams(rng).fold("predict")), self.alpha)


def streams(rng: Rng) -> Rng:
    """The images' streams for certificates: neither attacks nor scoring use them."""
    return rng.fold("certify")
