"""Update rules: unit steps, memory, and gradients that must not poison it."""

from dataclasses import replace

import pytest
import torch

from robusttrain.attacks import (
    L2,
    RMSD,
    Adam,
    Linf,
    Margin,
    MomentumNormalized,
    MomentumSign,
    Normalized,
    ProjectedGradient,
    Sign,
    UnitRMSD,
)
from robusttrain.core.errors import OptionError

RULES = [
    *(Sign(), MomentumSign(0.0), MomentumSign(1.0), Normalized(), UnitRMSD()),
    *(MomentumNormalized(0.0), MomentumNormalized(1.0)),
]
ALL = [*RULES, Adam()]


def gradients(count: int = 4, seed: int = 0):
    return torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


def follow(rule, *steps):
    """The steps that a rule takes along a series of gradients."""
    state, taken = rule.init(steps[0]), []
    for gradient in steps:
        step, state = rule.step(gradient, state)
        taken.append(step)
    return taken


def test_sign():
    assert Sign().step(torch.tensor([[[[-2.0, 0.0, 1e-30]]]]), None)[0].tolist() == [[[[-1, 0, 1]]]]


def test_momentum_by_hand():
    one, two = torch.tensor([[[[3.0, -1.0]]]]), torch.tensor([[[[-1.0, 1.0]]]])
    # m_1 = (0.75, -0.25); m_2 = 0.5 m_1 + (-0.5, 0.5) = (-0.125, 0.375); with decay 1: (0.25, 0.25)
    assert [step.flatten().tolist() for step in follow(MomentumSign(0.5), one, two)] == [
        [1, -1],
        [-1, 1],
    ]
    assert [step.flatten().tolist() for step in follow(MomentumSign(1.0), one, two)] == [
        [1, -1],
        [1, 1],
    ]
    rule = MomentumSign(1.0)
    _, state = rule.step(one, rule.init(one))
    assert state.flatten().tolist() == [0.75, -0.25]


def test_momentum_in_l2_is_the_accumulated_gradient_over_its_length():
    """The memory is that of `MomentumSign`, m_2 = (-0.125, 0.375) and (0.25, 0.25) as above."""
    one, two = torch.tensor([[[[3.0, -1.0]]]]), torch.tensor([[[[-1.0, 1.0]]]])
    for decay, second in ((0.5, [-0.125, 0.375]), (1.0, [0.25, 0.25])):
        steps = follow(MomentumNormalized(decay), one, two)
        for step, memory in zip(steps, ([0.75, -0.25], second), strict=True):
            expected = torch.tensor(memory) / torch.tensor(memory).norm()
            torch.testing.assert_close(step.flatten(), expected)
    series = [gradients(seed=seed) for seed in range(4)]
    without, plainly = (follow(rule, *series) for rule in (MomentumNormalized(0.0), Normalized()))
    for momentum, plain in zip(without, plainly, strict=True):
        torch.testing.assert_close(momentum, plain)


def test_a_momentum_step_is_as_long_as_the_step_size_in_the_threats_norm(linear, images, streams):
    """Signs in L2 would be sqrt(192) times as long."""
    labels = torch.tensor([0, 1, 2, 0])
    for threat, rule in ((L2(9.0), MomentumNormalized()), (Linf(0.5), MomentumSign())):
        attack = ProjectedGradient(1, 0.05, random_start=False, threat=threat, rule=rule)
        x = 0.5 * torch.ones_like(images())
        moved = threat.distance(attack(linear(), x, labels, streams()), x)
        torch.testing.assert_close(moved, torch.full((4,), 0.05), rtol=1e-4, atol=0)
        other = {"l2": Linf(0.1), "linf": L2(0.4)}[threat.norm]
        with pytest.raises(OptionError, match=f"is momentum in {threat.norm}, .*: take Momentum"):
            replace(attack, threat=other)
        there = attack.within(other)
        assert type(there.rule) in {MomentumSign, MomentumNormalized} - {type(rule)}
        assert there.within(threat).rule == rule
        assert attack.reach == pytest.approx(0.05)
    slow = ProjectedGradient(rule=MomentumSign(0.3))
    assert slow.within(L2(0.5)).rule == MomentumNormalized(0.3)
    assert ProjectedGradient(rule=Sign()).within(L2(0.5)).rule == Normalized()
    assert ProjectedGradient(rule=Adam()).within(L2(0.5)).rule == Adam()
    # A sign has RMSD 1.
    assert ProjectedGradient(threat=RMSD(0.1), rule=MomentumSign()).within(L2(1.0)).rule == (
        MomentumNormalized()
    )


