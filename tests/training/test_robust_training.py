"""The LightningModule: rates over a run, what is trained and what is kept, and a loss that is not
finite.
"""

import math
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from robusttrain import load
from robusttrain.config.checkpoints import recipe_of
from robusttrain.core.errors import OptionError, UserError
from robusttrain.core.rng import Rng
from robusttrain.data import Batch, Digits
from robusttrain.defenses import AdversarialTransform
from robusttrain.models import CifarResNet, VGGSmall
from robusttrain.models.defended import DefendedClassifier
from robusttrain.training import AWP, MART, Free, RobustTraining, Standard

pytestmark = pytest.mark.filterwarnings("ignore")

F_A = {"num_classes": 10, "in_channels": 1, "widths": [4, 8], "blocks": 1}
F_B = {"num_classes": 10, "in_channels": 1, "image_size": 16}
RECIPE = recipe_of(
    {"class_path": "robusttrain.models.CifarResNet", "init_args": F_A},
    {
        "class_path": "robusttrain.defenses.AdversarialTransform",
        "init_args": {
            "model": {"class_path": "robusttrain.models.VGGSmall", "init_args": F_B},
            "weights": "gone.safetensors",
            "steps": 1,
        },
    },
    {"class_path": "robusttrain.data.Digits"},
)


def defended(defense=True):
    torch.manual_seed(0)
    return DefendedClassifier(
        AdversarialTransform(VGGSmall(**F_B), steps=1) if defense else None, CifarResNet(**F_A)
    )


