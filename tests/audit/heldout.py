"""The held-out half of the new cases: written before the checks of objective and start, and never
tuned on.

No threshold of the audit was chosen with these cases in view. What the audit said of them first
stands in docs/audit.md. Whoever changes a check to pass one of them moves that case to
`tests.audit.corpus` and writes another one here.

Any check may name a defect (`ANY`): who writes a case beforehand does not know which one will.
"""

from __future__ import annotations

from robusttrain.attacks import (
    APGD,
    DLR,
    L2,
    Average,
    IdentityBackward,
    Linf,
    Margin,
    Normalized,
    Restarts,
    TargetedCrossEntropy,
)
from robusttrain.attacks.sources.basic import ClassifierOnly

from . import networks as n
from . import testtime as t
from .corpus import ANY, EPSILON, Case, evaluation, pgd

HELD_OUT_WRONG = (
    Case(
        "held out: JPEG without BPDA",
        ANY,
        lambda: evaluation(t.behind_jpeg(), pgd(steps=40), defense=t.Jpeg()),
        slow=True,
    ),
    Case(
        "held out: attack without the purifier",
        ANY,
        lambda: evaluation(
            t.behind_purifier(), pgd(steps=40), ClassifierOnly(), t.Purifier(steps=16)
        ),
        slow=True,
    ),
    Case(
        "held out: four small steps through the purifier",
        ANY,
        lambda: evaluation(
            t.behind_purifier(), pgd(steps=4, relative_step_size=0.1), defense=t.Purifier()
        ),
        slow=True,
    ),
    Case(
        "held out: noise and rounding, one draw, no BPDA",
        ANY,
        lambda: evaluation(t.behind_noisy_purifier(), pgd(steps=20), defense=t.NoisyPurifier()),
        slow=True,
    ),
    Case(
        "held out: anti-adversary, saturated cross entropy",
        ANY,
        lambda: evaluation(
            n.Scaled(n.robust(), 30.0), pgd(steps=40), defense=t.AntiAdversary(n.robust())
        ),
        slow=True,
    ),
    Case(
        "held out: votes that are counted",
        ANY,
        lambda: evaluation(t.Vote(n.noisy(), sharpness=1e4), pgd(steps=20)),
        slow=True,
    ),
    Case(
        "held out: detached noise, gradient of something else",
        ANY,
        lambda: evaluation(n.noisy(), pgd(gradient=Average(draws=10)), defense=t.DetachedNoise()),
        slow=True,
    ),
    Case(
        "held out: only towards the least likely class",
        ANY,
        lambda: evaluation(
            n.robust(), pgd(steps=40, objective=TargetedCrossEntropy(target="least_likely"))
        ),
    ),
    Case(
        "held out: cross entropy on a linear model, L2",
        ANY,
        lambda: evaluation(
            n.Scaled(t.linear(), 1e-3), pgd(steps=40, threat=L2(0.5), rule=Normalized())
        ),
    ),
    Case(
        "held out: saturated logits, torch's cross entropy",
        ANY,
        lambda: evaluation(
            n.Scaled(n.robust(), 100.0),
            pgd(steps=40, random_start=False, objective=n.Rounded()),
        ),
        slow=True,
    ),
)
HELD_OUT_SOUND = (
    Case(
        "held out: JPEG, BPDA with the margin",
        None,
        lambda: evaluation(
            t.behind_jpeg(),
            Restarts(APGD(steps=60, objective=Margin()), restarts=8, threat=Linf(EPSILON)),
            IdentityBackward(),
            t.Jpeg(),
        ),
        slow=True,
    ),
    Case(
        "held out: purifier, differentiated",
        None,
        lambda: evaluation(
            t.behind_purifier(),
            Restarts(APGD(steps=60, objective=Margin()), restarts=4, threat=Linf(EPSILON)),
            defense=t.Purifier(),
        ),
        slow=True,
    ),
    Case(
        "held out: noise, purifier and rounding, BPDA and EOT",
        None,
        lambda: evaluation(
            t.behind_noisy_purifier(),
            APGD(steps=40, threat=Linf(EPSILON), objective=Margin(), gradient=Average(draws=20)),
            IdentityBackward(),
            t.NoisyPurifier(),
        ),
        slow=True,
    ),
    Case(
        "held out: votes, soft, EOT",
        None,
        lambda: evaluation(
            t.Vote(n.noisy(), sharpness=1e4),
            APGD(steps=40, threat=Linf(EPSILON), objective=Margin(), gradient=Average(draws=8)),
            t.SoftVotes(),
        ),
        slow=True,
    ),
    Case(
        "held out: adversarial training, APGD on DLR",
        None,
        lambda: evaluation(
            n.robust(), APGD(steps=100, restarts=2, objective=DLR(), threat=Linf(EPSILON))
        ),
        slow=True,
    ),
    Case(
        "held out: adversarial training, tiny logits, margin",
        None,
        lambda: evaluation(
            n.Scaled(n.robust(), 1e-7), APGD(steps=100, objective=Margin(), threat=Linf(EPSILON))
        ),
        slow=True,
    ),
)