def test_momentum_without_decay_is_sign():
    series = [gradients(seed=seed) for seed in range(4)]
    for momentum, sign in zip(
        follow(MomentumSign(0.0), *series), follow(Sign(), *series), strict=True
    ):
        assert torch.equal(momentum, sign)


def test_momentum_does_not_depend_on_the_scale_of_a_gradient():
    series = [gradients(seed=seed) for seed in range(3)]
    scaled = [gradient * factor for gradient, factor in zip(series, (1e-6, 1e6, 3.0), strict=True)]
    for one, other in zip(
        follow(MomentumSign(1.0), *series), follow(MomentumSign(1.0), *scaled), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("poison", [0.0, float("nan"), float("inf")])
def test_one_bad_gradient_poisons_no_later_step_and_no_other_image(rule, poison):
    good = gradients()
    bad = gradients(seed=1)
    bad[1] = poison
    steps = follow(rule, good, bad, good)
    assert all(step.isfinite().all() for step in steps)
    expected = follow(rule, good, gradients(seed=1), good)
    others = torch.tensor([0, 2, 3])
    for step, plain in zip(steps, expected, strict=True):
        assert torch.equal(step[others], plain[others])
    # Image 1 moves on as if it had not happened
    assert torch.equal(steps[2][1], follow(rule, good, good)[1][1])


@pytest.mark.parametrize("rule", ALL, ids=str)
def test_one_nan_pixel_leaves_a_finite_step(rule):
    gradient = gradients()
    gradient[1, 0, 0, 0] = float("nan")
    step = follow(rule, gradient)[0]
    assert step.isfinite().all()


@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1e-3, 1.0, 1e15, 1e25])
def test_normalized_steps_have_unit_length_whatever_the_gradient(scale):
    step = follow(Normalized(), gradients() * scale)[0]
    torch.testing.assert_close(step.flatten(1).norm(dim=1), torch.ones(4), rtol=1e-4, atol=0)
    cosine = torch.cosine_similarity(step.flatten(1), gradients().flatten(1))
    torch.testing.assert_close(cosine, torch.ones(4), rtol=1e-5, atol=0)


@pytest.mark.parametrize("rule", ALL, ids=str)
def test_a_zero_gradient_is_no_step(rule):
    assert not follow(rule, torch.zeros(2, 3, 4, 4))[0].any()


@pytest.mark.parametrize("rule", ALL, ids=str)
def test_images_do_not_interact(rule):
    series = [gradients(seed=seed) for seed in range(3)]
    alone = follow(rule, *(gradient[2:3] for gradient in series))
    for whole, one in zip(follow(rule, *series), alone, strict=True):
        torch.testing.assert_close(whole[2:3], one, rtol=1e-6, atol=0)


def test_an_l2_attack_on_a_saturated_model_still_moves_by_its_step_size(linear, images, streams):
    """The margin's gradient is the weights themselves; tiny ones give the same steps as large
    ones.
    """
    labels, ends = torch.tensor([0, 1, 2, 0]), []
    for scale in (0.2, 0.2e-24):
        model = linear(scale=scale)
        attack = ProjectedGradient(
            steps=1,
            step_size=0.05,
            random_start=False,
            threat=L2(0.5),
            objective=Margin(),
            rule=Normalized(),
        )
        ends.append(attack(model, images(), labels, streams()))
    distances = [(end - images()).flatten(1).norm(dim=1) for end in ends]
    torch.testing.assert_close(distances[0], torch.full((4,), 0.05), rtol=1e-4, atol=0)
    torch.testing.assert_close(distances[1], distances[0], rtol=1e-4, atol=0)


@pytest.mark.parametrize("decay", [-0.1, float("nan")])
def test_impossible_decay_is_named(decay):
    for rule in (MomentumSign, MomentumNormalized):
        with pytest.raises(OptionError, match=r"^decay = "):
            rule(decay)


