"""Several defenses, one after the other."""

from __future__ import annotations

from torch import Tensor, nn

from robusttrain.core.errors import OptionError
from robusttrain.core.rng import Rng
from robusttrain.models.defense import Defense


class Chain(Defense):
    """g_n(...g_2(g_1(x))), each with streams of its own.

    Args:
        defenses: the defenses, the first one nearest to the image.
    """

    def __init__(self, defenses: list[Defense]) -> None:
        super().__init__()
        if not defenses:
            raise OptionError("defenses", [], "name at least one defense")
        self.defenses = nn.ModuleList(defenses)

    @property
    def random(self) -> bool:  # type: ignore[override]
        return any(defense.random for defense in self.defenses)

    @property
    def differentiable(self) -> bool:  # type: ignore[override]
        return all(defense.differentiable for defense in self.defenses)

    @property
    def gradients(self) -> int:  # type: ignore[override]
        return sum(defense.gradients for defense in self.defenses)  # type: ignore[misc]

    def transform(self, images: Tensor, rng: Rng) -> Tensor:
        for number, defense in enumerate(self.defenses):
            images = defense(images, rng.fold(number))
        return images