def fit(module, tmp_path, epochs=1, batches=2, callbacks=(), ckpt_path=None, max_steps=-1, **data):
    trainer = pl.Trainer(
        max_epochs=epochs,
        max_steps=max_steps,
        limit_train_batches=batches,
        limit_val_batches=1,
        accelerator="cpu",
        logger=False,
        callbacks=list(callbacks),
        enable_checkpointing=bool(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, Digits(**{"batch_size": 8, **data}), ckpt_path=ckpt_path)
    return trainer


class Rates(pl.Callback):
    """The learning rate of every step."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, *rest):
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


def rates(tmp_path, max_steps=-1, epochs=4, **options):
    callback = Rates()
    module = RobustTraining(defended(False), 10, learning_rate=0.08, **options)
    trainer = fit(
        module,
        tmp_path,
        epochs=epochs,
        batches=5,
        callbacks=[callback],
        max_steps=max_steps,
        validation=0.0,
    )
    return [*callback.seen, trainer.optimizers[0].param_groups[0]["lr"]]


def test_constant_rate(tmp_path):
    assert rates(tmp_path, schedule="constant") == [0.08] * 21


def test_cosine_goes_to_zero(tmp_path):
    expected = [0.04 * (1 + math.cos(math.pi * step / 20)) for step in range(21)]
    assert rates(tmp_path, schedule="cosine") == pytest.approx(expected, abs=1e-9)


def test_a_linear_warm_up_before_each_schedule(tmp_path):
    """One epoch of five steps: sixths of the rate, then the schedule over what is left of the
    run.
    """
    rising = [0.08 * (step + 1) / 6 for step in range(5)]
    assert rates(tmp_path, schedule="constant", warmup_epochs=1) == pytest.approx(
        rising + [0.08] * 16
    )
    expected = [0.04 * (1 + math.cos(math.pi * step / 15)) for step in range(16)]
    assert rates(tmp_path, schedule="cosine", warmup_epochs=1) == pytest.approx(
        rising + expected, abs=1e-9
    )
    found = rates(tmp_path, schedule="piecewise", milestones=[2, 3], warmup_epochs=1)
    assert found == pytest.approx(rising + [0.08] * 5 + [0.008] * 5 + [0.0008] * 6)


def test_piecewise_drops_to_a_tenth_at_each_milestone(tmp_path):
    found = rates(tmp_path, schedule="piecewise", milestones=[1, 3])
    assert found == pytest.approx([0.08] * 5 + [0.008] * 10 + [0.0008] * 6)


def test_schedules_of_timm(tmp_path):
    found = rates(
        tmp_path, schedule="step", schedule_options={"decay_epochs": 2, "decay_rate": 0.5}
    )
    assert found == pytest.approx([0.08] * 10 + [0.04] * 10 + [0.02])
    found = rates(tmp_path, schedule="poly", schedule_options={"power": 2, "min_lr": 0.01})
    assert found == pytest.approx([0.01 + 0.07 * (1 - step / 20) ** 2 for step in range(21)])
    found = rates(tmp_path, schedule="tanh")
    expected = [0.04 * (1 - math.tanh(-7 + 10 * step / 20)) for step in range(20)]
    assert found == pytest.approx([*expected, 0.0])


def test_a_warm_up_before_schedules_of_timm(tmp_path):
    rising = [0.08 * (step + 1) / 6 for step in range(5)]
    found = rates(tmp_path, schedule="poly", warmup_epochs=1)
    assert found == pytest.approx(rising + [0.08 * (1 - step / 15) for step in range(16)])
    options = {"decay_epochs": 2}
    found = rates(tmp_path, schedule="step", warmup_epochs=1, schedule_options=options)
    assert found == pytest.approx(rising + [0.08] * 5 + [0.008] * 10 + [0.0008])


def test_a_run_of_some_steps_drops_after_the_epochs_that_were_named(tmp_path):
    found = rates(tmp_path, max_steps=12, schedule="piecewise", milestones=[2])
    assert found == pytest.approx([0.08] * 10 + [0.008] * 3)


def test_a_run_that_steps_alone_end(tmp_path):
    found = rates(tmp_path, max_steps=12, epochs=-1, schedule="piecewise", milestones=[2])
    assert found == pytest.approx([0.08] * 10 + [0.008] * 3)


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.2, 0.25, 0.5, 0.99])
def test_one_cycle_survives_runs_of_any_length(warmup):
    module = RobustTraining(defended(), 10, schedule="one_cycle", warmup=warmup)
    for steps in range(1, 21):
        module._trainer = SimpleNamespace(
            estimated_stepping_batches=steps,
            num_training_batches=steps,
            accumulate_grad_batches=1,
            fit_loop=SimpleNamespace(setup_data=lambda: None),
        )
        configured = module.configure_optimizers()
        if steps == 1:  # as OneCycleLR has it, the only step would have a rate of nearly zero
            assert configured.param_groups[0]["lr"] == 0.1
            continue
        scheduler = configured["lr_scheduler"]["scheduler"]
        for _ in range(steps - 1):
            scheduler.step()
        assert scheduler.get_last_lr()[0] < 0.1
        scheduler.step()  # as Lightning does after the last step, too


def test_one_cycle_rises_to_its_rate_and_falls_to_zero(tmp_path):
    found = rates(tmp_path, schedule="one_cycle", warmup=0.4)[:20]
    low, high, top = 0.08 / 25, 0.08, 7  # torch's OneCycleLR: 0.4 of 20 steps, counted from 0
    rise = [low + (high - low) * (1 - math.cos(math.pi * step / top)) / 2 for step in range(top)]
    fall = [high * (1 + math.cos(math.pi * step / 12)) / 2 for step in range(13)]
    assert found == pytest.approx(rise + fall, abs=1e-5)


@pytest.mark.parametrize(
    ("option", "arguments"),
    [
        ("learning_rate", {"learning_rate": 0.0}),
        ("learning_rate", {"learning_rate": math.nan}),
        ("momentum", {"momentum": 2.0}),
        ("weight_decay", {"weight_decay": -1e-4}),
        ("schedule", {"schedule": "linear"}),
        ("warmup", {"warmup": 1.5}),
        ("nesterov", {"nesterov": True, "momentum": 0.0}),
        ("warmup_epochs", {"schedule": "cosine", "warmup_epochs": -1.0}),
        ("warmup_epochs", {"schedule": "one_cycle", "warmup_epochs": 1.0}),
        ("mixing", {"mixing": "blend"}),
        ("mixing", {"mixing": "cutmix", "objective": MART()}),
        ("mixing", {"mixing": "mixup", "objective": AWP(MART())}),
        ("mixing_alpha", {"mixing_alpha": 0.0}),
        ("milestones", {"schedule": "piecewise"}),
        ("milestones", {"schedule": "cosine", "milestones": [3]}),
    ],
)
def test_errors_name_the_option(option, arguments):
    with pytest.raises(OptionError, match=f"^{option} = "):
        RobustTraining(defended(False), 10, **arguments)


def test_options_of_sgd_reach_it(tmp_path):
    module = RobustTraining(
        defended(), 10, learning_rate=0.07, momentum=0.8, nesterov=True, weight_decay=0.01
    )
    module.schedule = "constant"
    group = fit(module, tmp_path, batches=1).optimizers[0].param_groups[0]
    assert [group[name] for name in ("lr", "momentum", "nesterov", "weight_decay")] == [
        0.07,
        0.8,
        True,
        0.01,
    ]
    own = {id(parameter) for parameter in module.model.classifier.parameters()}
    assert {id(parameter) for parameter in group["params"]} == own


def test_f_b_is_kept_and_never_trained(tmp_path):
    module = RobustTraining(defended(), 10, learning_rate=0.1)
    module.recipe = RECIPE
    f_b = module.model.defense.f_b.module
    before = {name: tensor.clone() for name, tensor in module.model.state_dict().items()}
    keeper = pl.callbacks.ModelCheckpoint(tmp_path, filename="last", save_on_train_epoch_end=True)
    fit(module, tmp_path, callbacks=[keeper])
    module.train()
    assert not any(layer.training for layer in f_b.modules())
    after = module.model.state_dict()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert not any(name.startswith("defense.") for name in changed)
    trainable = {f"classifier.{name}" for name, _ in module.model.classifier.named_parameters()}
    assert changed >= trainable

    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert {f"model.{name}" for name in before} <= set(content["state_dict"])
    restored = load(tmp_path / "last.ckpt")
    for name, tensor in restored.state_dict().items():
        assert torch.equal(tensor, after[name]), name
    images = torch.rand(3, 1, 16, 16)
    torch.manual_seed(1)
    expected = module.eval().model(images)
    torch.manual_seed(1)
    torch.testing.assert_close(restored(images), expected, rtol=1e-5, atol=1e-5)


class Exploding(nn.Module):
    """Logits that become infinite in a batch of choice."""

    def __init__(self, network, batch):
        super().__init__()
        self.network, self.left = network, batch

    def forward(self, images):
        self.left -= self.training
        return self.network(images) * (float("inf") if self.left < 0 and self.training else 1.0)


def test_a_loss_that_is_not_finite_stops_with_epoch_and_batch(tmp_path):
    module = RobustTraining(DefendedClassifier(None, Exploding(CifarResNet(**F_A), 2 + 1)), 10)
    keeper = pl.callbacks.ModelCheckpoint(tmp_path, filename="last", save_on_train_epoch_end=True)
    with pytest.raises(UserError, match=r"loss became nan in epoch 1, batch 1.*learning_rate"):
        fit(module, tmp_path, epochs=3, callbacks=[keeper])
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert kept["epoch"] == 0
    assert all(tensor.isfinite().all() for tensor in kept["state_dict"].values())


def test_weights_that_break_in_the_last_batch_do_not_replace_a_good_checkpoint(tmp_path):
    """The loss of that batch is finite still, and the next loss would come after saving."""

    class Break(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if (trainer.current_epoch, batch_idx) == (1, 1):
                module.model.classifier.classifier.weight.data.fill_(float("inf"))

    keepers = [
        pl.callbacks.ModelCheckpoint(tmp_path, filename="last", save_on_train_epoch_end=True),
        pl.callbacks.ModelCheckpoint(
            tmp_path, "{epoch}", "val/accuracy", save_top_k=-1, save_on_train_epoch_end=False
        ),
    ]
    module = RobustTraining(defended(), 10)
    module.recipe = RECIPE
    with pytest.raises(UserError, match="NaN or infinite in epoch 1"):
        fit(module, tmp_path, epochs=3, callbacks=[Break(), *keepers])
    names = sorted(path.name for path in tmp_path.glob("*.ckpt"))
    assert names == ["epoch=0.ckpt", "last.ckpt"]
    for name in names:
        assert torch.load(tmp_path / name, weights_only=True)["epoch"] == 0
        load(tmp_path / name)


def test_images_are_trained_on_in_training_mode_and_metrics_count_every_image(tmp_path):
    module = RobustTraining(defended(False), 10)
    trainer = fit(module, tmp_path)
    found = trainer.callback_metrics
    assert set(found) == {"train/loss", "train/accuracy", "val/loss", "val/accuracy"}
    assert float(found["train/accuracy"]) * 16 == pytest.approx(
        round(float(found["train/accuracy"]) * 16)
    )
    assert module.training


@pytest.mark.parametrize(("parts", "steps"), [(2, [2, 1]), (3, [3]), (50, [3])])
def test_a_step_follows_the_mean_over_the_batches_that_it_is_made_of(parts, steps, tmp_path):
    """Also the last step of an epoch, which may have fewer of them."""
    found = []
    settings = {"optimizer_options": {}, "learning_rate": 1.0, "momentum": 0.0, "weight_decay": 0.0}

    class Kept(RobustTraining):
        """Keeps the gradient of each batch by itself, and the one that a step follows."""

        def training_step(self, batch, batch_idx):
            losses, _ = self.losses(batch, batch_idx, self.current_epoch)
            weights = [*self.model.parameters()]
            self.single = [
                *getattr(self, "single", []),
                torch.autograd.grad(losses.mean(), weights),
            ]
            return super().training_step(batch, batch_idx)

        def on_before_optimizer_step(self, optimizer):
            taken = [weight.grad.clone() for weight in self.model.parameters()]
            found.append((self.single, taken))
            self.single = []

    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(256, 10))
    module = Kept(DefendedClassifier(None, network), 10, schedule="constant", **settings)
    trainer = pl.Trainer(
        max_epochs=1,
        limit_train_batches=3,
        limit_val_batches=0,
        accumulate_grad_batches=parts,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, datamodule=Digits(batch_size=16))
    assert [len(single) for single, _ in found] == steps
    for single, taken in found:
        for gradients, step in zip(zip(*single, strict=True), taken, strict=True):
            torch.testing.assert_close(step, torch.stack(gradients).mean(dim=0))


class Labelled(nn.Module):
    """Answers with the labels that it is told."""

    def __init__(self):
        super().__init__()
        self.scale, self.told = nn.Parameter(torch.ones(())), None

    def forward(self, images):
        return self.scale * self.told


def test_accuracy_on_mixtures_is_that_on_the_larger_share(monkeypatch):
    network, labels = Labelled(), torch.arange(8) % 3
    module = RobustTraining(DefendedClassifier(None, network), 3, mixing="mixup")
    module._trainer = SimpleNamespace(
        world_size=1, current_epoch=0, accumulate_grad_batches=1, num_training_batches=1
    )
    module.log = lambda *_, **__: None
    module._answers = True
    shares = 0.3 * torch.eye(3)[labels] + 0.7 * torch.eye(3)[labels.roll(1)]
    network.told = shares
    images = torch.rand(8, 1, 4, 4)
    monkeypatch.setattr("robusttrain.training.module.mix", lambda *_: (images, shares))
    module.training_step(Batch(images, labels, torch.arange(8)), 0)
    assert float(module.train_accuracy.compute()) == 1


@pytest.mark.parametrize("seed", [0, 1])
def test_one_seed_one_result(tmp_path, seed):
    states = []
    for _ in range(2):
        module = RobustTraining(defended(), 10, seed=seed)
        torch.manual_seed(len(states))  # global state must not matter
        fit(module, tmp_path)
        states.append(module.model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_streams_belong_to_seed_epoch_and_image(tmp_path):
    module, seen = RobustTraining(defended(False), 10, seed=5), []

    class Spy(Standard):
        def __call__(self, model, images, labels, rng):
            seen.append((module.current_epoch, rng.keys.tolist()))
            return super().__call__(model, images, labels, rng)

    module.objective = Spy()
    trainer = fit(module, tmp_path, epochs=2)
    data = trainer.datamodule
    for epoch in (0, 1):
        whole = (
            Rng.for_images(5, torch.arange(1500))
            .fold("train")
            .fold(epoch)
            .keys[data._train.subset]
            .tolist()
        )
        drawn = [key for when, keys in seen if when == epoch for key in keys]
        assert len(drawn) == 16
        assert set(drawn) <= set(whole)


def test_a_free_run_goes_on_as_if_it_had_not_been_interrupted(tmp_path):
    """Delta is kept from batch to batch and from epoch to epoch, in checkpoints as well."""

    def trained(folder, epochs, ckpt_path=None):
        module = RobustTraining(
            defended(False), 10, Free(2), schedule="constant", learning_rate=0.01
        )
        keeper = pl.callbacks.ModelCheckpoint(folder, filename="last", save_on_train_epoch_end=True)
        fit(module, tmp_path, epochs, batches=4, callbacks=[keeper], ckpt_path=ckpt_path)
        return module

    whole = trained(tmp_path / "whole", 2)
    trained(tmp_path / "half", 1)
    resumed = trained(tmp_path / "rest", 2, ckpt_path=tmp_path / "half" / "last.ckpt")
    assert whole.objective.state()["delta"].abs().max() > 0
    assert torch.equal(whole.objective.state()["delta"], resumed.objective.state()["delta"])
    for (name, one), other in zip(
        whole.state_dict().items(), resumed.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name
