"""Whether attacks that follow a gradient are handed one: asked before anything is attacked."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from robusttrain.attacks import Queried, prepared
from robusttrain.attacks.base import check_images
from robusttrain.attacks.parts.differentiation import input_gradients
from robusttrain.attacks.parts.gradients import NO_GRADIENT
from robusttrain.core.errors import UserError
from robusttrain.core.rng import Rng
from robusttrain.evaluation.engine import Engine
from robusttrain.evaluation.pricing import any_value
from robusttrain.evaluation.vanishing import FEW, vanishes
from robusttrain.models.defended import DefendedClassifier

Answer = TypeVar("Answer")


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
    asked = _of_each(engine, lambda source: missing(source, images, indices))
    return {name: why for name, why in asked.items() if why is not None}


def zero_gradients(engine: Engine, images: Tensor, indices: Tensor) -> list[str]:
    """The attacks that would follow a gradient which is zero wherever it was asked for; arguments
    as for `without_gradient`, which has found one.
    """
    asked = _of_each(engine, lambda source: vanishes(source, images, indices))
    return [name for name, zero in asked.items() if zero]


def _of_each(engine: Engine, ask: Callable[[nn.Module], Answer]) -> dict[str, Answer]:
    """What ``ask`` finds of the source of each attack that follows a gradient; of equal ones it
    asks the first.
    """
    following = [name for name, each in engine.scenarios.items() if each.attack.cost().gradients]
    first, found = engine.first_of_equal(), dict[str, Answer]()
    for name in following:
        if first[name] not in found:
            found[first[name]] = ask(engine.sources[name])
    return {name: found[first[name]] for name in following}


def refuse_hidden(
    target: DefendedClassifier, named: Iterable[str], images: Tensor, indices: Tensor
) -> None:
    """Raise UserError where a defense says that it can be differentiated and hands on no gradient,
    or one that is zero everywhere: believing it, suites would go through it and not around it.

    Args:
        target: that some attacks get no gradient of.
        named: these attacks.
        images, indices: as for `missing`.
    """
    defense = target.defense
    if defense is None or not defense.differentiable:
        return
    bare = DefendedClassifier(None, target.classifier)
    if _useful(target, images, indices) or not _useful(bare, images, indices):
        return
    raise UserError(
        f"defense {type(defense).__name__}: says differentiable = True and hands on no gradient"
        " (of a step that rounds it is zero), so"
        f" {', '.join(named)} could not follow one: say differentiable = False, and attacks go"
        " around the defense"
    )


def _useful(source: nn.Module, images: Tensor, indices: Tensor) -> bool:
    """Whether a source hands on a gradient that is not zero everywhere."""
    if missing(source, images, indices) is not None:
        return False
    return not vanishes(source, images, indices)
