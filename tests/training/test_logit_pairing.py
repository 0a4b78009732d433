"""Adversarial logit pairing against the released code's formula."""

import pytest
import torch
import torch.nn.functional as F

from robusttrain.attacks import Linf, ProjectedGradient
from robusttrain.core.errors import OptionError
from robusttrain.defenses import RandomResizePad
from robusttrain.models.defended import DefendedClassifier
from robusttrain.training import LogitPairing

LABELS = torch.tensor([0, 2, 1, 1])
ATTACK = ProjectedGradient(steps=2, step_size=0.05, threat=Linf(0.1))
NOTHING = ProjectedGradient(steps=0, step_size=1.0, random_start=False)


@pytest.mark.parametrize(("weight", "smoothing"), [(0.5, 0.1), (2.0, 0.0), (0.0, 0.1)])
def test_by_hand_on_a_linear_model(images, streams, linear, weight, smoothing):
    model = DefendedClassifier(None, linear())
    losses, logits = LogitPairing(weight, ATTACK, label_smoothing=smoothing)(
        model, images(), LABELS, streams()
    )
    adversarial = ATTACK(model, images(), LABELS, streams().fold("inner attack"))
    clean, robust = model(images()), model(adversarial)
    torch.testing.assert_close(logits, clean)
    # The code: softmax_cross_entropy over the 2 B images, and mean_squared_error over the B x K
    # differences.
    crossed = F.cross_entropy(
        torch.cat([clean, robust]), LABELS.repeat(2), label_smoothing=smoothing
    )
    paired = weight * ((clean - robust) ** 2).sum() / clean.numel()
    assert paired > 1e-3 or weight == 0
    torch.testing.assert_close(losses.mean(), crossed + paired)


def test_batch_norm_sees_both_images_together(images, streams):
    model = DefendedClassifier(
        None, torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.Flatten())
    ).train()
    adversarial = ATTACK(model, images(), LABELS, streams().fold("inner attack"))
    LogitPairing(attack=ATTACK)(model, images(), LABELS, streams())
    together = torch.cat([images(), adversarial])
    torch.testing.assert_close(model.classifier[0].running_mean, 0.1 * together.mean((0, 2, 3)))
    assert int(model.classifier[0].num_batches_tracked) == 1


def test_both_images_see_the_same_draws(images, streams, linear):
    model = DefendedClassifier(RandomResizePad(low=4, canvas=8), linear())
    losses, logits = LogitPairing(100.0, NOTHING, label_smoothing=0.0)(
        model, images(), LABELS, streams()
    )
    torch.testing.assert_close(losses, F.cross_entropy(logits, LABELS, reduction="none"))


def test_the_attack_of_the_released_example_goes_for_the_least_likely_class():
    assert LogitPairing().attack.objective.target == "least_likely"


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"weight": -1.0}, "weight"),
        ({"label_smoothing": 2.0}, "label_smoothing"),
        ({"batch_norm": "x"}, "batch_norm"),
    ],
)
def test_errors_name_the_option(options, name):
    with pytest.raises(OptionError, match=f"^{name} = "):
        LogitPairing(**options)
