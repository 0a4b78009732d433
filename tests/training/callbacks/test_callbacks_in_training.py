"""Callbacks in a run of Lightning's trainer: what they measure, and that they leave no trace."""

import pytest
import pytorch_lightning as pl
import torch
from small_runs import F_A, defended, fit

from robusttrain.config.attacks import scenarios
from robusttrain.core.errors import OptionError, UserError
from robusttrain.data import Digits
from robusttrain.evaluation import Engine, results
from robusttrain.models import MLP, CifarResNet
from robusttrain.training.callbacks import EMA, Pictures, RobustAccuracy

pytestmark = pytest.mark.filterwarnings("ignore")


class Watch(pl.Callback):
    """What was logged after each epoch, and whether training goes on in training mode."""

    def __init__(self):
        self.metrics, self.modes = [], []

    def on_train_batch_start(self, trainer, module, *rest):
        layers = [layer for layer in module.model.modules() if layer is not module.model]
        self.modes.append(all(layer.training for layer in layers))

    def on_validation_end(self, trainer, module):
        self.metrics.append(
            {name for name in trainer.callback_metrics if name.startswith("robust/")}
        )


def test_robust_accuracy_is_what_the_engine_finds(tmp_path):
    attacks = scenarios(["bpda-i-quick", "fgsm"], [("steps", "2")], epsilon=0.1)
    watch = Watch()
    # 20 images in batches of 16: more than one batch.
    callback = RobustAccuracy(attacks, images=20, draws=2, seed=3)
    module, trainer = fit(tmp_path, [callback, watch], logger=False)
    metrics = {
        name: float(value)
        for name, value in trainer.callback_metrics.items()
        if name.startswith("robust/")
    }
    assert set(metrics) == {"robust/bpda-i-quick", "robust/fgsm", "robust/worst_case"}

    batch = trainer.datamodule.validation_images(20)
    engine = Engine(module.model, attacks, 3, 2)
    found = results(engine.run(*batch)[0], engine, {})
    for name, row in found["attacks"].items():
        assert metrics[f"robust/{name}"] == pytest.approx(row["robust_accuracy"], abs=1e-6)
    assert metrics["robust/worst_case"] == pytest.approx(
        found["worst_case"]["robust_accuracy"], abs=1e-6
    )
    assert set(batch.indices.tolist()) <= set(trainer.datamodule._validation.subset.tolist())


def test_every_other_epoch_and_the_last(tmp_path):
    watch = Watch()
    callback = RobustAccuracy(scenarios(["fgsm"]), every=2, images=2)
    fit(
        tmp_path,
        [callback, watch],
        epochs=3,
        model=defended(False),
        num_sanity_val_steps=1,
        logger=False,
    )
    assert [bool(found) for found in watch.metrics[1:]] == [False, True, True]
    calls = []
    callback.evaluate = lambda *rest: (
        calls.append(1) or {"attacks": {}, "worst_case": {"robust_accuracy": 0.0}}
    )
    fit(tmp_path, [callback], epochs=5, model=defended(False), num_sanity_val_steps=1, logger=False)
    assert len(calls) == 3


@pytest.mark.parametrize("trained", [0, 1])
def test_a_validation_by_itself_has_all_figures(tmp_path, trained):
    watch = RobustAccuracy(scenarios(["fgsm"]), every=3, images=2)
    module, trainer = fit(tmp_path, [watch], epochs=trained or 1, model=defended(False))
    if not trained:
        trainer = pl.Trainer(callbacks=[watch], logger=False, accelerator="cpu", max_epochs=5)
    (found,) = trainer.validate(module, Digits(), verbose=False)
    assert {"robust/fgsm", "robust/worst_case"} <= found.keys()


class Own(pl.LightningModule):
    """A user's own module, whose network has a name of its own."""

    def __init__(self):
        super().__init__()
        self.network = CifarResNet(**F_A)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())

    def training_step(self, batch, batch_idx):
        return self.network(batch.images).sum()


