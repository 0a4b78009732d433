"""`Queried`: whoever draws from wherever, an image's answer is a matter of its own streams."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robusttrain.attacks import (
    APGD,
    DDN,
    FAB,
    FMN,
    L2,
    Average,
    CarliniWagner,
    CrossEntropy,
    DeepFool,
    GenAttack,
    HopSkipJump,
    Linf,
    Loss,
    NearestBoundary,
    ProjectedGradient,
    Queried,
    RandomNoise,
    Restarts,
    Several,
    Square,
    SuperDeepFool,
    call_model,
)
from robusttrain.attacks.asking import ask_twice
from robusttrain.attacks.sources.surrogates import fused


class Torch(nn.Module):
    """Noise from torch's global generator; says nothing of it."""

    def __init__(self, model, scale=0.3):
        super().__init__()
        self.model, self.scale = model, scale

    def forward(self, images):
        return self.model(images + self.scale * self.noise(images))

    def noise(self, images):
        return torch.randn_like(images)


class Numpy(Torch):
    def noise(self, images):
        return torch.from_numpy(np.random.standard_normal(images.shape)).float()  # noqa: NPY002 - what it is about


class Python(Torch):
    """One number for the whole batch: the harder case, as neighbours shift nothing and share
    everything.
    """

    def noise(self, images):
        return torch.full_like(images, random.gauss(0, 1))


class Dropout(Torch):
    def forward(self, images):
        return self.model(F.dropout(images, 0.3, training=True))


class Own(Torch):
    """A generator of its own, that nobody can seed."""

    def __init__(self, model):
        super().__init__(model)
        self.generator = torch.Generator().manual_seed(0)

    def noise(self, images):
        return torch.randn(images.shape, generator=self.generator)


KINDS = [Torch, Numpy, Python, Dropout]


def states():
    legacy = np.random.get_state()  # noqa: NPY002
    return [torch.get_rng_state().tolist(), legacy[1].tolist(), legacy[2:], random.getstate()]


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_depends_on_the_streams_of_its_image_alone(kind, linear, images, streams):
    x, rng = images(9), streams(9)
    whole = Queried(kind(linear()))(x, rng)
    for size in (1, 2, 7):
        queried = Queried(kind(linear()))
        parts = [queried(x[i : i + size], rng[i : i + size]) for i in range(0, 9, size)]
        torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-6)
    order = torch.tensor([3, 8, 0])
    torch.testing.assert_close(
        Queried(kind(linear()))(x[order], rng[order]), whole[order], rtol=0, atol=1e-6
    )
    assert (Queried(kind(linear()))(x, streams(9, seed=1)) != whole).any(dim=1).all()
    # Images have draws of their own.
    same = Queried(kind(linear()))(x[:1].repeat(9, 1, 1, 1), rng)
    assert len({tuple(row.tolist()) for row in same}) == 9


@pytest.mark.parametrize("kind", KINDS)
def test_generators_are_as_if_nobody_had_asked(kind, linear, images, streams):
    queried, before = Queried(kind(linear())), states()
    for _ in range(2):
        queried(images(), streams())
    x = images().requires_grad_()
    queried(x, streams()).sum().backward()
    assert x.grad.abs().sum() > 0
    queried.settle(images(), streams())
    assert states() == before


@pytest.mark.parametrize("kind", KINDS)
def test_generators_are_put_back_after_an_error(kind, linear, images, streams):
    class Breaking(kind):
        def forward(self, images):
            super().forward(images)
            raise RuntimeError("broken")

    before = states()
    with pytest.raises(RuntimeError, match="broken"):
        Queried(Breaking(linear()))(images(), streams())
    assert states() == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_is_that_of_the_same_draws(kind, linear, images, streams):
    x, rng = images(5).requires_grad_(), streams(5)
    labels = torch.arange(5) % 3
    queried = Queried(kind(linear()))
    (whole,) = torch.autograd.grad(Loss(queried, CrossEntropy(), labels)(x, rng).sum(), x)
    alone = Queried(kind(linear()))
    for i in range(5):
        point = images(5)[i : i + 1].requires_grad_()
        loss = Loss(alone, CrossEntropy(), labels[i : i + 1])(point, rng[i : i + 1])
        torch.testing.assert_close(
            torch.autograd.grad(loss.sum(), point)[0], whole[i : i + 1], rtol=0, atol=1e-6
        )


