"""Averaged weights: the mean of what it says, with its own statistics, in validation and in
checkpoints.
"""

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging
from torch import nn

from robusttrain import load
from robusttrain.attacks import Linf, ProjectedGradient
from robusttrain.config.checkpoints import recipe_of
from robusttrain.core.errors import OptionError
from robusttrain.core.rng import Rng
from robusttrain.data import Digits
from robusttrain.data.augment import crop_and_flip
from robusttrain.data.base import as_float
from robusttrain.defenses import AdversarialTransform
from robusttrain.models import CifarResNet, VGGSmall
from robusttrain.models.defended import DefendedClassifier
from robusttrain.training import AWP, Adversarial, Free, RobustTraining
from robusttrain.training.callbacks import EMA, SWA

pytestmark = pytest.mark.filterwarnings("ignore")
F_A = {"num_classes": 10, "in_channels": 1, "widths": [4, 8], "blocks": 1}
NODE = {"class_path": "robusttrain.models.CifarResNet", "init_args": F_A}
ATTACK = ProjectedGradient(steps=1, step_size=0.02, threat=Linf(0.03))


class Ends(pl.Callback):
    """The weights at the end of each epoch's steps, and those that are validated."""

    def __init__(self):
        self.trained, self.validated = [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if batch_idx + 1 == trainer.num_training_batches:
            self.trained.append(
                {name: value.clone() for name, value in module.model.state_dict().items()}
            )

    def on_validation_epoch_end(self, trainer, module):
        self.validated.append(
            {name: value.clone() for name, value in module.model.state_dict().items()}
        )


def fit(
    folder,
    start,
    epochs=4,
    objective=None,
    defense=None,
    batches=3,
    ckpt_path=None,
    max_steps=-1,
):
    torch.manual_seed(0)
    model = DefendedClassifier(defense, CifarResNet(**F_A))
    module = RobustTraining(
        model, 10, objective or Adversarial(ATTACK), schedule="constant", learning_rate=0.05
    )
    module.recipe = recipe_of(NODE, None, {"class_path": "robusttrain.data.Digits"})
    data, ends = Digits(batch_size=32), Ends()
    data.replays = module.objective.replays
    keeper = pl.callbacks.ModelCheckpoint(folder, filename="last", save_on_train_epoch_end=True)
    trainer = pl.Trainer(
        max_epochs=epochs,
        max_steps=max_steps,
        limit_train_batches=batches,
        limit_val_batches=1,
        accelerator="cpu",
        logger=False,
        # Those that look at the weights come before the one that swaps them back.
        callbacks=[ends, SWA(start, batches=2), keeper],
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return module, trainer, ends


def test_a_run_that_ends_within_an_epoch(tmp_path):
    """Steps or time may end it: its last weights count, and are kept."""
    _, trainer, _ = fit(tmp_path, start=0, batches=3, max_steps=2)
    assert trainer.global_step == 2
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    torch.manual_seed(0)
    first = CifarResNet(**F_A)
    changed = [
        not torch.equal(kept["state_dict"][f"model.classifier.{name}"], value)
        for name, value in first.named_parameters()
    ]
    assert all(changed)
    assert kept["averaging_state"]["n_averaged"] == 1


def weights(state):
    return {
        name: value
        for name, value in state.items()
        if "running" not in name and "tracked" not in name
    }


def test_the_mean_of_the_weights_from_the_start_on(tmp_path):
    module, _, ends = fit(tmp_path, start=1)
    assert len(ends.trained) == len(ends.validated) == 4
    for epoch, validated in enumerate(ends.validated):
        counted = ends.trained[epoch : epoch + 1] if epoch < 1 else ends.trained[1 : epoch + 1]
        for name, value in weights(validated).items():
            expected = torch.stack([weights(each)[name] for each in counted]).mean(dim=0)
            torch.testing.assert_close(value, expected, atol=1e-6, rtol=1e-5)
    # What is left in the model, and what is saved, is what was validated last; the run's own
    # weights are kept beside.
    last = ends.validated[-1]
    kept = load(tmp_path / "last.ckpt").state_dict()
    for name, value in module.model.state_dict().items():
        torch.testing.assert_close(value, last[name])
        torch.testing.assert_close(kept[name], last[name])
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    own = content["current_model_state"]["model.classifier.stem.0.weight"]
    assert torch.equal(own, ends.trained[-1]["classifier.stem.0.weight"])


@pytest.mark.parametrize("objective", [Adversarial(ATTACK), AWP(Adversarial(ATTACK), 0.02)])
def test_statistics_are_those_of_the_averaged_weights_on_adversarial_images(tmp_path, objective):
    module, trainer, ends = fit(tmp_path, start=1, objective=objective)
    data, found = trainer.datamodule, ends.validated[-1]
    # By hand: the last average, its images crafted in evaluation mode, the mean of two batches'
    # moments.
    model = DefendedClassifier(None, CifarResNet(**F_A))
    model.load_state_dict(
        {**found, **{k: v for k, v in ends.trained[-1].items() if "running" in k}}
    )
    loader = data.train_dataloader()
    loader.sampler.set_epoch(3)
    means, variances = [], []
    for number, batch in enumerate(loader):
        if number == 2:
            break
        rng = Rng.for_images(data.seed, batch.indices).fold("augment").fold(3)
        x = as_float(crop_and_flip(batch.images, rng, data.crop, data.flip))
        streams = Rng.for_images(module.seed, batch.indices).fold("statistics").fold(3)
        crafted = ATTACK(model.eval(), x, batch.labels, streams.fold("inner attack"))
        with torch.no_grad():
            seen = model.classifier.stem[0](model.classifier.normalize(crafted))
        means.append(seen.mean((0, 2, 3)))
        variances.append(seen.var((0, 2, 3)))
    torch.testing.assert_close(
        found["classifier.stem.1.running_mean"], torch.stack(means).mean(0), atol=1e-5, rtol=1e-4
    )
    torch.testing.assert_close(
        found["classifier.stem.1.running_var"], torch.stack(variances).mean(0), atol=1e-5, rtol=1e-4
    )
    # They are not those of the run's own weights.
    assert not torch.allclose(
        found["classifier.stem.1.running_mean"],
        ends.trained[-1]["classifier.stem.1.running_mean"],
        rtol=0.01,
    )


def test_training_itself_goes_on_as_if_nobody_averaged(tmp_path):
    _, _, early = fit(tmp_path / "a", start=1)
    _, _, late = fit(tmp_path / "b", start=3)
    for one, other in zip(early.trained, late.trained, strict=True):
        assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_frozen_f_b_keeps_its_statistics_and_replays_are_passed_over(tmp_path):
    f_b = VGGSmall(num_classes=10, in_channels=1, image_size=16)
    defense = AdversarialTransform(f_b, steps=1, radius=0.1)
    before = {name: value.clone() for name, value in defense.state_dict().items()}
    module, trainer, _ = fit(tmp_path, 0, epochs=2, objective=Free(2), defense=defense, batches=4)
    assert all(
        torch.equal(value, before[name])
        for name, value in module.model.defense.state_dict().items()
    )
    batches = SWA(0, 3)._training_batches(trainer, module)
    assert len(torch.cat([batch.indices for batch in batches]).unique()) == 3 * 32


def test_an_interrupted_run_has_the_same_average(tmp_path):
    _, _, whole = fit(tmp_path / "whole", start=1)
    fit(tmp_path / "half", start=1, epochs=3)
    _, _, rest = fit(tmp_path / "rest", start=1, ckpt_path=tmp_path / "half" / "last.ckpt")
    for name, value in whole.validated[-1].items():
        torch.testing.assert_close(rest.validated[-1][name], value)


@pytest.mark.parametrize(
    ("options", "name"), [({"start": -1}, "start"), ({"start": 0, "batches": 0}, "batches")]
)
def test_errors_name_the_option(options, name):
    with pytest.raises(OptionError, match=f"^{name} = "):
        SWA(**options)


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 4, 3, stride=2))
        self.norm = nn.BatchNorm2d(4)
        self.last = nn.Linear(4 * 7 * 7, 10)

    def forward(self, x):
        return self.last(self.norm(self.conv(x)).relu().flatten(1))


