"""The same attacks of torchattacks and foolbox, on a small trained network: the same images."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robusttrain.attacks import L2, Linf, MomentumSign, Normalized, ProjectedGradient

EPSILON, ALPHA, STEPS = 0.06, 0.015, 7


@pytest.fixture(scope="module")
def trained():
    """A network that tells four coloured patterns apart, behind enough noise to be attackable; and test images."""
    rng = torch.Generator().manual_seed(0)
    patterns = torch.rand(4, 3, 8, 8, generator=rng)
    labels = torch.randint(4, (456,), generator=rng)
    noise = 0.3 * torch.randn(456, 3, 8, 8, generator=rng)
    images = (0.5 + 0.3 * (patterns[labels] - 0.5) + noise).clamp(0, 1)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.Tanh(),  # smooth: no gradient is exactly zero
        nn.Conv2d(8, 8, 3, stride=2, padding=1),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(128, 4),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(model(images[:256]), labels[:256]).backward()
        optimizer.step()
    model.eval().requires_grad_(False)
    images, labels = images[256:], labels[256:]
    assert (model(images).argmax(1) == labels).float().mean() > 0.85
    return model, images, labels


def ours(**options) -> ProjectedGradient:
    return ProjectedGradient(**{"random_start": False, "threat": Linf(EPSILON), "steps": STEPS} | options)


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    return (model(images).argmax(1) == labels).double().mean().item()


def same(one: Tensor, other: Tensor, tolerance: float, share: float = 1.0) -> None:
    """At most 1 - share of the pixels differ by more than the tolerance."""
    assert ((one - other).abs() <= tolerance).double().mean() >= share


def torchattacks_result(name: str, trained, **options) -> Tensor:
    torchattacks = pytest.importorskip("torchattacks")
    model, images, labels = trained
    return getattr(torchattacks, name)(model, eps=EPSILON, **options)(images, labels)


def foolbox_result(name: str, trained, epsilon: float = EPSILON, **options) -> Tensor:
    foolbox = pytest.importorskip("foolbox")
    model, images, labels = trained
    bounded = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    return getattr(foolbox.attacks, name)(**options)(bounded, images, labels, epsilons=epsilon)[1]


def test_fgsm_of_torchattacks(trained):
    result = ours(steps=1, relative_step_size=1.0)(*trained)
    same(result, torchattacks_result("FGSM", trained), 1e-6)


def test_fgsm_of_foolbox(trained):
    result = ours(steps=1, relative_step_size=1.0)(*trained)
    same(result, foolbox_result("LinfFastGradientAttack", trained, random_start=False), 1e-6)


def test_pgd_of_torchattacks(trained):
    result = ours(step_size=ALPHA)(*trained)
    assert accuracy(trained[0], result, trained[2]) < accuracy(*trained) - 0.1
    same(result, torchattacks_result("PGD", trained, alpha=ALPHA, steps=STEPS, random_start=False), 1e-5, 0.999)


def test_pgd_of_foolbox(trained):
    theirs = foolbox_result("LinfPGD", trained, abs_stepsize=ALPHA, steps=STEPS, random_start=False)
    same(ours(step_size=ALPHA)(*trained), theirs, 1e-5, 0.999)


@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_mifgsm_of_torchattacks(decay, trained):
    result = ours(step_size=ALPHA, rule=MomentumSign(decay))(*trained)
    same(result, torchattacks_result("MIFGSM", trained, alpha=ALPHA, steps=STEPS, decay=decay), 1e-5, 0.999)


@pytest.mark.parametrize("epsilon", [0.3, 1.0])
def test_l2_pgd_of_foolbox(epsilon, trained):
    """Clipping to the box ends each step of both, so the images agree also where the box is met."""
    result = ours(step_size=0.15, threat=L2(epsilon), rule=Normalized())(*trained)
    theirs = foolbox_result("L2PGD", trained, epsilon, abs_stepsize=0.15, steps=STEPS, random_start=False)
    assert accuracy(trained[0], result, trained[2]) < accuracy(*trained)
    same(result, theirs, 1e-4)


def test_robust_accuracy_with_a_random_start_is_the_same(trained):
    model, images, labels = trained
    torch.manual_seed(0)
    theirs = [
        torchattacks_result("PGD", trained, alpha=ALPHA, steps=20, random_start=True),
        foolbox_result("LinfPGD", trained, abs_stepsize=ALPHA, steps=20, random_start=True),
    ]
    found = accuracy(model, ours(step_size=ALPHA, steps=20, random_start=True)(model, images, labels), labels)
    assert 0.05 < found < accuracy(*trained) - 0.1
    for result in theirs:
        assert abs(found - accuracy(model, result, labels)) <= 0.01