@pytest.mark.parametrize("kind", [*KINDS, Own])
def test_models_that_say_nothing_are_found_out(kind, linear, images, streams):
    queried = Queried(kind(linear()))
    assert not queried.random
    assert queried.settle(images(), streams())
    assert queried.random
    assert queried.draws_globally == (kind is not Own)
    assert (queried.gradients, queried.queries) == (0, 0)
    assert queried.asked_twice(images(), streams())[1].all()


def test_who_says_that_it_is_not_random_is_not_believed(linear, images, streams):
    model = Torch(linear())
    model.random = False
    assert Queried(model).settle(images(), streams())


def test_a_deterministic_model_is_asked_twice_and_found_deterministic(linear, images, streams):
    asked = []

    class Recorded(nn.Module):
        def forward(self, images):
            asked.append(len(images))
            return linear()(images)

    queried = Queried(Recorded())
    assert not queried.settle(images(), streams())
    assert asked == [4, 4]
    assert not queried.asked_twice(images(), streams())[1].any()


def test_a_model_that_says_that_it_is_random_is_believed(linear, images, streams):
    model = linear()
    model.random = True
    queried = Queried(model)
    assert queried.random
    assert queried.settle(images(), streams())
    assert queried.asked_twice(images(), streams())[1].all(), "draws that agree by chance"
    assert not queried.draws_globally


def test_a_model_that_draws_once_and_never_again_is_not_random(linear, images, streams):
    class Lazy(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = None

        def forward(self, images):
            if self.weight is None:
                self.weight = torch.randn(3, images[0].numel())
            return images.flatten(1) @ self.weight.T

    queried = Queried(Lazy())
    assert not queried.settle(images(), streams())
    assert not queried.draws_globally


def test_streams_and_global_draws_in_one_model(random_linear, images, streams):
    """It takes streams and says so; something inside draws from elsewhere all the same."""

    class Both(random_linear):
        def forward(self, images, rng):
            return super().forward(F.dropout(images, 0.5, training=True), rng)

    x, model = images(6), Both()
    whole = call_model(model, x, streams(6))
    for i in range(6):
        torch.testing.assert_close(
            call_model(model, x[i : i + 1], streams(6)[i : i + 1]), whole[i : i + 1]
        )
    queried = Queried(model)
    for _ in range(2):  # the pass that finds out leaves streams where all others leave them
        rng = streams(6)
        torch.testing.assert_close(queried(x, rng), whole)
        assert rng.position == 1


def test_members_draw_apart_and_are_computed_anew_as_they_were(linear, images, streams):
    """An ensemble's gradient needs one member's memory: the second computation must draw what the
    first did.
    """
    labels = torch.tensor([0, 1, 2, 0])
    found = []
    for size in (4, 1):
        source = Queried(fused([Torch(linear()), linear(seed=1)], None, "logits"))
        parts = []
        for i in range(0, 4, size):
            x = images()[i : i + size].requires_grad_()
            loss = Loss(source, CrossEntropy(), labels[i : i + size])(x, streams()[i : i + size])
            parts.append(torch.autograd.grad(loss.sum(), x)[0])
        found.append(torch.cat(parts))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-6)


def test_members_count_as_their_share(linear, images, streams):
    source = Queried(fused([linear(), linear(seed=1)], [0.25, 0.75], "logits"))
    (one, weight), _ = source.members
    assert weight == 0.25
    one(images(), streams())
    assert source.queries == 2
    one(images().requires_grad_(), streams())
    assert source.gradients == 2
    assert Queried(linear()).members[0][1] == 1


