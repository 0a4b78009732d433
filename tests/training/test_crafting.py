"""Crafting: batch norm's two modes, mixed labels, and the meter."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robusttrain.attacks import IdentityBackward, Linf, ProjectedGradient
from robusttrain.core.errors import OptionError
from robusttrain.defenses import AdversarialTransform, AntiAdversary, Hedge
from robusttrain.models import VGGSmall
from robusttrain.models.defended import DefendedClassifier
from robusttrain.training import TRADES, Adversarial, Standard
from robusttrain.training.crafting import Meter, craft, crafting_in, hard

LABELS = torch.tensor([0, 2, 1, 1])
FAST = ProjectedGradient(steps=1, relative_step_size=1.25, threat=Linf(0.1))


def test_fast_adversarial_training_as_its_code_does_it(images, streams, convnet):
    """One step of 1.25 epsilon from a random start, with the batch's statistics, clipped to ball
    and box.
    """
    model = DefendedClassifier(None, convnet()).train()
    model.classifier[8].p = 0.0
    twin = DefendedClassifier(None, convnet()).train()
    twin.classifier[8].p = 0.0
    losses, _ = Adversarial(FAST, batch_norm="train")(model, images(), LABELS, streams())
    x = images()
    start = FAST.threat.random_start(
        x, streams().fold("inner attack").fold("start")
    ).requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(twin(start), LABELS), start)
    delta = (start.detach() - x + 0.125 * gradient.sign()).clamp(-0.1, 0.1)
    expected = F.cross_entropy(twin((x + delta).clamp(0, 1)), LABELS, reduction="none")
    torch.testing.assert_close(losses, expected)
    # Two passes in training mode, crafting and loss, have moved the statistics of both alike.
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, twin.state_dict()[name])


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("around", [False, True])
@pytest.mark.parametrize("asked", [torch.float32, torch.bfloat16])
def test_the_precision_of_inner_attacks_is_the_one_that_was_asked_for(
    images, streams, convnet, mode, around, asked
):
    """Whatever that of the trainer is."""
    seen, model = set(), DefendedClassifier(None, convnet()).train()

    def note(layer, arguments, out):
        if isinstance(layer, nn.Conv2d) and out.requires_grad:
            seen.add(out.dtype)

    handle = nn.modules.module.register_module_forward_hook(note)
    try:
        with torch.autocast("cpu", torch.bfloat16, enabled=around), crafting_in(asked):
            craft(model, FAST, Adversarial().source, images(), LABELS, streams(), mode)
    finally:
        handle.remove()
    assert seen == {asked}


def test_the_mode_matters_and_eval_leaves_the_statistics_alone(images, streams, convnet):
    found = {}
    for mode in ("eval", "train"):
        model = DefendedClassifier(None, convnet()).train()
        before = model.classifier[1].running_mean.clone()
        # Statistics that differ from the batch's.
        images_ = images(seed=3) * 0.5
        crafted = craft(model, FAST, Adversarial().source, images_, LABELS, streams(), mode)
        found[mode] = crafted
        assert torch.equal(model.classifier[1].running_mean, before) == (mode == "eval")
        assert all(module.training for module in model.modules())
        assert not model.classifier[1]._forward_pre_hooks
    assert not torch.equal(found["eval"], found["train"])


def test_frozen_layers_stay_frozen(streams, convnet):
    defense = AdversarialTransform(VGGSmall(num_classes=3, image_size=16), radius=0.1, steps=1)
    model = DefendedClassifier(defense, convnet()).train()
    model.classifier[1].eval()
    frozen = {
        name: tensor.clone()
        for name, tensor in model.state_dict().items()
        if "classifier.4" not in name
    }
    x = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    craft(model, FAST, IdentityBackward(), x, LABELS, streams(), "train")
    state = model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in frozen.items())
    assert int(model.classifier[4].num_batches_tracked) > int(
        frozen["classifier.1.num_batches_tracked"]
    )


def test_the_attack_goes_against_the_largest_share_of_a_mixed_label(images, streams, linear):
    model = DefendedClassifier(None, linear())
    mixed = 0.6 * F.one_hot(LABELS, 3) + 0.4 * F.one_hot(LABELS.roll(1), 3)
    assert torch.equal(hard(mixed), LABELS)
    assert torch.equal(hard(LABELS), LABELS)
    crafted = Adversarial(FAST).craft(model, images(), LABELS, streams())
    losses, logits = Adversarial(FAST)(model, images(), mixed, streams())
    torch.testing.assert_close(logits, model(crafted))
    torch.testing.assert_close(losses, -(mixed * logits.log_softmax(1)).sum(1))


def test_the_meter_hears_of_attacks_inside_alone(images, streams, linear):
    model, meter = DefendedClassifier(None, linear()), Meter()
    with meter.listening():
        Standard()(model, images(), LABELS, streams())
    assert (meter.images, meter.seconds()) == (0, 0)
    with meter.listening():
        _, logits = Adversarial(FAST)(model, images(), LABELS, streams())
        TRADES()(model, images(), LABELS, streams())
    first = int((logits.argmax(1) == LABELS).sum())
    assert meter.images == 8
    assert first <= int(meter.correct) <= first + 4
    spent = meter.seconds()
    assert spent > 0
    Adversarial(FAST)(model, images(), LABELS, streams())
    assert (meter.images, meter.seconds()) == (8, spent)
    meter.reset()
    assert (meter.images, int(meter.correct), meter.seconds()) == (0, 0, 0)


@pytest.mark.parametrize("objective", [Adversarial, TRADES])
def test_errors_name_the_option(objective):
    with pytest.raises(OptionError, match="^batch_norm = 'off'"):
        objective(batch_norm="off")


@pytest.mark.parametrize("asked", [torch.float32, None])
def test_float32_is_kept_by_a_network_that_is_attacked_itself(images, streams, asked):
    """Without batch norm that could be folded there is no copy of another type."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 3))
    seen, model = set(), DefendedClassifier(None, network).train()
    network[1].register_forward_hook(lambda layer, given, out: seen.add(out.dtype))
    with torch.autocast("cpu", torch.bfloat16), crafting_in(asked):
        craft(model, FAST, Adversarial().source, images(), LABELS, streams())
    assert seen == {asked or torch.bfloat16}


@pytest.mark.parametrize("search", [AntiAdversary, Hedge])
def test_a_search_of_the_defense_moves_no_statistics(images, streams, convnet, search):
    """Although the inner attack's own passes do: an image's g depends on no neighbour."""
    counts = []
    for defense in (None, search()):
        model = DefendedClassifier(defense, convnet()).train()
        source = Adversarial().source if defense is None else IdentityBackward()
        craft(model, FAST, source, images(), LABELS, streams(), "train")
        norms = [each for each in model.modules() if isinstance(each, nn.BatchNorm2d)]
        assert all(each.training for each in norms)
        counts.append([int(each.num_batches_tracked) for each in norms])
    assert counts[0] == counts[1] != [0] * len(counts[0])
