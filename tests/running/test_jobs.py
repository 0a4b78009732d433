"""Jobs: what names them, in which order they are carried out, and what processes share."""

import errno
import sys
from pathlib import Path

import pytest

from robusttrain.config import classes
from robusttrain.core.errors import UserError
from robusttrain.core.telling import Telling
from robusttrain.core.version import __version__
from robusttrain.evaluation.plan import EvaluationPlan
from robusttrain.running.jobs import PLACES, Call, Job, carry_out, identified, needed
from robusttrain.storage.files import hash_of_json
from robusttrain.storage.locks import alone


def counted(**about):
    """What a measurement returns: its arguments, and how often it was asked for."""
    counted.calls.append(about)
    return {"about": {key: str(value) for key, value in about.items()}}


@pytest.fixture(autouse=True)
def calls():
    counted.calls = []
    return counted.calls


def key(job):
    return job.name.rpartition("-")[2]


def job(folder, label, **arguments):
    return Job(label, Call(counted, arguments), folder)


def test_files_count_by_content_and_roots_by_place(tmp_path, monkeypatch):
    first, second = tmp_path / "first.pth", tmp_path / "second.pth"
    first.write_text("same")
    second.write_text("same")
    assert identified([str(first)]) == identified((str(second),)) != [str(first)]
    second.write_text("another")
    assert identified(str(first)) != identified(str(second))
    table = {"root": str(first), "data.root": str(first)}
    before = identified(table)
    first.write_text("its lines were edited")
    assert all(identified(table)[name] != before[name] for name in table)
    monkeypatch.chdir(tmp_path)
    assert identified({"root": "."}) == {"root": str(tmp_path)}
    assert identified({"root": None, "epsilon": 0.1}) == {"root": None, "epsilon": 0.1}
    assert identified("resnet18") == "resnet18"


def test_a_file_of_a_job_counts_by_the_jobs_name(tmp_path):
    here, there = (job(tmp_path / place, "model", width=3) for place in ("here", "there"))
    assert here.weights != there.weights
    assert identified(here.weights) == identified(there.weights)


def test_labels_and_places_do_not_count(tmp_path):
    first = job(tmp_path, "a label: 1/2", width=3)
    assert first.name.startswith("a-label-1-2-")
    assert key(first) == key(job(tmp_path / "elsewhere", "b", width=3))
    assert key(first) != key(job(tmp_path, "a label: 1/2", width=4))
    placed = Job("b", Call(counted, {"width": 3}, {"folder": None}), tmp_path)
    assert key(first) == key(placed)


def test_what_a_job_rests_on_is_carried_out_first(tmp_path, calls):
    base = job(tmp_path, "base", width=1)
    upper = job(tmp_path, "upper", on=base.weights)
    idle = job(tmp_path, "idle", width=2)
    point = Job("point", Call(counted, {"of": upper.weights}, {"folder": None}), tmp_path)
    assert needed([point], [base, idle, upper]) == [base, upper]
    lines = []
    carry_out([point], [base, idle, upper], telling=Telling(lines.append))
    assert calls == [
        {"width": 1},
        {"on": base.weights},
        {"of": upper.weights, "folder": point.folder},
    ]
    assert lines == [
        "1 points, 1 of them to be measured, 2 models to be trained first",
        "1 of 3: base",
        "2 of 3: upper",
        "3 of 3: point",
    ]
    assert point.result() == {"about": {"of": upper.weights, "folder": str(point.folder)}}
    assert point.account()["label"] == "point"
    carry_out([point], [base, idle, upper])
    assert len(calls) == 3, "done again"


def test_what_another_process_is_at_comes_last(tmp_path):
    first, second = job(tmp_path, "first", number=1), job(tmp_path, "second", number=2)
    begun = []

    def stop(line):
        begun.append(line)
        if "another process makes first" in line:
            raise InterruptedError

    with alone(first.folder, "it", print), pytest.raises(InterruptedError):
        carry_out([first, second], telling=Telling(stop))
    assert second.done
    assert not first.done
    carry_out([first, second])
    assert first.done


def test_an_interruption_names_the_way_on(tmp_path):
    def interrupted():
        raise KeyboardInterrupt

    lines = []
    with pytest.raises(KeyboardInterrupt):
        carry_out([Job("a", Call(interrupted, {}), Path(tmp_path))], telling=Telling(lines.append))
    assert "goes on from there" in lines[-1]


def plan_of(**about):
    """Of an evaluation that nobody carries out."""
    settings = {"model": {"class_path": "robusttrain.models.MLP"}, "attacks": {}}
    settings["data"] = {"class_path": "robusttrain.data.Digits"}
    return EvaluationPlan(**{**settings, **about})


def test_a_folder_that_may_not_be_written_to_any_more_is_one_line(tmp_path):
    """As where its owner takes the permission away while a study runs for hours."""

    def refused(folder):
        raise OSError(errno.EACCES, "Permission denied", str(Path(folder) / "results.json"))

    point = Job("point", Call(refused, {}, {"folder": None}), tmp_path)
    told = r"results.json: cannot be written \(permission denied\): what was finished is kept; the"
    with pytest.raises(UserError, match=told):
        carry_out([point])


def test_a_model_of_any_language_is_carried_out_first(tmp_path):
    base = job(tmp_path, "größe 数", width=1)
    assert needed([job(tmp_path, "upper", on=base.weights)], [base]) == [base]


def test_the_users_own_code_counts(tmp_path, monkeypatch):
    file = tmp_path / "own_network_of_a_job.py"
    plan = plan_of(model={"class_path": f"{file}:Own"})
    names = []
    for text in ("x", "x", "2 * x"):
        file.write_text(
            "from torch import nn\n\n\nclass Own(nn.Module):\n    def forward(self, x):\n"
            f"        return {text}\n"
        )
        names.append(key(Job("own", plan, tmp_path)))
        # As in another process.
        monkeypatch.setattr(classes, "_files", {})
        sys.modules.pop(file.stem, None)
    assert names[0] == names[1] != names[2]
    packaged = plan_of()
    left = {name: value for name, value in packaged.to_json().items() if name not in PLACES}
    named = hash_of_json([__version__, "EvaluationPlan", identified(left)])[:12]
    assert key(Job("ours", packaged, tmp_path)) == named, "as before"


def test_a_file_without_a_suffix_counts_by_content(tmp_path):
    file = tmp_path / "weights"
    names = set()
    for content in ("one", "two"):
        file.write_text(content)
        names.add(Job("a", plan_of(weights=str(file)), tmp_path).name)
    assert len(names) == 2


def test_long_labels_fit_a_file_system(tmp_path):
    for label in ("l" * 300, "ß" * 200, "数" * 200):
        carry_out([found := job(tmp_path, label, number=1)])
        assert found.done
        assert len(found.name.encode()) < 200
