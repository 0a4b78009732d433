"""Chains: the order, streams of their own, and what an evaluation must know."""

import pytest
import torch

from robusttrain.core.errors import OptionError, UserError
from robusttrain.defenses import AdversarialTransform, Chain, Defense, RandomResizePad


class Affine(Defense):
    def __init__(self, factor: float, shift: float) -> None:
        super().__init__()
        self.factor, self.shift = factor, shift

    def transform(self, images, rng):
        return images * self.factor + self.shift


class Noise(Defense):
    random = True

    def transform(self, images, rng):
        self.noise = rng.uniform(images.shape[1:])
        return images + self.noise


class Opaque(Affine):
    differentiable = False


def test_the_first_defense_stands_nearest_to_the_image(images, streams):
    result = Chain([Affine(2, 0), Affine(1, 0.1)])(images(), streams())
    torch.testing.assert_close(result, images() * 2 + 0.1)


def test_each_defense_has_streams_of_its_own(images, streams):
    one, two = Noise(), Noise()
    result = Chain([one, two])(images(), streams())
    assert (one.noise - two.noise).abs().mean() > 0.2
    torch.testing.assert_close(result, images() + one.noise + two.noise)
    assert torch.equal(Chain([one, two])(images(), streams()), result)


def test_the_members_draws_do_not_depend_on_the_batch(images, streams):
    chain, order = Chain([Noise(), Noise()]), torch.tensor([3, 1])
    assert torch.equal(chain(images()[order], streams()[order]), chain(images(), streams())[order])


@pytest.mark.parametrize(
    ("members", "random", "differentiable"),
    [
        ([Affine(1, 0)], False, True),
        ([Affine(1, 0), Noise()], True, True),
        ([Opaque(1, 0), Affine(1, 0)], False, False),
        ([Noise(), Opaque(1, 0)], True, False),
    ],
)
def test_flags_are_those_of_the_members(members, random, differentiable):
    chain = Chain(members)
    assert (chain.random, chain.differentiable) == (random, differentiable)


def test_real_defenses_chain_and_their_f_b_is_saved(curved, images, streams):
    chain = Chain([AdversarialTransform(curved()), RandomResizePad(8, 10)])
    assert chain(images(), streams()).shape == (4, 3, 10, 10)
    assert chain.random
    assert not chain.differentiable
    assert set(chain.state_dict()) == {"defenses.0.f_b.first", "defenses.0.f_b.second"}
    assert list(chain.parameters()) == []


def test_a_chain_has_the_traits_of_its_parts(convnet, images):
    g, layers = AdversarialTransform(convnet(), steps=2), RandomResizePad(8, 10)
    chain = Chain([layers, Chain([Affine(1, 0), g])])
    assert chain.iterative
    assert chain.draws_patterns
    assert [type(part).__name__ for part in chain.parts] == [
        "RandomResizePad",
        "Affine",
        "AdversarialTransform",
    ]
    assert not Chain([layers, layers]).draws_patterns  # neither is a pattern of the whole
    assert not Chain([Affine(1, 0)]).iterative
    assert not chain.keeps_size(images())
    # g keeps the size, and the layers that do not have a derivative of their own.
    assert chain.identity_fits(images())
    assert not Chain([Shrunk()]).identity_fits(images())


class Shrunk(Opaque):
    def __init__(self) -> None:
        super().__init__(1, 0)

    def transform(self, images, rng):
        return images[..., 1:, 1:]


def test_steps_and_parts_of_a_chain_can_be_others(convnet, images, streams):
    g, layers = AdversarialTransform(convnet(), steps=3), RandomResizePad(8, 10)
    chain, x = Chain([layers, g]), images()
    shorter = Chain([layers, AdversarialTransform(convnet(), steps=1)])
    assert torch.equal(chain.with_steps(1)(x, streams()), shorter(x, streams()))
    assert torch.equal(chain.rebuilt(lambda part: part)(x, streams()), chain(x, streams()))
    with pytest.raises(UserError, match="Chain is no iterative transformation"):
        Chain([layers]).with_steps(1)


def test_an_empty_chain_is_refused():
    with pytest.raises(OptionError, match=r"^defenses = "):
        Chain([])


def test_a_chain_costs_what_its_parts_cost(curved):
    g = AdversarialTransform(curved(), steps=3)
    assert g.gradients == 3
    assert Chain([g, RandomResizePad(8, 10), g]).gradients == 6
