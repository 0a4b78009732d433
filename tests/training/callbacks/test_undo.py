"""Catastrophic overfitting is taken back once: weights, averages, momentum and inner steps."""

from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from small_runs import F_A

from robusttrain.data import Digits
from robusttrain.models import CifarResNet
from robusttrain.models.defended import DefendedClassifier
from robusttrain.training import AWP, NFGSM, Adversarial, RobustTraining, Standard
from robusttrain.training.callbacks import EMA, SWA, Overfitting, Undo

pytestmark = pytest.mark.filterwarnings("ignore")


class Seen(pl.Callback):
    """A guard that sees a best first epoch, and a collapse in the third; notes the weights."""

    def __init__(self, objective):
        self.best, self.collapsed, self.improved = {"epoch": 0.0}, False, False
        self.weights, self.objectives = [], []

    def on_validation_epoch_end(self, trainer, module):
        self.weights.append(
            {name: value.clone() for name, value in module.model.state_dict().items()}
        )

    def on_validation_end(self, trainer, module):
        self.improved = trainer.current_epoch == 0
        self.collapsed = trainer.current_epoch == 2

    def on_train_epoch_end(self, trainer, module):
        self.objectives.append(module.objective)

    def trains_against(self, inner):
        self.inner = inner


def fitted(folder, epochs, callbacks, **options):
    torch.manual_seed(0)
    module = RobustTraining(DefendedClassifier(None, CifarResNet(**F_A)), 10, NFGSM())
    trainer = pl.Trainer(
        max_epochs=epochs,
        limit_train_batches=2,
        limit_val_batches=1,
        num_sanity_val_steps=0,
        accelerator="cpu",
        logger=False,
        callbacks=callbacks,
        enable_checkpointing=any(isinstance(each, ModelCheckpoint) for each in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )
    trainer.fit(module, Digits(batch_size=16), **options)
    return module, trainer


def test_a_run_goes_on_from_its_best_epoch(tmp_path):
    seen, lines = Seen(None), []
    undo, average = Undo(seen, lines.append), EMA(0.5)
    restored = {}

    class Look(pl.Callback):
        def on_train_epoch_start(self, trainer, module):
            if trainer.current_epoch == 3:
                restored.update(
                    model=[value.clone() for value in module.model.state_dict().values()],
                    average=[
                        value.clone()
                        for value in average._average_model.module.model.state_dict().values()
                    ],
                    momentum=len(trainer.optimizers[0].state),
                )

    fitted(tmp_path, 4, [seen, undo, average, Look()])
    best = list(seen.weights[0].values())
    for name in ("model", "average"):
        assert all(map(torch.equal, restored[name], best)), name
    assert restored["momentum"] == 0
    assert [type(each) for each in seen.objectives] == [NFGSM] * 3 + [Adversarial]
    assert seen.objectives[-1].attack.steps == 2
    assert lines == [
        "undone: training goes on from the weights of epoch 1 with 2 gradient evaluations of the"
        " inner attack, and takes longer from here"
    ]
    assert undo.best == {}
    assert seen.inner.attack.steps == 2, "the guard measures what training has by now"


def test_checkpoints_hold_what_was_validated(tmp_path):
    """Those of the epoch that collapsed, too; and the search for the best one starts anew."""
    every = ModelCheckpoint(tmp_path / "all", "{epoch}", save_top_k=-1, monitor="val/accuracy")
    patient = EarlyStopping("val/accuracy", mode="max", patience=9)
    best = ModelCheckpoint(tmp_path, "best", monitor="val/accuracy", mode="max")
    seen, scores = Seen(None), {}

    class Look(pl.Callback):
        def on_train_epoch_start(self, trainer, module):
            scores[trainer.current_epoch] = best.best_model_score
            if trainer.current_epoch == 2:  # as the collapsed network has it
                patient.best_score, patient.wait_count = torch.tensor(0.9), 5
            if trainer.current_epoch == 3:
                assert patient.best_score == -torch.inf
                assert patient.wait_count == 0

    fitted(tmp_path, 4, [seen, patient, Undo(seen, print), Look(), every, best])
    assert patient.best_score > 0
    for epoch in range(4):
        kept = torch.load(tmp_path / "all" / f"epoch={epoch}.ckpt", weights_only=True)
        for name, value in seen.weights[epoch].items():
            assert torch.equal(kept["state_dict"][f"model.{name}"], value), (epoch, name)
    assert scores[2] is not None
    assert scores[3] is None
    assert best.best_model_score is not None


def test_epochs_without_a_look_are_not_the_best(tmp_path):
    """A guard that looks in every second epoch alone."""
    guard = Overfitting("robust/pgd", every=2)
    undo, weights = Undo(guard, print), []

    class Look(pl.Callback):
        def on_validation_epoch_start(self, trainer, module):
            trainer.callback_metrics["robust/pgd"] = torch.tensor(0.5)
            weights.append(copied(module.model))

    fitted(tmp_path, 4, [Look(), guard, undo])
    assert guard.best["epoch"] == 1
    for name, value in weights[1].items():
        assert torch.equal(undo.best[name], value), name


def test_a_mean_over_epochs_starts_anew_from_the_best_weights(tmp_path):
    """They count as one, however many collapsed epochs the mean held before."""
    seen, average, last = Seen(None), SWA(start=0, batches=1), {}

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if (trainer.current_epoch, batch_idx) == (3, 1):
                mean = average._average_model.module.model
                last.update(own=copied(module.model), mean=copied(mean))

    fitted(tmp_path, 4, [seen, Undo(seen, print), average, Look()])
    for name, mean in last["mean"].items():
        torch.testing.assert_close(mean, (seen.weights[0][name] + last["own"][name]) / 2)


def copied(model):
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def test_a_resumed_run_knows_that_it_was_undone():
    undo = Undo(SimpleNamespace(trains_against=print))
    undo.load_state_dict({"best": {}, "done": True})
    module = SimpleNamespace(objective=NFGSM())
    undo.on_fit_start(None, module)
    assert module.objective == NFGSM().strengthened()
    assert undo.state_dict() == {"best": {}, "done": True, "due": False}


def test_what_is_stronger():
    fast = Adversarial(NFGSM().inner().attack)
    stronger = fast.strengthened().attack
    assert (stronger.steps, stronger.alpha, stronger.random_start) == (2, 0.031 / 2, True)
    assert AWP(fast).strengthened() == AWP(fast.strengthened())
    assert Standard().strengthened() is None
    assert AWP(Standard()).strengthened() is None
