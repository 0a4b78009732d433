"""The corpus: what is wrong with each evaluation, and which checks may name it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from robusttrain.attacks import (
    APGD,
    L2,
    Attack,
    Average,
    IdentityBackward,
    Linf,
    Normalized,
    ProjectedGradient,
    Source,
    Target,
)
from robusttrain.defenses import Defense
from robusttrain.evaluation import Engine, Records, Scenario
from robusttrain.evaluation.audit import SAMPLE, Audit
from robusttrain.models.defended import DefendedClassifier

from . import networks as n

EPSILON = 0.1
#: Test images of an evaluation.
IMAGES = 64
#: What `Case.expected` says where any check may name the defect.
ANY = "any check"


@dataclass(frozen=True)
class Case:
    """One evaluation.

    Args:
        name: of the defect, or of the sound evaluation.
        expected: the check that must name the defect, or `ANY`; None for a sound evaluation.
        engine: builds it.
        slow: whether ``make test`` leaves it to ``make long`` and ``python -m tests.audit``.
    """

    name: str
    expected: str | None
    engine: Callable[[], Engine]
    slow: bool = False

    def named_by(self, audit: Audit) -> bool:
        """Whether the audit names the defect: the check that must, or any if any may."""
        said = [each.check for each in audit.findings if each.severity in ("masked", "weak")]
        return bool(said) if self.expected == ANY else self.expected in said


def pgd(**values: Any) -> ProjectedGradient:
    """PGD-20 within Linf 0.1, with other values."""
    if "step_size" not in values:
        values.setdefault("relative_step_size", 0.1)
    return ProjectedGradient(**{"steps": 20, "threat": Linf(EPSILON), **values})


def evaluation(
    classifier: nn.Module,
    attack: Attack,
    source: Source | None = None,
    defense: Defense | None = None,
    kind: type[Engine] = Engine,
) -> Engine:
    target = DefendedClassifier(defense, classifier)
    return kind(target, {"attack": Scenario(attack, source or Target())}, draws=10)


def both(classifier: nn.Module) -> Engine:
    """Attacked by its own gradient, and by that of another model."""
    scenarios = {
        "white": Scenario(pgd(), Target()),
        "transfer": Scenario(pgd(steps=40), n.AnotherModel()),
    }
    return Engine(DefendedClassifier(None, classifier), scenarios, draws=10)


def resized(attack: Attack) -> Engine:
    defense, classifier = n.resized()
    return evaluation(classifier, attack, defense=defense)


WRONG = (
    Case(
        "quantised input without BPDA",
        "zero gradients",
        lambda: evaluation(n.quantized(), pgd(), defense=n.Quantize()),
        slow=True,
    ),
    Case(
        "random resizing without EOT",
        "twice the draws",
        lambda: resized(pgd(steps=10, relative_step_size=0.25)),
    ),
    Case(
        "huge logits, torch's cross entropy",
        "zero gradients",
        lambda: evaluation(n.Scaled(n.plain(), 1000.0), pgd(objective=n.Rounded())),
    ),
    Case("saturated sigmoid", "black box", lambda: evaluation(n.Saturated(n.sharpened()), pgd())),
    Case(
        "detached preprocessing",
        "gradient agreement",
        lambda: evaluation(n.Detached(n.plain()), pgd()),
    ),
    Case("k winners take all", "black box", lambda: evaluation(n.winners(), pgd()), slow=True),
    Case("too few steps", "twice the steps", lambda: evaluation(n.plain(), pgd(steps=3))),
    Case(
        "one step",
        "twice the steps",
        lambda: evaluation(n.plain(), pgd(steps=1, relative_step_size=1.0)),
        slow=True,
    ),
    Case("step size of zero", "single step", lambda: evaluation(n.plain(), pgd(step_size=1e-12))),
    Case(
        "epsilon parsed and unused", "epsilon 0", lambda: evaluation(n.plain(), n.EpsilonUnused())
    ),
    Case(
        "model in training mode",
        "repeated passes",
        lambda: evaluation(n.batch_statistics(), pgd()),
        slow=True,
    ),
    Case(
        "noise from a generator of its own",
        "repeated passes",
        lambda: evaluation(n.OwnGenerator(n.plain()), pgd()),
    ),
    Case(
        "noise scored on its own draws",
        "fresh draws",
        lambda: evaluation(
            n.noisy(),
            pgd(steps=0, gradient=Average(draws=10)),
            defense=n.Noise(0.3),
            kind=n.OwnDraws,
        ),
    ),
    Case(
        "softmax that is rounded to 0 and 1",
        "probabilities",
        lambda: evaluation(n.Probabilities(n.Scaled(n.plain(), 1000.0)), pgd()),
    ),
    Case(
        "backdoor region beside the images",
        "random noise",
        lambda: evaluation(
            n.OffTheGrid(n.robust()),
            pgd(step_size=2 / 255, random_start=False, threat=Linf(20 / 255)),
        ),
        slow=True,
    ),
    Case("wrong sign", "epsilon 0.5", lambda: evaluation(n.plain(), pgd(objective=n.WrongSign()))),
    Case(
        "targeted loss of the wrong sign",
        "epsilon 0.5",
        lambda: evaluation(n.plain(), pgd(objective=n.AwayFromTarget())),
        slow=True,
    ),
    Case("last restart wins", "silent success", lambda: evaluation(n.plain(), n.LastRestartWins())),
    Case(
        "transfer that does not arrive",
        "source, not target",
        lambda: evaluation(n.robust(), pgd(), n.AnotherModel()),
    ),
    Case("white box behind transfer", "white box", lambda: both(n.Detached(n.plain()))),
    Case(
        "noise and rounding without BPDA",
        "fixed randomness",
        lambda: evaluation(
            n.noisy_quantized(), pgd(gradient=Average(draws=10)), defense=n.NoisyQuantize()
        ),
        slow=True,
    ),
    Case(
        "one step across a wave",
        "monotone in epsilon",
        lambda: evaluation(
            n.Wavy(n.plain()), pgd(steps=1, relative_step_size=1.0, random_start=False)
        ),
    ),
)
SOUND = (
    # Found out by asking, and scored over several draws.
    Case(
        "dropout that nobody knows of",
        None,
        lambda: evaluation(n.Dropped(n.plain()), pgd()),
        slow=True,
    ),
    # Attacked through its logarithm, and as weak as with logits: a note.
    Case(
        "softmax instead of logits",
        None,
        lambda: evaluation(n.Probabilities(n.plain()), pgd(steps=40)),
        slow=True,
    ),
    # The direction of cross entropy is kept, however sure the model is.
    Case("huge logits", None, lambda: evaluation(n.Scaled(n.plain(), 1000.0), pgd(steps=40))),
    Case("undefended, PGD", None, lambda: evaluation(n.plain(), pgd(steps=40))),
    Case("adversarial training, PGD", None, lambda: evaluation(n.robust(), pgd(steps=40))),
    Case(
        "adversarial training, APGD",
        None,
        lambda: evaluation(n.robust(), APGD(steps=50, threat=Linf(EPSILON))),
        slow=True,
    ),
    Case(
        "adversarial training, L2",
        None,
        lambda: evaluation(n.robust(), pgd(steps=40, threat=L2(0.5), rule=Normalized())),
        slow=True,
    ),
    Case(
        "noise, EOT",
        None,
        lambda: evaluation(n.noisy(), pgd(gradient=Average(draws=20)), defense=n.Noise(0.3)),
    ),
    Case("random resizing, EOT", None, lambda: resized(pgd(gradient=Average(draws=20))), slow=True),
    Case(
        "quantised input, BPDA",
        None,
        lambda: evaluation(n.quantized(), pgd(steps=40), IdentityBackward(), n.Quantize()),
        slow=True,
    ),
)


def audited(case: Case, sample: int | None = SAMPLE) -> Audit:
    """The evaluation of a case on `IMAGES` test images, audited on ``sample`` of them; None for as
    cost allows.
    """
    data = n.digits()
    images, labels, indices = data.test[:IMAGES], data.test_labels[:IMAGES], torch.arange(IMAGES)
    engine = case.engine()
    audit = Audit(engine, IMAGES, sample)
    audit.before(images, labels, indices)
    records, _ = engine.run(images, labels, indices)
    audit.after(Records.merged([records]))
    return audit
