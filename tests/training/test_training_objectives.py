"""Training objectives: against formulas by hand, and what they leave behind in the model."""

import pytest
import torch
import torch.nn.functional as F

from robusttrain.attacks import Backprop, IdentityBackward, KLDivergence, Linf, ProjectedGradient
from robusttrain.core.errors import OptionError
from robusttrain.defenses import AdversarialTransform, Chain, RandomResizePad
from robusttrain.models import VGGSmall
from robusttrain.models.defended import DefendedClassifier
from robusttrain.training import TRADES, Adversarial, Standard
from robusttrain.training.objectives import kl_divergence

LABELS = torch.tensor([0, 2, 1, 1])


def pgd(epsilon=0.1, **options):
    return ProjectedGradient(**{"steps": 3, "step_size": 0.05, "threat": Linf(epsilon), **options})


def gradients(loss, model):
    return torch.autograd.grad(loss.mean(), list(model.parameters()))


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_standard_is_cross_entropy(images, streams, linear, smoothing):
    model = DefendedClassifier(None, linear())
    losses, logits = Standard(smoothing)(model, images(), LABELS, streams())
    assert torch.equal(logits, model.classifier(images()))
    # By hand: (1 - s) of the weight on the label, s spread evenly over all three classes.
    log_p = logits.log_softmax(1)
    expected = -(1 - smoothing) * log_p[range(4), LABELS] - smoothing * log_p.mean(1)
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(
        losses.mean(), F.cross_entropy(logits, LABELS, label_smoothing=smoothing)
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_adversarial_training_at_epsilon_0_is_standard_training(
    images, streams, convnet, smoothing
):
    first, second = (DefendedClassifier(None, convnet()).train() for _ in range(2))
    torch.manual_seed(7)  # dropout
    expected = Standard(smoothing)(first, images(), LABELS, streams())
    torch.manual_seed(7)
    found = Adversarial(pgd(0.0), label_smoothing=smoothing)(second, images(), LABELS, streams())
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    for one, other in zip(gradients(found[0], second), gradients(expected[0], first), strict=True):
        assert torch.equal(one, other)


def test_adversarial_training_minimises_the_loss_on_adversarial_images(images, streams, linear):
    model = DefendedClassifier(None, linear())
    losses, _ = Adversarial(pgd(steps=1, step_size=1.0))(model, images(), LABELS, streams())
    # One step that is larger than the ball goes to a corner: along the sign of the gradient there
    # is nothing worse.
    start = pgd().threat.random_start(images(), streams().fold("inner attack").fold("start"))
    _, gradient = Backprop()(
        lambda x, rng: F.cross_entropy(model(x), LABELS, reduction="none"), start, streams()
    )
    expected = F.cross_entropy(model(images() + 0.1 * gradient.sign()), LABELS, reduction="none")
    torch.testing.assert_close(losses, expected)
    clean = F.cross_entropy(model(images()), LABELS, reduction="none")
    assert (losses > clean + 0.1).all()


class Notes(list):
    """A list that stays after an attack, which puts attributes back."""


class Spy(torch.nn.Module):
    """Tells in which mode it is run, and whether gradients are wanted of its weight."""

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm2d(3)
        self.head = torch.nn.Linear(3, 3)
        self.seen = Notes()

    def forward(self, images):
        self.seen.append((self.training, self.norm.training, self.head.weight.requires_grad))
        return self.head(self.norm(images).mean((2, 3)))


@pytest.mark.parametrize(
    ("objective", "crafting", "passes"),
    [(Adversarial(pgd()), 3, 1), (TRADES(1.0, pgd(objective=KLDivergence())), 4, 2)],
)
def test_batch_norm_rests_while_images_are_crafted(images, streams, objective, crafting, passes):
    model = DefendedClassifier(None, Spy()).train()
    losses, _ = objective(model, images(), LABELS, streams())
    evaluating, training = (False, False, False), (True, True, True)
    assert model.classifier.seen == [evaluating] * crafting + [training] * passes
    assert int(model.classifier.norm.num_batches_tracked) == passes
    assert all(module.training for module in model.modules())
    assert all(
        parameter.requires_grad and parameter.grad is None for parameter in model.parameters()
    )
    losses.mean().backward()
    assert model.classifier.head.weight.grad.abs().sum() > 0


def test_statistics_after_a_step_are_those_of_the_adversarial_images_alone(images, streams):
    model = DefendedClassifier(None, Spy()).train()
    attack = pgd()
    torch.manual_seed(0)
    adversarial = attack(model, images(), LABELS, streams().fold("inner attack"))
    Adversarial(attack)(model, images(), LABELS, streams())
    torch.testing.assert_close(
        model.classifier.norm.running_mean, 0.1 * adversarial.mean((0, 2, 3))
    )


def test_trades_with_beta_0_is_clean_cross_entropy(images, streams, linear):
    model = DefendedClassifier(None, linear())
    losses, logits = TRADES(0.0, pgd(objective=KLDivergence()))(model, images(), LABELS, streams())
    assert torch.equal(losses, F.cross_entropy(model(images()), LABELS, reduction="none"))
    assert torch.equal(logits, model(images()))


def test_trades_by_hand_on_a_linear_model(images, streams, linear):
    model, beta = DefendedClassifier(None, linear()), 6.0
    attack = pgd(objective=KLDivergence())
    losses, _ = TRADES(beta, attack)(model, images(), LABELS, streams())
    adversarial = attack(model, images(), LABELS, streams().fold("inner attack"))

    def by_hand(clean_held):
        clean, robust = (model.classifier(x).softmax(1) for x in (images(), adversarial))
        held = clean.detach() if clean_held else clean
        kl = (held * (held.log() - robust.log())).sum(1)
        assert (kl > 1e-4).all()
        return -clean[range(4), LABELS].log() + beta * kl

    torch.testing.assert_close(losses, by_hand(clean_held=False))
    # The gradient flows through the clean prediction too: with it held fixed, it would be another
    # one.
    found = gradients(losses, model)
    assert torch.allclose(found[0], gradients(by_hand(clean_held=False), model)[0], atol=1e-6)
    assert not torch.allclose(found[0], gradients(by_hand(clean_held=True), model)[0], rtol=1e-3)


@pytest.mark.parametrize("chained", [False, True])
def test_trades_shows_both_images_to_the_same_draws(images, streams, linear, chained):
    defense = RandomResizePad(low=4, canvas=8)
    model = DefendedClassifier(Chain([defense]) if chained else defense, linear())
    attack = ProjectedGradient(steps=0, step_size=1.0, random_start=False, objective=KLDivergence())
    losses, logits = TRADES(6.0, attack)(model, images(), LABELS, streams())
    # The attack returned the images themselves: only other draws could tell them apart.
    torch.testing.assert_close(losses, F.cross_entropy(logits, LABELS, reduction="none"))


def test_trades_refuses_an_attack_on_the_labels():
    with pytest.raises(
        OptionError, match="objective = 'CrossEntropy': TRADES maximises KLDivergence"
    ):
        TRADES(6.0, pgd())


@pytest.mark.parametrize(
    ("make", "option"),
    [
        (lambda: Standard(1.5), "label_smoothing"),
        (lambda: Adversarial(label_smoothing=-0.1), "label_smoothing"),
        (lambda: TRADES(-1.0), "beta"),
    ],
)
def test_errors_name_the_option(make, option):
    with pytest.raises(OptionError, match=f"^{option} = "):
        make()


def test_adversarial_training_through_g_reaches_f_a_alone(streams, convnet):
    torch.manual_seed(0)
    defense = AdversarialTransform(VGGSmall(num_classes=3, image_size=16), radius=0.1, steps=1)
    model = DefendedClassifier(defense, convnet()).train()
    f_b = {name: tensor.clone() for name, tensor in defense.state_dict().items()}
    x = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    losses, _ = Adversarial(pgd(), IdentityBackward())(model, x, LABELS, streams())
    losses.mean().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.classifier.parameters())
    assert {id(parameter) for parameter in model.parameters()} == {
        id(p) for p in model.classifier.parameters()
    }
    assert all(parameter.grad is None for parameter in defense.f_b.module.parameters())
    assert all(torch.equal(tensor, f_b[name]) for name, tensor in defense.state_dict().items())
    assert not any(module.training for module in defense.f_b.module.modules())
    with torch.no_grad():
        torch.manual_seed(0)
        clean, _ = Standard()(model, x, LABELS, streams())
    assert not torch.equal(losses, clean)


