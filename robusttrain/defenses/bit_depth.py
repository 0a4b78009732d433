"""Fewer grey levels [Xu et al. 2018, section III-A; Guo et al. 2018, section 4]."""

from __future__ import annotations

from torch import Tensor

from robusttrain.core.checked import checked
from robusttrain.core.errors import OptionError
from robusttrain.core.rng import Rng
from robusttrain.models.defense import Defense, differentiated_as


@checked
class BitDepth(Defense):
    """Rounds pixel values to the nearest of 2^bits levels from 0 to 1.

    Rounding has no useful derivative. Automatic differentiation gives the identity, so an attacker
    who differentiates naively gets BPDA-I.

    Args:
        bits: of each colour of a pixel, 1 to 8; 3 in Guo et al., 1 to 5 in Xu et al.
    """

    differentiable = False

    def __init__(self, bits: int = 3) -> None:
        super().__init__()
        if not 1 <= bits <= 8:
            raise OptionError("bits", bits, "must lie between 1 and 8")
        self.bits = bits

    def transform(self, images: Tensor, rng: Rng) -> Tensor:
        highest = 2**self.bits - 1
        rounded = (images.detach().clamp(0, 1) * highest).round() / highest
        return differentiated_as(rounded, images)
