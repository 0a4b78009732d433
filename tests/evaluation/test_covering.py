"""Radii that are no bound."""

import warnings

import pytest
import torch

import robusttrain
from robusttrain.attacks import L2, Linf
from robusttrain.data import Facts
from robusttrain.defenses import AdversarialTransform, Chain
from robusttrain.evaluation.covering import boundless, covering, threats_of

FACTS = Facts(10, 3, 4)  # the box is 1 wide in linf, and sqrt(48) = 6.9 in l2


@pytest.mark.parametrize(
    ("threat", "lines"),
    [
        (Linf(0.5), 0),
        (Linf(1.0), 0),  # a way to say "no bound"
        (Linf(1.01), 1),
        (Linf(8), 1),
        (L2(6.9), 0),
        (L2(8), 1),
        (L2(1000), 0),  # likewise
    ],
)
def test_a_radius_larger_than_the_box_is_said(threat, lines):
    said = [*covering([("--epsilon", threat)] * 2, FACTS)]
    assert len(said) == lines
    if said:
        assert f"--epsilon {threat.epsilon:g} is no bound" in said[0]
        assert f"{threat.epsilon:g}/255" in said[0]


def test_the_radius_of_a_defense_counts_wherever_it_stands(linear):
    transform = AdversarialTransform(linear(), radius=16)
    for defense in (transform, Chain([transform])):
        said = [*covering(threats_of(defense), FACTS)]
        assert [line.partition(" is")[0] for line in said] == ["warning: --defense.radius 16"]
    assert threats_of(None) == []


def test_an_attack_that_is_called_by_itself_says_it_too(images, linear):
    x, y = images(2), torch.zeros(2, dtype=torch.int64)
    with pytest.warns(UserWarning, match="^epsilon 8 is no bound: .* write 8/255$"):
        robusttrain.attack("fgsm", epsilon=8)(linear(), x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        robusttrain.attack("fgsm", epsilon=8 / 255)(linear(), x, y)


def test_attacks_that_no_radius_bounds_are_named():
    (line,) = boundless({"cw": L2(1000), "fmn": Linf(1), "pgd": Linf(0.1), "wide": L2(8)})
    assert line.startswith("cw, fmn: no radius bounds")
    assert boundless({"pgd": Linf(0.999), "wide": L2(255)}) == []
    assert boundless({"pgd": Linf(8)}) == []  # `covering` tells of it
    assert boundless({"cw": Linf(1000)})
