"""Adversarial weight perturbation: the perturbation by hand, what it leaves in the model, and the
step that follows.
"""

import pytest
import torch
import torch.nn.functional as F

from robusttrain.attacks import IdentityBackward, KLDivergence, Linf, ProjectedGradient
from robusttrain.core.errors import OptionError
from robusttrain.defenses import AntiAdversary, Hedge
from robusttrain.models.defended import DefendedClassifier
from robusttrain.training import AWP, MART, TRADES, Adversarial, Free, GradAlign, Standard

LABELS = torch.tensor([0, 2, 1, 1])
PGD = ProjectedGradient(steps=2, step_size=0.05, threat=Linf(0.1))
TOWARDS_KL = ProjectedGradient(steps=2, step_size=0.05, threat=Linf(0.1), objective=KLDivergence())


def test_the_loss_at_the_perturbed_weights_of_a_linear_model(images, streams, linear):
    model, gamma = DefendedClassifier(None, linear()), 0.05
    losses, _ = AWP(Standard(), gamma)(model, images(), LABELS, streams())
    # By hand: grad_W CE = (p - onehot(y)) x^T, moved by gamma |W| along it; the bias stays.
    layer, x = model.classifier, images().flatten(1)
    error = model(images()).softmax(1) - F.one_hot(LABELS, 3)
    gradient = (error.T @ x / 4).detach()
    v = gamma * layer.weight.detach().norm() * gradient / gradient.norm()
    assert v.norm() == pytest.approx(gamma * float(layer.weight.detach().norm()), rel=1e-5)
    expected = F.cross_entropy(x @ (layer.weight + v).T + layer.bias, LABELS, reduction="none")
    torch.testing.assert_close(losses, expected)
    assert losses.mean() > F.cross_entropy(model(images()), LABELS)
    # The gradient that the weights get is that at w + v.
    for one, other in zip(
        torch.autograd.grad(losses.mean(), list(model.parameters())),
        torch.autograd.grad(expected.mean(), list(model.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("inner", [Adversarial(PGD), TRADES(6.0, TOWARDS_KL), MART(6.0, PGD)])
def test_around_any_objective(images, streams, convnet, inner):
    model = DefendedClassifier(None, convnet()).train()
    model.classifier[8].p = 0.0  # no dropout: the same function each time
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plain = inner(model, images(), LABELS, streams())[0].detach()
    after_plain = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(before)
    losses, _ = AWP(inner, 0.02)(model, images(), LABELS, streams())
    assert losses.mean() > plain.mean()
    # No weight has been written to; running statistics have moved as often as without, once a pass
    # of the loss.
    for name, tensor in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            assert torch.equal(tensor, after_plain[name]), name
        elif not name.endswith(("running_mean", "running_var")):
            assert torch.equal(tensor, before[name]), name
    first = model.classifier[1]
    assert first.track_running_stats
    losses.mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("search", [AntiAdversary, Hedge])
@pytest.mark.parametrize("inner", [Standard(), Adversarial(PGD, IdentityBackward())])
def test_behind_a_defense_that_asks_the_classifier(images, streams, convnet, search, inner):
    """The search meets w + v, which nobody can switch off the gradients of."""
    model = DefendedClassifier(search(), convnet()).train()
    losses, _ = AWP(inner, 0.02)(model, images(), LABELS, streams())
    losses.mean().backward()
    for parameter in model.parameters():
        assert parameter.grad.isfinite().all()
        assert parameter.requires_grad


def test_what_the_objective_inside_carries_and_refuses():
    inside = Free(replays=1)
    inside.restore({"delta": torch.ones(4, 3, 8, 8)})
    for outside in (AWP(inside), GradAlign(AWP(inside, warmup=10))):
        assert outside.state().keys() == {"delta"}
        outside.restore({"delta": torch.zeros(4, 3, 8, 8)})
        assert not inside.state()["delta"].any()
        inside.restore({"delta": torch.ones(4, 3, 8, 8)})
    assert GradAlign(AWP(Standard(), warmup=10)).warmup == 10
    asked = []

    class Looks(Standard):
        def check_images(self, model, images):
            asked.append(images)

    GradAlign(AWP(Looks())).check_images(None, torch.ones(1))
    assert len(asked) == 1


def test_each_layer_moves_by_its_own_norm_and_vectors_stay(images, streams, convnet):
    model, gamma = DefendedClassifier(None, convnet()), 0.02
    losses = F.cross_entropy(model(images()), LABELS, reduction="none")
    moved = AWP(Standard(), gamma).perturbed(model, losses)
    weights = dict(model.named_parameters())
    assert set(moved) == {name for name, weight in weights.items() if weight.dim() > 1}
    for name, weight in moved.items():
        change = (weight - weights[name]).norm().item()
        assert change == pytest.approx(gamma * weights[name].norm().item(), rel=1e-4), name


def test_a_step_of_sgd_starts_from_the_weights_themselves(images, streams, linear):
    """Weight decay and momentum see w; the released code's see w + v."""
    model = DefendedClassifier(None, linear())
    before = model.classifier.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.5)
    losses, _ = AWP(Standard(), 0.05)(model, images(), LABELS, streams())
    losses.mean().backward()
    gradient = model.classifier.weight.grad.clone()
    optimizer.step()
    torch.testing.assert_close(model.classifier.weight, before - 0.1 * (gradient + 0.5 * before))


def test_warm_up_and_what_it_costs():
    inner = TRADES(6.0, TOWARDS_KL)
    awp = AWP(inner, 0.005, warmup=2)
    assert [type(awp.at(epoch)) for epoch in range(4)] == [TRADES, TRADES, AWP, AWP]
    assert inner.cost() == (2, 1, 2)
    assert awp.cost() == (2, 1, 4)
    assert not AWP(MART()).takes_mixed_labels
    assert AWP(Standard()).takes_mixed_labels


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: AWP(gamma=0.0), "gamma"),
        (lambda: AWP(warmup=-1), "warmup"),
        (lambda: AWP(AWP()), "objective"),
        (lambda: AWP(Free()), "objective"),
    ],
)
def test_errors_name_the_option(make, name):
    with pytest.raises(OptionError, match=f"^{name} = "):
        make()
