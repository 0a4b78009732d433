"""Single steps that do not collapse: N-FGSM and GradAlign written out beside the paper's lines."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robusttrain.attacks import L2, Linf
from robusttrain.config.attacks import scenarios
from robusttrain.core.errors import OptionError
from robusttrain.models.defended import DefendedClassifier
from robusttrain.training import AWP, NFGSM, Adversarial, Free, GradAlign, Standard

LABELS = torch.tensor([0, 2, 1, 1])


def curved_network():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.Softplus(), nn.Linear(16, 3))
    return DefendedClassifier(None, network)


def gradient(model, points, create_graph=False):
    points = points.detach().requires_grad_()
    loss = F.cross_entropy(model(points), LABELS, reduction="sum")
    return torch.autograd.grad(loss, points, create_graph=create_graph)[0]


def test_n_fgsm_is_algorithm_1(images, streams):
    model, x, epsilon = curved_network(), images(), 0.05
    found = NFGSM(noise=2.0, step=1.5, threat=Linf(epsilon)).craft(model, x, LABELS, streams())
    eta = streams().fold("noise").uniform(x.shape[1:], -2 * epsilon, 2 * epsilon)
    start = (x + eta).clamp(0, 1)
    expected = (start + 1.5 * epsilon * gradient(model, start).sign()).clamp(0, 1)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert (found - x).abs().max() > 1.5 * epsilon, "what comes out is not projected"
    assert eta.abs().max() > 1.9 * epsilon


def test_n_fgsm_without_noise_is_fgsm(images, streams):
    model, x, threat = curved_network(), images(), Linf(0.05)
    found = NFGSM(noise=0.0, threat=threat).craft(model, x, LABELS, streams())
    torch.testing.assert_close(found, (x + 0.05 * gradient(model, x).sign()).clamp(0, 1))
    inner = NFGSM(threat=threat).inner()
    assert torch.equal(inner.attack(inner.source(model), x, LABELS, streams()), found)
    assert NFGSM().cost() == (1, 0, 1)


def test_alignment_by_hand(images, streams):
    model, x, epsilon = curved_network(), images(), 0.5
    objective = GradAlign(Standard(), weight=0.7, threat=Linf(epsilon))
    losses, logits = objective(model, x, LABELS, streams())
    eta = streams().fold("alignment").uniform(x.shape[1:], -epsilon, epsilon)
    here = gradient(model, x).flatten(1)
    near = gradient(model, (x + eta).clamp(0, 1), create_graph=True).flatten(1)
    apart = 1 - F.cosine_similarity(here, near)
    assert apart.min() > 1e-4
    expected = F.cross_entropy(model(x), LABELS, reduction="none") + 0.7 * apart
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(logits, model(x))
    weights = list(model.parameters())
    ours, theirs = (
        torch.autograd.grad(each.mean(), weights, retain_graph=True) for each in (losses, expected)
    )
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_the_ball_of_alignment_is_that_of_training():
    (attack,) = scenarios(["fgsm"], epsilon=0.062).values()
    assert GradAlign(Adversarial(attack.attack)).ball == Linf(0.062)
    assert GradAlign(Standard()).ball == Linf()


def test_a_linear_model_is_aligned(images, streams, linear):
    """With two classes the gradient points one way everywhere, so nothing is added."""
    model = DefendedClassifier(None, nn.Sequential(nn.Flatten(), nn.Linear(192, 2)))
    labels = LABELS.clamp(max=1)
    apart = GradAlign().misalignment(model, images(), labels, streams())
    torch.testing.assert_close(apart, torch.zeros(4), atol=1e-5, rtol=0)


def test_images_without_a_gradient_count_for_nothing(images, streams):
    model = DefendedClassifier(None, nn.Sequential(nn.Flatten(), nn.Linear(192, 3)))
    with torch.no_grad():
        model.classifier[1].weight.zero_()
    losses, _ = GradAlign(Standard())(model, images(), LABELS, streams())
    losses.mean().backward()
    assert torch.isfinite(losses).all()
    assert torch.isfinite(model.classifier[1].weight.grad).all()


def test_validation_takes_the_objective_alone_and_statistics_stay(images, streams):
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(192, 3))
    model = DefendedClassifier(None, network).train()
    objective = GradAlign(Standard())
    with torch.no_grad():
        losses, logits = objective(model, images(), LABELS, streams())
    torch.testing.assert_close(losses, F.cross_entropy(logits, LABELS, reduction="none"))
    seen = int(network[0].num_batches_tracked)
    objective(model, images(), LABELS, streams())
    assert int(network[0].num_batches_tracked) == seen + 1


def test_wrappers_go_around_it(images, streams):
    model = curved_network()
    objective = AWP(GradAlign(Adversarial(), 0.2))
    losses, _ = objective(model, images(), LABELS, streams())
    losses.mean().backward()
    assert objective.inner() == Adversarial().inner()
    assert GradAlign(Adversarial()).cost() == (12, 0, 2)


@pytest.mark.parametrize(
    ("make", "option"),
    [
        (lambda: NFGSM(noise=-1.0), "noise"),
        (lambda: NFGSM(step=0.0), "step"),
        (lambda: NFGSM(threat=L2(0.5)), "threat"),
        (lambda: GradAlign(weight=-0.1), "weight"),
        (lambda: GradAlign(threat=L2(0.5)), "threat"),
        (lambda: GradAlign(Free(4)), "objective"),
        (lambda: GradAlign(Adversarial(), threat=Linf(0.062)), r"threat\.epsilon"),
    ],
)
def test_errors_name_the_option(make, option):
    with pytest.raises(OptionError, match=f"^{option} = "):
        make()
