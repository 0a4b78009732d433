"""Votes: which draws are averaged, how, and that attacks reach through them."""

import pytest
import torch

from robusttrain.attacks import (
    EnsemblePattern,
    FewerSteps,
    FixedRandomness,
    IdentityBackward,
    Target,
    prepared,
)
from robusttrain.core.errors import OptionError
from robusttrain.defenses import (
    AdversarialTransform,
    Chain,
    CropRescale,
    Defense,
    MedianSmoothing,
    RandomResizePad,
    Vote,
)
from robusttrain.models.defended import DefendedClassifier, MeanPrediction
from robusttrain.models.voting import log_majority, log_mean


class Doubled(Defense):
    """g(x) = 2 x, behind noise."""

    random = True

    def transform(self, images, rng):
        return 2 * images + rng.uniform(images.shape[1:], -0.2, 0.2)


def voting(defense, model):
    return DefendedClassifier(defense, model).eval()


def gradient(model, x, rng):
    points = x.clone().requires_grad_()
    logits = model(points, rng)
    (slope,) = torch.autograd.grad(logits.logsumexp(1).sum() - logits[:, 0].sum(), points)
    return logits.detach(), slope


def test_the_mean_vote_is_the_mean_prediction(convnet, images, streams):
    layers, model = RandomResizePad(6, 12), convnet()
    voted = voting(Vote(layers, 5), model)(images(), streams())
    by_hand = MeanPrediction(DefendedClassifier(layers, model), 5)(images(), streams())
    torch.testing.assert_close(voted, by_hand)
    assert (voted.exp().sum(dim=1) - 1).abs().max() < 1e-5


def test_many_draws_are_asked_in_parts(convnet, images, streams):
    """300 draws of four images are no single batch; each part is like one alone."""
    layers, model = RandomResizePad(6, 12), convnet()
    batches = []
    model.register_forward_hook(lambda module, given, found: batches.append(len(given[0])))
    voted = voting(Vote(layers, 300), model)(images(), streams())
    assert max(batches) <= 256
    assert sum(batches) == 1200
    passes = torch.stack(
        [DefendedClassifier(layers, model)(images(), streams().fold(k)) for k in range(300)]
    )
    torch.testing.assert_close(voted.exp(), passes.softmax(dim=2).mean(dim=0))


def test_a_majority_is_counted():
    # Three draws of one image: two choose class 0 narrowly, one class 1 by far.
    shares = torch.tensor([[0.5, 0.4, 0.1], [0.5, 0.4, 0.1], [0.01, 0.98, 0.01]])
    logits = shares.log()[:, None]
    mean = shares.mean(dim=0)
    torch.testing.assert_close(log_mean(logits)[0].exp(), mean)
    found = log_majority(logits)[0].exp()
    torch.testing.assert_close(found, (torch.tensor([2.0, 1.0, 0.0]) + mean) / 4)
    assert int(mean.argmax()) == 1
    assert int(found.argmax()) == 0


def test_equal_counts_are_decided_by_the_mean():
    logits = torch.tensor([[0.6, 0.4], [0.1, 0.9]]).log()[:, None]
    assert int(log_majority(logits)[0].argmax()) == 1


def test_a_vote_that_is_certain_has_a_finite_answer_and_a_gradient():
    logits = torch.tensor([[[300.0, 0.0, -300.0]]]).repeat(4, 1, 1).requires_grad_()
    for rule in (log_mean, log_majority):
        result = rule(logits)
        assert result.isfinite().all()
        (slope,) = torch.autograd.grad(result[0, 0] - result[0, 1], logits)
        assert slope.isfinite().all()
        assert (slope != 0).any()


@pytest.mark.parametrize("options", [{"draws": 2}, {"rule": "majority"}], ids=str)
def test_every_option_changes_the_outcome(options, convnet, images, streams):
    layers, model = RandomResizePad(6, 12), convnet()
    plain = voting(Vote(layers, 7), model)(images(), streams())
    other = voting(Vote(layers, **{"draws": 7, **options}), model)(images(), streams())
    assert (plain - other).abs().max() > 1e-4


def test_in_training_there_is_one_draw(convnet, images, streams):
    layers, model = RandomResizePad(6, 12), convnet()
    target = DefendedClassifier(Vote(layers, 5), model)
    target.defense.train()
    single = DefendedClassifier(layers, model)(images(), streams())
    assert torch.equal(target(images(), streams()), single)
    with prepared(target):  # as attacks and verdicts see it
        voted = target(images(), streams())
    assert not torch.allclose(voted, single.log_softmax(dim=1))
    assert target.defense.training


