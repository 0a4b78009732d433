"""The audit: all checks in one table, their cost, and the verdict."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any, Literal

import torch
from torch import Tensor

from robusttrain.attacks.base import check_images
from robusttrain.core.errors import UserError
from robusttrain.core.labels import check_labels
from robusttrain.core.rng import Rng
from robusttrain.evaluation.audit import (
    before,
    gradients,
    objectives,
    others,
    planted,
    strength,
    unfollowed,
)
from robusttrain.evaluation.audit.finding import Finding, Needless, NotRun
from robusttrain.evaluation.audit.subject import DRAWS, LEAST, SAMPLE, Subject
from robusttrain.evaluation.engine import Engine
from robusttrain.evaluation.records import Records
from robusttrain.evaluation.scoring import verdicts

Check = Callable[[Subject], Finding | None]

#: When each check runs, and its function. A new check is a function and a line here.
CHECKS: tuple[tuple[Literal["before", "after"], Check], ...] = (
    ("before", before.sample),
    ("before", before.repeated_passes),
    ("before", before.probabilities),
    ("before", before.zero_gradients),
    ("after", before.repeated_under_attack),
    ("after", strength.epsilon_zero),
    ("after", strength.epsilon_half),
    ("after", strength.monotone),
    ("after", strength.one_step),
    ("after", strength.twice_the_steps),
    ("after", strength.twice_the_draws),
    ("after", objectives.another_objective),
    ("after", objectives.another_start),
    ("after", strength.silent_success),
    ("after", strength.still_rising),
    ("after", others.white_box_recorded),
    ("after", unfollowed.white_box_tried),
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
#: Names of checks whose functions have other names than their findings.
NAMES = {
    "repeated_under_attack": "repeated passes",
    "epsilon_zero": "epsilon 0",
    "epsilon_half": "epsilon 0.5",
    "monotone": "monotone in epsilon",
    "one_step": "single step",
    "still_rising": "loss still rising",
    "white_box_recorded": "white box",
    "other_source": "another source",
    "source_not_target": "source, not target",
    "better_than_chance": "gradient agreement",
}
#: The verdict where no check of the attacks could be made: whether it is sound is not known.
NO_CHECK = "not audited: no check of the attacks could run"
#: How the verdict begins where no check found a fault, and some ended in an error.
INCOMPLETE = "incomplete: "
NO_ROOM = "the radius is 0, so no attack could change an image"
#: Candidates for each image of the sample. Candidates that the target gets wrong drop out.
CANDIDATES = 2
#: Runs of the strongest attack in all checks together, on a deterministic model, but for those that
#: `objectives.evaluations` counts. A run of twice the length counts twice.
RUNS = 8
#: Share of the evaluation's own cost that the audit may reach before the sample shrinks below
#: `SAMPLE`.
SHARE = 0.25
#: An audit may always cost so many evaluations of images. A fifth of them would leave `LEAST`
#: images in most small evaluations, and `LEAST` images reveal only 19 of the 22 defects of
#: the first part of tests/audit.
CHEAP = 100_000


@dataclass
class Audit:
    """An audit of one evaluation: call ``before`` and then ``after``.

    Args:
        engine: of the evaluation.
        total: images of the evaluation.
        images: size of the sample; None for as many as the cost of the evaluation allows.
    """

    engine: Engine
    total: int
    images: int | None = None

    def __post_init__(self) -> None:
        self.findings: list[Finding] = []
        self.seconds = 0.0
        #: Checks that were made, or tried: those without a finding passed.
        self.tried: list[str] = []
        #: Of these, those that ended in an error.
        self.failed: list[str] = []
        self._subject: Subject | None = None

    @property
    def size(self) -> int:
        """Images of the sample: as many as asked for, or from `LEAST` (for long attacks on few
        images) to `SAMPLE`; at most all that there are.
        """
        if self.images is not None:
            return min(self.total, self.images)
        each = [sum(self.engine.cost(name)) for name in self.engine.scenarios] or [0]
        allowed = max(SHARE * self.total * sum(each), CHEAP)
        wanted = max(LEAST, min(SAMPLE, int(allowed / max(1, self._attacks(decided=True)))))
        return min(self.total, wanted)

    def _attacks(self, decided: bool) -> int:
        """The most evaluations that all runs of the strongest attack take for an image of the
        sample; ``decided`` as for `objectives.evaluations`.
        """
        counts = []
        for name, scenario in self.engine.scenarios.items():
            once = sum(self.engine.cost(name))
            counts.append(
                self._runs * once + objectives.evaluations(scenario.attack, once, decided)
            )
        return max(counts, default=0)

    @property
    def _runs(self) -> int:
        return RUNS + 4 * self.engine.random

    @property
    def candidates(self) -> int:
        """How many images the sample is taken from."""
        return min(self.total, CANDIDATES * self.size)

    def cost(self, expected: Mapping[str, float]) -> tuple[int, float]:
        """The most evaluations of images, and the seconds, of both halves together.

        Args:
            expected: seconds per image of each attack, and of "scoring", from `Engine.measure`.
        """
        dearest = max((sum(self.engine.cost(name)) for name in self.engine.scenarios), default=0)
        draws = DRAWS if self.engine.random else 1
        tried = any(each.attack.cost().gradients for each in self.engine.scenarios.values())
        passes = (
            others.QUERIES
            + (0 if tried else unfollowed.EVALUATIONS)
            + others.NOISE
            + (2 * 30 + gradients.DIRECTIONS + 16) * draws
            + planted.INNER // 2
        )
        slowest = max(
            (seconds for name, seconds in expected.items() if name != "scoring"), default=0.0
        )
        forward = expected.get("scoring", 0.0) / max(1, self.engine.verdicts_per_image)
        attacks = self._attacks(decided=False)
        evaluations = self.size * (attacks + passes)
        runs = attacks / max(1, dearest)
        return evaluations, self.size * (runs * slowest + passes * forward)

    def before(self, images: Tensor, labels: Tensor, indices: Tensor) -> list[Finding]:
        """Take the sample, and make the checks that need no results.

        Args:
            images: (m, C, H, W), the candidates, on the target's device.
            labels: (m,) int64.
            indices: (m,) int64, the images' indices in the data set.
        """
        start = time.perf_counter()
        images = check_images(images)
        self.engine.ask(images, indices)
        labels = check_labels(labels, images)
        streams = Rng.for_images(self.engine.seed, indices).fold("audit").fold("right")
        score = verdicts(
            self.engine.target, images, labels, streams, DRAWS if self.engine.random else 1
        )
        right = (score.double().mean(dim=1) > 0.5).nonzero().squeeze(1).to(images.device)
        with torch.inference_mode(False):
            self._subject, rest = (
                Subject(
                    self.engine,
                    images[which].clone(),
                    labels[which].clone(),
                    indices[which].clone(),
                )
                for which in (right[: self.size], right[self.size : 2 * self.size])
            )
        self._subject.rest = rest if rest.size else None
        self._run("before")
        self.seconds += time.perf_counter() - start
        return self.findings

    def after(self, records: Records) -> list[Finding]:
        """Make the checks that need the evaluation's records, and return all findings."""
        assert self._subject is not None, "before() takes the sample"
        start = time.perf_counter()
        for subject in (self._subject, self._subject.rest):
            if subject is not None:
                subject.records = records
        self._run("after")
        self.seconds += time.perf_counter() - start
        return self.findings

    def _run(self, when: str) -> None:
        subject = self._subject
        assert subject is not None
        least = LEAST if when == "after" else 1
        for moment, check in CHECKS:
            if moment != when:
                continue
            name = _name(check)
            try:
                if subject.size < least and check is not before.sample:
                    raise NotRun(f"{subject.size} images that are right are too few")
                if when == "after" and self._nothing_moved(subject):
                    raise NotRun(NO_ROOM)
                with torch.inference_mode(False), torch.enable_grad():
                    finding = check(subject)
            except Needless:
                continue
            except NotRun as why:
                about = subject.main if when == "after" else ""
                finding = Finding(name, "not run", str(why), attack=about)
            except Exception as error:  # noqa: BLE001 - models and attacks are any code, and the evaluation comes first
                reason = (str(error).splitlines() or [""])[0]
                finding = Finding(name, "not run", f"{type(error).__name__}: {reason}"[:200])
                if not isinstance(error, UserError):  # which says that something does not apply
                    self.failed.append(name)
            self.tried.append(name)
            if finding is not None:
                self.findings.append(finding)

    def _nothing_moved(self, subject: Subject) -> bool:
        """Whether all attacks have a radius of 0, and changed no image: what any other version of
        them would break is none, too, and says nothing.
        """
        attacks = [scenario.attack for scenario in self.engine.scenarios.values()]
        records = subject.records
        return (
            bool(attacks)
            and records is not None
            and all(each.threat.epsilon == 0 for each in attacks)
            and not any(bool(records.of(name).distance.any()) for name in records.attacks)
        )

    @property
    def verdict(self) -> str:
        """ "sound", "masked: ..." or "weak: ...", with the names of the checks; `NO_CHECK` where
        none of those that look at the attacks could be made; "incomplete: ..." where some ended in
        an error, and no other found a fault.
        """
        found = verdict(self.findings)
        impossible = {each.check for each in self.findings if each.severity == "not run"}
        # What is looked at before any attack says nothing of the attacks.
        of_attacks = {_name(check) for when, check in CHECKS if when == "after"} & {*self.tried}
        nothing = bool(of_attacks) and of_attacks <= impossible
        if found == "sound" and nothing:
            return NO_CHECK
        return INCOMPLETE + ", ".join(self.failed) if found == "sound" and self.failed else found

    def as_dict(self) -> dict[str, Any]:
        """What results.json holds of the audit."""
        return {
            "verdict": self.verdict,
            "audit": [finding.as_dict() for finding in self.findings],
            "audit_checks": len(self.tried),
            "audit_images": self._subject.size if self._subject else 0,
            "audit_seconds": round(self.seconds, 2),
        }


