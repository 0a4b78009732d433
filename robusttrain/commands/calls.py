"""What Python calls: `robusttrain.evaluate` and `robusttrain.attack`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from robusttrain.attacks import Threat
from robusttrain.config.attacks import scenarios, stem
from robusttrain.config.numbers import a_number, several
from robusttrain.core.checked import plain_number
from robusttrain.core.console import ALOUD
from robusttrain.core.errors import UserError, at_least
from robusttrain.core.telling import QUIET
from robusttrain.data import ImageData
from robusttrain.defenses import Defense
from robusttrain.evaluation import Scenario
from robusttrain.evaluation.compiling import Compile
from robusttrain.evaluation.precision import Precision
from robusttrain.evaluation.report import Results
from robusttrain.running.given import Attacks, evaluate_given


def attack(name: str, epsilon: float | str | None = None, **values: Any) -> Scenario:
    """An attack by its preset's name (``python evaluate.py --list``), ready to be called.

    ``attack("pgd", epsilon=8 / 255)(model, images, labels)`` gives adversarial images; so does any
    preset, on a `DefendedClassifier` where it goes around a defense.

    Args:
        name: of the preset, or a YAML file.
        epsilon: radius of the threat, also written as "8/255"; None for the preset's own.
        values: of its arguments, deeper ones with two underscores: ``steps=100``,
            ``gradient__draws=5``.

    Raises:
        UserError: an unknown name or argument, or a value that cannot work.
    """
    # JSON is YAML, too, which overrides are written in.
    overrides = [
        (key.replace("__", "."), json.dumps(value, default=_plain)) for key, value in values.items()
    ]
    radius = None if epsilon is None else a_number(epsilon, "epsilon")
    if radius is not None:
        at_least("epsilon", radius, 0)
    return scenarios([name], overrides, radius, "attack")[stem(name)]


def _plain(value: Any) -> Any:
    """The plain value of a number of NumPy's or torch's."""
    plain = plain_number(value)
    if plain is not value:
        return plain
    raise UserError(f"attack: {value!r}: is no value of an attack's argument: give plain ones")


def evaluate(
    model: nn.Module | Callable[[Tensor], Any],
    images: Tensor | Dataset[Any] | DataLoader[Any] | ImageData,
    labels: Tensor | None = None,
    *,
    attacks: Attacks | None = None,
    suite: str | Sequence[str] | None = None,
    threat: Threat | None = None,
    defense: Defense | None = None,
    count: int | None = None,
    output: str | Path | None = None,
    draws: int = 10,
    seed: int = 0,
    precision: Precision = "auto",
    compile: Compile = "off",
    survivors: bool | None = None,
    leave_early: bool = True,
    tries: int | None = None,
    known_draw: bool | None = None,
    bare_classifier: bool | None = None,
    curve: float | Sequence[float] = (),
    curve_effort: float | Sequence[float] = (),
    certify: bool = False,
    certify_draws: int = 1000,
    audit: bool = True,
    save_images: bool = False,
    batch_size: int = 128,
    progress: bool = True,
) -> Results:
    """Attack a classifier as evaluate.py does, and give back what is left of it.

    Args:
        model: images (B, C, H, W) in [0, 1] to logits (B, K): any module or function, or a
            `DefendedClassifier`. It is left as it was.
        images: (N, C, H, W), floats in [0, 1] or uint8; or a data set of pairs, or a loader of
            batches, or one of `robusttrain.data`.
        labels: (N,), class numbers 0..K-1; None where the images bring theirs.
        attacks: a preset's name, several, or attacks by names of their own.
        suite: a suite's name, or several; default: worst-case, where no attack is named. What does
            not apply to the model is left out, and the results say why.
        threat: for all attacks; None for each preset's own.
        defense: what stands before the model.
        count: so many images, which the seed chooses (that of a data set of `robusttrain.data`; of
            a loader, and of what gives no image by its number, the first are taken); None for all.
        output: folder for results, verdicts and the journal; an interrupted call goes on there.
            None keeps nothing but what is returned.
        draws: fresh draws of a random model that score an image.
        seed: of every random number.
        precision: in which attacks differentiate; "auto": the faster one that is as strong.
        compile: whether attacks and g take gradients of compiled networks; "auto": where it was
            measured to save time here.
        survivors: attack only images that no attack before broke; None: as the suite has it.
        leave_early: whether an image leaves an attack as soon as its verdict is settled; without,
            verdicts are the same and attacks take longer.
        tries: how often an image may be submitted to a random model, where one draw that falls
            suffices; None: as many times as there are draws.
        known_draw: attack a random model besides with the draw that scores in the attacker's hands;
            None: as the suite has it.
        bare_classifier: attack the model without its defense, too, at the same budget, and say what
            the defense adds; None: as the suite has it.
        curve: radii at which the attacks run besides.
        curve_effort: shares of their steps or queries with which they run besides.
        certify: certify what a vote over Gaussian noise answers, and compare with what attacks
            leave of it; the defense has to begin with such noise.
        certify_draws: draws that bound a certificate, or judge an adversarial image.
        audit: look for weak attacks and masked gradients.
        save_images: keep adversarial images in ``output``.
        batch_size: images of a batch.
        progress: say what it costs before it starts, and show how far it is. Without, what puts a
            figure in question still comes, as a warning of Python's.

    Raises:
        UserError: in one line, what cannot work and what to do.
    """
    return evaluate_given(
        model,
        images,
        labels,
        attacks,
        suite,
        threat,
        defense,
        plain_number(count),
        plain_number(batch_size),
        {
            "survivors": survivors,
            "known_draw": known_draw,
            "bare_classifier": bare_classifier,
        },
        output,
        {
            "draws": draws,
            "leave_early": leave_early,
            "tries": tries,
            "curve": several(curve, "curve"),
            "curve_effort": several(curve_effort, "curve_effort"),
            "certify": certify,
            "certify_draws": certify_draws,
            "seed": plain_number(seed),
            "precision": precision,
            "compile": compile,
            "audit": audit,
            "save_images": save_images,
        },
        ALOUD if progress else QUIET,
    )
