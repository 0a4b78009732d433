"""Certificates beside attacks: what attacks leave may not lie below what is certified. On a linear
model both are known, and a wrong sigma is caught.
"""

import pytest
import torch

from robusttrain.attacks import L2, Linf, Normalized, ProjectedGradient, Target
from robusttrain.data import Batch
from robusttrain.defenses import GaussianNoise
from robusttrain.evaluation import Engine, Scenario
from robusttrain.evaluation.certificates import certificates_table, finding
from robusttrain.evaluation.certification import Certification, Certified
from robusttrain.evaluation.certify import Smoothed
from robusttrain.evaluation.curve import Curve
from robusttrain.evaluation.module import Evaluation
from robusttrain.models.defended import DefendedClassifier
from robusttrain.storage.journal import Journal

SIGMA, RADII = 0.2, [0.0, 0.1, 0.2, 0.3]


class Misdeclared(GaussianNoise):
    """Says that its noise is three times as strong as it is."""

    @property
    def certified_sigma(self):
        return 3 * self.sigma


def pgd(threat):
    rule = Normalized() if threat.norm == "l2" else ProjectedGradient().rule
    return ProjectedGradient(steps=3, relative_step_size=0.5, threat=threat, rule=rule)


@pytest.fixture
def task(linear, images):
    """A linear model of two classes, images with their distance from its boundary; two labels are
    wrong.
    """
    model, x = linear(classes=2, scale=0.1), images(40)
    logits = model(x).detach()
    with torch.no_grad():
        model.bias -= torch.tensor([1.0, 0.0]) * (logits[:, 0] - logits[:, 1]).median()
    logits = model(x).detach()
    labels = logits.argmax(1)
    length = (model.weight[0] - model.weight[1]).norm().item()
    margin = (logits[:, 0] - logits[:, 1]).abs().double() / length
    labels[:2] = 1 - labels[:2]
    return model, x, labels, margin


def evaluated(task, defense=None, threat=None, radii=RADII, journal=None, batch=40, draws=400):
    """An evaluation with certificates: the content of results.json, and the table."""
    model, x, labels, _ = task
    target = DefendedClassifier(defense or GaussianNoise(SIGMA), model).eval()
    scenarios = {"pgd": Scenario(pgd(threat or L2(0.2)), Target())}
    engine = Engine(target, scenarios, draws=2, keep_images=True, journal=journal)
    certification = Certification(engine, Smoothed.of(target, 2, draws, 50), radii)
    curves = [Curve(engine, "epsilon", radii)] if radii else []
    evaluation = Evaluation(engine, curves=curves, certification=certification)
    for part in torch.arange(40).split(batch):
        evaluation.test_step(Batch(x[part], labels[part], part), 0)
    evaluation.on_test_epoch_end()
    return evaluation.results, Certified.merged(evaluation._certified)


def test_what_attacks_leave_lies_above_what_is_certified(task):
    content, certified = evaluated(task)
    margin = task[3]
    found = content["certificates"]
    right = torch.arange(40) >= 2
    # No certificate beyond the margin, no attack succeeds within it.
    assert (certified.radius <= margin).all()
    assert (certified.broken_at[right] >= margin[right] - 1e-5).all()
    assert not (certified.broken_at[:2][margin[:2] > 0.05]).any()
    assert found["violations"] == []
    assert finding(content) is None
    assert {0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3} <= {each["radius"] for each in found["points"]}
    for point in found["points"]:
        at, left = point["radius"], point["attacked"]
        assert (left is None) == (at > 0.3)
        true = (right & (margin > at)).double().mean().item()
        assert point["certified"]["accuracy"] <= true + 1e-6
        if left:
            assert point["certified"]["accuracy"] <= left["accuracy"]
            # What is left is right, or undecided as the true margin is next to nothing.
            assert true - 1e-6 <= left["accuracy"]
    at = {point["radius"]: point for point in found["points"]}
    assert at[0.3]["attacked"]["accuracy"] < at[0.1]["attacked"]["accuracy"] < 1
    assert at[0.2]["certified"]["accuracy"] < at[0.0]["certified"]["accuracy"]
    heads = [str(column.header) for column in certificates_table(content).columns]
    assert heads == ["radius", "certified (95 %)", "left by attacks (95 %)", "undecided"]


@pytest.mark.parametrize("epsilon", [36 / 255, 2 / 3])
def test_the_radius_of_the_attacks_has_its_row(task, epsilon):
    """Rounded up in the grid, too."""
    content, _ = evaluated(task, threat=L2(epsilon), radii=[epsilon])
    points = {each["radius"]: each for each in content["certificates"]["points"]}
    assert round(epsilon, 9) > epsilon
    assert points[round(epsilon, 9)]["attacked"] is not None


def test_a_sigma_that_is_not_the_noises_is_caught(task):
    content, certified = evaluated(task, Misdeclared(SIGMA))
    found, margin = content["certificates"], task[3]
    assert (certified.radius > margin).any()
    broken = {each["index"] for each in found["violations"]}
    assert broken == {*certified.index[certified.violated].tolist()}
    assert len(broken) > 3
    for each in found["violations"]:
        assert margin[each["index"]] - 1e-5 <= each["distance"] < each["radius"]
        assert each["attack"] == "pgd"
    below = [
        point
        for point in found["points"]
        if point["attacked"] and point["attacked"]["accuracy"] < point["certified"]["accuracy"]
    ]
    assert below
    said = finding(content)
    assert said.startswith(f"The certificates are void: of 40 images {len(broken)} were broken")
    assert "sigma = 0.6" in said


def test_other_threats_count_at_their_euclidean_length(task):
    content, certified = evaluated(task, threat=Linf(0.02), radii=[])
    found = content["certificates"]
    reach = 0.02 * 192**0.5
    assert found["attacks"]["norm"] == "linf"
    assert 0.9 * reach < found["attacks"]["radius"] <= reach
    broken = certified.broken_at[certified.broken_at.isfinite() & (certified.broken_at > 0)]
    assert len(broken) > 3
    assert (broken > 0.2).all()  # and an l2 attack within 0.2 breaks some
    assert found["violations"] == []


def test_batches_and_a_journal_change_nothing(task, tmp_path, monkeypatch):
    whole, _ = evaluated(task)
    parts, _ = evaluated(task, batch=7, journal=Journal(tmp_path, {}))
    assert parts["certificates"] == whole["certificates"]

    def ask(*given):
        raise AssertionError("was in the journal")

    monkeypatch.setattr("robusttrain.evaluation.certify.counted", ask)
    again, _ = evaluated(task, batch=7, journal=Journal(tmp_path, {}))
    assert again["certificates"] == whole["certificates"]
    with pytest.raises(AssertionError, match="journal"):
        evaluated(task, batch=7, journal=Journal(tmp_path, {}), draws=500)
