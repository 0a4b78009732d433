"""All attacks of `benchmarks.strength`: ours, and those of the libraries that are installed."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from benchmarks.strength_contender import (
    FIRST_C,
    RATE,
    SEARCHES,
    TARGETS,
    WIDE,
    Contender,
    iterates_in,
    steps_in,
)
from benchmarks.strength_peers import of_adv_lib, of_autoattack, of_foolbox, of_torchattacks
from robusttrain import Rng
from robusttrain.attacks import (
    APGD,
    DDN,
    DLR,
    FAB,
    FMN,
    L2,
    Attack,
    CarliniWagner,
    CrossEntropy,
    DeepFool,
    Linf,
    Margin,
    NearestBoundary,
    Normalized,
    ProjectedGradient,
    Sign,
    Square,
    SuperDeepFool,
    TargetedMargin,
    Threat,
)


def ours(norm: str) -> list[Contender]:
    """Our attacks in a norm."""

    def contender(name: str, make: Callable[[Threat, int], Attack], **kinds: bool) -> Contender:
        def run(
            model: nn.Module, images: Tensor, labels: Tensor, radius: float, budget: int
        ) -> Tensor:
            bounded: Threat = Linf(radius) if norm == "linf" else L2(radius)
            attack = make(WIDE[norm] if kinds.get("nearest") else bounded, budget)
            seed = torch.initial_seed()  # the benchmark's, for ours and theirs alike
            return attack(model, images, labels, Rng.for_images(seed, torch.arange(len(images))))

        return Contender("ours", name, norm, run, **kinds)

    rule = Sign() if norm == "linf" else Normalized()
    found = [
        contender(
            "pgd",
            lambda threat, budget: ProjectedGradient(
                steps_in(budget), relative_step_size=0.1, threat=threat, rule=rule
            ),
        ),
        contender(
            "pgd-quick",
            lambda threat, budget: ProjectedGradient(
                steps_in(budget), relative_step_size=0.25, threat=threat, rule=rule
            ),
        ),
        contender(
            "pgd-few",
            lambda threat, budget: ProjectedGradient(
                steps_in(budget),
                relative_step_size=2.0,
                random_start=False,
                threat=threat,
                rule=rule,
            ),
        ),
        contender(
            "pgd-margin",
            lambda threat, budget: ProjectedGradient(
                steps_in(budget), threat=threat, rule=rule, objective=Margin()
            ),
            by_budget=True,
        ),
        *[
            contender(
                name,
                lambda threat, budget, objective=objective: APGD(  # type: ignore[misc]
                    max(1, (budget - 3) // 2), threat=threat, objective=objective
                ),
                by_budget=True,
            )
            for name, objective in (
                ("apgd-ce", CrossEntropy()),
                ("apgd-dlr", DLR()),
                ("apgd-margin", Margin()),
            )
        ],
        contender(
            "apgd-t",
            lambda threat, budget: APGD(
                max(1, (budget - 2) // TARGETS // 2 - 1),
                targets=TARGETS,
                threat=threat,
                objective=TargetedMargin("second"),
            ),
            by_budget=True,
        ),
        contender(
            "square",
            lambda threat, budget: Square(budget, rescale=True, threat=threat),
            by_budget=True,
        ),
        contender(
            "nearest",
            lambda threat, budget: NearestBoundary(iterates_in(budget - 1), threat=threat),
            nearest=True,
            by_budget=True,
        ),
        contender(
            "fmn",
            lambda threat, budget: FMN(iterates_in(budget - 1), threat=threat),
            nearest=True,
            by_budget=True,
        ),
        contender(
            "fab",
            lambda threat, budget: FAB(steps_in(budget), targets=9, nearest=True, threat=threat),
            nearest=True,
        ),
    ]
    if norm == "l2":
        found += [
            contender(
                "ddn",
                lambda threat, budget: DDN(iterates_in(budget - 1), threat=threat),
                nearest=True,
                by_budget=True,
            ),
            contender(
                "deepfool",
                lambda threat, budget: DeepFool(max(1, budget // 11), threat=threat),
                nearest=True,
            ),
            contender(
                "sdf",
                lambda threat, budget: SuperDeepFool(max(1, (budget - 13) // 36), threat=threat),
                nearest=True,
                by_budget=True,
            ),
            contender(
                "cw",
                lambda threat, budget: CarliniWagner(
                    max(1, budget // 2 // SEARCHES), RATE, 0.0, SEARCHES, FIRST_C, threat=threat
                ),
                nearest=True,
            ),
        ]
    return found


#: Each library, the module that it takes, and its attacks.
LIBRARIES: dict[str, tuple[str, Callable[[str], list[Contender]]]] = {
    "ours": ("robusttrain", ours),
    "torchattacks": ("torchattacks", of_torchattacks),
    "foolbox": ("foolbox", of_foolbox),
    "adv-lib": ("adv_lib", of_adv_lib),
    "autoattack": ("autoattack", of_autoattack),
}


def installed() -> dict[str, bool]:
    """Which libraries there are."""
    return {name: find_spec(module) is not None for name, (module, _) in LIBRARIES.items()}


def contenders(norm: str) -> list[Contender]:
    """All attacks in a norm of all libraries that are installed."""
    there = installed()
    return [each for name, (_, of) in LIBRARIES.items() if there[name] for each in of(norm)]
