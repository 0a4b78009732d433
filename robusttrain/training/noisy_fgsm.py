"""Single-step adversarial training from strong noise: N-FGSM (de Jorge et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from robusttrain.attacks import Linf, ProjectedGradient, Source, Target
from robusttrain.core.checked import NonNegative, Positive, Share, checked
from robusttrain.core.errors import OptionError
from robusttrain.core.rng import Rng
from robusttrain.evaluation import Scenario
from robusttrain.models.defended import DefendedClassifier
from robusttrain.training.crafting import BatchNormMode, craft
from robusttrain.training.objectives import Adversarial, TrainingObjective


@checked
@dataclass(frozen=True)
class NFGSM(TrainingObjective):
    """CE(f(x + eta + alpha sign(grad CE(f(x + eta)))), y), eta uniform in [-k epsilon, k epsilon]
    (de Jorge et al. 2022, algorithm 1).

    The noise is wider than the ball, and what comes out is not projected onto the ball: both keep
    single-step training from learning its own step (catastrophic overfitting), at the cost of FGSM.
    As in the released code, x + eta and the result stay in [0, 1].

    Args:
        noise: k; 2 in the paper at 8/255 on CIFAR-10, 0 is FGSM.
        step: alpha / epsilon; 1 in the paper.
        threat: its epsilon, in the norm Linf.
        source: what the gradient is taken through; IdentityBackward to train through a defense.
        label_smoothing: share of the target distribution that is spread over all classes.
        batch_norm: batch norm's mode while the images are crafted, "train" (as the released code)
            or "eval"; for the loss the mode is always "train".
    """

    noise: NonNegative = 2.0
    step: Positive = 1.0
    threat: Linf = field(default_factory=Linf)
    source: Source = field(default_factory=Target)
    label_smoothing: Share = 0.0
    batch_norm: BatchNormMode = "train"

    def __post_init__(self) -> None:
        if not isinstance(self.threat, Linf):
            fix = "N-FGSM moves by signs: Linf"
            raise OptionError("threat", type(self.threat).__name__, fix)

    def inner(self) -> Scenario:
        """FGSM within the ball, for validation; what training takes leaves the ball."""
        return Scenario(self._step(self.threat), self.source)

    def strengthened(self) -> Adversarial:
        """PGD of two steps of 5 / 8 epsilon within the ball, in place of the single step."""
        attack = ProjectedGradient(steps=2, relative_step_size=0.625, threat=self.threat)
        return Adversarial(attack, self.source, self.label_smoothing, self.batch_norm)

    def craft(self, model: DefendedClassifier, images: Tensor, labels: Tensor, rng: Rng) -> Tensor:
        width = self.noise * self.threat.epsilon
        eta = rng.fold("noise").uniform(images.shape[1:], -width, width).to(images.dtype)
        start = (images + eta).clamp(0, 1)
        single = self._step(Linf(self.step * self.threat.epsilon))
        return craft(model, single, self.source, start, labels, rng, self.batch_norm)

    def losses(
        self, model: DefendedClassifier, images: Tensor, crafted: Tensor, labels: Tensor, rng: Rng
    ) -> tuple[Tensor, Tensor]:
        return Adversarial(label_smoothing=self.label_smoothing).losses(
            model, images, crafted, labels, rng
        )

    def _step(self, threat: Linf) -> ProjectedGradient:
        return ProjectedGradient(steps=1, relative_step_size=1.0, random_start=False, threat=threat)