@pytest.mark.parametrize("absent", [-torch.inf, -1e4])
def test_a_class_of_probability_0_adds_nothing_to_the_divergence(absent):
    """Ruled out, or underflowed as on a sure model: value and both derivatives are those without
    that class, to 1e-6.
    """
    rng = torch.Generator().manual_seed(0)
    first, second = (torch.randn(6, 4, generator=rng).requires_grad_() for _ in range(2))
    column = torch.full((6, 1), absent)
    results = []
    for one, two in (
        (first, second),
        (torch.cat([first, column], 1), torch.cat([second, column], 1)),
    ):
        divergence = kl_divergence(one, two)
        slopes = torch.autograd.grad(divergence.sum(), (first, second))
        results.append((divergence.detach(), *slopes))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-6)


def test_small_divergences_survive_logits_in_bfloat16():
    """Rounded to bfloat16 on the way, most would be several times too large or too small, and some
    negative.
    """
    rng = torch.Generator().manual_seed(0)
    first = torch.randn(64, 10, generator=rng)
    second = first + 0.05 * torch.randn(64, 10, generator=rng)
    first, second = first.bfloat16(), second.bfloat16()
    torch.testing.assert_close(
        kl_divergence(first, second).double(),
        kl_divergence(first.double(), second.double()),
        rtol=0.01,
        atol=0,
    )
