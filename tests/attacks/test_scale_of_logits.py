"""Attacks that divide by a gradient's length: what they find does not depend on the scale of
logits, also where squares of the gradient leave float32.
"""

import pytest
import torch
from torch import Tensor, nn

from robusttrain.attacks import (
    APGD,
    DDN,
    FAB,
    FMN,
    L2,
    Adam,
    CarliniWagner,
    DeepFool,
    Linf,
    Margin,
    MomentumNormalized,
    MomentumSign,
    NearestBoundary,
    Normalized,
    Optimization,
    ProjectedGradient,
    SuperDeepFool,
)
from robusttrain.attacks.parts.differentiation import of_order_one

WIDE, WIDE_LINF = L2(20.0), Linf(1.0)
ATTACKS = [
    DeepFool(threat=WIDE),
    SuperDeepFool(steps=2, threat=WIDE),
    FMN(steps=10, threat=WIDE),
    FMN(steps=10, threat=WIDE_LINF),
    NearestBoundary(steps=10, threat=WIDE),
    NearestBoundary(steps=10, threat=WIDE_LINF),
    FAB(steps=5, threat=WIDE),
    FAB(steps=5, threat=WIDE_LINF),
]


class Scaled(nn.Module):
    """Logits times a power of two, which is exact."""

    def __init__(self, model: nn.Module, exponent: int) -> None:
        super().__init__()
        self.model, self.factor = model, 2.0**exponent

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images) * self.factor


class Times(nn.Module):
    """Logits times any number."""

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images) * self.factor


class Rounded(nn.Module):
    """Logits that are rounded, as those of a model in bfloat16 or of whole numbers, with the
    derivative of those that are not.
    """

    def __init__(self, model: nn.Module, step: float) -> None:
        super().__init__()
        self.model, self.to = model, step

    def forward(self, images: Tensor) -> Tensor:
        exact = self.model(images)
        return exact + ((exact / self.to).round() * self.to - exact).detach()


NEAREST = [
    DDN(threat=WIDE),
    DeepFool(threat=WIDE),
    SuperDeepFool(threat=WIDE),
    FMN(threat=WIDE),
    FMN(threat=WIDE_LINF),
    NearestBoundary(threat=WIDE),
    NearestBoundary(threat=WIDE_LINF),
    FAB(steps=30, nearest=True, threat=WIDE),
    FAB(steps=30, threat=WIDE_LINF),
]


@pytest.mark.parametrize("attack", NEAREST, ids=lambda each: f"{type(each).__name__}-{each.threat}")
@pytest.mark.parametrize("step", [0.05, 0.2])
def test_a_region_in_which_two_rounded_logits_are_equal_stops_nobody(
    attack, step, linear, images, streams
):
    """The linearised boundary goes through every point of such a region: a step that ends there
    would be the last.
    """
    model, x = linear(classes=3), images(24)
    model.bias.data -= model.weight.data.sum(1) / 2
    rounded = Rounded(model, step)
    y, clear = rounded(x).argmax(1), Margin()(rounded(x), rounded(x).argmax(1)) < 0
    x, y = x[clear], y[clear]
    found = attack(rounded, x, y, streams(len(x)))
    assert (rounded(found).argmax(1) != y).all()


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda each: f"{type(each).__name__}-{each.threat}")
@pytest.mark.parametrize("exponent", [-100, 100])
def test_the_nearest_image_is_the_same_at_any_scale_of_logits(
    attack, exponent, linear, images, streams
):
    model, x = linear(classes=4), images()
    model.bias.data -= model.weight.data.sum(1) / 2
    y = model(x).argmax(1)
    plain = attack(model, x, y, streams())
    assert (model(plain).argmax(1) != y).any()
    torch.testing.assert_close(
        attack(Scaled(model, exponent), x, y, streams()), plain, rtol=0, atol=0
    )