def _name(check: Check) -> str:
    """The name of a check in its findings."""
    return NAMES.get(check.__name__, check.__name__.replace("_", " "))


def verdict(findings: Sequence[Finding]) -> str:
    """The verdict on top: masked before weak, each with the checks that say so."""
    for severity in ("masked", "weak"):
        named = [finding.check for finding in findings if finding.severity == severity]
        if named:
            rest = (
                [finding.check for finding in findings if finding.severity == "weak"]
                if severity == "masked"
                else []
            )
            return f"{severity}: " + ", ".join(dict.fromkeys(named + rest))
    return "sound"


def audit_lines(audit: Mapping[str, Any]) -> list[str]:
    """The verdict, then a line for each finding; ``audit`` is `Audit.as_dict`, or results.json,
    which holds thresholds and sources, too.
    """
    lines = [f"audit on {audit['audit_images']} images: {audit['verdict']}"]
    # Checks that could not run for one reason share a line.
    reason = itemgetter("severity", "attack", "measured")
    for (severity, attack, measured), group in groupby(audit["audit"], key=reason):
        same = list(group)
        about = f" ({attack})" if attack else ""
        together = [same] if severity == "not run" else [[each] for each in same]
        for findings in together:
            names = ", ".join(each["check"] for each in findings)
            remedy = f"; {findings[0]['remedy']}" if findings[0]["remedy"] else ""
            lines.append(f"  {severity}: {names}{about}: {measured}{remedy}")
    return lines