def test_unit_rmsd_is_the_normalized_gradient_of_root_mean_square_one():
    (step,) = follow(UnitRMSD(), gradients())
    torch.testing.assert_close(step.square().mean(dim=(1, 2, 3)), torch.ones(4))
    (unit,) = follow(Normalized(), gradients())
    torch.testing.assert_close(step, unit * 48**0.5)


def test_adam_is_that_of_torch():
    """Ten steps along gradients of very different sizes, and with other constants."""
    series = [gradients(seed=seed) * 10.0 ** (seed % 4 - 2) for seed in range(10)]
    for rule in (Adam(), Adam(beta1=0.5, beta2=0.9, tiny=1e-3)):
        x = torch.zeros(4, 3, 4, 4, requires_grad=True)
        theirs = torch.optim.Adam(
            [x], lr=1.0, betas=(rule.beta1, rule.beta2), eps=rule.tiny, maximize=True
        )
        for gradient in series:
            x.grad = gradient
            theirs.step()
        torch.testing.assert_close(sum(follow(rule, *series)), x.detach(), rtol=1e-4, atol=1e-5)
    assert not torch.equal(sum(follow(Adam(), *series)), sum(follow(rule, *series)))


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e30])
def test_adam_survives_one_bad_gradient(poison):
    good, bad = gradients(), gradients(seed=1)
    bad[1] = poison
    steps = follow(Adam(beta2=0.9), good, bad, *[good] * 1000)
    assert all(step.isfinite().all() for step in steps)
    torch.testing.assert_close(steps[-1], good.sign(), rtol=0, atol=1e-3)


def test_images_may_leave_adam():
    series, which = [gradients(seed=seed) for seed in range(4)], torch.tensor([2, 0])
    _, state = Adam().step(series[0], Adam().init(series[0]))
    state = state.keep(which)
    step, _ = Adam().step(series[1][which], state)
    assert torch.equal(step, follow(Adam(), *series)[1][which])


@pytest.mark.parametrize(
    ("option", "value"), [("beta1", -0.1), ("beta1", 1.0), ("beta2", 1.0), ("tiny", 0.0)]
)
def test_impossible_options_of_adam_are_named(option, value):
    with pytest.raises(OptionError, match=rf"^{option} = "):
        Adam(**{option: value})


def test_adam_follows_faint_gradients_as_it_follows_others():
    """Each step is about 1 for every pixel, however small the logits are; where gradients were
    faint at first alone, what is remembered of them is as small as it was.
    """
    series = [gradients(seed=seed) for seed in range(4)]
    plain = follow(Adam(), *series)
    faint = [follow(Adam(), *[each * 2.0**exponent for each in series]) for exponent in (-30, -60)]
    assert all(torch.equal(*steps) for steps in zip(*faint, strict=True))
    # 1e-8 beside the smallest of ordinary gradients
    torch.testing.assert_close(faint[0], plain, rtol=0, atol=1e-4)
    first, then = 2.0**-60 * series[0], [*series[1:]]
    mended = follow(Adam(), first, *then)
    assert mended[0].abs().min() > 0.9
    forgotten = follow(Adam(), torch.zeros_like(first), *then)
    torch.testing.assert_close(mended[1:], forgotten[1:], rtol=0, atol=1e-6)


def test_adam_scales_each_image_alone_and_none_that_is_not_faint():
    """One faint image leaves the others of its batch as they are, bit for bit."""
    series = [gradients(seed=seed) for seed in range(3)]
    factor = torch.tensor([1.0, 2.0**-40, 1e-5, 0.0]).view(-1, 1, 1, 1)
    mixed = follow(Adam(), *[each * factor for each in series])
    for step, together in enumerate(mixed):
        for image in range(4):
            alone = [(each * factor)[image : image + 1] for each in series]
            assert torch.equal(together[image : image + 1], follow(Adam(), *alone)[step])
    assert not mixed[0][3].any()
    # The third is as small as ordinary gradients are, and as Kingma & Ba have it.
    mean, square = 0.1 * series[0][2] * 1e-5, 0.001 * (series[0][2] * 1e-5).square()
    expected = (mean / 0.1) / ((square / 0.001).sqrt() + 1e-8)
    torch.testing.assert_close(mixed[0][2], expected, rtol=1e-4, atol=0)
