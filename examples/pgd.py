"""PGD on any module that takes images in [0, 1]: here a network that was trained a moment ago.

python examples/pgd.py
"""

import torch
from torch import nn

from robusttrain.attacks import Linf, ProjectedGradient
from robusttrain.data import Digits

torch.manual_seed(0)
data = Digits()  # grey digits of 16 x 16 pixels; nothing is downloaded
data.setup()
train, test = data.unaugmented("train", 1350), data.unaugmented("test", 200)

convolutions = nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.Conv2d(8, 16, 3, stride=2, padding=1)
model = nn.Sequential(
    *(convolutions[0], nn.ReLU(), convolutions[1], nn.ReLU()),
    *(nn.Flatten(), nn.Linear(16 * 4 * 4, 10)),
)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for _ in range(40):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(train.images), train.labels).backward()
    optimizer.step()


def right(images: torch.Tensor) -> str:
    """The share of the test images (B, 1, 16, 16) that the model classifies correctly."""
    with torch.no_grad():
        correct = model(images).argmax(dim=1) == test.labels
    return f"{100 * correct.float().mean().item():.1f} %"


print("no attack:", right(test.images))
for radius in (8, 16, 32):
    attack = ProjectedGradient(steps=20, relative_step_size=0.1, threat=Linf(radius / 255))
    print(f"PGD within {radius}/255:", right(attack(model, test.images, test.labels)))
