"""MART against its paper's formula, by hand."""

import math

import pytest
import torch

from robusttrain.attacks import (
    AwayFromPrediction,
    CrossEntropy,
    KLDivergence,
    Linf,
    Margin,
    ProjectedGradient,
)
from robusttrain.core.errors import OptionError
from robusttrain.models.defended import DefendedClassifier
from robusttrain.training import MART
from robusttrain.training.mart import boosted_cross_entropy

LABELS = torch.tensor([0, 2, 1, 1])


def pgd(objective):
    return ProjectedGradient(steps=3, step_size=0.05, threat=Linf(0.1), objective=objective)


def by_hand(clean, robust, weight):
    """Equations 8, 10 and 11 in probabilities, image by image."""
    losses = []
    for p, q, y in zip(clean.softmax(1), robust.softmax(1), LABELS.tolist(), strict=True):
        wrong = max(q[k] for k in range(len(q)) if k != y)
        divergence = sum(p[k] * (p[k] / q[k]).log() for k in range(len(q)))
        losses.append(-q[y].log() - (1 - wrong).log() + weight * divergence * (1 - p[y]))
    return torch.stack(losses)


@pytest.mark.parametrize("weight", [0.0, 5.0, 6.0])
def test_mart_by_hand_on_a_linear_model(images, streams, linear, weight):
    model, attack = DefendedClassifier(None, linear()), pgd(CrossEntropy())
    losses, logits = MART(weight, attack)(model, images(), LABELS, streams())
    adversarial = attack(model, images(), LABELS, streams().fold("inner attack"))
    clean = model(images())
    assert torch.equal(logits, clean)
    expected = by_hand(clean, model(adversarial), weight)
    torch.testing.assert_close(losses, expected)
    parameters = list(model.parameters())
    found, wanted = (
        torch.autograd.grad(values.mean(), parameters) for values in (losses, expected)
    )
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_the_margin_term_of_known_probabilities():
    p = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3]], dtype=torch.float64)
    found = boosted_cross_entropy(p.log(), torch.tensor([0, 2]))
    expected = -torch.tensor([0.7 * (1 - 0.2), 0.3 * (1 - 0.6)], dtype=torch.float64).log()
    torch.testing.assert_close(found, expected)


def test_logits_in_bfloat16_are_not_rounded_further():
    logits = torch.randn(500, 10, generator=torch.Generator().manual_seed(0))
    logits[:, 0] += 10
    labels = torch.zeros(500, dtype=torch.int64)
    short = logits.bfloat16()
    assert torch.equal(
        boosted_cross_entropy(short, labels), boosted_cross_entropy(short.float(), labels)
    )


def test_a_certain_mistake_has_a_finite_loss_and_a_gradient():
    # In probabilities, 1 - p_k would be exactly zero here.
    logits = torch.tensor([[0.0, 80.0, 0.0]], requires_grad=True)
    (loss,) = boosted_cross_entropy(logits, torch.tensor([0]))
    assert loss.item() == pytest.approx(80 + 80 - math.log(2), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient[0, 1].item() == pytest.approx(2, rel=1e-5)


@pytest.mark.parametrize("objective", [KLDivergence(), AwayFromPrediction()])
def test_an_attack_that_looks_at_no_labels_is_refused(objective):
    name = type(objective).__name__
    with pytest.raises(
        OptionError,
        match=f"^attack.objective = '{name}': .*give CrossEntropy, or take --training trades",
    ):
        MART(6.0, pgd(objective))
    MART(6.0, pgd(Margin()))


@pytest.mark.parametrize(
    ("options", "name"), [({"weight": -1.0}, "weight"), ({"batch_norm": "both"}, "batch_norm")]
)
def test_errors_name_the_option(options, name):
    with pytest.raises(OptionError, match=f"^{name} = "):
        MART(**options)
