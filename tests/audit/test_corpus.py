"""The audit names every defect of the corpus, and accuses none of the sound evaluations."""

import json
from dataclasses import replace
from functools import cache

import pytest
import torch

from robusttrain.attacks import Linf
from robusttrain.evaluation import Records
from robusttrain.evaluation.audit import Audit, Finding, audit_lines, report

from .blind import BLIND_SOUND, BLIND_WRONG
from .corpus import ANY, IMAGES, SOUND, WRONG, audited, evaluation, pgd
from .heldout import HELD_OUT_SOUND, HELD_OUT_WRONG
from .networks import digits, plain
from .weak_objectives import NEW_SOUND, NEW_WRONG

EVERY_WRONG = (*WRONG, *NEW_WRONG, *HELD_OUT_WRONG, *BLIND_WRONG)
EVERY_SOUND = (*SOUND, *NEW_SOUND, *HELD_OUT_SOUND, *BLIND_SOUND)
#: The audit of a case, for all tests that only read it.
once = cache(audited)


def each(cases):
    """Parameters of a test; what takes more than a second or two is left to ``make long``."""
    return [
        pytest.param(case, marks=[pytest.mark.long] * case.slow, id=case.name) for case in cases
    ]


def test_the_corpus_is_large_enough():
    assert len(WRONG) >= 15
    assert len(SOUND) >= 5
    new, held_out = (*NEW_WRONG, *NEW_SOUND), (*HELD_OUT_WRONG, *HELD_OUT_SOUND)
    assert len(new) + len(held_out) >= 15
    assert len(held_out) >= len(new)
    names = [case.name for case in (*EVERY_WRONG, *EVERY_SOUND)]
    assert len({*names}) == len(names)


@pytest.mark.parametrize("case", each(EVERY_WRONG))
def test_defects_are_named(case):
    audit = once(case)
    grave = {found.check: found for found in audit.findings if found.severity in ("masked", "weak")}
    assert case.named_by(audit)
    assert audit.verdict.startswith(("masked: ", "weak: "))
    assert case.expected == ANY or case.expected in audit.verdict
    found = grave.get(case.expected) or next(iter(grave.values()))
    assert all((found.measured, found.threshold, found.source, found.remedy))
    json.dumps(audit.as_dict())


@pytest.mark.parametrize("case", each(EVERY_SOUND))
def test_sound_evaluations_are_not_accused(case):
    audit = audited(case)
    assert audit.verdict == "sound"
    assert {found.severity for found in audit.findings} <= {"note", "not run"}


@pytest.mark.long
def test_estimates_that_are_mostly_noise_are_named():
    case = next(case for case in WRONG if case.expected == "fixed randomness")
    assert "two estimates" in {
        found.check for found in audited(case).findings if found.severity == "weak"
    }


def test_one_seed_one_audit():
    case = next(case for case in WRONG if case.name == "too few steps")
    assert audited(case).findings == once(case).findings


def test_a_check_that_cannot_be_made_says_so_and_the_others_go_on(monkeypatch):
    def broken_check(subject):
        raise RuntimeError("no such thing\nand more")

    checks = (("before", broken_check), ("after", broken_check), *report.CHECKS[:2])
    monkeypatch.setattr(report, "CHECKS", checks)
    data = digits()
    engine = evaluation(plain(), pgd(steps=1))
    audit = Audit(engine, IMAGES)
    batch = data.test[:IMAGES], data.test_labels[:IMAGES], torch.arange(IMAGES)
    audit.before(*batch)
    audit.after(Records.merged([engine.run(*batch)[0]]))
    assert [(found.check, found.severity) for found in audit.findings] == [
        ("broken check", "not run")
    ] * 2
    assert audit.findings[0].measured == "RuntimeError: no such thing"
    assert audit.verdict == report.NO_CHECK  # of those that look at the attacks, here one