class WeightNorm(Plain):
    """Holds the result of a computation, which torch refuses to copy."""

    def __init__(self):
        super().__init__()
        self.last = nn.utils.weight_norm(self.last)


class LateBuffer(Plain):
    """A buffer that the first pass makes, before another one."""

    def __init__(self):
        super().__init__()
        self.register_buffer("late", None)
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x):
        if self.late is None:
            self.late = torch.full((), 0.5)
        return super().forward(x * self.scale)


class OtherType(Plain):
    """A buffer that is made anew in float64."""

    def __init__(self):
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x):
        if self.training:
            self.steps = torch.tensor(float(self.steps) + 1, dtype=torch.float64)
        return super().forward(x)


class SharedMemory(Plain):
    """A buffer that looks into a weight."""

    def __init__(self):
        super().__init__()
        self.register_buffer("look", self.last.weight.data)


class ByHand(pl.Callback):
    """The average of the weights and buffers after each step."""

    def __init__(self, decay):
        self.decay, self.average, self.validated, self.alike = decay, {}, [], None

    def on_train_batch_end(self, trainer, module, *_):
        for name, value in module.model.state_dict().items():
            before = self.average.get(name, value)
            mixed = self.decay * before + (1 - self.decay) * value
            self.average[name] = mixed.to(value.dtype)

    def on_validation_epoch_end(self, trainer, module):
        now = module.model.state_dict().items()
        self.validated.append([{**self.average}, {name: value.clone() for name, value in now}])
        (average,) = [each for each in trainer.callbacks if isinstance(each, EMA | SWA)]
        pairs = zip(average._average_model.module.parameters(), module.parameters(), strict=True)
        self.alike = all(mine.stride() == theirs.stride() for mine, theirs in pairs)


