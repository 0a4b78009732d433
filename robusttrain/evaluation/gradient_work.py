"""How many gradients of which networks an evaluation's attacks will take."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from robusttrain.attacks import Queried, prepared
from robusttrain.attacks.parts.differentiation import input_gradients
from robusttrain.attacks.sources.unrolled import Searching
from robusttrain.core.errors import UserError
from robusttrain.core.processor import telling_size
from robusttrain.core.rng import Rng
from robusttrain.data import ImageData
from robusttrain.evaluation.compiling import IMAGES, Work, work_of
from robusttrain.evaluation.pricing import any_value
from robusttrain.evaluation.scenario import Scenario
from robusttrain.evaluation.taking import check_classes
from robusttrain.models.declared import takes_streams
from robusttrain.models.defended import DefendedClassifier
from robusttrain.models.fast import FastModel

#: Images of the pass that is counted.
FEW = 2


def works_of(
    target: DefendedClassifier,
    attacks: Mapping[str, Scenario],
    types: Mapping[str, torch.dtype],
    data: ImageData,
    seed: int,
    device: torch.device,
) -> list[Work]:
    """The gradients of every network that could be compiled: the classifier's fast copies, and
    f_b's inside g. Other models of an attacker are left as they are.

    Args:
        target: on the CPU, where it also ends.
        attacks: by name; those whose models an attacker has to train first are passed over.
        types: in which each attack differentiates.
        data: set up for "test".
        seed: of the evaluation.
        device: where the attacks will run.
    """
    batch = data.first_test_batch()
    check_classes(target, batch.images, data.facts().num_classes)
    total = sum(len(part) for part in data.test_dataloader().sampler)  # type: ignore[arg-type, misc, union-attr]
    target.to(device)
    size = max(IMAGES, telling_size(len(batch.images), device))
    images = batch.images[:size].to(device)
    rng = Rng.for_images(seed, batch.indices[:size].to(device)).fold("measure")
    fast = {dtype: target.fast(dtype) for dtype in {*types.values()}}
    networks = {
        id(network): network for each in fast.values() for network in compilable(each, images)
    }
    counts = dict.fromkeys(networks, 0.0)
    for name, scenario in attacks.items():
        try:
            source = Queried(scenario.source(fast[types[name]]))
            cost = scenario.attack.cost_on(source)
            for gradients, times in ((True, cost.gradients), (False, cost.queries)):
                if times:
                    seen = _seen(source, networks, images[:FEW], rng[:FEW], gradients)
                    for key, count in seen.items():
                        counts[key] += count * times * total
        except UserError:  # the attacker trains its model first
            continue
    works = []
    for each in fast.values():
        with torch.no_grad():
            inputs = images if each.defense is None else each.defense(images, rng)
        for network in compilable(each, images):
            shown = inputs if network is each.classifier else images
            if evaluations := counts.pop(id(network), 0.0):
                works.append(work_of(network, shown, evaluations))
    return works


def compilable(target: DefendedClassifier, images: Tensor) -> list[FastModel]:
    """The fast copies in a target: its classifier, and f_b of each part of its defense."""
    parts = target.defense.parts if target.defense is not None else ()
    asked: list[nn.Module] = [target.classifier]
    for part in parts:
        if part.has_f_b:
            f_b = cast(Searching, part).differentiated()
            asked.append(f_b.model if isinstance(f_b, Queried) else f_b)
    return [
        network.to(images.device)
        for network in asked
        if isinstance(network, FastModel) and network.copied and not takes_streams(network.network)
    ]


def _seen(
    source: Queried,
    networks: Mapping[int, FastModel],
    images: Tensor,
    rng: Rng,
    gradients: bool,
) -> dict[int, float]:
    """How many images each network takes a gradient of, for one image that the source is asked
    about.
    """
    counts: dict[int, float] = {}

    def count(network: nn.Module, inputs: tuple[Any, ...]) -> None:
        if torch.is_grad_enabled() and inputs[0].requires_grad:
            counts[id(network)] = counts.get(id(network), 0.0) + len(inputs[0]) / len(images)

    with prepared(source), torch.random.fork_rng(devices=[]):
        source(images, rng)  # the first pass may ask more than once, to settle what it is asked
        hooks = [network.register_forward_pre_hook(count) for network in networks.values()]
        try:
            if gradients:
                list(input_gradients(partial(any_value, source, rng), images.clone()))
            else:
                with torch.no_grad():
                    source(images, rng)
        finally:
            for hook in hooks:
                hook.remove()
    return counts
