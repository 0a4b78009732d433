"""What an objective of somebody's own returns is looked at before the weights follow it."""

from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robusttrain.attacks import ProjectedGradient
from robusttrain.config.training import read_plan
from robusttrain.core.errors import UserError
from robusttrain.data import Batch
from robusttrain.models.defended import DefendedClassifier
from robusttrain.running.training import train
from robusttrain.training import AWP, RobustTraining, TrainingObjective


@dataclass(frozen=True)
class Returning(TrainingObjective):
    """Gives what ``make`` makes of logits and labels."""

    make: object = field(default=None)

    def losses(self, model, images, crafted, labels, rng):
        return self.make(model(images, rng), labels)


def each(logits, labels):
    return F.cross_entropy(logits, labels, reduction="none")


def step(objective: TrainingObjective):
    """The first step on 6 images of 3 classes."""
    torch.manual_seed(0)
    model = DefendedClassifier(None, nn.Sequential(nn.Flatten(), nn.Linear(4, 3)))
    images = torch.rand(6, 1, 2, 2)
    batch = Batch(images, torch.arange(6) % 3, torch.arange(6))
    return RobustTraining(model, 3, objective).losses(batch, 0, 0)


WRONG = {
    "mean": (lambda z, y: (F.cross_entropy(z, y), z), r"reduction='none'.* returned \(\)"),
    "sum": (lambda z, y: (each(z, y).sum(), z), r"reduction='none'.* returned \(\)"),
    "column": (lambda z, y: (each(z, y)[:, None], z), r"6 images it returned \(6, 1\)"),
    "a loss a class": (lambda z, y: (z, z), r"6 images it returned \(6, 3\) and \(6, 3\)"),
    "twice the images": (
        lambda z, y: (each(z, y).repeat(2), z.repeat(2, 1)),
        r"returned \(12,\) and \(12, 3\)",
    ),
    "classes": (lambda z, y: (each(z, y), z.argmax(1)), r"returned \(6,\) and \(6,\)"),
    "losses alone": (lambda z, y: each(z, y), "returned a Tensor"),
    "three": (lambda z, y: (each(z, y), z, y), "returned a tuple of 3"),
    "nothing": (lambda z, y: None, "returned a NoneType"),
    "features": (lambda z, y: (each(z, y), z.repeat(1, 2)), r"of 3 classes, .* \(6, 6\) as logits"),
    "detached": (lambda z, y: (each(z, y).detach(), z), "do not depend differentiably"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_loss_an_image_with_logits_is_refused(kind):
    make, said = WRONG[kind]
    with pytest.raises(UserError, match=said) as error:
        step(Returning(make))
    assert "Returning" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_wrapper_names_the_objective_inside():
    with pytest.raises(UserError, match=r"Returning\.losses must return"):
        step(AWP(Returning(lambda z, y: (F.cross_entropy(z, y), z))))


def test_losses_of_each_image_and_logits_pass():
    losses, logits = step(Returning(lambda z, y: (each(z, y), z)))
    assert losses.shape == (6,)
    assert logits.shape == (6, 3)


def test_without_gradients_nothing_is_asked_of_them():
    with torch.no_grad():
        losses, _ = step(Returning(lambda z, y: (each(z, y), z)))
    assert not losses.requires_grad


class Bare(TrainingObjective):
    """Says of itself what a test gives it."""

    def losses(self, model, images, crafted, labels, rng):
        logits = model(crafted, rng)
        return each(logits, labels), logits


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("attack", field(default=None), r"attack is a dataclasses\.field.*@dataclass"),
        ("attack", "pgd", "attack must be an Attack, or None, and is 'pgd'"),
        ("source", None, "source must be a Source, and is None"),
        ("passes", lambda self: 2, "passes is a method: write @property above it"),
        ("passes", "2", "passes must be a whole number"),
        ("batch_norm", "evaluation", "batch_norm must be eval or train, and is 'evaluation'"),
        ("warmup", 0.5, "warmup must be a whole number"),
    ],
)
def test_what_it_says_of_itself_is_looked_at_before_anything_is_trained(name, value, said):
    own = type("Own", (Bare,), {name: value, "__module__": __name__})
    with pytest.raises(UserError, match=rf"--training\.objective: Own\.{said}"):
        step(own())
    with pytest.raises(UserError, match=rf"--training\.objective: Own\.{said}"):
        step(AWP(own()))


def test_an_attack_that_is_no_field_is_not_strengthened():
    """`replace` knows the fields of a dataclass alone."""

    class Own(Bare):
        attack = ProjectedGradient(steps=2, step_size=0.01)

    step(Own())
    assert Own().strengthened() is None


@dataclass(frozen=True)
class FewerArguments(TrainingObjective):
    """Does not take what objectives are given."""

    def losses(self, model, images, labels, rng):
        return each(model(images, rng), labels), None


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        (FewerArguments(), r"FewerArguments raised .*takes 5 positional arguments but 6 "),
        (
            Returning(lambda z, y: each(z, F.one_hot(y, 2))),
            r"Returning raised Class values .* \(.*test_own_objectives\.py, line \d+\)",
        ),
        (Returning(lambda z, y: {}["loss"]), "Returning raised KeyError: 'loss' "),
    ],
)
def test_what_it_raises_is_told_in_one_line(objective, said):
    with pytest.raises(UserError, match=f"--training.objective: {said}") as error:
        step(objective)
    assert "\n" not in str(error.value)


def test_it_is_rehearsed_before_anything_is_written(tmp_path):
    places = ["--checkpoints", str(tmp_path / "kept"), "--logs", str(tmp_path / "logs")]
    node = {"class_path": f"{__file__}:FewerArguments"}
    small = ["--model", "mlp", "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1"]
    plan = read_plan([*small, *places], [{"training": {"objective": node}}])
    with pytest.raises(UserError, match="FewerArguments raised"):
        train(plan)
    assert not (tmp_path / "kept").exists()


def test_a_rehearsal_leaves_the_model_as_it_is():
    norm = nn.BatchNorm1d(4)
    model = DefendedClassifier(None, nn.Sequential(nn.Flatten(), norm, nn.Linear(4, 3)))
    module = RobustTraining(model, 3, Returning(lambda z, y: (each(z, y), z))).train()
    batch = Batch(torch.rand(6, 1, 2, 2), torch.arange(6) % 3, torch.arange(6))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    module.rehearse(batch)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    module.losses(batch, 0, 0)
    assert norm.num_batches_tracked == 1
