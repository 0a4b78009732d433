"""Projected gradient ascent: closed forms on linear models, identities between the family, and
every field.
"""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from robusttrain.attacks import (
    DLR,
    L2,
    RMSD,
    Adam,
    Average,
    CrossEntropy,
    Diverse,
    Linf,
    Margin,
    MomentumSign,
    Normalized,
    ProjectedGradient,
    Restarts,
    Several,
    Sign,
    Smooth,
    TargetedCrossEntropy,
    TargetedMargin,
    UnitRMSD,
)
from robusttrain.attacks.parts.updates import STEEPEST
from robusttrain.core.errors import OptionError

FGSM = ProjectedGradient(steps=1, relative_step_size=1.0, random_start=False)
IFGSM = ProjectedGradient(steps=6, relative_step_size=0.3, random_start=False)
PGD_L2 = ProjectedGradient(
    steps=30, step_size=0.1, random_start=False, threat=L2(0.4), rule=Normalized()
)
LABELS = torch.tensor([0, 1, 0, 1])


def margins(model, images: Tensor, labels: Tensor) -> Tensor:
    return Margin()(model(images), labels).detach()


@pytest.mark.parametrize("objective", [CrossEntropy(), Margin()], ids=str)
@pytest.mark.parametrize("random_start", [False, True])
@pytest.mark.parametrize("attack", [FGSM, IFGSM, replace(PGD_L2, step_size=0.4, steps=1), PGD_L2])
def test_two_classes_linear_reach_the_best_point_of_the_ball(
    attack, random_start, objective, linear, images, streams
):
    """The margin rises by epsilon |w|_1 (Linf) or epsilon |w|_2 (L2), w the difference of the two
    rows.
    """
    model, x = linear(classes=2), images()
    steps = max(attack.steps, 10) if random_start else attack.steps
    attack = replace(attack, random_start=random_start, objective=objective, steps=steps)
    adversarial = attack(model, x, LABELS, streams())
    w = (model.weight[1 - LABELS] - model.weight[LABELS]).detach()
    if attack.threat.norm == "linf":
        best = x + attack.threat.epsilon * w.sign().view_as(x)
        rise = attack.threat.epsilon * w.abs().sum(dim=1)
    else:
        best = x + attack.threat.epsilon * (w / w.norm(dim=1, keepdim=True)).view_as(x)
        rise = attack.threat.epsilon * w.norm(dim=1)
    tolerance = 5e-3 if attack.threat.norm == "l2" and random_start else 1e-6
    torch.testing.assert_close(adversarial, best, rtol=0, atol=tolerance)
    gained = margins(model, adversarial, LABELS) - margins(model, x, LABELS)
    torch.testing.assert_close(gained, rise, rtol=1e-3, atol=1e-5)


def test_many_classes_linear_reach_the_best_margin(linear, images, streams):
    """The largest margin over the ball is the best of the pairs' closed forms; PGD on the margin
    gets there.
    """
    model, x, labels = linear(classes=5), images(8), torch.arange(8) % 5
    epsilon = 0.02
    gaps = (model.weight[None] - model.weight[labels][:, None]).detach()
    logits = model(x).detach()
    best = logits - logits.gather(1, labels[:, None]) + epsilon * gaps.abs().sum(dim=2)
    best = best.scatter(1, labels[:, None], -torch.inf).amax(dim=1)
    first = (
        (logits + epsilon * gaps.abs().sum(dim=2))
        .scatter(1, labels[:, None], -torch.inf)
        .argmax(dim=1)
    )
    leads = logits.scatter(1, labels[:, None], -torch.inf).argmax(dim=1) == first
    # Where the nearest wrong class is also the best one, ascent has no other summit to climb
    assert leads.sum() >= 4
    attack = ProjectedGradient(20, relative_step_size=0.2, threat=Linf(epsilon), objective=Margin())
    reached = margins(model, attack(model, x, labels, streams(8)), labels)
    torch.testing.assert_close(reached[leads], best[leads], rtol=1e-4, atol=1e-4)
    assert (reached <= best + 1e-4).all()


