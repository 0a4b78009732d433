"""The LightningModule that trains a defended classifier."""

from __future__ import annotations

import math
from typing import Any, Literal

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from timm.scheduler.scheduler import Scheduler
from torch import Tensor
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from robusttrain.core.checked import BelowOne, NonNegative, Positive, Share, checked
from robusttrain.core.errors import (
    OptionError,
    UserError,
    at_least,
    one_of,
)
from robusttrain.core.in_float32 import InFloat32
from robusttrain.core.labels import check_labels
from robusttrain.core.memory_format import exact_convolutions, use_fastest_format
from robusttrain.core.processes import everyone, one_batch
from robusttrain.core.rng import Rng
from robusttrain.data import Batch
from robusttrain.evaluation import check_classes
from robusttrain.evaluation.precision import Speeds, measure_speeds_of
from robusttrain.models.compiling import InTraining, Mode, gradients_by
from robusttrain.models.defended import DefendedClassifier
from robusttrain.storage.libraries import is_theirs
from robusttrain.storage.raised import told
from robusttrain.training import optimizers
from robusttrain.training.crafting import Meter, crafting_in, hard
from robusttrain.training.mixing import MIXINGS, Mixing, mix
from robusttrain.training.objectives import (
    Standard,
    TrainingObjective,
    innermost,
    refuse_undeclared,
)
from robusttrain.training.schedules import SCHEDULES, Course, Schedule, options_of, scheduler

InnerPrecision = Literal["trainer", "auto", "float32", "bfloat16"]
INNER_PRECISIONS = ("trainer", "auto", "float32", "bfloat16")
#: The most gradient evaluations of an image that the rehearsal of an objective takes.
MOST = 1000


