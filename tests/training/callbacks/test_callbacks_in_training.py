"""Callbacks in a run of Lightning's trainer, and what they leave in the TensorBoard files."""

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from robusttrain.config.attacks import scenarios
from robusttrain.core.errors import OptionError, UserError
from robusttrain.data import Digits
from robusttrain.defenses import AdversarialTransform, RandomResizePad
from robusttrain.evaluation import Engine, results
from robusttrain.models import CifarResNet, VGGSmall
from robusttrain.models.defended import DefendedClassifier
from robusttrain.training import RobustTraining
from robusttrain.training.callbacks import Dashboard, Pictures, RobustAccuracy, flat

pytestmark = pytest.mark.filterwarnings("ignore")
F_A = {"num_classes": 10, "in_channels": 1, "widths": [4, 8], "blocks": 1}


def defended(defense=True):
    torch.manual_seed(0)
    f_b = VGGSmall(num_classes=10, in_channels=1, image_size=16)
    return DefendedClassifier(
        AdversarialTransform(f_b, steps=1, radius=0.1) if defense else None, CifarResNet(**F_A)
    )


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


def fit(folder, callbacks, epochs=1, model=None, logger=True, **options):
    module = RobustTraining(model or defended(), 10)
    trainer = pl.Trainer(
        max_epochs=epochs,
        limit_train_batches=2,
        limit_val_batches=1,
        accelerator="cpu",
        logger=TensorBoardLogger(folder, name="run", version=0, default_hp_metric=False)
        if logger
        else False,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
        **{"num_sanity_val_steps": 0, **options},
    )
    trainer.fit(module, Digits(batch_size=16))
    return module, trainer


def events(folder):
    found = EventAccumulator(
        str(folder / "run" / "version_0"), size_guidance={"images": 0, "scalars": 0, "tensors": 0}
    )
    return found.Reload()


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


@pytest.mark.parametrize(
    ("model", "titles"),
    [
        (
            lambda: defended(),
            ["x", "g(x)", "adversarial (it)", "its perturbation, amplified", "E[g(x)] - x, |.|inf"],
        ),
        (lambda: defended(False), ["x", "g(x)", "adversarial (it)", "its perturbation, amplified"]),
        # Another size than the image: no difference to show.
        (
            lambda: DefendedClassifier(RandomResizePad(16, 20), CifarResNet(**F_A)),
            ["x", "g(x)", "adversarial (it)", "its perturbation, amplified"],
        ),
    ],
)
def test_the_picture_shows_what_it_says(tmp_path, model, titles):
    (scenario,) = scenarios(["fgsm"], epsilon=0.2).values()
    callback = Pictures(scenario, "it", images=3, draws=4)
    module, trainer = fit(tmp_path, [], model=model(), logger=False)
    module.eval()
    axes = callback.draw(trainer, module).axes
    assert len(axes) == 3 * len(titles)
    for panel, title in zip(axes, titles, strict=False):
        assert panel.get_title().startswith(title)
    batch = trainer.datamodule.validation_images(3)
    shown = torch.tensor(axes[0].images[0].get_array()[..., 0])
    torch.testing.assert_close(shown, batch.images[0, 0])
    digit = str(int(batch.labels[0]))
    assert axes[0].get_ylabel() == digit
    for column in (1, 2):
        predicted = axes[column].xaxis.label
        assert (predicted.get_color() == "green") == (predicted.get_text() == digit)
    if module.model.defense is None:
        assert axes[1].xaxis.label.get_text() == str(int(module.model(batch.images)[0].argmax()))
    adversarial = torch.tensor(axes[2].images[0].get_array()[..., 0])
    assert (adversarial - shown).abs().max() == pytest.approx(0.2, abs=1e-5)


def test_the_panels_of_a_defense(tmp_path):
    """Without a random start, E[g(x)] is g(x)."""
    f_b = VGGSmall(num_classes=10, in_channels=1, image_size=16)
    g = AdversarialTransform(f_b, steps=2, radius=0.1, random_start=False, clip=True)
    (scenario,) = scenarios(["fgsm"]).values()
    module, trainer = fit(
        tmp_path, [], model=DefendedClassifier(g, CifarResNet(**F_A)), logger=False
    )
    axes = Pictures(scenario, "it", images=1, draws=2).draw(trainer, module.eval()).axes
    image = trainer.datamodule.validation_images(1).images
    change = (g(image) - image)[0, 0]
    assert change.abs().max() > 0.01
    shown = [torch.tensor(panel.images[0].get_array()[..., 0]) for panel in axes]
    torch.testing.assert_close(shown[1], image[0, 0] + change)
    torch.testing.assert_close(shown[4], 0.5 + 0.5 * change / change.abs().max())
    assert axes[4].get_title().endswith(f"{change.abs().max():.2f}")


def test_pictures_reach_the_event_file_when_they_are_due(tmp_path):
    (scenario,) = scenarios(["fgsm"]).values()
    fit(
        tmp_path,
        [Pictures(scenario, "fgsm", images=1, every=3, draws=2)],
        epochs=4,
        num_sanity_val_steps=1,
    )
    steps = [event.step for event in events(tmp_path).Images("pictures")]
    assert steps == [2, 6, 8]  # epochs 1, 3 and the last, of two steps each
    fit(tmp_path / "none", [Pictures(scenario, "fgsm", images=0)])
    assert events(tmp_path / "none").Tags()["images"] == []


def test_the_dashboard_has_its_layout_and_hyperparameters_with_final_metrics(tmp_path):
    attacks = scenarios(["fgsm"])
    configuration = flat(
        {"model": {"class_path": "a.b.Net", "init_args": {"widths": [1, 2]}}, "seed": 3}
    )
    callbacks = [RobustAccuracy(attacks, images=2, draws=1), Dashboard(configuration)]
    _, trainer = fit(tmp_path, callbacks)
    found = events(tmp_path)
    final = {name: float(value) for name, value in trainer.callback_metrics.items()}
    for name in ("val/accuracy", "val/loss", "robust/fgsm", "robust/worst_case"):
        assert found.Scalars(f"final/{name}")[-1].value == pytest.approx(final[name], abs=1e-6)
        assert found.Scalars(name)[-1].value == pytest.approx(final[name], abs=1e-6)
    assert "final/train/loss" not in found.Tags()["scalars"]
    layout = (
        found.Tensors("custom_scalars__config__")[0]
        .tensor_proto.string_val[0]
        .decode("utf-8", "replace")
    )
    assert "clean and robust accuracy" in layout
    for tag in ("val/accuracy", "train/accuracy", "robust/.*"):
        assert tag in layout
    plugin = found.summary_metadata["_hparams_/session_start_info"].plugin_data.content.decode(
        "utf-8", "replace"
    )
    assert all(word in plugin for word in ("model", "Net", "model.widths", "[1, 2]", "seed"))


def test_a_configuration_as_one_level():
    nested = {
        "defense": {
            "class_path": "robusttrain.defenses.Chain",
            "init_args": {
                "defenses": [{"class_path": "a.B", "init_args": {"low": 3}}, {"class_path": "a.C"}]
            },
        },
        "widths": [4, 8],
        "none": None,
        "flag": True,
    }
    assert flat(nested) == {
        "defense": "Chain",
        "defense.defenses.0": "B",
        "defense.defenses.0.low": 3,
        "defense.defenses.1": "C",
        "widths": "[4, 8]",
        "none": "None",
        "flag": True,
    }
