"""The draw that scores, given to the attacker: the "deterministic white box" of purification."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from robusttrain.attacks.asking import Queried, SourceModel, Terms
from robusttrain.core.rng import Rng


class KnownDraw(SourceModel):
    """A random model that answers as it will when its answer counts.

    The attacker has the streams that will score each image (``Rng.scoring``), so the model is
    deterministic for this attacker (arXiv 2404.14309). Whatever streams a caller folds for steps
    and draws, the model takes those that score.

    Args:
        model: images (B, C, H, W) in [0, 1] to logits (B, K).
    """

    random = False
    asks_queried = True

    @classmethod
    def of(cls, source: nn.Module) -> nn.Module:
        """The source of an attack, with that draw given to each model inside that is asked with
        other streams than the source's own: members of an ensemble, a target with a frozen draw.
        """
        model = source.model if isinstance(source, Queried) else source
        inside = model.made_of(cls.of) if isinstance(model, SourceModel) else None
        return cls(source) if inside is None else inside

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = Queried.of(model)
        self.transforms, self.fuses_losses = self.model.transforms, self.model.fuses_losses

    @staticmethod
    def _scoring(rng: Rng | None) -> Rng:
        if rng is None or rng.scoring is None:
            raise ValueError("KnownDraw: the streams do not say which ones score: Rng.disclosing")
        return Rng(rng.scoring)

    def forward(self, images: Tensor, rng: Rng | None = None) -> Tensor:
        logits: Tensor = self.model(images, self._scoring(rng))
        return logits

    def transform(self, images: Tensor, rng: Rng | None = None) -> Tensor:
        return self.model.transform(images, self._scoring(rng))

    def loss_terms(self, images: Tensor, rng: Rng | None = None) -> Terms:
        return self.model.loss_terms(images, self._scoring(rng))

    def shares(self) -> Sequence[tuple[nn.Module, float]]:
        members = self.model.members
        if len(members) == 1:
            return [(self, 1.0)]
        return [(KnownDraw(member), share) for member, share in members]
