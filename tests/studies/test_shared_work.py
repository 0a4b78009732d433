"""Processes with the same command share a study's models and points; here the test is the other
process.
"""

import pytest

from robusttrain.commands import evaluate, train
from robusttrain.storage.locks import alone
from studies.models import Models
from studies.parts import Point, Training
from studies.sizes import SMOKE
from studies.study import Study

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def begun(monkeypatch):
    """Arguments of every training and every evaluation that began; none goes further."""
    called = []

    def begin(arguments):
        called.append(arguments)
        raise InterruptedError

    for command in (train, evaluate):
        monkeypatch.setattr(command, "run", begin)
    return called


def test_a_model_that_another_process_trains_is_left_to_it(begun, tmp_path):
    models, training = Models(tmp_path, tmp_path / "logs"), SMOKE.standard()
    with alone(tmp_path / training.name, "it", print):
        models.train(training, wait=False)
    assert not begun
    with pytest.raises(InterruptedError):
        models.train(training, wait=False)
    assert len(begun) == 1


def test_a_model_whose_parts_another_process_trains_is_left_for_later(begun, tmp_path):
    models = Models(tmp_path, tmp_path / "logs")
    rests = Training("rests", ("--defense.weights", SMOKE.standard()), 1, 8)
    models.train(rests, wait=False)
    assert not begun
    (tmp_path / SMOKE.standard().name).mkdir()
    (tmp_path / SMOKE.standard().name / "training.json").write_text("{}")
    with pytest.raises(InterruptedError):
        models.train(rests, wait=False)


def test_points_that_others_measure_come_last(begun, tmp_path):
    places = [
        "--output",
        tmp_path,
        "--checkpoints",
        tmp_path / "checkpoints",
        "--logs",
        tmp_path / "logs",
    ]
    study = Study("radius", "Shared", list(map(str, places)))
    first, second = (
        Point(name, ("--weights", name, "--images", "8")) for name in ("first", "second")
    )
    with alone(tmp_path / "points" / first.key, "it", print), pytest.raises(InterruptedError):
        study.run([first, second])
    assert len(begun) == 1
    assert begun[0][:2] == ["--weights", "second"]
