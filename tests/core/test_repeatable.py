"""In an evaluation TF32 is off and algorithms repeat; afterwards all is as before."""

import pytest
import torch

from robusttrain.attacks import Linf, ProjectedGradient, Target
from robusttrain.core.repeatable import repeatable
from robusttrain.evaluation import Engine, Scenario, verdicts


def switches():
    return (
        torch.backends.cudnn.allow_tf32,
        torch.backends.cuda.matmul.allow_tf32,
        not torch.backends.cudnn.deterministic,
    )


@pytest.fixture
def rounded():
    """As on a GPU where somebody asked for speed."""
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = convolutions.allow_tf32, products.allow_tf32, convolutions.deterministic
    convolutions.allow_tf32, products.allow_tf32, convolutions.deterministic = True, True, False
    yield
    convolutions.allow_tf32, products.allow_tf32, convolutions.deterministic = before


def test_it_is_off_within_and_as_before_afterwards(rounded):
    @repeatable()
    def failing():
        with repeatable():
            pass
        assert switches() == (False, False, False)
        raise KeyError

    with pytest.raises(KeyError):
        failing()
    assert switches() == (True, True, True)


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="torch has one switch each")
def test_the_newer_switch_is_heeded_too():
    """torch raises an error where somebody who has used one asks the other."""
    products = torch.backends.cuda.matmul
    before = products.fp32_precision
    products.fp32_precision = "tf32"
    try:
        with pytest.raises(RuntimeError):
            products.allow_tf32  # noqa: B018 - asking is what fails
        with repeatable():
            assert products.fp32_precision == "ieee"
            assert not torch.backends.cudnn.allow_tf32
        assert products.fp32_precision == "tf32"
    finally:
        products.fp32_precision = before


def test_every_pass_of_an_evaluation_is_in_full(rounded, linear, images, streams):
    seen = []
    model = linear()
    model.register_forward_hook(lambda *_: seen.append(switches()))
    x, y = images(4), torch.arange(4) % 3
    scenario = Scenario(ProjectedGradient(steps=2, threat=Linf(0.1)), Target())
    engine = Engine(model, {"pgd": scenario})
    for call in (
        lambda: engine.measure(x, y),
        lambda: engine.run(x, y, torch.arange(4)),
        lambda: engine.score(x, y, torch.arange(4)),
        lambda: scenario(model, x, y, streams(4)),
        lambda: verdicts(model, x, y, streams(4), 1),
    ):
        seen.clear()
        call()
        assert {*seen} == {(False, False, False)}
    assert switches() == (True, True, True)
