"""What a run would cost: gradient evaluations that defenses make on models of their own."""

import pytest

from robusttrain.defenses import Chain, Defense, Vote
from robusttrain.models.defended import DefendedClassifier
from robusttrain.training.cost import counted


class Searching(Defense):
    """Says that it takes three gradient evaluations an image."""

    gradients = 3
    random = True

    def transform(self, images, rng):
        return images + rng.uniform(images.shape[1:], -0.1, 0.1)


@pytest.mark.parametrize(
    ("defense", "each"),
    [
        (Searching(), 3),
        (Chain([Searching()]), 3),
        (Chain([Searching(), Searching()]), 6),
        (Vote(Searching(), draws=4), 12),
        (Chain([Searching(), Vote(Chain([Searching()]), draws=2)]), 9),
    ],
    ids=["alone", "chain", "chain of two", "vote", "all"],
)
def test_what_a_chain_says_its_parts_do_not_say_again(defense, each, convnet, images, streams):
    target = DefendedClassifier(defense, convnet()).eval()
    with counted(target) as inside:
        target(images(4), streams())
    assert sum(inside) == 4 * each
    target(images(4), streams())
    assert sum(inside) == 4 * each, "nothing is counted afterwards"


def test_in_training_a_vote_takes_one_draw(convnet, images, streams):
    target = DefendedClassifier(Vote(Searching(), draws=4), convnet()).train()
    with counted(target) as inside:
        target(images(4), streams())
    assert sum(inside) == 4 * 3
