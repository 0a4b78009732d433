"""From configurations to objects: what may be built, how errors are named, and how networks follow
the data.
"""

import re
import sys
import textwrap

import pytest
import torch
from torch import nn

from robusttrain.attacks import Average, Backprop, ProjectedGradient, Smooth
from robusttrain.config.build import (
    build,
    build_defended,
    check_pretrained,
    fit_to_data,
    other_pictures,
    resolve,
)
from robusttrain.core.errors import OptionError, UserError
from robusttrain.core.preparation import Preparation
from robusttrain.data import Facts
from robusttrain.defenses import AdversarialTransform, Chain, Defense
from robusttrain.models import CifarResNet, VGGSmall

TRUST = ("robusttrain",)


def node(class_path, **arguments):
    return {"class_path": class_path, "init_args": arguments}


SMALL = node("robusttrain.models.CifarResNet", widths=[4], blocks=1, in_channels=1)
F_B = node("robusttrain.models.VGGSmall", in_channels=1, image_size=16)
TRANSFORM = node("robusttrain.defenses.AdversarialTransform", model=F_B, steps=1)


def test_parts_are_built_before_what_holds_them():
    built = build(
        node(
            "robusttrain.attacks.ProjectedGradient",
            steps=3,
            step_size=0.1,
            gradient=node(
                "robusttrain.attacks.Average",
                draws=2,
                inner=node("robusttrain.attacks.Smooth", samples=4),
            ),
        )
    )
    assert built == ProjectedGradient(3, 0.1, gradient=Average(2, Smooth(4, inner=Backprop())))
    chain = build(node("robusttrain.defenses.Chain", defenses=[TRANSFORM, TRANSFORM]), kind=Defense)
    assert isinstance(chain, Chain)
    assert [type(defense) for defense in chain.defenses] == [AdversarialTransform] * 2


def test_plain_values_stay_and_given_objects_are_handed_over():
    assert build([1, {"a": None}, "x"]) == [1, {"a": None}, "x"]
    layer = nn.Linear(2, 2)
    assert build({"class_path": "torch.nn.Sequential"}).__class__ is nn.Sequential
    frozen = build({"class_path": "robusttrain.models.frozen.Frozen"}, given={"module": layer})
    assert frozen.module is layer


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (
            node("robusttrain.defenses.AdversarialTransform", model=F_B, radius=-1.0),
            "defense.radius = -1.0",
        ),
        (
            node(
                "robusttrain.defenses.AdversarialTransform",
                model={**F_B, "init_args": {"image_size": 20}},
            ),
            "defense.model.image_size = 20",
        ),
        (
            node(
                "robusttrain.defenses.Chain",
                defenses=[TRANSFORM, node("robusttrain.defenses.RandomResizePad", low=0)],
            ),
            r"defense.defenses\[1\].low = 0",
        ),
    ],
)
def test_errors_carry_the_full_name_of_the_option(broken, said):
    with pytest.raises(OptionError, match=f"^{said}"):
        build(broken, "defense")


@pytest.mark.parametrize(
    ("class_path", "said"),
    [
        ("robusttrain.models.Nothing", "cannot be imported"),
        ("no_such_package.Model", "cannot be imported"),
        ("robusttrain", "cannot be imported"),
        ("robusttrain..models", "cannot be imported"),
        ("robusttrain.core.version.__version__", "is not a class"),
        ("robusttrain.config.build", "is not a class"),
    ],
)
def test_what_is_no_class_is_refused_in_one_line(class_path, said):
    with pytest.raises(UserError, match=said) as caught:
        resolve(class_path)
    assert class_path in str(caught.value)


@pytest.mark.parametrize(
    "class_path",
    ["os.system", "subprocess.Popen", "torch.nn.Linear", "builtins.eval", "robusttrain_evil.Model"],
)
def test_untrusted_packages_are_refused_and_named(class_path):
    with pytest.raises(
        UserError, match=rf"{class_path!r} comes from a package that is not trusted.*--trust"
    ):
        build(node(class_path), "model", TRUST, nn.Module)


@pytest.mark.parametrize(
    "class_path",
    [
        "robusttrain.config.build.build",
        "robusttrain.core.rng.Rng",
        "robusttrain.storage.weights.Path",
        "robusttrain.config.command_line.Console",
        "robusttrain.data.Digits",
        "robusttrain.core.console.Progress",
    ],
)
@pytest.mark.parametrize("inner", [False, True])
def test_a_trusted_package_offers_only_networks_and_parts_of_attacks(class_path, inner):
    described = (
        node("robusttrain.defenses.AdversarialTransform", model=node(class_path))
        if inner
        else node(class_path)
    )
    with pytest.raises(UserError, match=class_path):
        build(described, "defense", TRUST, nn.Module)


def test_a_kind_is_demanded():
    with pytest.raises(UserError, match="VGGSmall is not a Defense"):
        build(F_B, "defense", kind=Defense)


def test_unknown_arguments_are_one_line():
    with pytest.raises(UserError, match="^model: .*stepz"):
        build(node("robusttrain.models.VGGSmall", stepz=3), "model")


