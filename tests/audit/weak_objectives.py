"""Cases of weak objectives, starts and scales: the half of the new cases that checks were made
with.
"""

from __future__ import annotations

from robusttrain.attacks import APGD, Average, IdentityBackward, Linf, Margin, Restarts
from robusttrain.attacks.sources.basic import ClassifierOnly

from . import networks as n
from . import testtime as t
from .corpus import ANY, EPSILON, Case, evaluation, pgd

NEW_WRONG = (
    Case(
        "cross entropy on a linear model",
        "another objective",
        lambda: evaluation(t.linear(), pgd(steps=40)),
    ),
    Case(
        "cross entropy, logits times 1e-4",
        "another objective",
        lambda: evaluation(n.Scaled(n.plain(), 1e-4), pgd(steps=40)),
    ),
    Case(
        "adversarial training, cross entropy, logits times 1e-4",
        "another objective",
        lambda: evaluation(n.Scaled(n.robust(), 1e-4), pgd(steps=40)),
        slow=True,
    ),
    Case(
        "linear model, cross entropy, logits times 1e-4",
        "another objective",
        lambda: evaluation(n.Scaled(t.linear(), 1e-4), pgd(steps=40)),
    ),
    Case(
        "no gradient at the images, no random start",
        "another start",
        lambda: evaluation(t.Stuck(n.plain()), pgd(steps=40, random_start=False)),
    ),
    Case(
        "anti-adversary, two steps of cross entropy",
        ANY,
        lambda: evaluation(n.robust(), pgd(steps=2), defense=t.AntiAdversary(n.robust())),
        slow=True,
    ),
)
NEW_SOUND = (
    Case(
        "margin on a linear model",
        None,
        lambda: evaluation(t.linear(), pgd(steps=40, objective=Margin())),
    ),
    Case(
        "margin, logits times 1e-4",
        None,
        lambda: evaluation(
            n.Scaled(n.plain(), 1e-4),
            Restarts(pgd(steps=40, objective=Margin()), restarts=3, threat=Linf(EPSILON)),
        ),
        slow=True,
    ),
    Case(
        "noise, EOT with the margin, logits times 1e-12",
        None,
        lambda: evaluation(
            n.Scaled(n.noisy(), 1e-12),
            pgd(steps=40, objective=Margin(), gradient=Average(draws=20)),
            defense=n.Noise(0.3),
        ),
        slow=True,
    ),
    # The anti-adversary follows whatever f says, so what fools f alone fools both.
    Case(
        "anti-adversary, attacked without it",
        None,
        lambda: evaluation(
            n.robust(), pgd(steps=40), ClassifierOnly(), t.AntiAdversary(n.robust())
        ),
        slow=True,
    ),
    Case(
        "anti-adversary, BPDA with the margin",
        None,
        lambda: evaluation(
            n.Scaled(n.robust(), 30.0),
            Restarts(APGD(steps=60, objective=Margin()), restarts=4, threat=Linf(EPSILON)),
            IdentityBackward(),
            t.AntiAdversary(n.robust()),
        ),
        slow=True,
    ),
)