WIDE = Linf(0.1)
ATTACKS = {
    "pgd": ProjectedGradient(4, 0.03, threat=WIDE),
    "eot": ProjectedGradient(3, 0.03, threat=WIDE, gradient=Average(3)),
    "apgd": APGD(6, threat=WIDE),
    "square": Square(40, votes=2, threat=WIDE),
    "hopskipjump": HopSkipJump(2, evaluations=6, votes=3, tries=8, search_steps=5, threat=WIDE),
    "genattack": GenAttack(4, votes=2, threat=WIDE),
    "ddn": DDN(5, votes=3, threat=L2(2.0)),
    "deepfool": DeepFool(4, votes=3, threat=L2(2.0)),
    "superdeepfool": SuperDeepFool(2, 3, votes=3, threat=L2(2.0)),
    "fmn": FMN(5, votes=3, threat=WIDE),
    "nearest": NearestBoundary(5, votes=3, threat=WIDE),
    "cw": CarliniWagner(4, 0.03, search_steps=2, initial_c=1.0, votes=3, threat=L2(2.0)),
    "fab": FAB(3, targets=2, threat=WIDE),
    "noise": RandomNoise(30, votes=2, threat=WIDE),
    "restarts": Restarts(ProjectedGradient(3, 0.03), 2, votes=4, threat=WIDE),
    "several": Several(
        [ProjectedGradient(3, 0.03), Square(20, votes=2)], "best", votes=4, threat=WIDE
    ),
}


@pytest.mark.parametrize("kind", [Torch, Numpy, Python])
@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_find_the_same_whatever_the_batch(name, kind, linear, images, streams):
    """No declaration, no streams: and yet one seed is one result, image by image."""
    attack, x, labels = ATTACKS[name], images(5), torch.arange(5) % 3
    model = kind(linear(scale=1.0))
    before = states()
    whole = attack(model, x, labels, streams(5))
    assert states() == before
    assert torch.equal(attack(model, x, labels, streams(5)), whole)
    order = torch.tensor([4, 1])
    part = attack(model, x[order], labels[order], streams(5)[order])
    assert ((part - whole[order]).abs() < 1e-4).double().mean() > 0.98
    assert (attack(model, x, labels, streams(5, seed=3)) != whole).any()


class OneForAll(Torch):
    """One number for the whole pass, from a generator of its own, as of a random crop."""

    def __init__(self, model):
        super().__init__(model)
        self.generator = np.random.default_rng(0)

    def noise(self, images):
        return torch.full_like(images, self.generator.standard_normal())


def test_copies_in_one_pass_do_not_share_a_draw_of_an_own_generator(linear, images, streams):
    """Or a mean over draws, of verdicts or of gradients, would be one draw."""
    queried, x = Queried(OneForAll(linear())), images(1)
    assert queried.settle(x, streams(1))
    assert queried.draws_unseen
    answers = queried(x.repeat(9, 1, 1, 1), streams(1).tile(range(9)))
    assert len({tuple(row.tolist()) for row in answers}) == 9


@pytest.mark.parametrize("kind", KINDS)
def test_a_generator_that_can_be_seeded_is_not_taken_for_an_own_one(kind, linear, images, streams):
    queried = Queried(kind(linear()))
    assert queried.settle(images(4), streams(4))
    assert queried.draws_globally
    assert not queried.draws_unseen


@pytest.mark.parametrize(("size", "differs"), [(1e-7, False), (1e-3, True)])
def test_what_rounding_explains_is_no_randomness(size, differs, linear, images, streams):
    class Noisy(nn.Module):
        """With noise of its own generator, in shares of the largest logit."""

        def __init__(self):
            super().__init__()
            self.inner, self.noise = linear(3), torch.Generator().manual_seed(0)

        def forward(self, images):
            logits = self.inner(images)
            noise = torch.rand(logits.shape, generator=self.noise) - 0.5
            return logits + size * logits.abs().max() * noise

    assert ask_twice(Noisy(), images(), streams())[1].any() == differs


def test_an_answer_that_is_nan_once_is_random(images, streams):
    class Seldom(nn.Module):
        def __init__(self):
            super().__init__()
            self.answers = iter([torch.nan, 1.0, torch.inf, torch.inf, torch.inf, 1.0])

        def forward(self, images):
            return torch.full((len(images), 3), next(self.answers))

    model = Seldom()
    assert [bool(ask_twice(model, images(), streams())[1].all()) for _ in range(3)] == [
        True,
        False,
        True,
    ]
