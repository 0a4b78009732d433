"""The choice of a precision: measured, and only where rounding leaves an attack as strong."""

import pytest
import torch
from torch import nn

from robusttrain.attacks import FiniteDifference, ProjectedGradient
from robusttrain.config.attacks import scenarios
from robusttrain.evaluation import precision
from robusttrain.evaluation.precision import (
    Speeds,
    asked_for,
    choose,
    measure_speeds,
    weakened,
)


@pytest.mark.parametrize(
    ("float32", "bfloat16", "faster"),
    [(1.0, 0.5, "bfloat16"), (1.0, 0.9, "float32"), (1.0, 1.0, "float32"), (1.0, 19.0, "float32")],
)
def test_a_small_gain_is_not_worth_its_rounding(float32, bfloat16, faster):
    assert Speeds(float32, bfloat16).better == faster


def test_gradients_that_rounding_turns_are_not_followed():
    assert Speeds(1.0, 0.5, 0.96).better == "bfloat16"
    little = "bfloat16 takes 0.89 times as long as in float32 here, too little for its rounding, at"
    assert little in str(Speeds(1.0, 0.89, 1.0))
    assert "too little" not in str(Speeds(1.0, 0.5, 1.0)) + str(Speeds(1.0, 2.0, 1.0))
    assert Speeds(1.0, 0.5, 0.8).better == "float32"


def test_attacks_that_compare_losses_or_distances_stay_in_float32():
    names = ["pgd", "bpda-eot", "mdifgsm", "wt-mean-start", "pgd-restarts"]
    exact = [
        "apgd-ce",
        "square",
        "hopskipjump",
        "cw",
        "deepfool",
        "ddn",
        "fmn-linf",
        "superdeepfool",
        "fab-t",
        "autoattack",
        "finite-differences",
        "genattack",
    ]
    found = choose(scenarios([*names, *exact]), "bfloat16")
    assert found == dict.fromkeys(names, "bfloat16") | dict.fromkeys(exact, "float32")
    assert set(choose(scenarios([*names, *exact]), "float32").values()) == {"float32"}
    assert not ProjectedGradient(step_size=0.01, gradient=FiniteDifference()).rounds_well


def test_who_differentiates_nothing_asks_in_float32_whatever_was_asked_for():
    names = ["pgd", "apgd-ce", "autoattack", "square", "genattack", "hopskipjump", "random-noise"]
    found = asked_for("bfloat16", scenarios([*names, "finite-differences"]))
    assert [name for name, kind in found.items() if kind == "bfloat16"] == names[:3]
    assert weakened(found, scenarios([*found])) == names[1:3]
    assert not weakened(asked_for("float32", scenarios(names)), scenarios(names))


def test_both_precisions_are_timed_and_the_model_is_left_alone(convnet, images, monkeypatch):
    model, asked = convnet().train(), []

    def seconds_of(call, device, rounds):
        call()
        asked.append(rounds)
        return 1.0

    monkeypatch.setattr(precision, "seconds_of", seconds_of)
    before, state = [value.clone() for value in model.state_dict().values()], torch.get_rng_state()
    assert measure_speeds(model, images(20)) == Speeds(1.0, 1.0, pytest.approx(1, abs=0.05))
    assert asked == [1, 1, 3, 3]  # a first look, then the measurement
    assert all(map(torch.equal, before, model.state_dict().values()))
    assert torch.equal(state, torch.get_rng_state())
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_where_bfloat16_is_very_slow_one_look_suffices(convnet, images, monkeypatch):
    answers = iter([1.0, 19.0])
    monkeypatch.setattr(precision, "seconds_of", lambda call, device, rounds: next(answers))
    assert measure_speeds(convnet(), images(20)).better == "float32"


def test_a_model_without_a_gradient_can_be_timed(images):
    class Steps(nn.Module):
        def forward(self, x):
            return (x > 0.5).float().mean((2, 3))

    assert measure_speeds(Steps(), images()).float32 > 0


@pytest.mark.parametrize("factor", [1e-6, 1.0, 1e3])
def test_a_network_that_is_sure_or_faint_has_a_direction_to_compare(factor, convnet, images):
    """A gradient below 1e-8 had a cosine of 0, and bfloat16 was never taken."""

    class Times(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = convnet()

        def forward(self, x):
            return self.model(x) * factor

    assert measure_speeds(Times(), images(4)).cosine > 0.9