def test_the_scale_of_cross_entropy_alone_turns_ddn(linear, images, streams):
    """Its direction is that of cross entropy, which is not blind to the scale: it still arrives."""
    model, x = linear(classes=4), images()
    y = model(x).argmax(1)
    found = DDN(steps=20, threat=WIDE)(Scaled(model, -100), x, y, streams())
    assert (model(found).argmax(1) != y).all()


@pytest.mark.parametrize("factor", [1e4, 1e6, 1e10, 1e30])
def test_ddn_has_a_direction_where_the_softmax_is_saturated(factor, linear, images, streams):
    """Cross entropy's own gradient rounds to zero there: every image stood."""
    model, x = linear(classes=4, seed=1), images()
    model.bias.data -= model.weight.data.sum(1) / 2
    y = model(x).argmax(1)
    plain = DDN(60, threat=WIDE)(model, x, y, streams())
    scaled = DDN(60, threat=WIDE)(Times(model, factor), x, y, streams())
    assert (model(plain).argmax(1) != y).all()
    assert (model(scaled).argmax(1) != y).all()
    assert (WIDE.distance(scaled, x) < 1.3 * WIDE.distance(plain, x)).all()


FOLLOWING = [
    ProjectedGradient(20, relative_step_size=0.1, threat=Linf(0.05)),
    ProjectedGradient(10, relative_step_size=0.25, threat=Linf(0.05), rule=MomentumSign(1.0)),
    ProjectedGradient(1, relative_step_size=1.0, random_start=False, threat=Linf(0.05)),
    ProjectedGradient(20, relative_step_size=0.1, threat=L2(0.4), rule=Normalized()),
    APGD(20, threat=Linf(0.05)),
    APGD(20, threat=L2(0.4)),
]


@pytest.mark.parametrize("attack", FOLLOWING, ids=lambda a: f"{type(a).__name__}-{a.threat}")
@pytest.mark.parametrize("exponent", [6, 12, 100])
def test_a_model_is_not_more_robust_for_larger_logits(attack, exponent, linear, images, streams):
    """Of two classes the direction of cross entropy is the same at any scale; where the softmax is
    saturated it rounded to zero, and every image stood.
    """
    model, x = linear(classes=2), images(24)
    model.bias.data -= model.weight.data.sum(1) / 2
    y = model(x).argmax(1)
    plain, found = (attack(each, x, y, streams(24)) for each in (model, Scaled(model, exponent)))
    fell = model(plain).argmax(1) != y
    assert fell.any()
    assert not fell.all()
    assert torch.equal(model(found).argmax(1) != y, fell)


def test_ddn_stays_in_the_box_of_numbers_without_any_gradient(images, streams):
    """No direction, and a radius that grew: infinity times zero made iterates of NaN."""
    asked = []

    def blind(points: Tensor) -> Tensor:
        asked.append(points.detach())
        return (
            torch.tensor([[2.0, 0.0]]).repeat(len(points), 1)
            + 0 * points.sum(dim=(1, 2, 3))[:, None]
        )

    x, y = images(), torch.zeros(4, dtype=torch.int64)
    assert torch.equal(DDN(60, threat=WIDE)(blind, x, y, streams()), x)
    assert all(points.isfinite().all() for points in asked)


class Ruled(nn.Module):
    """Classes that fall behind the likeliest by more than a number are ruled out."""

    def __init__(self, model: nn.Module, behind: float) -> None:
        super().__init__()
        self.model, self.behind = model, behind

    def forward(self, images: Tensor) -> Tensor:
        logits = self.model(images)
        most = logits.amax(dim=1, keepdim=True)
        return logits.masked_fill(logits < most - self.behind, -torch.inf)


