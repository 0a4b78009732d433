"""A rehearsal of the user's own attacks: what fails in them fails before hours are spent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import Tensor

from robusttrain.attacks import Attack, Queried
from robusttrain.core.errors import UserError
from robusttrain.core.generators import SharedGenerators
from robusttrain.core.rng import Rng
from robusttrain.evaluation.engine import Engine
from robusttrain.evaluation.fitting import refuse_outside
from robusttrain.evaluation.handed_on import FEW, missing
from robusttrain.evaluation.scenario import Scenario
from robusttrain.storage.raised import place, said

#: The most evaluations of an image that a rehearsal takes.
MOST = 1000


def rehearse(
    engine: Engine,
    attacks: Mapping[str, Scenario],
    names: Iterable[str],
    images: Tensor,
    labels: Tensor,
    indices: Tensor,
) -> None:
    """Run attacks on two images, with the least effort that they can be scaled to: a copy of each,
    so that what one keeps for later is not kept of these.

    An attack that waits for a model of the attacker's own is given the target, if that hands on a
    gradient. What would take more than `MOST` evaluations of an image is left alone.

    Args:
        engine: of the attacks whose models are at hand.
        attacks: by name.
        names: of those to rehearse, that hold code of the user's own.
        images: (B, C, H, W), on the target's device; labels, indices: (B,).

    Raises:
        UserError: an attack fails, or leaves its threat, also with all its effort.
    """
    images, labels, indices = images[:FEW].float(), labels[:FEW], indices[:FEW]
    rng = Rng.for_images(engine.seed, indices).fold("rehearsal")
    stand_in = Queried(engine.target)
    usable = None
    for name in names:
        scenario, source = attacks[name], engine.sources.get(name)
        if source is None:
            if usable is None:
                usable = missing(stand_in, images, indices) is None
            source = stand_in
            if not usable or not _fits(scenario.attack, source):
                continue
        versions = _versions(scenario.attack)
        for number, attack in enumerate(versions, 1):
            try:
                with _unseen(source, images.device):
                    adversarial = attack(source, images.clone(), labels, rng)
                    refuse_outside(name, scenario, adversarial, images)
                break
            except Exception as error:
                if number < len(versions):  # with little effort alone, which is not what was asked
                    continue
                if isinstance(error, UserError):
                    raise
                raise UserError(
                    f"attack {name}: raised {said(error)}{place(error)} on {len(images)} images,"
                    " before the evaluation began"
                ) from error


@contextmanager
def _unseen(source: Queried, device: torch.device) -> Iterator[None]:
    """Counts and global generators are afterwards as before."""
    generators = SharedGenerators(device)
    try:
        yield
    finally:
        generators.put_back()
        source.reset()


def _fits(attack: Attack, source: Queried) -> bool:
    try:
        attack.check(source)
    except UserError:
        return False
    return True


def _versions(attack: Attack) -> list[Attack]:
    """Copies of an attack with little effort, and with all of it; none where little is too much, or
    where it cannot be copied.
    """
    try:
        least = deepcopy((attack.scaled(0) or attack).for_one_draw())
        whole = deepcopy(attack)
    except Exception:  # noqa: BLE001 - the audit, which needs other versions, says what it lacks
        return []
    return [least, whole] if sum(least.cost()) <= MOST else []
