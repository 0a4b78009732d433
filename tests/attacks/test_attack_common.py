"""What every attack promises, whatever it is made of."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from robusttrain.attacks import (
    APGD,
    DLR,
    L2,
    Average,
    AwayFromPrediction,
    Backprop,
    CrossEntropy,
    Diverse,
    KLDivergence,
    Margin,
    MomentumSign,
    Normalized,
    Optimization,
    ProjectedGradient,
    Smooth,
    TargetedCrossEntropy,
    TargetedDLR,
    TargetedMargin,
)
from robusttrain.core.errors import UserError

ATTACKS = {
    "fgsm": ProjectedGradient(1, relative_step_size=1.0, random_start=False),
    "pgd": ProjectedGradient(4, relative_step_size=0.3),
    "pgd-l2": ProjectedGradient(4, step_size=0.2, threat=L2(0.5), rule=Normalized()),
    "eot": ProjectedGradient(2, step_size=0.01, gradient=Average(3), objective=Margin()),
    "smooth": ProjectedGradient(
        2, step_size=0.01, gradient=Smooth(3, inner=Average(2)), objective=DLR()
    ),
    "mdi": ProjectedGradient(3, step_size=0.01, gradient=Diverse(0.5, 0.6), rule=MomentumSign()),
    "kl": ProjectedGradient(2, step_size=0.01, objective=KLDivergence()),
    "away": ProjectedGradient(
        2, step_size=0.01, objective=AwayFromPrediction(), gradient=Average(2)
    ),
    "targeted": ProjectedGradient(2, step_size=0.01, objective=TargetedCrossEntropy("random")),
    "targeted-margin": ProjectedGradient(2, step_size=0.01, objective=TargetedMargin("second")),
    "apgd": APGD(4),
    "apgd-l2": APGD(4, threat=L2(0.5), objective=DLR()),
    "apgd-eot": APGD(3, gradient=Average(2), objective=TargetedDLR()),
    "apgd-smooth": APGD(3, gradient=Smooth(3, inner=Average(2)), random_start=False),
    "optimization": Optimization(3, 0.01),
    "optimization-eot": Optimization(
        2, 0.01, 0.5, gradient=Average(2), objective=TargetedCrossEntropy()
    ),
    "targeted-dlr": ProjectedGradient(
        2, step_size=0.01, objective=TargetedDLR(), gradient=Average(2)
    ),
}


@pytest.fixture(params=ATTACKS.values(), ids=ATTACKS.keys())
def attack(request):
    return request.param


def labels(count: int = 8) -> torch.Tensor:
    return torch.arange(count) % 3


def edges(count: int = 8) -> torch.Tensor:
    """Images with many pixels at 0 and 1."""
    return (2 * torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(3)) - 0.5).clamp(
        0, 1
    )


def test_results_lie_in_the_ball_and_in_the_box(attack, convnet, streams):
    x = edges()
    adversarial = attack(convnet(4), x, labels(), streams(8))
    assert adversarial.shape == x.shape
    assert adversarial.dtype == torch.float32
    assert not adversarial.requires_grad
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    assert attack.threat.distance(adversarial, x).max() <= attack.threat.epsilon + 1e-6
    assert (attack.threat.distance(adversarial, x) > 0).all()
    assert torch.equal(x, edges())


def test_one_seed_one_result(attack, curved, random_linear, images, streams):
    for model in (curved(), random_linear(4)):
        result = attack(model, images(8), labels(), streams(8))
        assert torch.equal(attack(model, images(8), labels(), streams(8)), result)
    torch.manual_seed(5)
    first = attack(model, images(8), labels())
    torch.manual_seed(5)
    assert torch.equal(attack(model, images(8), labels()), first)
    assert (
        not torch.equal(attack(model, images(8), labels(), streams(8, seed=1)), result)
        or not attack.random_start
    )


def test_an_image_is_attacked_alone_as_in_its_batch(attack, curved, random_linear, images, streams):
    for model in (curved(), random_linear(4)):
        whole, order = attack(model, images(8), labels(), streams(8)), torch.tensor([6, 0, 3])
        part = attack(model, images(8)[order], labels()[order], streams(8)[order])
        assert ((part - whole[order]).abs() < 1e-5).double().mean() > 0.999


def test_cost_is_what_the_model_sees(attack, curved, counting, images, streams):
    model = counting(curved())
    attack(model, images(8), labels(), streams(8))
    assert (model.gradients, model.queries) == tuple(8 * part for part in attack.cost())


def test_a_random_model_is_never_asked_twice_with_the_same_streams(
    attack, random_linear, counting, images, streams
):
    model = counting(random_linear(4))
    attack(model, images(8), labels(), streams(8))
    assert len(model.keys) == len(set(model.keys)) == model.gradients + model.queries


@pytest.mark.parametrize("around", [torch.inference_mode, torch.no_grad])
def test_it_works_where_gradients_are_switched_off(attack, around, convnet, images, streams):
    model = convnet(4)
    with around():
        result = attack(model, images(8), labels(), streams(8))
    assert torch.equal(result.clone(), attack(convnet(4), images(8), labels(), streams(8)))


def test_the_model_is_put_back_exactly_as_it_was(attack, convnet, images, streams):
    model = convnet(4).train()
    model[1].eval()  # a frozen batch norm
    model[1].weight.requires_grad_(False)
    model[3].weight.grad = torch.ones_like(model[3].weight)
    modes, wanted = (
        [part.training for part in model.modules()],
        [p.requires_grad for p in model.parameters()],
    )
    state, x, random = copy.deepcopy(model.state_dict()), images(8), torch.get_rng_state()
    attack(model, x, labels(), streams(8))
    assert [part.training for part in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [name for name, parameter in model.named_parameters() if parameter.grad is not None] == [
        "3.weight"
    ]
    assert (model[3].weight.grad == 1).all()
    assert torch.equal(torch.get_rng_state(), random)


def test_the_model_is_in_evaluation_mode_meanwhile(attack, convnet, images, streams):
    expected = attack(convnet(4), images(8), labels(), streams(8))
    assert torch.equal(attack(convnet(4).train(), images(8), labels(), streams(8)), expected)


@pytest.mark.parametrize("name", ["pgd", "eot", "apgd", "apgd-eot"])
def test_no_images_give_no_images(name, curved, images, streams):
    empty = ATTACKS[name](curved(), images(8)[:0], labels()[:0], streams(8)[:0])
    assert empty.shape == (0, 3, 8, 8)


WRONG = {
    "above 1": (lambda x: x * 1.5, lambda y: y, "values must lie in"),
    "below 0": (lambda x: x - 0.5, lambda y: y, "values must lie in"),
    "nan": (lambda x: x * float("nan"), lambda y: y, "some values are NaN"),
    "uint8": (lambda x: (255 * x).to(torch.uint8), lambda y: y, "expected floats"),
    "one image without a batch": (lambda x: x[0], lambda y: y, "expected floats"),
    "too few labels": (lambda x: x, lambda y: y[:-1], "one per image"),
    "one-hot labels": (lambda x: x, lambda y: nn.functional.one_hot(y), "one per image"),
}


@pytest.mark.parametrize(
    ("spoil_images", "spoil_labels", "words"), WRONG.values(), ids=WRONG.keys()
)
def test_wrong_input_is_one_line(spoil_images, spoil_labels, words, curved, images):
    with pytest.raises(UserError, match=words) as caught:
        ATTACKS["pgd"](curved(), spoil_images(images(8)), spoil_labels(labels()))
    assert "\n" not in str(caught.value)


class Detached(nn.Module):
    def forward(self, images):
        return images.detach().flatten(1)[:, :4]


def test_a_model_without_a_gradient_is_one_line_and_is_put_back(attack, images, streams):
    model = nn.Sequential(nn.Dropout(), Detached()).train()
    with pytest.raises(UserError, match="does not depend differentiably"):
        attack(model, images(8), labels(), streams(8))
    assert all(part.training for part in model.modules())


@pytest.mark.parametrize("objective", [DLR(), TargetedDLR()], ids=["DLR", "TargetedDLR"])
def test_too_few_classes_for_an_objective_is_one_line(objective, linear, images, streams):
    attack = ProjectedGradient(1, step_size=0.01, objective=objective)
    with pytest.raises(UserError, match="classes"):
        attack(linear(classes=2), images(8), labels() % 2, streams(8))


class Poisoned(nn.Module):
    """Its gradient is NaN for images with a black corner."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images):
        marked = (images[:, 0, 0, 0] == 0).view(-1, 1, 1, 1)
        return self.model(images * torch.where(marked, float("nan"), 1.0))


@pytest.mark.parametrize("name", ["fgsm", "pgd-l2", "mdi", "apgd", "apgd-l2"])
def test_an_image_with_a_nan_gradient_stays_an_image(name, curved, images, streams):
    attack = replace(
        ATTACKS[name], random_start=False, gradient=Backprop(), objective=CrossEntropy()
    )
    x = images(8)
    x[2, :, 0, 0] = 0
    result = attack(Poisoned(curved()), x, labels(), streams(8))
    assert result.isfinite().all()
    assert attack.threat.distance(result, x).max() <= attack.threat.epsilon + 1e-6
    others = torch.arange(8) != 2
    assert torch.equal(result[others], attack(curved(), x, labels(), streams(8))[others])
