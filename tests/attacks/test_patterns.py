"""Sources for randomization layers, on models whose answers are known."""

import pytest
import torch
from torch import nn

from robusttrain.attacks import (
    CrossEntropy,
    EnsemblePattern,
    Loss,
    ProjectedGradient,
    SinglePattern,
    call_model,
)
from robusttrain.core.errors import OptionError, UserError
from robusttrain.defenses import AdversarialTransform, FixedResizePad, RandomResizePad
from robusttrain.models.defended import DefendedClassifier


def defended(classifier, low=8, canvas=12):
    return DefendedClassifier(RandomResizePad(low, canvas), classifier)


def test_the_papers_21_patterns(convnet, images):
    layers = RandomResizePad(299, 331)
    source = EnsemblePattern()(DefendedClassifier(layers, convnet()))
    patterns = [(member.defense.size, member.defense.position) for member in source.members]
    assert len(set(patterns)) == 21
    assert sorted({size for size, _ in patterns}) == [299, 307, 315, 323, 331]
    assert all(member.defense.canvas == 331 for member in source.members)
    single = SinglePattern()(DefendedClassifier(layers, convnet()))
    assert (single.defense.size, single.defense.position) == (None, "center")


@pytest.mark.parametrize("fuse", ["logits", "probabilities", "losses"])
def test_all_patterns_are_averaged(fuse, convnet, images, streams):
    model, x, labels = convnet(), images(), torch.tensor([0, 1, 2, 0])
    source = EnsemblePattern(2, ["top-left", "center"], fuse)(defended(model))
    patterns = [(8, "top-left"), (8, "center"), (10, "top-left"), (10, "center"), (12, "center")]
    every = torch.stack([model(FixedResizePad(12, *pattern)(x)) for pattern in patterns])
    loss = Loss(source, CrossEntropy(), labels)(x, streams())
    expected = {
        "logits": lambda: CrossEntropy()(every.mean(0), labels),
        "probabilities": lambda: (
            -every.softmax(2).mean(0).gather(1, labels[:, None]).squeeze(1).log()
        ),
        "losses": lambda: torch.stack([CrossEntropy()(logits, labels) for logits in every]).mean(0),
    }[fuse]()
    torch.testing.assert_close(loss, expected)


def test_the_gradient_is_that_of_the_patterns_and_reaches_the_classifier_once_more(
    convnet, images, streams, counting
):
    """Members are evaluated anew in the backward pass: twice in all, and the gradient stays what it
    was.
    """
    counted = counting(convnet())
    source, x = EnsemblePattern(1, ["center"])(defended(counted)), images()
    labels = torch.tensor([0, 1, 2, 0])
    moved = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(
        Loss(source, CrossEntropy(), labels)(moved, streams()).sum(), moved
    )
    moved = x.clone().requires_grad_()
    both = (
        counted.model(FixedResizePad(12, 8)(moved)) + counted.model(FixedResizePad(12, 12)(moved))
    ) / 2
    (expected,) = torch.autograd.grad(CrossEntropy()(both, labels).sum(), moved)
    torch.testing.assert_close(found, expected)
    assert counted.gradients == 2 * 2 * len(x)


class Corner(nn.Module):
    """Says 1 as soon as the top left pixel is bright: right only for images that stand there."""

    def forward(self, images):
        light = images[:, :, 0, 0].mean(1) - 0.5
        return torch.stack([-light, light], 1)


def test_an_ensemble_finds_what_one_pattern_cannot_see(images, streams):
    x = torch.full((2, 3, 8, 8), 0.4)
    target, labels = defended(Corner(), canvas=10), torch.zeros(2, dtype=torch.int64)
    attack = ProjectedGradient(10, 0.05, random_start=False)
    blind = attack(SinglePattern()(target), x, labels, streams(2))
    assert torch.equal(blind, x)
    seeing = attack(EnsemblePattern(1)(target), x, labels, streams(2))
    assert ((seeing - x).abs().amax(dim=(1, 2, 3)) > 0.03).all()


def test_an_image_that_a_pattern_cannot_hold_is_refused(convnet, images):
    with pytest.raises(UserError, match="do not fit into canvas = 7"):
        call_model(SinglePattern()(defended(convnet(), 5, 7)), images(), None)


@pytest.mark.parametrize("source", [SinglePattern(), EnsemblePattern()])
def test_other_targets_are_refused(source, convnet):
    with pytest.raises(UserError, match="AdversarialTransform draws no patterns"):
        source(DefendedClassifier(AdversarialTransform(convnet()), convnet()))
    with pytest.raises(UserError, match="has no defense"):
        source(DefendedClassifier(None, convnet()))


@pytest.mark.parametrize(
    ("source", "options", "named"),
    [
        (SinglePattern, {"size": 0}, "size"),
        (SinglePattern, {"position": "x"}, "position"),
        (EnsemblePattern, {"sizes": 0}, "sizes"),
        (EnsemblePattern, {"positions": []}, "positions"),
        (EnsemblePattern, {"positions": ["x"]}, "positions"),
        (EnsemblePattern, {"fuse": "x"}, "fuse"),
    ],
)
def test_impossible_options_are_named(source, options, named):
    with pytest.raises(OptionError, match=rf"^{named} = "):
        source(**options)


def test_more_sizes_than_the_layers_draw_are_refused(convnet):
    with pytest.raises(OptionError, match="sizes = 5: the layers draw from 4 sizes"):
        EnsemblePattern(5)(defended(convnet()))
