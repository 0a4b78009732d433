"""Certificates against known answers: of a linear model the probability of a class is
Phi(margin / sigma), so that no certificate may reach beyond the margin.
"""

import math

import pytest
import torch
from scipy.stats import binomtest, norm

from robusttrain.core.errors import UserError
from robusttrain.core.rng import Rng
from robusttrain.defenses import Chain, GaussianNoise, MedianSmoothing, Vote
from robusttrain.evaluation.certify import (
    ABSTAIN,
    Smoothed,
    counted,
    decided,
    lower_bound,
    radius,
)
from robusttrain.models.defended import DefendedClassifier

SIGMA = 0.5


class HalfSpace(torch.nn.Module):
    """Two classes, divided by a plane through grey: the margin of an image is known."""

    def __init__(self, pixels=192):
        super().__init__()
        direction = torch.randn(pixels, generator=torch.Generator().manual_seed(3))
        self.register_buffer("normal", direction / direction.norm())

    def forward(self, images):
        side = (images - 0.5).flatten(1) @ self.normal
        return torch.stack([side, -side], dim=1)

    def at(self, margins):
        """Images whose distance from the plane is given, on the side of class 0."""
        margins = torch.as_tensor(margins, dtype=torch.float32)
        return 0.5 + (margins[:, None] * self.normal).view(-1, 3, 8, 8)


def smoothed(draws=1000, alpha=0.001, sigma=SIGMA, model=None):
    target = DefendedClassifier(GaussianNoise(sigma), model or HalfSpace())
    return Smoothed.of(target, 2, draws, 50, alpha)