def test_the_box_is_respected_on_the_way(linear, streams):
    model, x = (
        linear(classes=2),
        torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)).round(),
    )
    adversarial = IFGSM(model, x, LABELS, streams())
    w = (model.weight[1 - LABELS] - model.weight[LABELS]).detach()
    expected = (x + 0.031 * w.sign().view_as(x)).clamp(0, 1)
    torch.testing.assert_close(adversarial, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (replace(IFGSM, rule=MomentumSign(0.0)), IFGSM),
        (
            replace(IFGSM, gradient=Diverse(0.0), rule=MomentumSign()),
            replace(IFGSM, rule=MomentumSign()),
        ),
        (
            replace(IFGSM, gradient=Diverse(1.0, 0.6), rule=MomentumSign(0.0)),
            replace(IFGSM, gradient=Diverse(1.0, 0.6)),
        ),
        (replace(IFGSM, steps=1, relative_step_size=1.0), FGSM),
        (replace(IFGSM, relative_step_size=None, step_size=0.3 * 0.031), IFGSM),
        (replace(IFGSM, gradient=Average(3)), IFGSM),
        (replace(IFGSM, gradient=Smooth(3, 0.0)), IFGSM),
        (replace(FGSM, gradient=Smooth(3, 0.0)), FGSM),
    ],
    ids=[
        "mifgsm(0)=ifgsm",
        "mdifgsm(p=0)=mifgsm",
        "mdifgsm(0)=difgsm",
        "ifgsm(1)=fgsm",
        "alpha",
        "eot",
        "nr-igsm(sigma=0)=igsm",
        "nr-fgsm(sigma=0)=fgsm",
    ],
)
def test_identities_of_the_family(one, other, curved, images, streams):
    results = [attack(curved(), images(), LABELS, streams()) for attack in (one, other)]
    assert (results[0] - images()).abs().max() > 0.02
    torch.testing.assert_close(*results, rtol=0, atol=1e-6)


@pytest.mark.parametrize("threat", [Linf(0), L2(0)], ids=str)
@pytest.mark.parametrize("random_start", [True, False])
def test_epsilon_zero_returns_the_images(threat, random_start, curved, images, streams):
    for size in ({"step_size": 0.1}, {"relative_step_size": 0.5}):
        options = {"threat": threat, "rule": STEEPEST[threat.norm]}
        attack = ProjectedGradient(3, **size, **options, random_start=random_start)
        assert torch.equal(attack(curved(), images(), LABELS, streams()), images())


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.4)], ids=str)
def test_no_steps_return_the_start(threat, curved, images, streams):
    rule = STEEPEST[threat.norm]
    attack = ProjectedGradient(0, step_size=0.1, threat=threat, random_start=False, rule=rule)
    result = attack(curved(), x := images(), LABELS, streams())
    assert torch.equal(result, x)
    assert result.data_ptr() != x.data_ptr()
    start = replace(attack, random_start=True)(curved(), x, LABELS, streams())
    assert (threat.distance(start, x) > 0.5 * threat.epsilon).all()


@pytest.mark.parametrize("attack", [IFGSM, PGD_L2], ids=["linf", "l2"])
def test_more_steps_are_never_weaker_on_a_linear_model(attack, linear, images, streams):
    model, reached = linear(classes=2), []
    for steps in (0, 1, 2, 3, 5, 10):
        adversarial = replace(attack, steps=steps, relative_step_size=None, step_size=0.008)(
            model, images(), LABELS, streams()
        )
        reached.append(margins(model, adversarial, LABELS))
    for fewer, more in pairwise(reached):
        assert (more >= fewer - 1e-5).all()
    assert (reached[-1] > reached[0] + 0.1).all()


