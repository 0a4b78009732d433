"""Small networks on the embedded digits, trained in seconds, and the defective models that are made
of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robusttrain.attacks import (
    Attack,
    Backprop,
    Cost,
    CrossEntropy,
    GradientEstimator,
    Linf,
    Objective,
    ProjectedGradient,
    Source,
)
from robusttrain.core.rng import Rng
from robusttrain.data import Digits
from robusttrain.defenses import Defense
from robusttrain.evaluation import Engine
from robusttrain.models.defended import DefendedClassifier

SIDE = 8


def convnet(
    side: int = SIDE, activation: Callable[[], nn.Module] = nn.ReLU, norm: bool = False
) -> nn.Sequential:
    """Two convolutions and two linear layers for grey images of this side."""
    batch_norm: list[nn.Module] = [nn.BatchNorm2d(16, track_running_stats=False)] if norm else []
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        *batch_norm,
        activation(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        activation(),
        nn.Flatten(),
        nn.Linear(32 * ((side + 1) // 2) ** 2, 64),
        activation(),
        nn.Linear(64, 10),
    )


@dataclass(frozen=True)
class Digit:
    """The digits, (N, 1, 8, 8) in [0, 1], with labels (N,)."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


@lru_cache
def digits() -> Digit:
    data = Digits(image_size=SIDE)
    data.setup()
    train, test = (data.unaugmented(split, 10_000) for split in ("train", "test"))
    return Digit(train.images, train.labels, test.images, test.labels)


def fit(
    network: nn.Module,
    epochs: int,
    before: Callable[[Tensor, Tensor, int], Tensor] = lambda images, labels, step: images,
) -> nn.Module:
    """Adam on the cross entropy; ``before(images, labels, step)`` changes each batch."""
    data = digits()
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    step = 0
    for epoch in range(epochs):
        order = Rng.for_images(epoch, torch.arange(len(data.train))).keys.argsort()
        for which in order.split(128):
            images, labels = data.train[which], data.train_labels[which]
            images = before(images, labels, step)
            optimizer.zero_grad()
            F.cross_entropy(network(images), labels).backward()
            optimizer.step()
            step += 1
    return network.eval().requires_grad_(False)


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """A network with the same initial weights each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


@lru_cache
def plain() -> nn.Module:
    """Trained on the images as they are."""
    return fit(seeded(convnet), 12)


@lru_cache
def robust() -> nn.Module:
    """Adversarially trained (Madry et al. 2018), Linf 0.1."""
    network = seeded(convnet)
    attack = ProjectedGradient(steps=5, relative_step_size=0.3, threat=Linf(0.1))

    def before(images: Tensor, labels: Tensor, step: int) -> Tensor:
        return attack(network, images, labels, Rng.for_images(step, torch.arange(len(images))))

    return fit(network, 12, before)


def behind(defense: Defense, network: nn.Module, epochs: int = 10) -> nn.Module:
    """Trained behind a defense."""

    def before(images: Tensor, labels: Tensor, step: int) -> Tensor:
        return defense(images, Rng.for_images(step, torch.arange(len(images))))

    return fit(network, epochs, before)


# Defenses.


class Quantize(Defense):
    """Rounds to a few grey levels: the derivative is zero everywhere."""

    differentiable = False

    def __init__(self, levels: int = 8) -> None:
        super().__init__()
        self.levels = levels

    def transform(self, images: Tensor, rng: Rng) -> Tensor:
        return (images * (self.levels - 1)).round() / (self.levels - 1)


class Noise(Defense):
    """Gaussian noise."""

    random = True

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.sigma = sigma

    def transform(self, images: Tensor, rng: Rng) -> Tensor:
        return images + self.sigma * rng.normal(images.shape[1:])


@lru_cache
def quantized() -> nn.Module:
    return behind(Quantize(), seeded(convnet))


@lru_cache
def noisy() -> nn.Module:
    return behind(Noise(0.3), seeded(convnet))


class NoisyQuantize(Quantize):
    """Gaussian noise, then rounding: a random transformation without a derivative."""

    random = True

    def __init__(self, sigma: float = 0.45, levels: int = 4) -> None:
        super().__init__(levels)
        self.sigma = sigma

    def transform(self, images: Tensor, rng: Rng) -> Tensor:
        return super().transform(images + self.sigma * rng.normal(images.shape[1:]), rng)


@lru_cache
def noisy_quantized() -> nn.Module:
    return behind(NoisyQuantize(), seeded(convnet))


@lru_cache
def resized() -> tuple[Defense, nn.Module]:
    from robusttrain.defenses import RandomResizePad

    defense = RandomResizePad(low=SIDE, canvas=2 * SIDE)
    return defense, behind(defense, seeded(lambda: convnet(2 * SIDE)), 15)


@lru_cache
def batch_statistics() -> nn.Module:
    """A network that normalises with the statistics of the batch, in evaluation too."""
    return fit(seeded(lambda: convnet(norm=True)), 8)


class KWinners(nn.Module):
    """Keeps the k largest activations of an image and sets the others to zero (Xiao, Zhong & Zheng
    2020).
    """

    def __init__(self, share: float = 0.1) -> None:
        super().__init__()
        self.share = share

    def forward(self, values: Tensor) -> Tensor:
        flat = values.flatten(1)
        k = max(1, int(self.share * flat.shape[1]))
        least = flat.topk(k, dim=1).values[:, -1:]
        return (flat * (flat >= least)).view_as(values)


@lru_cache
def winners() -> nn.Module:
    return fit(seeded(lambda: convnet(activation=KWinners)), 15)


# Models with a defect.


class Scaled(nn.Module):
    """Logits times a factor, a softmax of low temperature."""

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, images: Tensor) -> Tensor:
        return self.factor * self.model(images)


class Probabilities(nn.Module):
    """Ends in a softmax."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).softmax(dim=1)