def test_too_few_images_are_told():
    data = digits()
    engine = evaluation(plain(), pgd(steps=1))
    audit = Audit(engine, 3)
    batch = data.test[:3], data.test_labels[:3], torch.arange(3)
    audit.before(*batch)
    audit.after(Records.merged([engine.run(*batch)[0]]))
    assert audit.verdict == "weak: sample"
    audit = Audit(engine, 3)
    audit.before(batch[0], (batch[1] + 1) % 10, batch[2])  # none of them is right
    assert audit.verdict == "weak: sample"


@pytest.mark.parametrize(("epsilon", "audited"), [(0.0, False), (0.001, True)])
def test_without_a_radius_nothing_is_sound(epsilon, audited):
    data = digits()
    engine = evaluation(plain(), replace(pgd(steps=1), threat=Linf(epsilon)))
    audit = Audit(engine, IMAGES)
    batch = data.test[:IMAGES], data.test_labels[:IMAGES], torch.arange(IMAGES)
    audit.before(*batch)
    audit.after(Records.merged([engine.run(*batch)[0]]))
    reasons = {each.measured for each in audit.findings if each.severity == "not run"}
    assert (report.NO_ROOM in reasons) is not audited
    assert (audit.verdict == report.NO_CHECK) is not audited


def test_the_sample_shrinks_where_attacks_are_long_and_images_few():
    short, long = (Audit(evaluation(plain(), pgd(steps=steps)), 64).size for steps in (20, 2000))
    assert (short, long) == (32, 8)
    assert Audit(evaluation(plain(), pgd(steps=2000)), 10_000).size == 32
    assert Audit(evaluation(plain(), pgd(steps=2000)), 64, images=16).size == 16


def test_what_it_says_and_costs_is_bounded_by_the_images_at_hand():
    twelve, many = (Audit(evaluation(plain(), pgd(steps=2)), total) for total in (12, 1000))
    assert (twelve.size, many.size) == (12, 32)
    assert twelve.cost({})[0] * 32 == many.cost({})[0] * 12
    assert Audit(evaluation(plain(), pgd(steps=2)), 12, images=16).size == 12


def test_a_finding_is_one_line():
    told = {
        "audit_images": 9,
        "verdict": "weak: still rising",
        "audit": [
            Finding("sample", "note", "few images").as_dict(),
            Finding("still rising", "weak", "it rises", "no", "P", "more steps", "pgd").as_dict(),
        ],
    }
    assert audit_lines(told) == [
        "audit on 9 images: weak: still rising",
        "  note: sample: few images",
        "  weak: still rising (pgd): it rises; more steps",
    ]


def test_checks_that_could_not_run_for_one_reason_share_a_line():
    findings = [Finding(name, "not run", "too few", attack="pgd") for name in ("a", "b")]
    findings += [Finding("c", "not run", "no norm", attack="pgd"), *[Finding("d", "note", "x")] * 2]
    said = {"audit_images": 4, "verdict": "sound", "audit": [each.as_dict() for each in findings]}
    assert audit_lines(said)[1:] == [
        "  not run: a, b (pgd): too few",
        "  not run: c (pgd): no norm",
        "  note: d: x",
        "  note: d: x",
    ]


def test_what_it_costs_is_an_upper_bound():
    """Counted on the evaluation that leaves all images standing: nothing is spared."""
    from .networks import Quantize

    passes = []
    network = plain()
    handle = network.register_forward_hook(
        lambda module, inputs, output: passes.append(len(inputs[0]))
    )
    try:
        engine = evaluation(network, pgd(), defense=Quantize())
        audit = Audit(engine, IMAGES)
        data = digits()
        batch = data.test[:IMAGES], data.test_labels[:IMAGES], torch.arange(IMAGES)
        records, _ = engine.run(*batch)
        passes.clear()
        audit.before(*batch)
        audit.after(Records.merged([records]))
    finally:
        handle.remove()
    # The engine's sources hold a fast copy of the classifier: what they are asked is not counted
    # here.
    assert 0 < sum(passes) <= audit.cost({"attack": 0.0, "scoring": 0.0})[0]
