"""What an attacker trains to imitate a chain: the target's own g inside it, with other options."""

from dataclasses import replace
from types import SimpleNamespace

import torch

from robusttrain.config.build import build
from robusttrain.core.telling import SILENT
from robusttrain.defenses import (
    AdversarialTransform,
    AntiAdversary,
    Chain,
    Denoiser,
    MedianSmoothing,
    RandomResizePad,
)
from robusttrain.models import Autoencoder, VGGSmall
from robusttrain.models.defended import DefendedClassifier
from robusttrain.running.evaluating import provide_surrogates
from robusttrain.running.surrogates import Keeper


def test_g_inside_a_chain_keeps_its_f_b_and_takes_other_options(tmp_path, images, streams):
    torch.manual_seed(0)
    size = {"in_channels": 3, "image_size": 16, "width": 8}
    g = AdversarialTransform(VGGSmall(**size), radius=0.1, steps=5)
    target = DefendedClassifier(Chain([RandomResizePad(14, 16), g]), VGGSmall(**size))
    node = {
        "class_path": "robusttrain.defenses.Chain",
        "init_args": {
            "defenses": [
                {
                    "class_path": "robusttrain.defenses.RandomResizePad",
                    "init_args": {"low": 14, "canvas": 16},
                },
                {
                    "class_path": "robusttrain.defenses.AdversarialTransform",
                    "init_args": {
                        "model": {"class_path": "robusttrain.models.VGGSmall", "init_args": size},
                        "radius": 0.1,
                        "steps": 5,
                    },
                },
            ]
        },
    }
    keeper = Keeper(tmp_path, target, {"class_path": "robusttrain.data.Digits"}, {}, node)
    imitated = build(keeper.defense_with({"steps": 2}), "defense")
    x = images(4, 3, 16)
    expected = target.defense.with_steps(2)
    assert torch.equal(imitated(x, streams()), expected(x, streams()))


def test_a_target_without_defense_is_attacked_from_models_that_imitate_no_g(tmp_path):
    data = {"class_path": "robusttrain.data.Digits"}
    target = DefendedClassifier(None, VGGSmall(in_channels=1, image_size=16, width=8))
    trained = []
    paths = Keeper(tmp_path, target, data, {}).provide(
        ["standard"], lambda keeper, recipe, path, telling: trained.append(path)
    )
    assert trained == [paths["standard"]]


def test_a_purifier_beside_it_keeps_its_network(tmp_path, images, streams):
    torch.manual_seed(0)
    size = {"in_channels": 3, "image_size": 16, "width": 8}
    small = {"in_channels": 3, "width": 8, "depth": 1}
    g = AdversarialTransform(VGGSmall(**size), radius=0.1, steps=5)
    target = DefendedClassifier(Chain([Denoiser(Autoencoder(**small)), g]), VGGSmall(**size))
    denoiser = {"class_path": "robusttrain.models.Autoencoder", "init_args": small}
    f_b = {"class_path": "robusttrain.models.VGGSmall", "init_args": size}
    parts = [
        {"class_path": "robusttrain.defenses.Denoiser", "init_args": {"model": denoiser}},
        {
            "class_path": "robusttrain.defenses.AdversarialTransform",
            "init_args": {"model": f_b, "radius": 0.1, "steps": 5},
        },
    ]
    node = {"class_path": "robusttrain.defenses.Chain", "init_args": {"defenses": parts}}
    keeper = Keeper(tmp_path, target, {"class_path": "robusttrain.data.Digits"}, {}, node)
    imitated = build(keeper.defense_with({"steps": 2}), "defense")
    x, expected = images(4, 3, 16), target.defense.with_steps(2)
    assert torch.equal(imitated(x, streams()), expected(x, streams()))


def test_an_h_for_a_g_that_asks_the_classifier_is_another_for_another_classifier(tmp_path):
    torch.manual_seed(0)
    node = {"class_path": "robusttrain.defenses.AntiAdversary", "init_args": {}}
    recipe = {"h": {"width": 8}}

    def path(defense, classifier):
        target = DefendedClassifier(defense, classifier)
        data = {"class_path": "robusttrain.data.Digits"}
        return Keeper(tmp_path, target, data, {}, node).path("h", recipe)

    one, other = VGGSmall(width=8), VGGSmall(width=8)
    assert path(AntiAdversary(), one) == path(AntiAdversary(), one)
    assert path(AntiAdversary(), one) != path(AntiAdversary(), other)
    assert path(MedianSmoothing(), one) == path(MedianSmoothing(), other)


def test_epochs_of_models_that_no_attack_trains_are_said_to_have_no_effect():
    lines = []
    plan = SimpleNamespace(attacks={"pgd": {"class_path": "PGD"}}, surrogate_epochs=4)
    attacks = {"pgd": object()}
    telling = replace(SILENT, say=lines.append)
    assert provide_surrogates(plan, attacks, None, {}, telling) is attacks
    assert lines == ["surrogate_epochs: no attack here trains a model, so it has no effect"]
    plan.surrogate_epochs = None
    assert provide_surrogates(plan, attacks, None, {}, telling) is attacks
    assert len(lines) == 1