@pytest.mark.parametrize(
    "objective", [TargetedMargin("random"), TargetedCrossEntropy("second")], ids=str
)
def test_targeted_attacks_end_at_their_target(objective, curved, images, streams):
    model, x = curved(), images()
    labels = model(x).argmax(1)
    attack = ProjectedGradient(30, relative_step_size=0.1, threat=Linf(0.3), objective=objective)
    goal = objective.aim(model, x, labels, streams().fold("aim"))
    assert torch.equal(model(attack(model, x, labels, streams())).argmax(1), goal)


PLAIN = ProjectedGradient(steps=4, relative_step_size=0.2)


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 2},
        {"relative_step_size": 0.3},
        {"relative_step_size": None, "step_size": 0.01},
        {"random_start": False},
        {"threat": Linf(0.05)},
        {"threat": L2(0.031), "rule": Normalized()},
        {"threat": Linf(0.031, clip=False)},
        {"objective": DLR()},
        {"objective": TargetedCrossEntropy()},
        {"gradient": Diverse(1.0, 0.6)},
        {"rule": MomentumSign()},
        {"rule": Adam()},
    ],
    ids=str,
)
def test_every_field_changes_the_outcome(change, curved, streams):
    x = (
        torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        .mul(1.2)
        .sub(0.1)
        .clamp(0, 1)
    )
    plain = PLAIN(curved(), x, LABELS, streams())
    assert (replace(PLAIN, **change)(curved(), x, LABELS, streams()) - plain).abs().max() > 1e-3


def test_the_step_size_is_given_once_or_is_madrys():
    assert ProjectedGradient(steps=10, threat=Linf(0.1)).alpha == pytest.approx(0.025)
    assert ProjectedGradient(step_size=0.01).alpha == 0.01
    assert ProjectedGradient(relative_step_size=0.5, threat=Linf(0.1)).alpha == pytest.approx(0.05)
    with pytest.raises(OptionError, match=r"^step_size = .*at most one"):
        ProjectedGradient(step_size=0.1, relative_step_size=0.1)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("steps", -1),
        ("step_size", 0.0),
        ("step_size", -1.0),
        ("relative_step_size", 0.0),
        ("step_size", float("nan")),
    ],
)
def test_impossible_options_are_named(option, value):
    with pytest.raises(OptionError, match=rf"^{option} = "):
        ProjectedGradient(
            **{"step_size": 0.1} | {option: value} if option == "steps" else {option: value}
        )


def test_the_parts_of_a_default_attack():
    attack = ProjectedGradient(step_size=0.01)
    assert (attack.steps, attack.random_start) == (10, True)
    assert (attack.threat, attack.objective, attack.rule) == (
        Linf(0.031),
        CrossEntropy(),
        Sign(),
    )


def test_steepest_ascent_is_that_of_the_threat():
    """Signs in an L2 ball, or unit lengths in a cube, would go nearly nowhere."""
    for threat, rule in ((Linf(0.1), Sign()), (L2(0.5), Normalized()), (RMSD(0.1), UnitRMSD())):
        attack = ProjectedGradient(3, threat=threat, rule=rule)
        assert attack.reach == pytest.approx(2.5 * threat.epsilon)
        for other in {Sign(), Normalized(), UnitRMSD()} - {rule}:
            with pytest.raises(OptionError, match=f"take {type(rule).__name__}"):
                replace(attack, rule=other)
    assert ProjectedGradient(threat=L2(0.5), rule=Adam()).reach is None


def test_how_far_steps_reach_is_known_of_momentum_and_wrappers():
    momentum = ProjectedGradient(4, 0.01, rule=MomentumSign(), threat=Linf(0.1))
    assert momentum.reach == pytest.approx(0.04)
    longer = replace(momentum, steps=6)
    assert Several([momentum, longer]).reach == pytest.approx(0.06)
    assert Restarts(momentum, 3).reach == pytest.approx(0.04)
    assert Several([momentum, replace(momentum, rule=Adam())]).reach is None


def test_of_a_norm_of_ones_own_nothing_is_said():
    class Own(Linf):
        norm = "mine"

    attack = ProjectedGradient(2, threat=Own(0.1))
    assert attack.reach is None
    assert attack.rule == Sign()