def test_what_robust_accuracy_cannot_attack_is_said_before_training():
    def run(module, *data):
        pl.Trainer(
            callbacks=[RobustAccuracy({})],
            logger=False,
            accelerator="cpu",
            enable_checkpointing=False,
            enable_progress_bar=False,
        ).fit(module, *data)

    with pytest.raises(UserError, match=r"Own has no model to attack: .* self\.model"):
        run(Own(), Digits())
    module = Own()
    module.model = module.network
    with pytest.raises(UserError, match=r"from a data module of robusttrain\.data: give"):
        run(module, [])


def test_averaged_weights_are_attacked_or_the_order_is_refused(tmp_path):
    attacks, watch = scenarios(["fgsm"], epsilon=0.1), RobustAccuracy
    with pytest.raises(UserError, match="name it before EMA in the trainer's callb"):
        fit(tmp_path / "a", [EMA(0.9), watch(attacks, images=20)], epochs=2)
    callbacks = [watch(attacks, images=20, seed=3), EMA(0.9)]
    module, trainer = fit(tmp_path / "b", callbacks, epochs=2, model=defended(False))
    batch = trainer.datamodule.validation_images(20)  # the averages are in place after training
    engine = Engine(module.model, attacks, 3)
    found = results(engine.run(*batch)[0], engine, {})["attacks"]["fgsm"]["robust_accuracy"]
    assert trainer.callback_metrics["robust/fgsm"].item() == pytest.approx(found, abs=1e-6)


def test_training_goes_on_as_if_nobody_had_attacked(tmp_path):
    attacks = scenarios(["bpda-i-quick"])
    watch = Watch()
    spied = [
        RobustAccuracy(attacks, images=4, draws=2),
        Pictures(next(iter(attacks.values())), "a", 1, 1, draws=2),
        watch,
    ]
    attacked, _ = fit(tmp_path / "a", spied, epochs=2)
    alone, _ = fit(tmp_path / "b", [], epochs=2)
    assert watch.modes == [True] * 4
    assert attacked.model.training
    for (name, one), other in zip(
        attacked.state_dict().items(), alone.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name


@pytest.mark.parametrize(
    ("make", "option"),
    [
        (lambda: RobustAccuracy({}, every=0), "every"),
        (lambda: RobustAccuracy({}, images=0), "images"),
        (lambda: RobustAccuracy({}, draws=0), "draws"),
        (lambda: Pictures(None, "", images=-1), "images"),
        (lambda: Pictures(None, "", every=0), "every"),
        (lambda: Pictures(None, "", draws=0), "draws"),
    ],
)
def test_errors_name_the_option(make, option):
    with pytest.raises(OptionError, match=f"^{option} = "):
        make()


class OwnInAnyType(pl.LightningModule):
    """A user's own module, which expects images in the type that its Trainer gave its weights."""

    def __init__(self):
        super().__init__()
        self.model, self.seen = MLP(10, 1, 16, width=8), set()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

    def training_step(self, batch, batch_idx):
        self.seen.add(batch.images.dtype)
        return torch.nn.functional.cross_entropy(self.model(batch.images), batch.labels)

    def validation_step(self, batch, batch_idx):
        self.seen.add(batch.images.dtype)
        self.log("right", (self.model(batch.images).argmax(1) == batch.labels).float().mean())


@pytest.mark.parametrize(
    ("precision", "kind"),
    [("bf16-true", torch.bfloat16), ("64-true", torch.float64), ("bf16-mixed", torch.float32)],
)
def test_an_own_trainer_gives_images_in_the_type_of_the_weights(precision, kind):
    module = OwnInAnyType()
    trainer = pl.Trainer(
        precision=precision,
        callbacks=[RobustAccuracy(scenarios(["fgsm"]), images=4)],
        max_epochs=1,
        limit_train_batches=1,
        logger=False,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(module, datamodule=Digits(batch_size=8))
    assert module.seen == {kind}
    assert "robust/fgsm" in trainer.callback_metrics
