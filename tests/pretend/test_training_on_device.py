"""Every training on the pretend device, by Lightning's trainer: its batches, its callbacks."""

import inspect
from dataclasses import fields, is_dataclass

import pytest
import torch
from lightning_runs import Waited, trainer
from pretend_device import DEVICE
from subjects import shortened
from waits import agree

import robusttrain.training as package
from robusttrain.config import presets
from robusttrain.config.attacks import scenarios
from robusttrain.config.build import build
from robusttrain.data import Digits
from robusttrain.defenses import AdversarialTransform, GaussianNoise
from robusttrain.models import Autoencoder, CifarResNet, FullyConvolutional, NoiseNetwork
from robusttrain.models.defended import DefendedClassifier
from robusttrain.running.f_b import _training
from robusttrain.training import RobustTraining, TrainingObjective
from robusttrain.training.board import Board
from robusttrain.training.callbacks import (
    EMA,
    SWA,
    Dashboard,
    Overfitting,
    Pace,
    Pictures,
    ProgressLines,
    RobustAccuracy,
)
from robusttrain.training.purifiers import Denoising, NoisePrediction, PurifierTraining
from robusttrain.training.reparameterization import ReparameterizationTraining

pytestmark = pytest.mark.filterwarnings("ignore")

#: Their networks are no classifiers.
OTHERS = {"denoiser", "diffusion", "reparameterization"}
#: `budget` says more than a training of an f_b may; its objective is that of `n-fgsm`.
NAMES = sorted({*presets.names("training")} - OTHERS - {"budget"})

#: Whether the loss is finite: the step of the optimizer waits for the answer.
FINITE = 1
#: The inner attack's range of pixel values, its range of labels, and the kind of its answers.
INNER = 3
#: Waits of a batch, its backward pass and the optimizer's step included.
WAITS = dict.fromkeys(NAMES, FINITE + INNER) | {
    **dict.fromkeys(("consistency", "free", "paper", "standard"), FINITE),
    "ensemble-adversarial": FINITE + INNER + 1,  # whose turn is it?
}


def f_a():
    torch.manual_seed(0)
    return CifarResNet(num_classes=10, in_channels=1, widths=[4, 8], blocks=1)


class Files:
    """Stands for the files of other models."""

    def checkpoint(self, path, trust):
        return DefendedClassifier(None, f_a()).eval()


def objective(name):
    """The preset's objective, as the command line builds it; its inner attack has two steps."""
    node = _training(name)["training"]["objective"]
    if "models" in node.get("init_args", {}):
        node["init_args"]["models"] = ["a file"]
    return shortened(build(node, "training.objective", kind=TrainingObjective), 2).opened(Files())


def fitted(module, *callbacks, **options):
    """The module after two batches on the device."""
    trained = trainer(callbacks, **options)
    trained.fit(module, Digits(batch_size=8))
    return trained


def weights(module):
    return [each.detach().clone() for each in module.parameters() if each.requires_grad]


@pytest.mark.parametrize("name", NAMES)
def test_every_objective_trains_on_the_device(name):
    waited, classifier = Waited(), f_a()
    before = weights(classifier)
    model = DefendedClassifier(GaussianNoise(0.1), classifier)
    module = RobustTraining(model, 10, objective(name), inner_precision="float32")
    fitted(module, waited)
    after = weights(classifier)
    assert all(not torch.equal(one, other) for one, other in zip(before, after, strict=True))
    last = waited.batches[-1]
    assert agree(last.total(), WAITS[name]), last.told()


def classes_in(part):
    """The class of an objective, and those of objectives inside it."""
    inside = [getattr(part, each.name) for each in fields(part)] if is_dataclass(part) else []
    inner = [each for each in inside if isinstance(each, TrainingObjective)]
    return {type(part)}.union(*map(classes_in, inner))


def test_every_objective_is_among_them():
    public = {
        each
        for each in vars(package).values()
        if inspect.isclass(each)
        and issubclass(each, TrainingObjective)
        and not inspect.isabstract(each)
    }
    assert public <= {each for name in NAMES for each in classes_in(objective(name))}


def purifier(network, aim):
    return lambda: PurifierTraining(network(in_channels=1), aim)


NETWORKS = {
    "denoiser": purifier(Autoencoder, Denoising()),
    "diffusion": purifier(NoiseNetwork, NoisePrediction()),
    "reparameterization": lambda: ReparameterizationTraining(
        AdversarialTransform(f_a(), steps=2), FullyConvolutional(channels=1, width=4, depth=2)
    ),
}


@pytest.mark.parametrize("name", sorted(OTHERS))
def test_networks_that_classify_nothing_train_on_the_device(name):
    module, waited = NETWORKS[name](), Waited()
    before = weights(module)
    fitted(module, waited)
    assert not all(torch.equal(*pair) for pair in zip(before, weights(module), strict=True))
    last = waited.batches[-1]
    assert agree(last.total(), FINITE), last.told()


RECIPE = {
    "model": {"class_path": "a.Net", "init_args": {}},
    "defense": None,
    "data": {"class_path": "a.Digits", "init_args": {"batch_size": 8}},
    "training": {
        "objective": {"class_path": "a.Adversarial", "init_args": {}},
        **{"optimizer": "sgd", "learning_rate": 0.1, "schedule": "cosine"},
        **{"weight_decay": 0.0, "mixing": "none"},
    },
    "run": {"ema": 0.0, "seed": 0},
}


class Devices(Waited):
    """Where the weights lie during training."""

    def on_train_batch_start(self, trainer, pl_module, *rest):
        assert {each.device for each in pl_module.parameters()} == {DEVICE}
        super().on_train_batch_start()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_every_callback_runs_on_the_device(tmp_path, precision):
    inner = scenarios(["bpda-i-quick"], [("steps", "2")])["bpda-i-quick"]
    model = DefendedClassifier(AdversarialTransform(f_a(), steps=2), f_a())
    module = RobustTraining(model, 10, objective("adversarial-through-g"))
    trained = fitted(
        module,
        *(Devices(), Pace(), Dashboard(RECIPE)),
        RobustAccuracy({"bpda-i-quick": inner}, images=4, draws=1),
        SWA(0, batches=1) if precision == "32-true" else EMA(0.9),
        Overfitting("robust/bpda-i-quick", inner, images=4, draws=1, say=lambda line: None),
        Pictures(inner, "bpda-i-quick", images=2),
        ProgressLines(lambda line: None),
        enable_progress_bar=True,
        logger=Board(tmp_path, "run", 0),
        max_epochs=2,
        precision=precision,
    )
    assert {"robust/worst_case", "val/accuracy", "pace/inner_share"} <= {*trained.callback_metrics}
