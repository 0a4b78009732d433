"""Free adversarial training: algorithm 1 written out beside it."""

import pytest
import torch
import torch.nn.functional as F

from robusttrain.attacks import L2, IdentityBackward, Linf
from robusttrain.core.errors import OptionError
from robusttrain.defenses import RandomResizePad
from robusttrain.models.defended import DefendedClassifier
from robusttrain.training import Free

LABELS = torch.tensor([0, 2, 1, 1])


def test_algorithm_1_on_a_linear_model(images, streams, linear):
    """Two batches of three replays with a step each: delta and weights as in the paper's
    algorithm.
    """
    epsilon, rate = 0.1, 0.3
    ours, theirs = DefendedClassifier(None, linear()), linear()
    objective, optimizer = Free(3, Linf(epsilon)), torch.optim.SGD(ours.parameters(), lr=rate)
    delta = torch.zeros(4, 3, 8, 8)
    for batch in (images(seed=1), images(seed=2)):
        for _ in range(3):
            optimizer.zero_grad()
            losses, _ = objective(ours, batch, LABELS, streams())
            losses.mean().backward()
            optimizer.step()

            point = (batch + delta).clamp(0, 1).requires_grad_()
            loss = F.cross_entropy(theirs(point), LABELS)
            *weights, image = torch.autograd.grad(loss, [*theirs.parameters(), point])
            assert losses.mean().item() == pytest.approx(loss.item(), rel=1e-5)
            with torch.no_grad():
                for parameter, gradient in zip(theirs.parameters(), weights, strict=True):
                    parameter -= rate * gradient
            delta = (delta + epsilon * image.sign()).clamp(-epsilon, epsilon)
            assert torch.equal(objective.state()["delta"], delta)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    assert delta.abs().max() == epsilon


def test_delta_goes_into_checkpoints_and_starts_anew_where_it_does_not_fit(images, streams, linear):
    model, objective = DefendedClassifier(None, linear()), Free(2)
    objective(model, images(), LABELS, streams())[0].mean().backward()
    kept = objective.state()
    assert kept["delta"].abs().max() > 0
    other = Free(2)
    assert other == objective, "what is kept is no part of what it is"
    other.restore(kept)
    x = images()
    assert torch.equal(other.craft(model, x, LABELS, streams()), (x + kept["delta"]).clamp(0, 1))
    smaller = images(count=2)
    assert torch.equal(other.craft(model, smaller, LABELS[:2], streams(2)), smaller)


def test_validation_without_gradients_moves_nothing(images, streams, linear):
    model, objective = DefendedClassifier(None, linear()), Free(2)
    with torch.no_grad():
        losses, logits = objective(model, images(), LABELS, streams())
    torch.testing.assert_close(losses, F.cross_entropy(logits, LABELS, reduction="none"))
    assert objective.state()["delta"].abs().max() == 0


def test_through_a_defense_by_identity_backward(images, streams, linear):
    model = DefendedClassifier(RandomResizePad(low=4, canvas=8), linear())
    objective = Free(2, Linf(0.1), IdentityBackward())
    losses, logits = objective(model, images(), LABELS, streams())
    torch.testing.assert_close(logits, model(images(), streams()))
    losses.mean().backward()
    # Behind the identity, the gradient of each image is that of the linear model.
    error = logits.softmax(1) - F.one_hot(LABELS, 3)
    expected = 0.1 * (error @ model.classifier.weight).sign().view(4, 3, 8, 8)
    assert torch.equal(objective.state()["delta"], expected)


def test_what_the_guard_attacks_with_is_fgsm():
    attack = Free(4, Linf(0.05)).inner().attack
    assert (attack.steps, attack.alpha, attack.random_start, attack.threat) == (
        1,
        0.05,
        False,
        Linf(0.05),
    )
    assert Free(4).cost() == (0, 0, 1)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"replays": 0}, "replays"),
        ({"threat": L2(0.5)}, "threat"),
        ({"label_smoothing": 2.0}, "label_smoothing"),
    ],
)
def test_errors_name_the_option(options, name):
    with pytest.raises(OptionError, match=f"^{name} = "):
        Free(**options)
