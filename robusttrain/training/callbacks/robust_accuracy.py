"""Robust accuracy during validation."""

from __future__ import annotations

from typing import Any, cast

import pytorch_lightning as pl
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.trainer.states import TrainerFn
from torch import nn

from robusttrain.core.checked import Count, checked
from robusttrain.core.errors import UserError
from robusttrain.data import ImageData
from robusttrain.evaluation import Engine, Scenario, gather, results
from robusttrain.training.callbacks.images import my_validation_images


@checked
class RobustAccuracy(pl.Callback):
    """Attacks some validation images every few epochs and logs ``robust/<attack>`` and
    ``robust/worst_case``.

    Several processes share the images. Any LightningModule will do whose network is its child
    ``model``, with a data module of `robusttrain.data`. Callbacks that average weights stand behind
    this one.

    Args:
        scenarios: attacks by name.
        every: epochs between two evaluations; the last epoch is always evaluated, and so is
            ``trainer.validate``. In between, Lightning keeps the last figures: checkpoints that
            follow them need the same ``every_n_epochs``.
        images: how many validation images, the same ones each time.
        draws: fresh draws of a random defense that score each image.
        seed: of all randomness here.
    """

    def __init__(
        self,
        scenarios: dict[str, Scenario],
        every: Count = 1,
        images: Count = 128,
        draws: Count = 3,
        seed: int = 0,
    ) -> None:
        #: How many epochs had been trained when these attacks last ran.
        self.looked = 0
        self.scenarios, self.every, self.images, self.draws, self.seed = (
            scenarios,
            every,
            images,
            draws,
            seed,
        )

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Look for what is attacked.

        Raises:
            UserError: the module has no child ``model``, the images come from elsewhere, or
                averaged weights would be gone by the time of the attacks.
        """
        try:
            pl_module.get_submodule("model")
        except AttributeError as error:
            raise UserError(
                f"RobustAccuracy: {type(pl_module).__name__} has no model to attack: call its"
                " network, images in [0, 1] to logits, self.model"
            ) from error
        if not isinstance(trainer.datamodule, ImageData):  # type: ignore[attr-defined]
            raise UserError(
                "RobustAccuracy: validation images must come from a data module of"
                " robusttrain.data: give trainer.fit one, such as ImageFolder"
            )

        # At the end of a validation, Lightning's averages put the trained weights back in the hook
        # in which the attacks run. Checkpoints, and all other figures, are of the averaged ones.
        callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        for other in callbacks[: callbacks.index(self)]:
            if isinstance(other, WeightAveraging):
                name = type(other).__name__
                raise UserError(
                    f"RobustAccuracy: would attack other weights than {name} validates and saves:"
                    f" name it before {name} in the trainer's callbacks"
                )

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        if trainer.sanity_checking:
            return
        # Whoever validates by itself asks for all figures.
        fitting = trainer.state.fn == TrainerFn.FITTING
        if fitting and epoch % self.every and epoch != trainer.max_epochs:
            return
        figures, self.looked = self.evaluate(trainer, pl_module), epochs_done(trainer)
        for name, row in figures["attacks"].items():
            # Every process has gathered the same figures already, so their mean changes nothing.
            pl_module.log(f"robust/{name}", row["robust_accuracy"], prog_bar=True, sync_dist=True)
        pl_module.log("robust/worst_case", figures["worst_case"]["robust_accuracy"], sync_dist=True)

    def evaluate(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """The results on the chosen validation images, as in results.json."""
        # An engine attacks a folded copy of the weights, so changed weights need a new engine.
        engine = Engine(cast(nn.Module, pl_module.model), self.scenarios, self.seed, self.draws)
        batch = my_validation_images(trainer, pl_module, self.images)
        for source in engine.sources.values():  # sources from files are on the CPU
            source.to(batch.images.device)
        size = trainer.datamodule.batch_size  # type: ignore[attr-defined]
        parts, seconds = [], dict.fromkeys(self.scenarios, 0.0)
        for start in range(0, len(batch.images), size):
            here = slice(start, start + size)
            records, spent = engine.run(batch.images[here], batch.labels[here], batch.indices[here])
            parts.append(records)
            seconds = {name: seconds[name] + spent[name] for name in seconds}
        records, seconds = gather((parts, seconds))
        return results(records, engine, seconds)


def epochs_done(trainer: pl.Trainer) -> int:
    """Of a training that validates just now: the epochs that are done. Inside an epoch
    (``val_check_interval``) that epoch is none of them.
    """
    return trainer.current_epoch + trainer.is_last_batch
