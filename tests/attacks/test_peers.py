"""The same attacks of torchattacks and foolbox, on a small trained network: the same images."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robusttrain.attacks import (
    APGD,
    DLR,
    L2,
    CrossEntropy,
    Linf,
    MomentumSign,
    Normalized,
    ProjectedGradient,
    Square,
    TargetedDLR,
)
from robusttrain.core.rng import Rng

EPSILON, ALPHA, STEPS = 0.06, 0.015, 7


@pytest.fixture(scope="module")
def trained():
    """A network that tells four coloured patterns apart, behind enough noise to be attackable; and
    test images.
    """
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
    return ProjectedGradient(
        **{"random_start": False, "threat": Linf(EPSILON), "steps": STEPS} | options
    )


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
    same(
        result,
        torchattacks_result("PGD", trained, alpha=ALPHA, steps=STEPS, random_start=False),
        1e-5,
        0.999,
    )


def test_pgd_of_foolbox(trained):
    theirs = foolbox_result("LinfPGD", trained, abs_stepsize=ALPHA, steps=STEPS, random_start=False)
    same(ours(step_size=ALPHA)(*trained), theirs, 1e-5, 0.999)


@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_mifgsm_of_torchattacks(decay, trained):
    result = ours(step_size=ALPHA, rule=MomentumSign(decay))(*trained)
    same(
        result,
        torchattacks_result("MIFGSM", trained, alpha=ALPHA, steps=STEPS, decay=decay),
        1e-5,
        0.999,
    )


@pytest.mark.parametrize("epsilon", [0.3, 1.0])
def test_l2_pgd_of_foolbox(epsilon, trained):
    """Clipping to the box ends each step of both, so the images agree also where the box is met."""
    result = ours(step_size=0.15, threat=L2(epsilon), rule=Normalized())(*trained)
    theirs = foolbox_result(
        "L2PGD", trained, epsilon, abs_stepsize=0.15, steps=STEPS, random_start=False
    )
    assert accuracy(trained[0], result, trained[2]) < accuracy(*trained)
    same(result, theirs, 1e-4)


def test_robust_accuracy_with_a_random_start_is_the_same(trained):
    model, images, labels = trained
    torch.manual_seed(0)
    theirs = [
        torchattacks_result("PGD", trained, alpha=ALPHA, steps=20, random_start=True),
        foolbox_result("LinfPGD", trained, abs_stepsize=ALPHA, steps=20, random_start=True),
    ]
    found = accuracy(
        model, ours(step_size=ALPHA, steps=20, random_start=True)(model, images, labels), labels
    )
    assert 0.05 < found < accuracy(*trained) - 0.1
    for result in theirs:
        assert abs(found - accuracy(model, result, labels)) <= 0.01


BALLS = [("Linf", Linf(0.03)), ("L2", L2(0.3))]


@pytest.fixture(scope="module")
def right(trained):
    """The images that are classified correctly, as evaluations attack them, and streams for
    them.
    """
    model, images, labels = trained
    keep = model(images).argmax(1) == labels
    return model, images[keep], labels[keep], Rng.for_images(0, torch.arange(int(keep.sum())))


@pytest.mark.parametrize(("norm", "threat"), BALLS, ids=["linf", "l2"])
@pytest.mark.parametrize(
    ("name", "objective"), [("ce", CrossEntropy()), ("dlr", DLR())], ids=["ce", "dlr"]
)
def test_apgd_of_torchattacks(name, objective, norm, threat, right):
    torchattacks = pytest.importorskip("torchattacks")
    model, images, labels, rng = right
    theirs = torchattacks.APGD(model, norm=norm, eps=threat.epsilon, steps=30, loss=name)
    found = APGD(30, threat=threat, objective=objective)(model, images, labels, rng)
    accurate = accuracy(model, found, labels)
    assert 0.1 < accurate < 0.9
    assert abs(accurate - accuracy(model, theirs(images, labels), labels)) <= 0.01
    # DLR has no bound where three logits meet: a single image must not decide. Runs of theirs
    # differ by 0.005.
    torch.manual_seed(0)
    best = theirs.perturb(images, labels, best_loss=True)[1]
    reached, ours = (
        objective(model(points), labels).clamp_max(1).mean() for points in (best, found)
    )
    assert ours >= reached - 0.01


@pytest.mark.parametrize(("norm", "threat"), BALLS, ids=["linf", "l2"])
def test_targeted_apgd_of_torchattacks(norm, threat, right):
    torchattacks = pytest.importorskip("torchattacks")
    model, images, labels, rng = right
    theirs = torchattacks.APGDT(model, norm=norm, eps=threat.epsilon, steps=30, n_classes=4)(
        images, labels
    )
    found = APGD(30, threat=threat, objective=TargetedDLR(), targets=3)(model, images, labels, rng)
    assert abs(accuracy(model, found, labels) - accuracy(model, theirs, labels)) <= 0.01


@pytest.mark.parametrize(
    ("norm", "threat"), [("Linf", Linf(0.04)), ("L2", L2(0.4))], ids=["linf", "l2"]
)
def test_square_of_torchattacks(norm, threat, right):
    """Theirs moves all images' squares to the same place, and never to the last row or column: ours
    finds no fewer.
    """
    torchattacks = pytest.importorskip("torchattacks")
    model, images, labels, rng = right
    options = {"eps": threat.epsilon, "n_queries": 300, "resc_schedule": False}
    theirs = torchattacks.Square(model, norm=norm, **options)(images, labels)
    found = Square(300, threat=threat)(model, images, labels, rng)
    assert accuracy(model, found, labels) <= accuracy(model, theirs, labels) + 0.01
    assert accuracy(model, found, labels) < 0.85