def averaged(folder, network, average, watching=(), epochs=2, **options):
    torch.manual_seed(0)
    module = RobustTraining(
        DefendedClassifier(None, network()), 10, schedule="constant", learning_rate=0.05
    )
    keeper = pl.callbacks.ModelCheckpoint(folder, filename="last", save_on_train_epoch_end=True)
    trainer = pl.Trainer(
        max_epochs=epochs,
        limit_train_batches=3,
        limit_val_batches=1,
        accelerator="cpu",
        logger=False,
        callbacks=[*watching, average, keeper],
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    trainer.fit(module, Digits(batch_size=16), **options)
    return module.model.state_dict()


@pytest.mark.parametrize("network", [Plain, WeightNorm, LateBuffer, OtherType, SharedMemory])
def test_the_moving_average_of_any_network(tmp_path, network):
    hand = ByHand(0.5)
    left = averaged(tmp_path, network, EMA(0.5), [hand])
    assert hand.alike  # or they would be averaged one by one
    assert len(hand.validated) == 2
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    kept = {name.removeprefix("model."): value for name, value in kept.items()}
    for expected, found in [*hand.validated, (hand.average, left), (hand.average, kept)]:
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("network", [WeightNorm, LateBuffer, OtherType])
def test_the_mean_of_epochs_of_any_network(tmp_path, network):
    hand = ByHand(0.5)
    left = averaged(tmp_path, network, SWA(0, batches=1), [hand])
    for name, value in hand.validated[-1][1].items():
        torch.testing.assert_close(left[name], value)


def test_a_run_goes_on_from_what_lightnings_own_average_left(tmp_path):
    whole = averaged(tmp_path / "whole", Plain, EMA(0.5))
    averaged(tmp_path / "part", Plain, EMAWeightAveraging(decay=0.5), epochs=1)
    rest = averaged(tmp_path / "rest", Plain, EMA(0.5), ckpt_path=tmp_path / "part" / "last.ckpt")
    for name, value in whole.items():
        torch.testing.assert_close(rest[name], value, atol=1e-6, rtol=1e-5)
