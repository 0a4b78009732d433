"""Whether a model that is seldom right was made for other pixel values than [0, 1]."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from scipy.stats import binomtest
from torch import Tensor, nn

from robusttrain.core.rng import Rng
from robusttrain.models.declared import answer, says_random
from robusttrain.models.normalize import Normalize

#: Means and standard deviations of ImageNet, as most weights for colour images expect them.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
Change = Callable[[Tensor], Tensor]
#: Images that it has to have right more often, of those where it is right one way and wrong the
#: other, by chance with this probability at most; and how much better it has to be.
LEVEL, BETTER = 0.001, 0.2


class Rescaled(nn.Module):
    """A classifier that is handed other pixel values; takes streams as that one may."""

    takes_rng = True

    def __init__(self, classifier: nn.Module, change: Change) -> None:
        super().__init__()
        self.classifier, self.change = classifier, change
        self.random = says_random(classifier)

    def forward(self, images: Tensor, rng: Rng | None = None) -> Tensor:
        return answer(self.classifier, self.change(images), rng)


def _imagenet(images: Tensor) -> Tensor:
    normalised: Tensor = Normalize(*IMAGENET).to(images.device)(images)
    return normalised


def ways(channels: int) -> dict[str, Change]:
    """What pixel values in [0, 1] may have to become, by what is said of it."""
    found: dict[str, Change] = {
        "from 0 to 255": lambda images: 255 * images,
        "from -1 to 1": lambda images: 2 * images - 1,
    }
    return found | ({"normalised as for ImageNet": _imagenet} if channels == 3 else {})


@dataclass(frozen=True)
class OtherValues:
    """The pixel values that suit a classifier best.

    Args:
        values: in words, a key of `ways`.
        accuracy: with these.
    """

    values: str
    accuracy: float

    @classmethod
    def of(cls, right: Tensor, otherwise: Mapping[str, Tensor]) -> OtherValues | None:
        """What other values explain, by images paired; None where none does.

        Args:
            right: (n,) bool, as it was.
            otherwise: (n,) bool, by key of `ways`.
        """
        if not otherwise:
            return None
        name, best = max(otherwise.items(), key=lambda each: int(each[1].sum()))
        gained, lost = int((best & ~right).sum()), int((right & ~best).sum())
        if gained - lost < BETTER * len(right):
            return None
        chance = binomtest(gained, gained + lost, alternative="greater").pvalue
        return cls(name, float(best.double().mean())) if chance <= LEVEL else None

    def line(self, accuracy: float) -> str:
        """What to say of a clean ``accuracy``."""
        return (
            f"clean accuracy is {100 * accuracy:.1f} %, and other pixel values explain it: with"
            f" values {self.values} it would be {100 * self.accuracy:.1f} %. Images here are floats"
            " in [0, 1]: the model has to bring them to its own values itself, in its first layer"
            " (docs/own-model.md)"
        )
