"""The peers' attacks of `benchmarks.strength`, with their defaults but for steps.

adv-lib draws curves with visdom, which nobody here asks for; where visdom is missing, an empty
module stands in.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from benchmarks.strength_contender import (
    FIRST_C,
    NAMES,
    ORDERS,
    RATE,
    SEARCHES,
    TARGETS,
    Contender,
    iterates_in,
    steps_in,
)


def of_torchattacks(norm: str) -> list[Contender]:
    """torchattacks' attacks in a norm."""
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
    """Foolbox's."""
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
    """adv-lib's."""
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
                max_iterations=max(10, budget // 2 // SEARCHES),
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