def test_an_untrusted_module_is_not_even_imported(tmp_path, monkeypatch):
    (tmp_path / "untrusted_module.py").write_text(
        textwrap.dedent("""
            from pathlib import Path
            from torch import nn
            Path(__file__).with_name("imported").touch()
            class Net(nn.Linear):
                def __init__(self): super().__init__(1, 1)
        """)
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="not trusted"):
        build(node("untrusted_module.Net"), "model", TRUST, nn.Module)
    assert not (tmp_path / "imported").exists()
    assert "untrusted_module" not in sys.modules
    built = build(node("untrusted_module.Net"), "model", (*TRUST, "untrusted_module"), nn.Module)
    assert type(built).__name__ == "Net"


def test_networks_follow_the_data():
    model = node("robusttrain.models.CifarResNet")
    defense = node(
        "robusttrain.defenses.Chain", defenses=[node("robusttrain.defenses.AdversarialTransform")]
    )
    defense["init_args"]["defenses"][0]["init_args"]["model"] = {
        "class_path": "robusttrain.models.VGGSmall"
    }
    fit_to_data(model, Facts(7, 1, 48), "model")
    fit_to_data(defense, Facts(7, 1, 48), "defense")
    assert model["init_args"] == {"num_classes": 7, "in_channels": 1}
    inner = defense["init_args"]["defenses"][0]["init_args"]["model"]
    assert inner["init_args"] == {"num_classes": 7, "in_channels": 1, "image_size": 48}
    fit_to_data(None, Facts(7, 1, 48), "defense")
    built = build_defended(model, defense)
    assert built(torch.rand(2, 1, 48, 48)).shape == (2, 7)


@pytest.mark.parametrize(
    ("described", "said"),
    [
        (
            node("robusttrain.models.CifarResNet", num_classes=3),
            "model.num_classes = 3: the data set has 7",
        ),
        (
            node("robusttrain.models.VGGSmall", image_size=64),
            "model.image_size = 64: the data set has 48",
        ),
    ],
)
def test_networks_that_contradict_the_data_are_refused(described, said):
    with pytest.raises(OptionError, match=said):
        fit_to_data(described, Facts(7, 1, 48), "model")


def test_the_defended_classifier_of_two_nodes():
    defended = build_defended(SMALL, TRANSFORM, TRUST)
    assert isinstance(defended.classifier, CifarResNet)
    assert isinstance(defended.defense.f_b.module, VGGSmall)
    assert build_defended(SMALL, None, TRUST).defense is None
    with pytest.raises(UserError, match="not a Defense"):
        build_defended(SMALL, SMALL, TRUST)


def test_only_models_that_brought_weights_for_these_classes_need_none():
    model = nn.Linear(2, 2)
    with pytest.raises(UserError, match="--weights FILE; untrained"):
        check_pretrained(model, Facts(10, 3, 32))
    model.pretrained_classes = 1000
    with pytest.raises(
        UserError,
        match=r"--model: its weights are for 1000 classes, and the data set has 10, .*--data",
    ):
        check_pretrained(model, Facts(10, 3, 32))
    check_pretrained(model, Facts(1000, 3, 32))


@pytest.mark.parametrize(
    ("size", "far"), [(224, False), (168, False), (336, False), (32, True), (512, True)]
)
def test_weights_for_images_of_another_size_are_warned_of(size, far):
    model = nn.Linear(2, 2)
    model.pretrained_classes, model.pretrained_size = 1000, 224
    said = rf"--models x: .* 224 x 224 pixels, and these have {size} x {size}, .*image_size 224"
    told = other_pictures(model, size, None, "--models x")
    assert bool(told) == far
    assert not told or re.match(said, told)


@pytest.mark.parametrize(
    ("prepared", "said"),
    [
        (None, False),  # images already
        (Preparation(224, 256, "bilinear"), False),
        (Preparation(224, 256), True),
        (Preparation(224, 224, "bilinear"), True),
    ],
)
def test_pictures_that_are_prepared_in_another_way_are_warned_of(prepared, said):
    model = nn.Linear(2, 2)
    model.pretrained_classes, model.pretrained_size = 1000, 224
    model.pretrained_on = Preparation(224, 256, "bilinear")
    line = (
        r"--models x: .* resized to 256 \(bilinear\) and cropped to 224, these are resized to .*"
        " --data.resize 256 --data.interpolation bilinear"
    )
    told = other_pictures(model, 224, prepared, "--models x")
    assert bool(told) == said
    assert not told or re.match(line, told)


def test_a_preparation_that_is_none_is_named():
    model = nn.Linear(2, 2)
    model.pretrained_classes, model.pretrained_size, model.pretrained_on = 10, 32, "bilinear"
    with pytest.raises(UserError, match="--model: its pretrained_on is 'bilinear': give a "):
        other_pictures(model, 32, None)


@pytest.mark.parametrize("size", ["224", (224, 224), 0, 2.5])
def test_a_size_that_is_none_is_named(size):
    model = nn.Linear(2, 2)
    model.pretrained_classes, model.pretrained_size = 10, size
    with pytest.raises(
        UserError, match="--model: its pretrained_size is .*: give one whole number"
    ):
        other_pictures(model, 32, None)