@pytest.mark.parametrize("attack", [DDN(60, threat=WIDE), NearestBoundary(60, threat=WIDE)])
def test_a_true_class_with_a_logit_of_minus_infinity_is_lost(attack, linear, images, streams):
    """DDN's first step led there; infinity less infinity was no number, and no success."""
    model, x = linear(classes=2, seed=1), images()
    model.bias.data -= model.weight.data.sum(1) / 2
    logits = model(x).detach()
    y = logits.argmax(1)
    ruled = Ruled(model, float(1.2 * (logits.amax(1) - logits.amin(1)).max()))
    assert torch.equal(ruled(x), model(x))
    found = attack(ruled, x, y, streams())
    assert (model(found).argmax(1) != y).all()
    plain = attack(model, x, y, streams())
    assert (WIDE.distance(found, x) < 1.3 * WIDE.distance(plain, x)).all()


@pytest.mark.parametrize("factor", [1e4, 1e6, 1e10, 1e30])
def test_carlini_wagner_is_as_near_where_logits_are_huge(factor, linear, images, streams):
    """The least c that was tried was far too large: what came back lay up to eight times as far."""
    model, x = linear(classes=4, seed=1), images()
    model.bias.data -= model.weight.data.sum(1) / 2
    y = model(x).argmax(1)
    attack = CarliniWagner(60, 0.005, search_steps=9, initial_c=0.1, threat=WIDE)
    plain, found = (attack(each, x, y, streams()) for each in (model, Times(model, factor)))
    assert (model(found).argmax(1) != y).all()
    assert (WIDE.distance(found, x) < 1.05 * WIDE.distance(plain, x)).all()


@pytest.mark.parametrize("scale", [1.0, 3e38, 1e-38, 1e-44])
def test_a_power_of_two_divides_exactly(scale):
    gradient = torch.tensor([[1.0, -0.3], [0.25, 0.0]]).view(1, 1, 2, 2).repeat(2, 1, 1, 1) * scale
    gradient[1] = 0
    scaled, power = of_order_one(gradient)
    assert 1 <= float(scaled[0].abs().max()) < 2
    torch.testing.assert_close(scaled * power.view(-1, 1, 1, 1), gradient, rtol=0, atol=0)
    assert power[1] == 1


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_no_number_stays_none(value):
    scaled, power = of_order_one(torch.full((1, 1, 2, 2), value))
    assert power.tolist() == [1.0]
    assert not scaled.isfinite().any()


@pytest.mark.parametrize("exponent", [-30, -60, -100])
@pytest.mark.parametrize(
    "attack",
    [
        ProjectedGradient(10, threat=Linf(0.05), rule=Adam()),
        Optimization(10, 0.01, threat=Linf(0.05)),
        CarliniWagner(40, search_steps=5, threat=WIDE),
    ],
    ids=lambda each: type(each).__name__,
)
def test_adam_breaks_as_many_images_where_logits_are_faint(
    attack, exponent, linear, images, streams
):
    """1e-8 in Adam's divisor, and a c made for logits of order one, took no step here."""
    model, x = linear(classes=4), images(8)
    model.bias.data -= model.weight.data.sum(1) / 2
    y = model(x).argmax(1)
    plain, found = (attack(each, x, y, streams(8)) for each in (model, Scaled(model, exponent)))
    fooled = model(found).argmax(1) != y
    assert fooled.any()
    assert torch.equal(fooled, model(plain).argmax(1) != y)
    if isinstance(attack, CarliniWagner):
        assert (WIDE.distance(found, x) < 1.05 * WIDE.distance(plain, x)).all()


def test_momentum_has_a_length_for_gradients_of_any_size():
    """The sum of absolute values was infinite, and the step added nothing."""
    gradient = torch.tensor([[[[3.0, -1.0], [0.5, 2.0]]]])
    for rule in (MomentumSign(0.5), MomentumNormalized(0.5)):
        step, memory = rule.step(gradient, rule.init(gradient))
        for power in (126, -120):
            other, kept = rule.step(gradient * 2.0**power, rule.init(gradient))
            torch.testing.assert_close(kept, memory, rtol=0, atol=0)
            torch.testing.assert_close(other, step, rtol=0, atol=0)
