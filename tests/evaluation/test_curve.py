"""Curves over radius and effort: they only fall, share their work, and find what single runs
find.
"""

import pytest
import torch
from torch import nn

from robusttrain.attacks import Linf, ProjectedGradient, RandomNoise, Target
from robusttrain.config.evaluation import read_plan
from robusttrain.config.numbers import several
from robusttrain.core.errors import OptionError, UserError
from robusttrain.evaluation import Engine, Scenario
from robusttrain.evaluation.curve import Curve, Rung
from robusttrain.evaluation.records import Records
from robusttrain.evaluation.scoring import worst_case
from robusttrain.storage.journal import Journal

RADII = [0.015, 0.005, 0.0, 0.01, 0.3]


def pgd(epsilon=0.01, steps=4):
    return ProjectedGradient(steps=steps, relative_step_size=0.5, threat=Linf(epsilon))


class Asked(nn.Module):
    """Counts gradient evaluations, of its copies as well: attacks get one."""

    gradients = 0

    def __init__(self, model):
        super().__init__()
        self.model = model
        Asked.gradients = 0

    def forward(self, images):
        if torch.is_grad_enabled() and images.requires_grad:
            Asked.gradients += len(images)
        return self.model(images)


@pytest.fixture
def task(curved, images):
    """A model, images, and its own answers but for two of them as labels."""
    model, pictures = curved(), images(24)
    labels = model(pictures).argmax(1)
    labels[:2] = (labels[:2] + 1) % 4
    return model, pictures, labels, torch.arange(24)


def run(curve, engine, pictures, labels, index):
    whole, _ = engine.run(pictures, labels, index)
    records = curve.run(pictures, labels, index, whole)
    return whole, records, curve.points(records)


def test_a_curve_only_falls_and_counts_what_it_asks(task):
    model, pictures, labels, index = task
    counted = Asked(model)
    engine = Engine(counted, {"pgd": Scenario(pgd(), Target())})
    curve = Curve(engine, "epsilon", RADII)
    assert [rung.value for rung in curve.rungs] == [0, 0.005, 0.01, 0.015, 0.3]
    whole, _, points = run(curve, engine, pictures, labels, index)
    figures = [point["robust_accuracy"] for point in points]
    assert figures == sorted(figures, reverse=True)
    assert figures[0] == pytest.approx(22 / 24, abs=1e-6)
    assert figures[2] == pytest.approx(whole.of("pgd").right.mean().item(), abs=1e-6)
    assert 0 < figures[3] < figures[1]
    # What fell before is not attacked again; the evaluation itself attacks whatever was right.
    alive = [round(24 * figure) for figure in figures]
    assert [point["attacked"] for point in points] == [0, 22, 22, alive[2], alive[3]]
    spent = [point["gradient_evaluations"] for point in points]
    assert spent == [0, 88, 88, 4 * alive[2], 4 * alive[3]]
    assert Asked.gradients == sum(spent)


def test_every_point_is_what_an_evaluation_of_its_own_finds(task):
    model, pictures, labels, index = task
    engine = Engine(model, {"pgd": Scenario(pgd(), Target())})
    curve = Curve(engine, "epsilon", RADII)
    _, records, _ = run(curve, engine, pictures, labels, index)
    fell = torch.zeros(24, dtype=torch.bool)
    for radius in (0.005, 0.01, 0.015):
        alone = Engine(model, {"pgd": Scenario(pgd(radius), Target())})
        fell |= ~alone.run(pictures, labels, index)[0].of("pgd").score[:, 0]
        assert torch.equal(curve.worst(records, Rung("epsilon", radius))[1], (~fell).double())


def test_effort_is_nested_and_attacks_without_steps_are_left_out(task):
    model, pictures, labels, index = task
    counted = Asked(model)
    scenarios = {
        "pgd": Scenario(pgd(0.01, 20), Target()),
        "noise": Scenario(RandomNoise(queries=60, threat=Linf(0.01)), Target()),
    }
    engine = Engine(counted, scenarios)
    curve = Curve(engine, "effort", [0.25, 0.5])
    whole, _, points = run(curve, engine, pictures, labels, index)
    figures = [point["robust_accuracy"] for point in points]
    assert figures == sorted(figures, reverse=True)
    assert [point["effort"] for point in points] == [0.25, 0.5, 1.0]
    assert points[0]["gradient_evaluations"] == 5 * 22
    assert points[1]["attacked"] == round(24 * figures[0])
    assert Asked.gradients == sum(point["gradient_evaluations"] for point in points)
    assert figures[-1] <= whole.of("pgd").right.mean().item() + 1e-6
    assert points[0]["planned_per_image"] < points[1]["planned_per_image"]


