"""A defense of one's own in one file, and what the suite worst-case leaves of it.

    python examples/own_defense.py

`Quantise` rounds pixel values to a few levels. Rounding has no useful gradient, so PGD through it
finds nothing. The class says so (`differentiable = False`), and the suite then goes around the
rounding. The command line takes the defense from this file as well:

    python train.py --defense examples/own_defense.py:Quantise --defense.levels 3
    python evaluate.py --trust examples/own_defense.py --suite worst-case
"""

import torch
from torch import Tensor, nn

import robusttrain
from robusttrain import DefendedClassifier, OptionError, Rng
from robusttrain.attacks import Linf
from robusttrain.data import Digits
from robusttrain.defenses import Defense
from robusttrain.models import MLP


class Quantise(Defense):
    """Rounds pixel values to ``levels`` values.

    Args:
        levels: how many, at least 2.
    """

    random = False
    differentiable = False

    def __init__(self, levels: int = 4) -> None:
        super().__init__()
        if levels < 2:
            raise OptionError("levels", levels, "must be at least 2")
        self.levels = levels

    def transform(self, images: Tensor, rng: Rng) -> Tensor:
        return (images * (self.levels - 1)).round() / (self.levels - 1)


def main() -> None:
    """Train a small classifier behind the defense, and attack both together."""
    torch.manual_seed(0)
    data = Digits()
    data.setup()
    train, test = data.unaugmented("train", 1350), data.unaugmented("test", 20)
    model = DefendedClassifier(Quantise(), MLP(in_channels=1, image_size=16, width=64))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(train.images), train.labels).backward()
        optimizer.step()

    images, labels, threat = test.images, test.labels, Linf(32 / 255)
    naive = robusttrain.evaluate(
        model, images, labels, attacks="pgd", threat=threat, audit=False, progress=False
    )
    honest = robusttrain.evaluate(
        model, images, labels, suite="worst-case", threat=threat, audit=False, progress=False
    )
    print("no attack:", naive.clean)
    print("PGD through the rounding:", naive.attacks["pgd"].robust)
    print("worst case of the suite:", honest.worst_case)
    for name, figures in honest.attacks.items():
        if figures.robust.accuracy is not None:  # an earlier attack may have left no image
            print(f"  {figures.robust} of the images that reached {name}")


if __name__ == "__main__":
    main()
