"""The attacks of `benchmarks.strength`: ours, and those of the libraries that are installed.

A peer that is not installed is left out. adv-lib draws curves with visdom, which nobody here asks
for; where visdom is missing, an empty module stands in.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

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
    DeepFool,
    Linf,
    Margin,
    Normalized,
    ProjectedGradient,
    Sign,
    Square,
    TargetedMargin,
    Threat,
)

#: Threats without a bound: farther than any two images.
WIDE: dict[str, Threat] = {"linf": Linf(1.0), "l2": L2(1000.0)}
#: C&W has so many searches, with so large a c at first; its steps fill the budget.
SEARCHES, FIRST_C, RATE = 5, 1.0, 0.01
#: Classes that targeted attacks go through.
TARGETS = 9
NAMES = {"linf": "Linf", "l2": "L2"}
ORDERS = {"linf": float("inf"), "l2": 2}

#: From model, images, labels, radius, budget to adversarial images.
Run = Callable[[nn.Module, Tensor, Tensor, float, int], Tensor]


@dataclass(frozen=True)
class Contender:
    """One implementation of one attack.

    Attributes:
        library: "ours", or whose it is.
        name: of the attack.
        norm: "linf" or "l2".
        run: the attack.
        nearest: whether it looks for the nearest adversarial image; else for one within the radius.
        by_budget: whether its steps are of another size, or another kind, where it has more of
            them; then each budget needs a run of its own.
    """

    library: str
    name: str
    norm: str
    run: Run
    nearest: bool = False
    by_budget: bool = False

    @property
    def title(self) -> str:
        """Such as "apgd-ce (ours)"."""
        return f"{self.name} ({self.library})"


def steps_in(budget: int) -> int:
    """Steps of a forward and a backward pass that a budget holds, and a forward pass for what they
    led to.
    """
    return max(1, (budget - 1) // 2)


def iterates_in(budget: int) -> int:
    """Points with a forward and a backward pass each, the last without."""
    return max(2, (budget + 1) // 2)


def ours(norm: str) -> list[Contender]:
    """Our attacks in a norm."""

    def contender(name: str, make: Callable[[Threat, int], Attack], **kinds: bool) -> Contender:
        def run(
            model: nn.Module, images: Tensor, labels: Tensor, radius: float, budget: int
        ) -> Tensor:
            bounded: Threat = Linf(radius) if norm == "linf" else L2(radius)
            attack = make(WIDE[norm] if kinds.get("nearest") else bounded, budget)
            return attack(model, images, labels, Rng.for_images(0, torch.arange(len(images))))

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
            for name, objective in (("apgd-dlr", DLR()), ("apgd-margin", Margin()))
        ],
        contender("square", lambda threat, budget: Square(budget, threat=threat), by_budget=True),
        contender(
            "fmn",
            lambda threat, budget: FMN(iterates_in(budget - 2), threat=threat),
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
                lambda threat, budget: DDN(iterates_in(budget - 2), threat=threat),
                nearest=True,
                by_budget=True,
            ),
            contender(
                "deepfool",
                lambda threat, budget: DeepFool(max(1, budget // 11), threat=threat),
                nearest=True,
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


def of_torchattacks(norm: str) -> list[Contender]:
    """torchattacks', with its defaults but for steps."""
    import torchattacks

    def contender(name: str, make: Callable[..., Any], **kinds: bool) -> Contender:
        def run(
            model: nn.Module, images: Tensor, labels: Tensor, radius: float, budget: int
        ) -> Tensor:
            adversarial: Tensor = make(model, radius, budget)(images, labels)
            return adversarial

        return Contender("torchattacks", name, norm, run, **kinds)

    other = NAMES[norm]

    def adaptive(model: nn.Module, radius: float, budget: int) -> Any:
        return torchattacks.APGD(model, norm=other, eps=radius, steps=steps_in(budget))

    def boundary(model: nn.Module, radius: float, budget: int) -> Any:
        # eps only scales its restarts
        return torchattacks.FAB(model, norm=other, steps=steps_in(budget), eps=None)

    found = [
        contender("apgd-ce", adaptive, by_budget=True),
        contender("fab", boundary, nearest=True),
        contender(
            "square",
            lambda model, radius, budget: torchattacks.Square(
                model, norm=other, eps=radius, n_queries=budget
            ),
            by_budget=True,
        ),
    ]
    if norm == "linf":
        return [
            *found,
            contender(
                "pgd",
                lambda model, radius, budget: torchattacks.PGD(
                    model, eps=radius, steps=steps_in(budget)
                ),
            ),
            contender(
                "mifgsm",
                lambda model, radius, budget: torchattacks.MIFGSM(
                    model, eps=radius, steps=steps_in(budget)
                ),
            ),
        ]
    return [
        *found,
        contender(
            "pgd",
            lambda model, radius, budget: torchattacks.PGDL2(
                model, eps=radius, steps=steps_in(budget)
            ),
        ),
        contender(
            "cw",
            lambda model, radius, budget: torchattacks.CW(
                model, c=FIRST_C, steps=steps_in(budget), lr=RATE
            ),
            nearest=True,
        ),
        contender(
            "deepfool",
            lambda model, radius, budget: torchattacks.DeepFool(model, steps=max(1, budget // 11)),
            nearest=True,
        ),
    ]


def of_foolbox(norm: str) -> list[Contender]:
    """Foolbox's, with its defaults but for steps."""
    import foolbox.attacks as theirs
    from foolbox import PyTorchModel

    def contender(name: str, make: Callable[[int], Any], **kinds: bool) -> Contender:
        def run(
            model: nn.Module, images: Tensor, labels: Tensor, radius: float, budget: int
        ) -> Tensor:
            wrapped = PyTorchModel(model, bounds=(0, 1), device="cpu")
            epsilons = None if kinds.get("nearest") else radius
            adversarial: Tensor = make(budget)(wrapped, images, labels, epsilons=epsilons)[1]
            return adversarial

        return Contender("foolbox", name, norm, run, **kinds)

    linf = norm == "linf"
    descent = theirs.LinfPGD if linf else theirs.L2PGD
    basic = theirs.LinfBasicIterativeAttack if linf else theirs.L2BasicIterativeAttack
    adam = theirs.LinfAdamPGD if linf else theirs.L2AdamPGD
    minimal = theirs.LInfFMNAttack if linf else theirs.L2FMNAttack
    fooled = theirs.LinfDeepFoolAttack if linf else theirs.L2DeepFoolAttack
    found = [
        contender("pgd", lambda budget: descent(steps=steps_in(budget))),
        contender("bim", lambda budget: basic(steps=steps_in(budget))),
        contender("adam-pgd", lambda budget: adam(steps=steps_in(budget))),
        contender(
            "fmn", lambda budget: minimal(steps=iterates_in(budget)), nearest=True, by_budget=True
        ),
        contender("deepfool", lambda budget: fooled(steps=max(1, budget // 11)), nearest=True),
    ]
    if linf:
        return found
    return [
        *found,
        contender(
            "ddn",
            lambda budget: theirs.DDNAttack(steps=iterates_in(budget)),
            nearest=True,
            by_budget=True,
        ),
        contender(
            "cw",
            lambda budget: theirs.L2CarliniWagnerAttack(
                binary_search_steps=SEARCHES,
                steps=max(1, budget // 2 // SEARCHES),
                stepsize=RATE,
                initial_const=FIRST_C,
            ),
            nearest=True,
        ),
    ]


def of_adv_lib(norm: str) -> list[Contender]:
    """adv-lib's, with its defaults but for steps."""
    if "visdom" not in sys.modules and find_spec("visdom") is None:
        sys.modules["visdom"] = ModuleType("visdom")
    import adv_lib.attacks as theirs  # type: ignore[import-not-found]

    def contender(name: str, make: Callable[[float, int], Any], **kinds: bool) -> Contender:
        def run(
            model: nn.Module, images: Tensor, labels: Tensor, radius: float, budget: int
        ) -> Tensor:
            adversarial: Tensor = make(radius, budget)(model, images.clone(), labels)
            return adversarial

        return Contender("adv-lib", name, norm, run, **kinds)

    order = ORDERS[norm]
    nearest = {"nearest": True, "by_budget": True}
    found = [
        *[
            contender(
                name,
                lambda radius, budget, loss=loss: partial(  # type: ignore[misc]
                    theirs.apgd,
                    eps=radius,
                    norm=order,
                    n_iter=steps_in(budget),
                    loss_function=loss,
                ),
                by_budget=True,
            )
            for name, loss in (("apgd-ce", "ce"), ("apgd-dlr", "dlr"))
        ],
        contender(
            "fmn",
            lambda radius, budget: partial(theirs.fmn, norm=order, steps=iterates_in(budget)),
            **nearest,
        ),
        contender(
            "tr",
            lambda radius, budget: partial(theirs.tr, p=order, iter=steps_in(budget)),
            nearest=True,
        ),
        contender(
            "fab",
            lambda radius, budget: partial(theirs.fab, norm=order, n_iter=steps_in(budget)),
            nearest=True,
        ),
        contender(
            "deepfool",
            lambda radius, budget: partial(theirs.df, norm=order, steps=max(1, budget // 11)),
            nearest=True,
        ),
    ]
    if norm == "linf":
        return [
            *found,
            *[
                contender(
                    name,
                    lambda radius, budget, loss=loss: partial(  # type: ignore[misc]
                        theirs.pgd_linf, ε=radius, steps=steps_in(budget), loss_function=loss
                    ),
                )
                for name, loss in (("pgd-ce", "ce"), ("pgd-dl", "dl"))
            ],
        ]
    return [
        *found,
        contender(
            "ddn",
            lambda radius, budget: partial(theirs.ddn, steps=iterates_in(budget), levels=None),
            **nearest,
        ),
        contender(
            "alma",
            lambda radius, budget: partial(theirs.alma, num_steps=iterates_in(budget)),
            **nearest,
        ),
        contender(
            "pdgd",
            lambda radius, budget: partial(theirs.pdgd, num_steps=iterates_in(budget)),
            **nearest,
        ),
        contender(
            "sdf",
            lambda radius, budget: partial(theirs.sdf, steps=max(1, budget // 11)),
            nearest=True,
        ),
        contender(
            "cw",
            lambda radius, budget: partial(
                theirs.carlini_wagner_l2,
                binary_search_steps=SEARCHES,
                max_iterations=max(1, budget // 2 // SEARCHES),
                learning_rate=RATE,
                initial_const=FIRST_C,
            ),
            nearest=True,
        ),
    ]


def of_autoattack(norm: str) -> list[Contender]:
    """AutoAttack's own code."""
    from autoattack.autopgd_base import (  # type: ignore[import-not-found]
        APGDAttack,
        APGDAttack_targeted,
    )
    from autoattack.fab_pt import FABAttack_PT  # type: ignore[import-not-found]
    from autoattack.square import SquareAttack  # type: ignore[import-not-found]

    other = NAMES[norm]

    def contender(name: str, make: Callable[..., Any], **kinds: bool) -> Contender:
        def run(
            model: nn.Module, images: Tensor, labels: Tensor, radius: float, budget: int
        ) -> Tensor:
            adversarial: Tensor = make(model, radius, budget).perturb(images, labels)
            return adversarial

        return Contender("autoattack", name, norm, run, **kinds)

    def adaptive(loss: str, model: nn.Module, radius: float, budget: int) -> Any:
        return APGDAttack(
            model, n_iter=steps_in(budget), norm=other, eps=radius, loss=loss, device="cpu"
        )

    return [
        contender("apgd-ce", partial(adaptive, "ce"), by_budget=True),
        contender("apgd-dlr", partial(adaptive, "dlr"), by_budget=True),
        contender(
            "apgd-t",
            lambda model, radius, budget: APGDAttack_targeted(
                model,
                n_iter=steps_in(budget // TARGETS),
                norm=other,
                eps=radius,
                n_target_classes=TARGETS,
                device="cpu",
            ),
            by_budget=True,
        ),
        contender(
            "fab",
            lambda model, radius, budget: FABAttack_PT(
                model, norm=other, n_iter=steps_in(budget), eps=radius, device="cpu"
            ),
            nearest=True,
        ),
        contender(
            "square",
            lambda model, radius, budget: SquareAttack(
                model, norm=other, n_queries=budget, eps=radius, seed=0, device="cpu"
            ),
            by_budget=True,
        ),
    ]


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
