"""Whether attacks that follow a gradient are handed one: asked before anything is attacked."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn

from robusttrain.attacks import Queried, prepared
from robusttrain.attacks.base import check_images
from robusttrain.attacks.parts.differentiation import input_gradients
from robusttrain.attacks.parts.gradients import NO_GRADIENT
from robusttrain.core.errors import UserError
from robusttrain.core.rng import Rng
from robusttrain.evaluation.engine import Engine, any_value
from robusttrain.models.defended import DefendedClassifier

#: Images that the gradient is asked for.
FEW = 2


def missing(source: nn.Module, images: Tensor, indices: Tensor) -> str | None:
    """Why a source hands no gradient on to the images; None where it does, whatever its length.

    Where the backward pass fails otherwise, the attack says why, as it would anyway.

    Args:
        source: images to logits.
        images: (B, C, H, W), of which a few are asked about.
        indices: (B,) int64, in their data set.
    """
    queried = Queried.of(source)
    images = check_images(images[:FEW])
    rng = Rng.for_images(0, indices[:FEW].to(images.device)).fold("measure")
    try:
        with prepared(queried), torch.random.fork_rng(devices=[]):
            ((_, gradient),) = input_gradients(partial(any_value, queried, rng), images.clone())
    except UserError as error:
        return str(error)
    except Exception:  # noqa: BLE001 - models are any code, which attacks report with their names
        return None
    return NO_GRADIENT if gradient is None else None


def without_gradient(engine: Engine, images: Tensor, indices: Tensor) -> dict[str, str]:
    """The attacks that would follow a gradient and are handed none, and why.

    Args:
        engine: whose attacks are asked for.
        images, indices: as for `missing`.
    """
    first, asked = engine.first_of_equal(), dict[str, str | None]()
    for name, scenario in engine.scenarios.items():
        if scenario.attack.cost().gradients and first[name] not in asked:
            asked[first[name]] = missing(engine.sources[name], images, indices)
    return {
        name: why
        for name, scenario in engine.scenarios.items()
        if scenario.attack.cost().gradients and (why := asked[first[name]]) is not None
    }


def refuse_hidden(
    target: DefendedClassifier, named: Iterable[str], images: Tensor, indices: Tensor
) -> None:
    """Raise UserError where a defense says that it can be differentiated and hands on no gradient:
    believing it, suites would go through it and not around it.

    Args:
        target: that some attacks get no gradient of.
        named: these attacks.
        images, indices: as for `missing`.
    """
    defense = target.defense
    if defense is None or not defense.differentiable:
        return
    bare = DefendedClassifier(None, target.classifier)
    if missing(target, images, indices) is None or missing(bare, images, indices) is not None:
        return
    raise UserError(
        f"defense {type(defense).__name__}: says differentiable = True and hands on no gradient, so"
        f" {', '.join(named)} could not follow one: say differentiable = False, and attacks go"
        " around the defense"
    )
