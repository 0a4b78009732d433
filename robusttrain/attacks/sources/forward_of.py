"""BPDA: forward through the true g, backward through another function (Athalye et al. 2018)."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from robusttrain.core.errors import UserError
from robusttrain.core.rng import Rng
from robusttrain.models.defense import Classify, Defense
from robusttrain.models.stepwise import differentiated_as


class ForwardOf(Defense):
    """g in value, another function of the image in derivative; votes go on as votes.

    Args:
        g: the true defense.
    """

    #: Whether the function is asked only where there is a gradient to compute.
    costs: bool = True

    def __init__(self, g: Defense) -> None:
        super().__init__()
        self.g, self.random, self.votes = g, g.random, g.votes

    @abstractmethod
    def backward(self, images: Tensor, rng: Rng) -> Tensor:
        """The function whose derivative is taken, with the streams that g has."""

    @abstractmethod
    def misfit(self, images: Tensor, transformed: Tensor, instead: Tensor) -> str:
        """What to say where the function gives images of another shape than g."""

    def forward(self, images: Tensor, rng: Rng | None = None) -> Tensor:
        rng = Rng.from_global(len(images), images.device) if rng is None else rng
        with torch.no_grad():
            transformed: Tensor = self.g(images, rng)
        return self._joined(transformed, images, rng)

    def transform(self, images: Tensor, rng: Rng) -> Tensor:
        return self(images, rng)

    def predict(self, classify: Classify, images: Tensor, rng: Rng | None = None) -> Tensor:
        rng = Rng.from_global(len(images), images.device) if rng is None else rng

        def behind(transformed: Tensor, streams: Rng | None) -> Tensor:
            copies = len(transformed) // max(1, len(images))
            several = images.repeat(copies, 1, 1, 1)
            return classify(self._joined(transformed.detach(), several, streams or rng), streams)

        return self.g.predict(behind, images.detach(), rng)

    def _joined(self, transformed: Tensor, images: Tensor, rng: Rng) -> Tensor:
        if self.costs and not (torch.is_grad_enabled() and images.requires_grad):
            return transformed
        instead = self.backward(images, rng)
        if instead.shape != transformed.shape:
            raise UserError(self.misfit(images, transformed, instead))
        return differentiated_as(transformed, instead)