def test_batches_and_a_journal_change_nothing(task, tmp_path):
    model, pictures, labels, index = task
    found = []
    for size, folder in ((24, "one"), (7, "many"), (7, "many")):
        counted = Asked(model)
        engine = Engine(counted, {"pgd": Scenario(pgd(), Target())})
        engine.journal = Journal(tmp_path / folder, {"same": True})
        curve = Curve(engine, "epsilon", RADII)
        parts = []
        for each in index.split(size):
            whole, _ = engine.run(pictures[each], labels[each], each)
            parts.append(curve.run(pictures[each], labels[each], each, whole))
        found.append(curve.points(Records.merged(parts)))
    assert found[0] == found[1] == found[2]
    assert Asked.gradients == 0  # the third one found all in the journal


def test_a_random_model_spares_what_is_broken_for_good_alone(images, random_linear):
    model, pictures, index = random_linear(scale=0.4), images(40), torch.arange(40)
    labels = pictures.flatten(1) @ model.weight.T + model.bias
    engine = Engine(model, {"pgd": Scenario(pgd(0.02), Target())}, draws=3)
    curve = Curve(engine, "epsilon", [0.01, 0.05, 0.5])
    _, records, points = run(curve, engine, pictures, labels.argmax(1), index)
    assert [point["epsilon"] for point in points] == [0.01, 0.02, 0.05, 0.5]
    chosen = [curve.worst(records, rung)[0] for rung in curve.rungs]
    for before, after in zip(chosen, chosen[1:], strict=False):
        assert (after <= before).all()  # on the draws that choose
    assert points[-1]["robust_accuracy"] < 0.2 < points[0]["robust_accuracy"]
    assert points[-1]["attacked"] < 40


def test_its_own_point_alone_is_the_worst_case_of_the_evaluation(images, random_linear):
    """Draw by draw: attacks that look equally bad are told apart by the same rule."""
    model, pictures, index = random_linear(scale=0.4), images(40), torch.arange(40)
    labels = (pictures.flatten(1) @ model.weight.T + model.bias).argmax(1)
    for seed in range(5):
        scenarios = {
            "one": Scenario(pgd(0.02), Target()),
            "two": Scenario(RandomNoise(queries=20, votes=2, threat=Linf(0.02)), Target()),
        }
        engine = Engine(model, scenarios, seed=seed, draws=2)
        curve = Curve(engine, "epsilon", [0.0])
        whole, records, points = run(curve, engine, pictures, labels, index)
        select, score = (
            torch.stack([getattr(whole.of(name), kind) for name in ("clean", "one", "two")])
            for kind in ("chosen_by", "right")
        )
        expected = worst_case(select, score)
        assert torch.equal(curve.worst(records, curve.rungs[-1])[1], expected)
        assert points[-1]["robust_accuracy"] == pytest.approx(expected.mean().item(), abs=1e-6)


def test_what_has_no_other_version_is_refused(task):
    class Fixed(RandomNoise):
        def scaled(self, effort):
            return None

    engine = Engine(task[0], {"fixed": Scenario(Fixed(threat=Linf(0.02)), Target())})
    with pytest.raises(UserError, match=r"effort 0\.5: no attack has a version of it"):
        Curve(engine, "effort", [0.5])


def test_radii_are_read_as_they_are_written():
    line = ["--model", "mlp", "--attack", "fgsm"]
    plan = read_plan([*line, "--curve", "0,2/255,0.03", "--curve_effort", "1/4"])
    assert plan.curve == [0.0, 2 / 255, 0.03]
    assert plan.curve_effort == [0.25]
    assert read_plan([*line, "--curve", "[0.1, 4/255]"]).curve == [0.1, 4 / 255]
    assert read_plan([*line, "--curve", "0.1"]).curve == [0.1]
    assert read_plan(line).curve == []
    assert read_plan(said=[{"model": "mlp", "curve": [0, 0.1]}]).curve == [0.0, 0.1]
    for wrong in ("a", "1/0", "0.1,,"):
        with pytest.raises(OptionError, match="must be numbers"):
            several(wrong, "--curve")
    with pytest.raises(OptionError, match="--curve = -0.1: must be at least 0"):
        read_plan([*line, "--curve=-0.1"])