@pytest.mark.parametrize(("draws", "alpha"), [(20, 0.05), (100, 0.001), (1000, 0.001)])
def test_the_bound_is_that_of_clopper_and_pearson(draws, alpha):
    counts = [0, 1, draws // 2, draws - 1, draws]
    bounds = lower_bound(torch.tensor(counts), draws, alpha)
    for count, bound in zip(counts, bounds.tolist(), strict=True):
        theirs = binomtest(count, draws, alternative="greater").proportion_ci(1 - alpha, "exact")
        assert bound == pytest.approx(theirs.low, abs=1e-12)
    assert bounds[-1].item() == pytest.approx(alpha ** (1 / draws))


def test_the_decision_is_the_two_sided_binomial_test():
    pairs = [(30, 70), (50, 50), (33, 67), (34, 66), (0, 11), (0, 10), (0, 0), (400, 520)]
    counts = torch.tensor([[few, many, min(few, 3)] for few, many in pairs])
    for (few, many), answer in zip(pairs, decided(counts, 0.001).tolist(), strict=True):
        sure = many > 0 and binomtest(many, few + many, 0.5).pvalue <= 0.001
        assert answer == (1 if sure else ABSTAIN)
    assert decided(counts, 0.001).tolist() == [1, -1, 1, -1, 1, -1, -1, 1]


def test_the_radius_of_a_probability():
    found = radius(torch.tensor([0.0, 0.3, 0.5, norm.cdf(1.0), norm.cdf(2.5)]), 0.25)
    torch.testing.assert_close(found[:3], torch.zeros(3, dtype=torch.float64))
    assert found[3:].tolist() == pytest.approx([0.25, 0.625], abs=1e-6)


def test_a_linear_models_certificates_tend_to_its_margin():
    margins, draws = torch.tensor([0.1, 0.3, 0.5, 0.8]), 8_000
    model = HalfSpace()
    rng = Rng.for_images(0, torch.arange(4))
    g = smoothed(draws)
    counts = counted(g.model, model.at(margins), rng, draws, 2)
    for margin, count in zip(margins.tolist(), counts[:, 0].tolist(), strict=True):
        p = norm.cdf(margin / SIGMA)
        assert abs(count / draws - p) < 4 * math.sqrt(p * (1 - p) / draws)
    found = g.certify(model.at(margins), rng)
    assert found.answer.tolist() == found.predicted.tolist() == [0, 0, 0, 0]
    assert (found.radius <= margins).all()
    assert (found.radius > margins - 0.05).all()


def test_few_draws_certify_little_and_never_more_than_their_largest():
    model, rng = HalfSpace(), Rng.for_images(0, torch.arange(1))
    radii = [float(smoothed(draws).certify(model.at([5.0]), rng).radius) for draws in (20, 100)]
    assert radii == pytest.approx([smoothed(draws).largest for draws in (20, 100)])
    assert radii[0] == pytest.approx(SIGMA * norm.ppf(0.001 ** (1 / 20)))
    assert radii[0] < radii[1] < 1.5


def test_on_the_boundary_it_abstains():
    images = HalfSpace().at(torch.zeros(40))
    found = smoothed().certify(images, Rng.for_images(0, torch.arange(40)))
    assert found.answer.tolist() == [ABSTAIN] * 40
    assert found.radius.tolist() == [0.0] * 40
    assert found.predicted.tolist() == [ABSTAIN] * 40


def test_certificates_are_wrong_as_often_as_alpha_says():
    """500 certificates of one image, with streams of their own. With alpha = 0.1 one expects 50 of
    them to be wrong at most, and few less: three standard deviations are 20.
    """
    images = HalfSpace().at(torch.full((500,), 0.3))
    found = smoothed(200, alpha=0.1).certify(images, Rng.for_images(0, torch.arange(500)))
    wrong = int((found.radius > 0.3).sum())
    assert 20 <= wrong <= 70
    answers = smoothed(200, alpha=0.1).predict(images, Rng.for_images(0, torch.arange(500)))
    assert not (answers == 1).any()  # p = 0.73


def test_batches_change_nothing_and_seeds_do(patterns):
    model, images, _ = patterns
    vote = Vote(GaussianNoise(0.3), 9, "majority")
    g = Smoothed.of(DefendedClassifier(vote, model), 4, 60, 20)
    index = torch.arange(12)
    whole = g.certify(images[:12], Rng.for_images(0, index))
    for which in (torch.arange(5), torch.tensor([11, 3, 7])):
        part = g.certify(images[which], Rng.for_images(0, index[which]))
        for column in ("answer", "radius", "predicted"):
            assert torch.equal(getattr(part, column), getattr(whole, column)[which])
    other = g.certify(images[:12], Rng.for_images(1, index))
    assert not torch.equal(other.radius, whole.radius)
    # A vote on the noise is smoothed as the noise alone is: one draw a pass.
    alone = Smoothed.of(DefendedClassifier(GaussianNoise(0.3), model), 4, 60, 20)
    assert torch.equal(alone.certify(images[:12], Rng.for_images(0, index)).radius, whole.radius)


def test_a_vote_by_the_mean_has_no_certificate(patterns):
    target = DefendedClassifier(Vote(GaussianNoise(0.3), 9), patterns[0])
    with pytest.raises(UserError, match="--defense.rule majority"):
        Smoothed.of(target, 4)


def test_streams_of_certificates_are_their_own():
    """No key of an attack's or a verdict's stream, and choosing, bounding and predicting differ."""
    model, rng = HalfSpace(), Rng.for_images(0, torch.arange(2))
    seen = {}

    class Watched(GaussianNoise):
        def transform(self, images, rng):
            keys.update(rng.keys.tolist())
            return super().transform(images, rng)

    g = Smoothed.of(DefendedClassifier(Watched(SIGMA), model), 2, 30, 20)
    images = model.at([0.2, 0.4])
    for name, ask in (("certify", g.certify), ("predict", g.predict)):
        keys = set()
        ask(images, rng)
        seen[name] = keys
    assert len(seen["certify"]) == 2 * (30 + 20)
    assert len(seen["predict"]) == 2 * 30
    draws = [rng.fold(name).fold(k) for name in ("score", "select") for k in range(30)]
    own = {key for draw in draws for key in draw.fold("defense").keys.tolist()}
    assert not seen["certify"] & seen["predict"]
    assert not (seen["certify"] | seen["predict"]) & own


def test_answers_that_are_not_finite_count_for_nobody():
    class Broken(HalfSpace):
        def forward(self, images):
            return super().forward(images) * torch.nan

    g = smoothed(40, model=Broken())
    counts = g.counts(HalfSpace().at([5.0]), Rng.for_images(0, torch.arange(1)))
    assert counts.tolist() == [[0, 0]]
    found = g.certify(HalfSpace().at([5.0]), Rng.for_images(0, torch.arange(1)))
    assert (found.answer.item(), found.predicted.item(), found.radius.item()) == (-1, -1, 0)


@pytest.mark.parametrize(
    ("defense", "said"),
    [
        (None, "the target has no defense"),
        (MedianSmoothing(), "the target is behind MedianSmoothing"),
        (Chain([MedianSmoothing(), GaussianNoise()]), "the target is behind Chain"),
        (GaussianNoise(0.0), "the target is behind GaussianNoise"),
    ],
)
def test_without_noise_in_front_nothing_is_certified(defense, said):
    with pytest.raises(UserError, match=f"--certify true: {said}, and a certificate needs Gauss"):
        Smoothed.of(DefendedClassifier(defense, HalfSpace()), 2)
