"""Ensemble adversarial training: adversarial images from other models as well (Tramer et al.
2018).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robusttrain.attacks import Attack, OtherModel, ProjectedGradient, Source, Target, prepared
from robusttrain.attacks.sources.basic import Reader
from robusttrain.core.checked import Share, checked
from robusttrain.core.errors import OptionError, UserError
from robusttrain.core.processes import of_first
from robusttrain.core.rng import Rng
from robusttrain.evaluation import check_classes
from robusttrain.models import fast_copy
from robusttrain.models.defended import DefendedClassifier
from robusttrain.training.crafting import craft, judge
from robusttrain.training.objectives import TrainingObjective


def _single_step() -> ProjectedGradient:
    return ProjectedGradient(steps=1, relative_step_size=1.0, random_start=False)


@checked
@dataclass(frozen=True)
class EnsembleAdversarial(TrainingObjective):
    """a CE(f(x), y) + (1 - a) CE(f(x'), y), x' from another model in each batch (Tramer et al.
    2018, section 3.4).

    Static models, trained before, take turns with the model in training. Adversarial images that do
    not depend on the model in training keep it from hiding its gradients, as it does under
    single-step attacks on itself. [P4]'s best entry was trained in this way.

    Batch norm is in evaluation mode while the images are crafted and in training mode for the loss.

    Args:
        models: checkpoints of the static models, files that train.py left.
        attack: crafts x'.
        source: what the attack differentiates of the model in training; IdentityBackward behind a
            defense.
        clean_share: a, the weight of the clean images.
        trust: packages besides robusttrain whose classes the checkpoints may name.
    """

    models: list[str] = field(default_factory=list)
    attack: Attack = field(default_factory=_single_step)
    source: Source = field(default_factory=Target)
    clean_share: Share = 0.5
    trust: list[str] = field(default_factory=list)
    #: The static models, once read, and once ready for attacks; they do not count in comparisons.
    _read: list[nn.Module] = field(default_factory=list, init=False, repr=False, compare=False)
    _ready: list[nn.Module] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.models:
            fix = (
                "name checkpoints of other models, each left by a training of its own: '[a.ckpt,"
                " b.ckpt]'"
            )
            raise OptionError("models", self.models, fix)

    @property
    def passes(self) -> int:
        return 2

    def opened(self, read: Reader) -> EnsembleAdversarial:
        objective = replace(self, source=self.source.opened(read))
        # The static models are differentiated and never trained. Their own defenses are left out;
        # the paper's models have none either.
        for path in self.models:
            try:
                objective._read.append(read.checkpoint(path, self.trust).classifier)
            except UserError as error:
                raise UserError(f"training.objective.models: {error}") from error
        return objective

    def strengthened(self) -> TrainingObjective | None:
        stronger = super().strengthened()
        if isinstance(stronger, EnsembleAdversarial):  # which begins without the models it has read
            stronger._read.extend(self._read)
            stronger._ready.extend(self._ready)
        return stronger

    def static(self, model: DefendedClassifier, images: Tensor) -> list[nn.Module]:
        """The static models, ready for attacks, on the images' device.

        Raises:
            UserError: a model takes other images or has other classes, or the models were not read.
        """
        if not self._read:
            raise UserError(
                "training.objective.models: not read yet: take .opened(robusttrain.READER)"
            )
        if not self._ready:
            with prepared(model), torch.no_grad():
                classes = model(images[:1].clone()).shape[1]
            for path, read in zip(self.models, self._read, strict=True):
                classifier = fast_copy(read).requires_grad_(False).to(images.device)
                check_classes(classifier, images, classes, f"training.objective.models: {path}")
                self._ready.append(classifier)
        return self._ready

    def check_images(self, model: DefendedClassifier, images: Tensor) -> None:
        self.static(model, images)

    def craft(self, model: DefendedClassifier, images: Tensor, labels: Tensor, rng: Rng) -> Tensor:
        static = self.static(model, images)
        # One source for a batch, by the draw of its first image: a resumed run takes the same one.
        # Processes that share the batch all take the first one's.
        turn = int(of_first(rng[:1].fold("source").integers((), 0, len(static) + 1)))
        source = OtherModel(static[turn]) if turn < len(static) else self.source
        return craft(model, self.attack, source, images, labels, rng)

    def losses(
        self, model: DefendedClassifier, images: Tensor, crafted: Tensor, labels: Tensor, rng: Rng
    ) -> tuple[Tensor, Tensor]:
        clean, robust = model(images, rng), model(crafted, rng)
        judge(robust, labels)
        losses = [F.cross_entropy(logits, labels, reduction="none") for logits in (clean, robust)]
        return self.clean_share * losses[0] + (1 - self.clean_share) * losses[1], clean
