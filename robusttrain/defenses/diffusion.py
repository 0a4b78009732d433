"""DiffPure: noise, then a diffusion model that takes it out again [Nie et al. 2022]."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor

from robusttrain.core.checked import Count, checked
from robusttrain.core.errors import OptionError
from robusttrain.core.rng import Rng
from robusttrain.models.defense import Defense
from robusttrain.models.foreign import load_weights
from robusttrain.models.frozen import Frozen
from robusttrain.models.noise_predictor import NoisePredictor

Sampler = Literal["ancestral", "ddim"]


@checked
class Diffusion(Defense):
    """g(x): forward to noise level t* at once, and back to 0 in steps of the reverse process.

        x_t* = sqrt(a_t*) x + sqrt(1 - a_t*) z                                             [eq. 4]
        x_s  = sqrt(a_s) x_0(x_t) + sqrt(1 - a_s - sigma^2) e(x_t, t) + sigma z,   s < t,

    with e the model's noise, x_0(x_t) = (x_t - sqrt(1 - a_t) e(x_t, t)) / sqrt(a_t) the image that
    follows from it, z standard normal, a_t the share of the image at level t
    (`robusttrain.models.noise_predictor`), and [Song et al. 2021, eq. 12 and 16]

        sigma = sqrt((1 - a_s) / (1 - a_t)) sqrt(1 - a_t / a_s)  "ancestral" (DDPM, Ho et al. 2020),
        sigma = 0                                                "ddim".

    Images in [0, 1] are scaled to [-1, 1] for the model, and back; the result is not clipped. All
    noise comes from the streams of the image, one for each step. Automatic differentiation goes
    through all steps, and gives the gradient of what they compute; `ThroughDefense` gives the same
    in the memory of one step.

    Args:
        model: predicts noise. The defense takes it over: it is in evaluation mode and frozen from
            then on.
        weights: file with its weights; None for the weights that ``model`` has.
        t_star: t* as a share of all levels T; 0.1 in the paper against 8/255 on CIFAR-10.
        steps: from t* down to 0, of equal length up to rounding; None for one a level, as in the
            paper.
        sampler: "ancestral", or "ddim", which draws nothing after x_t*.
        weights_which: which of several weights in the file, as ``which`` of `load_weights`.
    """

    random = iterative = stepwise = True
    trained_by = "diffusion"

    def __init__(
        self,
        model: NoisePredictor,
        weights: str | None = None,
        t_star: float = 0.1,
        steps: Count | None = None,
        sampler: Sampler = "ancestral",
        weights_which: str | None = None,
    ) -> None:
        super().__init__()
        if not 0 < t_star <= 1:
            raise OptionError("t_star", t_star, "must be greater than 0 and at most 1")
        self.start = max(1, round(t_star * model.levels))
        self.steps = self._fitting(self.start if steps is None else steps)
        self.sampler: Sampler = sampler
        if weights is not None:
            load_weights(model, weights, weights_which)
        self.network = Frozen(model)

    def _fitting(self, steps: int) -> int:
        if not 1 <= steps <= self.start:
            raise OptionError("steps", steps, f"must lie between 1 and t* = {self.start} levels")
        return steps

    def with_steps(self, steps: int) -> Diffusion:
        """The same purification, by the same model, in another number of steps."""
        twin = copy.copy(self)
        twin.steps = self._fitting(steps)
        return twin

    @property
    def levels(self) -> list[int]:
        """Where the steps begin and end: t* = levels[0] > ... > levels[-1] = 0."""
        return [round(self.start * left / self.steps) for left in range(self.steps, -1, -1)]

    def transform(self, images: Tensor, rng: Rng) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            image = 2 * images.float() - 1
            a = self._model.signal[self.start]
            noise = rng.fold("noise").normal(image.shape[1:])
            state = a.sqrt() * image + (1 - a).sqrt() * noise
            state = self.loop(self._step, state, self.steps, rng)
            return ((state + 1) / 2).to(images.dtype)

    def _step(self, state: Tensor, number: int, rng: Rng) -> Tensor:
        """x_s of x_t, (B, C, H, W) each, for t and s of step ``number``."""
        t, s = self.levels[number : number + 2]
        a_t, a_s = self._model.signal[t], self._model.signal[s]
        level = torch.full((len(state),), t, device=state.device)
        noise = self._model(state, level)
        image = (state - (1 - a_t).sqrt() * noise) / a_t.sqrt()
        if self.sampler == "ddim" or s == 0:  # sigma is 0
            return a_s.sqrt() * image + (1 - a_s).sqrt() * noise
        sigma = ((1 - a_s) / (1 - a_t) * (1 - a_t / a_s)).sqrt()
        ahead = a_s.sqrt() * image + (1 - a_s - sigma**2).sqrt() * noise
        return ahead + sigma * rng.normal(state.shape[1:])

    @property
    def _model(self) -> NoisePredictor:
        model = self.network.module
        assert isinstance(model, NoisePredictor)
        return model