@checked
class RobustTraining(InFloat32, pl.LightningModule):
    """Trains f_a, by SGD with momentum or another optimizer; the defense before it stays as it is.

    Every random number belongs to (seed, epoch, image), so a run that is killed and resumed draws
    the same numbers.

    Args:
        model: the defended classifier.
        num_classes: K, at least 2, of the labels and of the model's answers.
        objective: what the weights minimise.
        optimizer: sgd, or a name of timm.optim's (adamw, lamb, lion, ...).
        learning_rate: the optimizer's, at its highest; None: 0.1 for sgd, else its own default.
        momentum: the optimizer's; None: 0.9 where it has one.
        nesterov: whether the momentum is Nesterov's, of sgd.
        weight_decay: of all trainable parameters in sgd; in the others not of biases and scales;
            None: 5e-4 for sgd, else its own default.
        optimizer_options: further arguments of the optimizer, by name: betas, eps, ...
        schedule: of the learning rate over the run: constant; cosine to zero; one_cycle: cosine
            warm-up for the first ``warmup`` of the run, then cosine to zero (torch's OneCycleLR);
            piecewise: a tenth after each of ``milestones``; step, poly, tanh: timm's.
        schedule_options: of timm's schedules: decay_epochs and decay_rate of step, power of poly,
            min_lr of poly and tanh.
        milestones: epochs after which a piecewise schedule drops.
        warmup: share of the run in which a one_cycle schedule rises.
        warmup_epochs: epochs in which any other schedule first rises, linearly, to
            ``learning_rate``.
        mixing: of every training batch: none, mixup or cutmix (of neighbours in the batch).
        mixing_alpha: a mixture's weight or area is drawn from Beta(alpha, alpha).
        inner_precision: in which inner attacks differentiate: trainer, that of the weights' own
            passes; float32; bfloat16; or auto, the faster of these two on this machine, measured on
            the first batch, if rounding leaves the attack as strong.
        minutes: that the run may take, by the clock; epochs and inner steps are chosen to fit
            before it begins (`robusttrain.running.budget`), and the module itself does not look at
            it. None: as many epochs as the trainer is told.
        seed: of all randomness in training.
    """

    def __init__(
        self,
        model: DefendedClassifier,
        num_classes: int,
        objective: TrainingObjective | None = None,
        learning_rate: Positive | None = None,
        momentum: Share | None = None,
        nesterov: bool = False,
        weight_decay: NonNegative | None = None,
        schedule: Schedule = "one_cycle",
        milestones: list[int] | None = None,
        warmup: BelowOne = 0.2,
        warmup_epochs: NonNegative = 0.0,
        mixing: Mixing = "none",
        mixing_alpha: Positive = 1.0,
        inner_precision: InnerPrecision = "trainer",
        seed: int = 0,
        optimizer: str = "sgd",
        optimizer_options: dict[str, Any] | None = None,
        schedule_options: dict[str, float] | None = None,
        minutes: Positive | None = None,
    ) -> None:
        super().__init__()
        at_least("num_classes", num_classes, 2)
        one_of("schedule", schedule, SCHEDULES)
        one_of("mixing", mixing, MIXINGS)
        one_of("inner_precision", inner_precision, INNER_PRECISIONS)
        if warmup_epochs and schedule == "one_cycle":
            raise OptionError(
                "warmup_epochs",
                warmup_epochs,
                "one_cycle rises by itself: give training.warmup, a share",
            )
        if (schedule == "piecewise") != bool(milestones):
            raise OptionError(
                "milestones", milestones, "go with schedule = piecewise, and only with it"
            )
        if milestones and min(milestones) <= warmup_epochs:
            raise OptionError(
                "milestones",
                milestones,
                f"must come after epoch 0 and the warm-up ({warmup_epochs:g})",
            )
        self.model = model
        self.objective = objective or Standard()
        refuse_undeclared(self.objective)
        if mixing != "none" and not self.objective.takes_mixed_labels:
            name = type(self.objective).__name__
            raise OptionError(
                "mixing", mixing, f"{name} needs one label an image; set none, or --training trades"
            )
        #: What `optimizers.make` takes.
        self.optimizing = optimizers.settled(
            {
                "optimizer": optimizer,
                "learning_rate": learning_rate,
                "momentum": momentum,
                "nesterov": nesterov,
                "weight_decay": weight_decay,
                "optimizer_options": optimizer_options or {},
            }
        )
        optimizers.check_figures(self.optimizing)
        #: Where the run is on its schedule.
        self.course = Course()
        self.schedule_options = options_of(schedule, schedule_options or {})
        self.schedule, self.milestones, self.warmup, self.warmup_epochs = (
            schedule,
            milestones or [],
            warmup,
            warmup_epochs,
        )
        self.mixing, self.mixing_alpha, self.num_classes, self.seed = (
            mixing,
            mixing_alpha,
            num_classes,
            seed,
        )
        self.inner_precision = inner_precision
        self._compiled: InTraining | None = None
        #: Time and success of the inner attacks of an epoch.
        self.meter = Meter()
        accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.train_accuracy, self.val_accuracy = accuracy, accuracy.clone()
        # training_step has refused losses that are not finite; to look again, the host would wait.
        self.train_loss, self.val_loss = MeanMetric(nan_strategy="disable"), MeanMetric()
        #: The configuration that ``on_save_checkpoint`` stores to rebuild the model; set by the
        #: code that built the model from it.
        self.recipe: dict[str, Any] = {}
        #: Whether the model was seen to answer with ``num_classes`` logits.
        self._answers = False

    def configure_optimizers(self) -> Any:
        optimizer = optimizers.make(self.model, self.optimizing)
        self.trainer.fit_loop.setup_data()  # counts the batches; without an end nobody else does
        steps = self.trainer.estimated_stepping_batches
        # max_steps may end the run within an epoch, but does not change the length of an epoch.
        per_epoch = math.ceil(
            self.trainer.num_training_batches / self.trainer.accumulate_grad_batches
        )
        settings = (self.milestones, self.warmup, self.warmup_epochs)
        rate = scheduler(
            optimizer, self.schedule, steps, per_epoch, *settings, self.schedule_options
        )
        if rate is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rate, "interval": "step"}}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        steps = self.course.steps()
        if isinstance(scheduler, Scheduler):  # timm's are given the number of steps
            scheduler.step_update(self.global_step + round(self.course.ahead))
            return
        for _ in range(steps):
            super().lr_scheduler_step(scheduler, metric)

    def setup(self, stage: str) -> None:
        # Before DDP wraps the model; f_b, inside `Frozen`, is out of reach.
        use_fastest_format(self.model)

    def settle_inner_precision(self, batch: Batch) -> Speeds | None:
        """Turn an ``inner_precision`` of "auto" into the better one; returns the speeds, if
        measured.
        """
        inner = self.objective.inner()
        if self.inner_precision != "auto":
            return None
        if inner is None or not inner.attack.rounds_well:
            self.inner_precision = "float32"
            return None
        speeds = measure_speeds_of(
            self.model, batch.images, Rng.for_images(self.seed, batch.indices)
        )
        self.inner_precision = speeds.better
        return speeds

    @property
    def compiled(self) -> Mode:
        """How training steps take gradients."""
        return self._compiled.mode if self._compiled else "off"

    def compiled_as(self, mode: Mode) -> None:
        """Take the gradients of training steps in ``mode`` from now on: those of the weights, those
        of inner attacks, and those of g.

        Validation and its attacks stay as they are, and so do the names of the weights.
        """
        self._compiled = None if mode == "off" else InTraining(self.model.classifier, mode)

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        # The batch is still on the CPU, so the check waits for no accelerator.
        return batch._replace(labels=check_labels(batch.labels, batch.images, self.num_classes))

    def on_fit_start(self) -> None:
        # Every process measures, and all take the choice of the first one.
        self.inner_precision = self.trainer.strategy.broadcast(self.inner_precision)
        if (mode := self.trainer.strategy.broadcast(self.compiled)) != self.compiled:
            self.compiled_as(mode)

    def on_train_epoch_start(self) -> None:
        # Layers that draw from torch's global generator (dropout, stochastic depth in timm's
        # networks) draw the same numbers in a resumed epoch as in an uninterrupted one.
        torch.manual_seed((self.seed * 1_000_003 + self.current_epoch) * 1_000 + self.global_rank)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        with one_batch(self.trainer.world_size > 1):
            losses, logits, labels = self._step(batch, batch_idx, self.current_epoch)
        loss = losses.mean()
        if not torch.isfinite(loss):
            raise UserError(
                f"training: the loss became {loss.item()} in epoch {self.current_epoch}, batch"
                f" {batch_idx}; the checkpoints of the epochs before are kept: lower"
                " --training.learning_rate and resume or restart"
            )
        self.train_loss(losses.detach())
        self.train_accuracy(logits.detach(), hard(labels))  # the larger share of a mixture
        self.log("train/loss", self.train_loss, on_step=False, on_epoch=True, prog_bar=True)
        self.log("train/accuracy", self.train_accuracy, on_step=False, on_epoch=True, prog_bar=True)
        return loss * self._share_of_step(batch_idx)

    def _share_of_step(self, batch_idx: int) -> float:
        """What the loss of a batch is multiplied with, so that a step follows the mean over its
        batches. Lightning divides by ``accumulate_grad_batches``, also where the last step of an
        epoch has fewer of them.
        """
        parts, batches = self.trainer.accumulate_grad_batches, self.trainer.num_training_batches
        first = batch_idx - batch_idx % parts
        return parts / min(parts, batches - first)

    def losses(self, batch: Batch, batch_idx: int, epoch: int) -> tuple[Tensor, Tensor]:
        """Losses (B,) and logits (B, K) of an epoch's objective on a training batch, mixed by
        ``mixing``.
        """
        return self._step(batch, batch_idx, epoch)[:2]

    def _step(self, batch: Batch, batch_idx: int, epoch: int) -> tuple[Tensor, Tensor, Tensor]:
        """`losses`, and the labels, (B,) or those of a mixture (B, K)."""
        if not self._answers:
            check_classes(self.model, batch.images, self.num_classes)
            self._answers = True
        rng = Rng.for_images(self.seed, batch.indices).fold("train").fold(epoch)
        mixed = mix(
            batch.images, batch.labels, self.mixing, self.mixing_alpha, self.num_classes, rng
        )
        objective = self.objective.at(epoch)
        # A replay has other draws of a random defense, for the same mixture
        if replay := batch_idx % objective.replays:
            rng = rng.fold("replay").fold(replay)
        self.settle_inner_precision(batch)
        dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}.get(self.inner_precision)
        compiled = gradients_by(self.compiled, self._compiled)
        exact = exact_convolutions(batch.images.device)
        with self.meter.listening(), crafting_in(dtype), exact, compiled:
            own = type(innermost(objective))
            with told(f"--training.objective: {own.__name__}", own):
                given = objective(self.model, *mixed, rng)
        return *_checked(objective, given, len(batch.images), self.num_classes), mixed[1]

    def rehearse(self, batch: Batch) -> None:
        """Ask an objective of the user's for the losses of two images: what fails in it fails
        before an f_b is trained, and the model stays as it is. One of this package's, or with a
        long inner attack, is left alone.

        Raises:
            UserError: it raises anything, or gives no losses and logits.
        """
        cost = self.objective.cost()
        if not is_theirs(type(innermost(self.objective)).__module__) or cost.inner > MOST:
            return
        few = Batch(batch.images[:2], batch.labels[:2], batch.indices[:2])
        before = [(each, each.clone()) for each in self.model.buffers()]  # running statistics
        self.losses(few, 0, self.objective.warmup)
        for buffer, values in before:
            buffer.data.copy_(values)

    def on_validation_start(self) -> None:
        self._refuse_broken_weights()

    def on_train_epoch_end(self) -> None:
        self._refuse_broken_weights()

    def _refuse_broken_weights(self) -> None:
        """Stop before a checkpoint of weights that are not finite could replace a good one."""
        named = dict((*self.model.named_parameters(), *self.model.named_buffers()))
        # Of all tensors at once: the host waits for an accelerator once, not for each of them.
        finite = [values.isfinite().all() for values in named.values()]
        if not finite or torch.stack(finite).all():
            return
        for name, values in named.items():
            if not values.isfinite().all():
                raise UserError(
                    f"training: {name} became NaN or infinite in epoch {self.current_epoch}; the"
                    " checkpoints of the epochs before are kept: lower --training.learning_rate"
                    " and resume or restart"
                )

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        # A process's share of the last batch may be empty
        if not len(batch.images):
            return
        rng = Rng.for_images(self.seed, batch.indices).fold("validation")
        logits = self.model(batch.images, rng)
        self.val_loss(F.cross_entropy(logits, batch.labels, reduction="none"))
        self.val_accuracy(logits, batch.labels)
        self.log("val/loss", self.val_loss, prog_bar=True)
        self.log("val/accuracy", self.val_accuracy, prog_bar=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["robusttrain"] = self.recipe
        # Every process comes here, and the first one writes.
        if state := self.objective.state():
            mine = {name: rows.cpu() for name, rows in state.items()}
            parts = everyone(mine) if self._processes > 1 else [mine]
            checkpoint["objective"] = {
                name: torch.cat([part[name] for part in parts]) for name in mine
            }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        world = self._processes
        rank = self.trainer.global_rank if world > 1 else 0
        self.objective.restore(
            {
                name: rows.tensor_split(world)[rank]
                for name, rows in checkpoint.get("objective", {}).items()
            }
        )

    @property
    def _processes(self) -> int:
        """How many processes share the batches; 1 without a trainer."""
        return self._trainer.world_size if self._trainer is not None else 1


def _checked(
    objective: TrainingObjective, given: Any, batch: int, classes: int
) -> tuple[Tensor, Tensor]:
    """What an objective gave for a batch: losses (B,) that the weights can follow, and logits
    (B, K).

    Raises:
        UserError: it gave anything else.
    """
    # A wrapper hands on what the objective inside gives.
    name = type(innermost(objective)).__name__
    wanted = f"{name}.losses must return losses (B,), one an image, and logits (B, K)"
    pair = isinstance(given, tuple | list) and len(given) == 2
    if not pair or not all(isinstance(each, Tensor) for each in given):
        kinds = [type(each).__name__ for each in given] if isinstance(given, tuple | list) else []
        got = f"{type(given).__name__}{f' of {len(kinds)}' if kinds else ''}"
        raise UserError(f"--training.objective: {wanted}; it returned a {got}")
    losses, logits = given
    shape = tuple(losses.shape)
    if shape != (batch,) or logits.dim() != 2 or len(logits) != batch:
        fix = ", as reduction='none' leaves them" if not shape else ""
        raise UserError(
            f"--training.objective: {wanted}{fix}; for {batch} images it returned {shape} and"
            f" {tuple(logits.shape)}"
        )
    if logits.shape[1] != classes:
        raise UserError(
            f"--training.objective: {wanted}; of {classes} classes, it returned"
            f" {tuple(logits.shape)} as logits"
        )
    if torch.is_grad_enabled() and not losses.requires_grad:
        raise UserError(
            f"--training.objective: the losses of {name} do not depend differentiably on the"
            " weights, so nothing would be trained (a detached step, or weights that are frozen?)"
        )
    return losses, logits
