"""What a contender of `benchmarks.strength` is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from robusttrain.attacks import L2, Linf, Threat

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
