"""Measures of transferability on the pretend device: they are those of the CPU."""

import torch
from pretend_device import DEVICE
from subjects import CLASSES, images_and_labels, network, scenario, shortened

from robusttrain.attacks import Target
from robusttrain.data import Batch
from robusttrain.defenses import GaussianNoise
from robusttrain.evaluation import Scenario
from robusttrain.models.defended import DefendedClassifier
from robusttrain.transfer import cosines, gradients
from robusttrain.transfer.commonly_correct import commonly_correct
from robusttrain.transfer.minimal_distortion import minimal_distortion
from robusttrain.transfer.planes import orthogonal, regions
from robusttrain.transfer.predictions import answers


def measured(device):
    """All measures, by what they are of, with models and images on a device."""
    x, y, rng = images_and_labels(device, 6)
    models = {
        name: DefendedClassifier(defense, network(seed)).eval().to(device)
        for name, defense, seed in (("a", None, 0), ("b", None, 5), ("c", GaussianNoise(0.01), 0))
    }
    by_model = {name: gradients(model, x, y, rng) for name, model in models.items()}
    attack = shortened(scenario("pgd").attack, 2)
    adversarial = Scenario(attack, Target())(models["a"], x, y, rng)
    away = by_model["a"][0]
    plane = regions(models, x[0], away, orthogonal(away, rng[:1]), 0.1, rng[:1], points=5)
    # Images come from a loader, on the CPU.
    loaded = [Batch(x.cpu(), y.cpu(), torch.arange(6))]
    alike = {name: models[name] for name in ("a", "c")}
    return {
        "adversarial": adversarial,
        "cosines": cosines(by_model),
        "distortion": minimal_distortion([models["a"], models["b"]], x, by_model["a"], y),
        "answers": answers(models["c"], adversarial, rng, draws=3, top=2),
        "correct": commonly_correct(alike, loaded, CLASSES).indices,
        **plane.classes,
    }


def test_they_are_those_of_the_cpu():
    expected = measured("cpu")
    for name, found in measured(DEVICE).items():
        torch.testing.assert_close(found.cpu(), expected[name], atol=1e-4, rtol=1e-4, msg=name)
