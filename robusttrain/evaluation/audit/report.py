"""The audit: all checks in one table, what they cost, and the verdict."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from rich.table import Table
from torch import Tensor

from robusttrain.attacks.base import check_images
from robusttrain.core.labels import check_labels
from robusttrain.core.rng import Rng
from robusttrain.evaluation.audit import before, gradients, others, planted, strength
from robusttrain.evaluation.audit.finding import Finding
from robusttrain.evaluation.audit.subject import DRAWS, LEAST, SAMPLE, Subject
from robusttrain.evaluation.engine import Engine
from robusttrain.evaluation.records import Records
from robusttrain.evaluation.scoring import verdicts

Check = Callable[[Subject], Finding | None]

#: Every check: when it runs, and the function. A new check is a function and a line here.
CHECKS: tuple[tuple[Literal["before", "after"], Check], ...] = (
    ("before", before.sample),
    ("before", before.repeated_passes),
    ("before", before.probabilities),
    ("before", before.zero_gradients),
    ("after", strength.epsilon_zero),
    ("after", strength.epsilon_half),
    ("after", strength.monotone),
    ("after", strength.one_step),
    ("after", strength.twice_the_steps),
    ("after", strength.twice_the_draws),
    ("after", strength.silent_success),
    ("after", strength.still_rising),
    ("after", others.white_box_recorded),
    ("after", others.black_box),
    ("after", others.other_source),
    ("after", others.source_not_target),
    ("after", others.random_noise),
    ("after", others.fixed_randomness),
    ("after", others.fresh_draws),
    ("after", gradients.two_estimates),
    ("after", gradients.finite_differences),
    ("after", gradients.better_than_chance),
    ("after", planted.planted_weakness),
)
#: Candidates for each image of the sample: those that the target gets wrong tell nothing.
CANDIDATES = 2
#: Runs of the strongest attack in all checks together, doubled ones counted twice, on a
#: deterministic model.
RUNS = 8
#: Share of the evaluation's own cost that the audit may reach before the sample shrinks below
#: `SAMPLE`.
SHARE = 0.25
#: Evaluations of images that are never too many. A fifth of that leaves `LEAST` images in most
#: small evaluations, and so few name 18 of the 22 defects of tests/audit.
CHEAP = 100_000


@dataclass
class Audit:
    """An audit of one evaluation: ``before`` it, then ``after`` it.

    Args:
        engine: of the evaluation.
        total: images of the evaluation.
        images: of the sample; None for as many as the cost of the evaluation allows.
    """

    engine: Engine
    total: int
    images: int | None = None

    def __post_init__(self) -> None:
        self.findings: list[Finding] = []
        self.seconds = 0.0
        #: Checks that were made, or tried: those without a finding passed.
        self.tried: list[str] = []
        self._subject: Subject | None = None

    @property
    def size(self) -> int:
        """Images of the sample: those asked for, or `SAMPLE`, or as few as `LEAST` for long attacks
        on few images.
        """
        if self.images is not None:
            return self.images
        each = [sum(scenario.attack.cost()) for scenario in self.engine.scenarios.values()] or [0]
        allowed = max(SHARE * self.total * sum(each), CHEAP)
        return max(LEAST, min(SAMPLE, int(allowed / max(1, self._runs * max(each)))))

    @property
    def _runs(self) -> int:
        return RUNS + 4 * self.engine.random

    @property
    def candidates(self) -> int:
        """Images that the sample is taken from."""
        return min(self.total, CANDIDATES * self.size)

    def cost(self, expected: Mapping[str, float]) -> tuple[int, float]:
        """Evaluations of images at most, and seconds, of both halves together.

        Args:
            expected: seconds per image of each attack, and "scoring": what `Engine.measure`
                returned.
        """
        dearest = max(
            (sum(each.attack.cost()) for each in self.engine.scenarios.values()), default=0
        )
        draws = DRAWS if self.engine.random else 1
        passes = (
            others.QUERIES
            + others.NOISE
            + (20 + gradients.DIRECTIONS + 16) * draws
            + planted.INNER // 2
        )
        slowest = max(
            (seconds for name, seconds in expected.items() if name != "scoring"), default=0.0
        )
        forward = expected.get("scoring", 0.0) / max(1, self.engine.verdicts_per_image)
        evaluations = self.size * (self._runs * dearest + passes)
        return evaluations, self.size * (self._runs * slowest + passes * forward)

    def before(self, images: Tensor, labels: Tensor, indices: Tensor) -> list[Finding]:
        """Take the sample from candidates (m, C, H, W), on the target's device; the checks that
        need no results.
        """
        start = time.perf_counter()
        images = check_images(images)
        self.engine.ask(images, indices)
        labels = check_labels(labels, images)
        streams = Rng.for_images(self.engine.seed, indices).fold("audit").fold("right")
        score = verdicts(
            self.engine.target, images, labels, streams, DRAWS if self.engine.random else 1
        )
        right = (
            (score.double().mean(dim=1) > 0.5).nonzero().squeeze(1)[: self.size].to(images.device)
        )
        with torch.inference_mode(False):
            self._subject = Subject(
                self.engine, images[right].clone(), labels[right].clone(), indices[right].clone()
            )
        self._run("before")
        self.seconds += time.perf_counter() - start
        return self.findings

    def after(self, records: Records) -> list[Finding]:
        """Make the checks that need the evaluation's records; all findings."""
        assert self._subject is not None, "before() takes the sample"
        start = time.perf_counter()
        self._subject.records = records
        if self._subject.size >= LEAST:
            self._run("after")
        self.seconds += time.perf_counter() - start
        return self.findings

    def _run(self, when: str) -> None:
        assert self._subject is not None
        if not self._subject.size:
            self.findings += [
                found for found in [before.sample(self._subject)] if found and when == "before"
            ]
            return
        for moment, check in CHECKS:
            if moment != when:
                continue
            name = check.__name__.replace("_", " ")
            self.tried.append(name)
            try:
                with torch.inference_mode(False), torch.enable_grad():
                    found = check(self._subject)
            except Exception as error:  # noqa: BLE001 - models and attacks are any code, and the evaluation comes first
                reason = (str(error).splitlines() or [""])[0]
                found = Finding(name, "not run", f"{type(error).__name__}: {reason}"[:200])
            if found is not None:
                self.findings.append(found)

    @property
    def verdict(self) -> str:
        """ "sound", "masked: ..." or "weak: ...", with the names of the checks."""
        return verdict(self.findings)

    def told(self) -> dict[str, Any]:
        """What goes into results.json."""
        return {
            "verdict": self.verdict,
            "audit": [found.as_dict() for found in self.findings],
            "audit_checks": len(self.tried),
            "audit_images": self._subject.size if self._subject else 0,
            "audit_seconds": round(self.seconds, 2),
        }


def verdict(findings: Sequence[Finding]) -> str:
    """The verdict on top: masked before weak, each with the checks that say so."""
    for severity in ("masked", "weak"):
        named = [found.check for found in findings if found.severity == severity]
        if named:
            rest = (
                [found.check for found in findings if found.severity == "weak"]
                if severity == "masked"
                else []
            )
            return f"{severity}: " + ", ".join(dict.fromkeys(named + rest))
    return "sound"


def audit_table(told: Mapping[str, Any]) -> Table:
    """The findings as a table for the terminal; ``told`` is `Audit.told`, or results.json."""
    title = f"audit on {told['audit_images']} images: {told['verdict']}"
    shown = Table(title=title, title_justify="left")
    for column in ("check", "severity", "attack", "measured", "threshold", "source", "remedy"):
        shown.add_column(column, overflow="fold")
    for found in told["audit"]:
        names = ("check", "severity", "attack", "measured", "threshold", "source", "remedy")
        shown.add_row(*(str(found[name]) for name in names))
    return shown
