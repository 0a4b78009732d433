"""Small models, defenses and attacks that run on any device."""

from copy import deepcopy
from dataclasses import fields, is_dataclass, replace
from functools import cache

import torch
from torch import nn

from robusttrain.attacks import Queried
from robusttrain.config.attacks import scenarios
from robusttrain.core.errors import UserError
from robusttrain.core.rng import Rng
from robusttrain.defenses import (
    JPEG,
    AdversarialTransform,
    Diffusion,
    GaussianNoise,
    RandomResizePad,
)
from robusttrain.models import NoiseNetwork
from robusttrain.models.defended import DefendedClassifier

CLASSES, SIDE = 4, 8


def network(seed=0):
    """A classifier of images of any size, with batch norm to fold."""
    torch.manual_seed(seed)
    made = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24, CLASSES),
    )
    with torch.no_grad():
        made.train()(torch.rand(16, 3, SIDE, SIDE))
    made.in_channels = 3  # lets fast_copy verify that it may fold batch norm
    return made.eval()


def diffusion():
    torch.manual_seed(0)
    return Diffusion(NoiseNetwork(in_channels=3, width=4), steps=3)


#: Defenses of targets. Of each kind, the first that a source takes is used.
DEFENSES = {
    "none": lambda: None,
    "g without noise": lambda: AdversarialTransform(network(1), steps=2, random_start=False),
    "jpeg": JPEG,
    "noise": lambda: GaussianNoise(0.1),
    "g": lambda: AdversarialTransform(network(1), steps=2),
    "patterns": lambda: RandomResizePad(SIDE, SIDE + 4),
    "diffusion": diffusion,
}
KINDS = {
    "deterministic": ("none", "g without noise", "jpeg"),
    "random": ("noise", "g", "patterns", "diffusion"),
}


@cache
def surrogate():
    """Another classifier behind another g."""
    return DefendedClassifier(AdversarialTransform(network(3), steps=2), network(2)).eval()


class Reader:
    """Stands for the files that sources name; their models lie on the CPU, as files leave them."""

    def checkpoint(self, path, trust):
        return deepcopy(surrogate())

    def stand_in(self, path):
        torch.manual_seed(4)
        return nn.Conv2d(3, 3, 3, padding=1)


#: Whatever takes time, and is none of the steps of a loop.
FEWER = dict.fromkeys(
    ("draws", "samples", "directions", "votes", "targets", "search_steps", "restarts"), 2
) | {"tries": 3, "halvings": 3, "evaluations": 4, "sizes": 1}


def shortened(part, steps):
    """An attack, with its members and parts, of few steps."""
    if isinstance(part, list):
        return [shortened(each, steps) for each in part]
    if not is_dataclass(part):
        return part
    changed = {}
    for each in filter(lambda each: each.init, fields(part)):
        value = getattr(part, each.name)
        if each.name == "steps":
            changed[each.name] = steps
        elif each.name == "queries":
            changed[each.name] = 6 * steps
        elif each.name in FEWER and value is not None:
            changed[each.name] = min(value, FEWER[each.name])
        elif is_dataclass(value) or isinstance(value, list):
            changed[each.name] = shortened(value, steps)
    return replace(part, **changed)


def with_files(source):
    """A source with a file in place of each model that would have to be trained first."""
    if isinstance(source, list):
        return [with_files(each) for each in source]
    names = {each.name for each in fields(source)} & {"path", "members", "inner"}
    return replace(
        source,
        **{
            name: "a file" if name == "path" else with_files(getattr(source, name))
            for name in names
        },
    )


@cache
def scenario(preset):
    """The attack of a preset and its source, opened."""
    found = scenarios([preset], [], None)[preset]
    return replace(found, source=with_files(found.source).opened(Reader()))


@cache
def target(defense, device):
    """The classifier behind a defense of `DEFENSES`, in its fast copy."""
    made = DefendedClassifier(DEFENSES[defense](), network()).eval().to(device)
    return made.fast(torch.float32)


def build(source, kind, device):
    """What a source makes of a classifier behind the first defense of a kind that it takes; None if
    it takes none of them.
    """
    for defense in KINDS[kind]:
        try:
            return Queried(source(target(defense, device))).to(device)
        except UserError:
            continue
    return None


def images_and_labels(device, count=3):
    """Images (B, 3, 8, 8) that the bare classifier gets right, their labels and streams."""
    x = 0.2 + 0.6 * torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = network()(x).argmax(dim=1)
    return x.to(device), y.to(device), Rng.for_images(0, torch.arange(count, device=device))