def test_behind_a_vote_a_chain_draws_anew(convnet, images, streams):
    """Each draw of the crops passes noise of its own, and a defense before the vote is drawn
    once.
    """
    seen = []

    class Noted(Doubled):
        def transform(self, x, rng):
            seen.append(len(x))
            return super().transform(x, rng)

    model = convnet()
    behind = voting(Chain([Vote(CropRescale(), 3), Noted()]), model)
    assert behind(images(), streams()).shape == (4, 3)
    assert sum(seen) == 12
    seen.clear()
    voting(Chain([Noted(), Vote(CropRescale(), 3)]), model)(images(), streams())
    assert sum(seen) == 4
    assert torch.equal(behind(images(), streams()), behind(images(), streams()))


def test_votes_in_front_of_votes_multiply(convnet, images, streams):
    count, model = [], convnet()
    model.register_forward_hook(lambda module, given, found: count.append(len(given[0])))
    voting(Chain([Vote(CropRescale(), 3), Vote(RandomResizePad(8, 10), 2)]), model)(
        images(), streams()
    )
    assert sum(count) == 4 * 3 * 2


def test_a_chain_without_votes_answers_as_ever(convnet, images, streams):
    chain, model = Chain([Doubled(), CropRescale()]), convnet()
    expected = model(chain(images(), streams()))
    assert torch.equal(DefendedClassifier(chain, model)(images(), streams()), expected)


def test_a_vote_has_the_traits_of_what_it_votes_on(convnet, images):
    g = AdversarialTransform(convnet(), radius=0.05, steps=3)
    vote = Vote(Chain([g, RandomResizePad(8, 10)]), 4)
    assert (vote.random, vote.differentiable, vote.iterative) == (True, False, True)
    assert (vote.has_f_b, vote.draws_patterns, vote.votes) == (True, True, True)
    assert vote.gradients == 12
    assert [type(part).__name__ for part in vote.parts] == [
        "AdversarialTransform",
        "RandomResizePad",
    ]
    assert vote.identity_fits(images())
    assert vote.with_steps(1).gradients == 4
    assert Chain([MedianSmoothing(), vote]).votes
    assert not Chain([MedianSmoothing()]).votes


def test_sources_reach_through_a_vote(convnet, images, streams):
    """The identity backward, patterns, fewer steps, one draw: each against one made by hand."""
    model, x = convnet(), images()
    target = voting(Vote(Doubled(), 5), model)
    logits, slope = gradient(IdentityBackward()(target).eval(), x, streams())
    assert torch.equal(logits, target(x, streams()))
    # The identity in place of a factor of two, in every draw.
    torch.testing.assert_close(slope * 2, gradient(target, x, streams())[1])

    layers = RandomResizePad(8, 10)
    patterns, plain = (
        EnsemblePattern(1, ["center"])(voting(defense, model))
        for defense in (Vote(layers, 5), layers)
    )
    assert torch.equal(patterns(x, streams()), plain(x, streams()))

    g = AdversarialTransform(convnet(seed=1), radius=0.05, steps=3)
    shorter = FewerSteps(1, Target())(voting(Vote(g, 3), model)).eval()
    by_hand = voting(Vote(g.with_steps(1), 3), model)
    assert torch.equal(shorter(x, streams()), by_hand(x, streams()))

    fixed = FixedRandomness(0, Target())(target).eval()
    assert torch.equal(fixed(x, streams()), fixed(x, streams(seed=1)))


def test_with_gradients_through_a_vote_are_means_of_the_draws(linear, images, streams):
    """log mean softmax, differentiated by hand through each draw."""
    model, x, defense = linear(), images(), Doubled()
    _, slope = gradient(voting(Vote(defense, 3), model), x, streams())
    points = x.clone().requires_grad_()
    passes = [model(defense(points, streams().fold(k))).softmax(dim=1) for k in range(3)]
    logits = (sum(passes) / 3).log()
    (expected,) = torch.autograd.grad(logits.logsumexp(1).sum() - logits[:, 0].sum(), points)
    torch.testing.assert_close(slope, expected)


def test_a_vote_on_what_draws_nothing_is_refused():
    with pytest.raises(OptionError, match=r"^defense = 'MedianSmoothing': draws nothing"):
        Vote(MedianSmoothing())


@pytest.mark.parametrize(("option", "value"), [("draws", 0), ("rule", "best")])
def test_impossible_options_are_named(option, value):
    with pytest.raises(OptionError, match=rf"^{option} = "):
        Vote(CropRescale(), **{option: value})