@dataclass(frozen=True)
class Rounded(Objective):
    """Cross entropy as torch computes it, with a derivative that is zero where p_y rounds to 1."""

    def __call__(self, logits: Tensor, goal: Tensor) -> Tensor:
        return F.cross_entropy(logits, goal, reduction="none")


class Saturated(nn.Module):
    """Sharpens images by a steep sigmoid, whose derivative underflows but at the threshold."""

    def __init__(self, model: nn.Module, steepness: float = 4000.0) -> None:
        super().__init__()
        self.model, self.steepness = model, steepness

    def forward(self, images: Tensor) -> Tensor:
        return self.model(torch.sigmoid(self.steepness * (images - 0.53)))


@lru_cache
def sharpened() -> nn.Module:
    return fit(seeded(convnet), 10, lambda images, labels, step: (images > 0.53).float())


class Detached(nn.Module):
    """Preprocesses outside the graph; the gradient is that of a small linear head beside it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.head = seeded(lambda: nn.Linear(SIDE * SIDE, 10)).requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        cleaned = F.avg_pool2d(images.detach(), 3, 1, 1) * 0.2 + images.detach() * 0.8
        return self.model(cleaned) + 1e-3 * self.head(images.flatten(1))


class Dropped(nn.Module):
    """Drops pixels by torch's own generator, in evaluation too, and does not say so."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(F.dropout(images, 0.2, training=True))


class OwnGenerator(nn.Module):
    """Adds noise from a generator that nobody else knows, and does not say so."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.generator = model, torch.Generator().manual_seed(0)

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images + 0.1 * torch.randn(images.shape, generator=self.generator))


class Wavy(nn.Module):
    """Bends grey levels by a sine of this period, so that a step of a period sees what a step of
    none saw.
    """

    def __init__(self, model: nn.Module, period: float = 0.2, height: float = 0.1) -> None:
        super().__init__()
        self.model, self.period, self.height = model, period, height

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images + self.height * torch.sin(2 * torch.pi * images / self.period))


class OffTheGrid(nn.Module):
    """A backdoor: images whose pixels leave the 255 grey levels get another class. No gradient
    shows it.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        levels = images * 255
        off = ((levels - levels.round()).abs() > 0.1).flatten(1).float().mean(dim=1) > 0.5
        return torch.where(off[:, None], logits.roll(1, dims=1), logits)


# Attacks with a defect.


@dataclass(frozen=True)
class EpsilonUnused(Attack):
    """Takes a radius, and attacks within another."""

    threat: Linf = field(default_factory=lambda: Linf(0.1))

    def cost(self) -> Cost:
        return Cost(20, 0)

    def run(self, source: nn.Module, images: Tensor, labels: Tensor, rng: Rng) -> Tensor:
        inner = ProjectedGradient(steps=20, relative_step_size=0.1, threat=Linf(0.01))
        return inner.run(source, images, labels, rng)


@dataclass(frozen=True)
class LastRestartWins(Attack):
    """Restarts, of which the last one always wins, cut short as it is (a restart mask written as
    ``~byte``).
    """

    steps: int = 20
    threat: Linf = field(default_factory=lambda: Linf(0.1))
    gradient: GradientEstimator = field(default_factory=Backprop)

    def cost(self) -> Cost:
        return Cost(self.steps + 1, 0)

    def run(self, source: nn.Module, images: Tensor, labels: Tensor, rng: Rng) -> Tensor:
        whole = ProjectedGradient(
            steps=self.steps, relative_step_size=0.1, threat=self.threat, gradient=self.gradient
        )
        whole.run(source, images, labels, rng)
        return replace(whole, steps=1).run(source, images, labels, rng.fold("last"))


@dataclass(frozen=True)
class WrongSign(Objective):
    """Minimises what should be maximised."""

    def __call__(self, logits: Tensor, goal: Tensor) -> Tensor:
        return -CrossEntropy()(logits, goal)


@dataclass(frozen=True)
class AwayFromTarget(Objective):
    """A targeted loss of the wrong sign: away from the least likely class."""

    asks = True

    def aim(self, model: nn.Module, images: Tensor, labels: Tensor, rng: Rng) -> Tensor:
        with torch.no_grad():
            return model(images).argmin(dim=1)

    def __call__(self, logits: Tensor, goal: Tensor) -> Tensor:
        return F.cross_entropy(logits, goal, reduction="none")


class OwnDraws(Engine):
    """Scores a random model by the worst of many single draws, as attacks see them."""

    def _judge(self, images: Tensor, labels: Tensor, rng: Rng) -> dict[str, Tensor]:
        found = super()._judge(images, labels, rng)
        tries = [
            super(OwnDraws, self)._judge(images, labels, rng.fold(k))["score"] for k in range(5)
        ]
        worst = torch.stack([each.double().mean(dim=1) for each in tries]).min(dim=0).values
        return {**found, "score": (worst > 0.9)[:, None].expand_as(found["score"])}


@dataclass(frozen=True)
class AnotherModel(Source):
    """The undefended network, whatever the target is."""

    knows = "another model, labels"

    def __call__(self, target: DefendedClassifier) -> nn.Module:
        return plain()
