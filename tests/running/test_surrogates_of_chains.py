"""What an attacker trains to imitate a chain: the target's own g inside it, with other options."""

import importlib
import linecache
import sys
from dataclasses import replace
from types import SimpleNamespace

import torch

from robusttrain.config.build import build
from robusttrain.core.telling import SILENT
from robusttrain.defenses import (
    AdversarialTransform,
    AntiAdversary,
    Chain,
    Defense,
    Denoiser,
    MedianSmoothing,
    RandomResizePad,
)
from robusttrain.models import Autoencoder, VGGSmall
from robusttrain.models.defended import DefendedClassifier
from robusttrain.running.evaluating import provide_surrogates
from robusttrain.running.surrogates import Keeper
from robusttrain.storage import own_text


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


class Blur(Defense):
    """A defense of one's own."""

    def __init__(self, share):
        super().__init__()
        self.share = share

    def transform(self, images, streams):
        return self.share * images + (1 - self.share) * images.mean(dim=(2, 3), keepdim=True)


def test_an_h_is_another_for_other_code_and_other_numbers_of_a_defense(tmp_path, monkeypatch):
    """A defense that was built in Python has no options that a key could hold."""

    def path(defense):
        target = DefendedClassifier(defense, VGGSmall(width=8))
        data = {"class_path": "robusttrain.data.Digits"}
        return Keeper(tmp_path, target, data, {}).path("h", {"h": {"width": 8}})

    first = path(Blur(0.5))
    assert path(Blur(0.5)) == first
    assert path(Blur(0.6)) != first
    monkeypatch.setattr(Blur, "transform", lambda self, images, streams: images)
    own_text._texts.clear()
    assert path(Blur(0.5)) != first


def test_an_own_network_of_the_attacker_is_another_once_its_code_was_edited(tmp_path, monkeypatch):
    recipe = {"model": {"class_path": "attackers.Net", "init_args": {}}}
    monkeypatch.syspath_prepend(tmp_path)
    target = DefendedClassifier(None, VGGSmall(width=8))
    keeper = Keeper(tmp_path, target, {"class_path": "robusttrain.data.Digits"}, {})

    def path(width):
        code = f"from torch import nn\n\nclass Net(nn.Module):\n    width = {width}\n"
        (tmp_path / "attackers.py").write_text(code)
        monkeypatch.delitem(sys.modules, "attackers", raising=False)
        linecache.clearcache()
        importlib.invalidate_caches()
        return keeper.path("mine", recipe)

    assert path(8) == path(8)
    assert path(8) != path(16)


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
