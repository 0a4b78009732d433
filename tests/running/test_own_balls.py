"""Balls that norm and radius do not describe: what lies outside does not count, and figures name
them.
"""

import warnings
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import robusttrain
from robusttrain.attacks import FAB, FMN, Linf, ProjectedGradient, Threat
from robusttrain.attacks.parts.threats import described, into_ball, kept
from robusttrain.core.errors import UserError
from robusttrain.evaluation.covering import boundless
from robusttrain.reporting.words import allowed


@dataclass(frozen=True)
class LeftHalf(Threat):
    """Only the left half may change."""

    epsilon: float = 0.5
    norm = "linf"

    def random_start(self, images, rng):
        return self.project(images + rng.uniform(images.shape[1:], -1, 1), images)

    def project(self, adversarial, images):
        inside = Linf(self.epsilon).project(adversarial, images)
        half = images.shape[3] // 2
        return torch.cat([inside[..., :half], images[..., half:]], dim=3)

    def distance(self, adversarial, images):
        return (adversarial - images).abs().amax(dim=(1, 2, 3))


class Right(nn.Module):
    """Its answer follows from the right half, which nobody may change."""

    def forward(self, images):
        right = images[..., images.shape[3] // 2 :].mean(dim=(1, 2, 3))
        return torch.stack([0.5 - right, right - 0.5], dim=1)


class Both(nn.Module):
    """Its answer follows from the mean pixel."""

    def forward(self, images):
        mean = images.mean(dim=(1, 2, 3))
        return torch.stack([0.5 - mean, mean - 0.5], dim=1)


@pytest.fixture
def data():
    """Eight images of two classes, whose means lie 0.1 beside the boundary."""
    labels = torch.arange(8) % 2
    noise = 0.1 * (torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(0)) - 0.5)
    return 0.4 + 0.2 * labels.view(-1, 1, 1, 1) + noise, labels


def evaluated(model, data, tmp_path, **given):
    options = {"audit": False, "progress": False, "precision": "float32"}
    return robusttrain.evaluate(model, *data, output=tmp_path, **options, **given)


@pytest.mark.parametrize("attack", ["fab-t", "fmn-linf", "nearest-linf", "hopskipjump"])
def test_what_steps_by_the_norm_alone_counts_inside_and_says_so(attack, data, tmp_path):
    """The nearest image of each lies 0.1 away, in the half that may not change."""
    inside = evaluated(Right(), data, tmp_path / "plain", attacks=attack, threat=Linf(0.3))
    assert inside.worst_case.accuracy == 0
    with pytest.warns(UserWarning, match=rf"{attack}: looks for .* LeftHalf\(epsilon=0.3\) throws"):
        own = evaluated(Right(), data, tmp_path / "own", attacks=attack, threat=LeftHalf(0.3))
    assert own.worst_case.accuracy == 1


def test_what_projects_each_step_reaches_what_the_ball_holds(data, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        own = evaluated(Both(), data, tmp_path, attacks=["pgd", "square"], threat=LeftHalf(0.3))
    for name in ("pgd", "square"):
        assert own.attacks[name].robust.accuracy == 0


def test_an_attack_that_leaves_such_a_ball_is_not_scored(data, tmp_path):
    @dataclass(frozen=True)
    class Careless(ProjectedGradient):
        def run(self, source, images, labels, rng):
            return Linf(self.threat.epsilon).project(1 - images, images)

    with pytest.raises(UserError, match=r"left its threat: LeftHalf\(epsilon=0.3\).project moves"):
        evaluated(Both(), data, tmp_path, attacks={"mine": Careless(threat=LeftHalf(0.3))})


def test_figures_name_the_ball(data, tmp_path):
    own = evaluated(Both(), data, tmp_path, attacks="pgd", threat=LeftHalf(0.3))
    threat = {"norm": "linf", "epsilon": 0.3, "ball": "LeftHalf(epsilon=0.3)"}
    assert own.json["threat"] == threat
    assert "linf, epsilon 0.3 of LeftHalf(epsilon=0.3)" in str(own)
    assert allowed(threat).endswith("per pixel, and only those that LeftHalf(epsilon=0.3) allows")
    assert described(Linf(0.3)) == {"norm": "linf", "epsilon": 0.3}


def test_two_balls_of_one_norm_and_radius_have_no_common_worst_case(data, tmp_path):
    attacks = {"half": ProjectedGradient(threat=LeftHalf(0.3)), "all": ProjectedGradient()}
    attacks["all"] = attacks["all"].within(Linf(0.3))
    with pytest.raises(UserError, match="of each ball, in a run of their own"):
        evaluated(Both(), data, tmp_path, attacks=attacks)


def test_a_wide_radius_of_such_a_ball_is_a_bound_all_the_same():
    assert boundless({"fmn": Linf(1)})
    assert boundless({"fmn": LeftHalf(1)}) == []


def test_projection_is_the_bound(images):
    x = images(3)
    moved = (x + 0.1).clamp(0, 1)
    assert not kept(LeftHalf(0.5), moved, x).any()
    held = into_ball(LeftHalf(0.5), moved, x)
    assert kept(LeftHalf(0.5), held, x).all()
    half = x.shape[3] // 2
    assert torch.equal(held[..., half:], x[..., half:])
    assert kept(Linf(0.05), moved, x).all()  # the distance tells
    assert {type(each) for each in (FAB(), FMN()) if each.by_norm} == {FAB, FMN}


def test_the_audit_does_not_ask_such_a_ball_for_a_grey_image(data, tmp_path):
    own = robusttrain.evaluate(
        *(Right(), *data),
        **{"attacks": "pgd", "threat": LeftHalf(0.3), "output": tmp_path},
        **{"progress": False, "precision": "float32"},
    )
    assert own.attacks["pgd"].robust.accuracy == 1
    assert "epsilon 0.5" not in {finding["check"] for finding in own.json["audit"]}
