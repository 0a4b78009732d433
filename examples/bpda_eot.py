"""BPDA with EOT on f_a(g(x)), as section 4.1 of Xiao & Zheng (CVPR 2020) describes the attacker.

    python examples/bpda_eot.py

g turns an image into a strong adversarial example of another model, f_b. An attacker who overlooks
g runs PGD on f_a alone, and hopes that the result transfers. BPDA-I goes forward through g, and
back as if g were the identity. EOT takes the mean of that gradient over several draws of g. The
paper's attacker takes 50 steps and 500 draws, this one 20 and 5. Networks and images are few and
small: the figures show that the attacks work, and say nothing about the paper.
"""

import torch
from torch import nn

from robusttrain import DefendedClassifier, Rng
from robusttrain.attacks import (
    Average,
    ClassifierOnly,
    IdentityBackward,
    Linf,
    ProjectedGradient,
    Source,
)
from robusttrain.data import Digits
from robusttrain.defenses import AdversarialTransform

EPSILON = 0.06
torch.manual_seed(0)
data = Digits()
data.setup()
train, test = data.unaugmented("train", 1350), data.unaugmented("test", 50)
images, labels = test.images, test.labels
streams = Rng.for_images(0, test.indices)  # one random stream an image


def small(width: int) -> nn.Module:
    """Two convolutions and a linear layer: images (B, 1, 16, 16) to logits (B, 10)."""
    first = nn.Conv2d(1, width, 3, stride=2, padding=1)
    second = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
    last = nn.Linear(2 * width * 4 * 4, 10)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), last)


def fit(model: nn.Module, inner: ProjectedGradient | None = None, steps: int = 60) -> None:
    """Train a classifier on batches of 270 images, or on what an attack makes of them."""
    part = model.classifier if isinstance(model, DefendedClassifier) else model
    optimizer = torch.optim.Adam(part.parameters(), lr=5e-3)
    for step in range(steps):
        chosen = torch.arange(270) + 270 * (step % 5)
        x, y = train.images[chosen], train.labels[chosen]
        x = x if inner is None else inner(model, x, y)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


# f_b is adversarially trained; f_a is trained behind g, which searches on f_b.
f_b = small(8)
fit(f_b, inner=ProjectedGradient(steps=5, threat=Linf(EPSILON)))
g = AdversarialTransform(f_b, radius=0.2, steps=13)
target = DefendedClassifier(g, small(16))
fit(target)


def right(adversarial: torch.Tensor) -> str:
    """The share of correct answers over 10 draws of g that no attack has seen."""
    with torch.no_grad():
        draws = [target(adversarial, streams.fold("score").fold(n)) for n in range(10)]
    correct = torch.stack(draws).argmax(dim=2) == labels
    return f"{100 * correct.float().mean().item():.1f} %"


def attacked(source: Source, attack: ProjectedGradient) -> str:
    """What is right after an attack that differentiates ``source`` of the target."""
    return right(attack(source(target), images, labels, streams))


plain = ProjectedGradient(steps=20, threat=Linf(EPSILON))
eot = ProjectedGradient(steps=20, threat=Linf(EPSILON), gradient=Average(draws=5))

print("no attack:", right(images))
print("PGD on f_a alone:", attacked(ClassifierOnly(), plain))
print("BPDA-I, one draw of g a step:", attacked(IdentityBackward(), plain))
print("BPDA-I with EOT, 5 draws a step:", attacked(IdentityBackward(), eot))
