"""Every training preset is the recipe that its first line promises."""

import pytest
import torch

from robusttrain.attacks import IdentityBackward
from robusttrain.config import presets
from robusttrain.config.build import build
from robusttrain.defenses import RandomResizePad
from robusttrain.models.defended import DefendedClassifier
from robusttrain.running.f_b import _training
from robusttrain.training import TRADES, Adversarial, TrainingObjective

#: Needs checkpoints of other models; trains no classifier; says more than a training of an f_b may.
SPECIAL = {"budget", "denoiser", "diffusion", "ensemble-adversarial", "reparameterization"}
NAMES = sorted(set(presets.names("training")) - SPECIAL)


def objective(name) -> TrainingObjective:
    """As the command line builds it: the preset over the defaults of every class."""
    node = _training(name)["training"]["objective"]
    return build(node, "training.objective", kind=TrainingObjective)


@pytest.mark.parametrize("name", NAMES)
def test_it_trains_an_f_b_and_a_model_behind_a_random_defense(name, images, streams, linear):
    model = DefendedClassifier(RandomResizePad(low=6, canvas=8), linear()).train()
    built, labels = objective(name), torch.tensor([0, 2, 1, 1])
    built.check(model)
    losses, logits = built(model, images(), labels, streams())
    assert (losses.shape, logits.shape) == ((4,), (4, 3))
    losses.mean().backward()
    assert all(weight.grad.abs().sum() > 0 for weight in model.parameters())
    inner = built.inner()
    assert inner is None or inner.attack.threat.epsilon == 0.031


def test_the_papers_settings():
    assert (
        objective("mart").weight,
        objective("trades").beta,
        objective("logit-pairing").weight,
    ) == (6, 6, 0.5)
    awp = {name: objective(name) for name in ("adversarial-awp", "trades-awp", "mart-awp")}
    assert {name: (each.gamma, each.warmup) for name, each in awp.items()} == {
        "adversarial-awp": (0.01, 0),
        "trades-awp": (0.005, 10),
        "mart-awp": (0.005, 0),
    }
    assert isinstance(awp["adversarial-awp"].objective, Adversarial)
    assert isinstance(awp["trades-awp"].objective, TRADES)
    fast = objective("fast")
    assert (fast.attack.steps, fast.attack.random_start, fast.batch_norm) == (1, True, "train")
    assert fast.attack.alpha == pytest.approx(1.25 * 0.031)
    assert objective("free").replays == 8
    noisy, aligned = objective("n-fgsm"), objective("grad-align")
    assert (noisy.noise, noisy.step, noisy.batch_norm) == (2.0, 1.0, "train")
    assert (aligned.weight, aligned.objective.attack.random_start) == (0.2, False)


def test_what_goes_through_g_differentiates_it_as_the_identity():
    through = [name for name in NAMES if "through-g" in name]
    assert len(through) == 3
    assert all(isinstance(objective(name).source, IdentityBackward) for name in through)
    assert objective("adversarial-through-g-eot").cost() == (5 * 4, 0, 1)
    assert objective("trades-through-g").cost() == (5, 1, 2)
