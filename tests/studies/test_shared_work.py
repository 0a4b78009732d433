"""Processes with the same command share a study's models and points; here the test is the other
process.
"""

import pytest

from robusttrain.running.jobs import Job, needed
from robusttrain.storage.locks import alone
from studies.study import Study

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def begun(monkeypatch):
    """Labels of all jobs that began; none goes further."""
    called = []

    def begin(job, logs, telling):
        called.append(job.label)
        raise InterruptedError

    monkeypatch.setattr(Job, "carry_out", begin)
    return called


@pytest.fixture
def study(tmp_path):
    """One without points."""
    places = {"output": tmp_path, "checkpoints": tmp_path / "models", "logs": tmp_path / "logs"}
    return Study("radius", "Shared", [f"--{name}={place}" for name, place in places.items()])


def finish(job):
    job.folder.mkdir(parents=True)
    (job.folder / "done.json").write_text("{}")


def test_a_model_that_another_process_trains_is_left_to_it(begun, study):
    first, second = study.scale.f_a("standard", 0), study.scale.f_a("standard", 1)
    points = {each.label: study.scale.attacked(each, "pgd") for each in (first, second)}
    with alone(first.folder, "it", print), pytest.raises(InterruptedError):
        study.run(points)
    assert begun == [second.label]


def test_a_model_whose_parts_another_process_trains_is_left_for_later(begun, study):
    ours = study.scale.ours()
    (f_b,) = needed([ours], [*study.scale.models.values()])
    other = study.scale.f_a("standard")
    points = {model.label: study.scale.attacked(model, "pgd") for model in (ours, other)}
    with alone(f_b.folder, "it", print), pytest.raises(InterruptedError):
        study.run(points)
    assert begun == [other.label]
    finish(f_b)
    with pytest.raises(InterruptedError):
        study.run(points)
    assert begun == [other.label, ours.label]


def test_points_that_others_measure_come_last(begun, study):
    model = study.scale.f_a("standard")
    finish(model)
    points = {attack: study.scale.attacked(model, attack) for attack in ("pgd", "fgsm")}
    first = Job("pgd", points["pgd"], study.output / "points")
    with alone(first.folder, "it", print), pytest.raises(InterruptedError):
        study.run(points)
    assert begun == ["fgsm"]
