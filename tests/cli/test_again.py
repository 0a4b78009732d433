"""results.json explains its figures, is read back as objects, and can be repeated."""

import dataclasses
import json
import shutil
from contextlib import nullcontext

import pytest
import torch
from pytorch_lightning.utilities.rank_zero import rank_zero_only

import robusttrain
from robusttrain.commands import evaluate
from robusttrain.config.evaluation import read_again
from robusttrain.core.errors import UserError
from robusttrain.evaluation.report import changes
from robusttrain.storage.files import hash_of_weights

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def once(run_here, trained, tmp_path_factory):
    """An evaluation of two attacks on 12 images, which no test changes."""
    folder = tmp_path_factory.mktemp("once") / "out"
    attacks = ["--attack", "bpda-i-quick", "--attack", "wt", "--attack.wt.steps", 2]
    size = ["--images", 12, "--draws", 2, "--trainer.accelerator", "cpu"]
    done = run_here(
        "evaluate.py", "--checkpoint", trained.best, *attacks, *size, "--output", folder
    )
    assert done.code == 0, done.err
    return folder


@pytest.fixture
def evaluated(once, tmp_path):
    """A copy of it."""
    return shutil.copytree(once, tmp_path / "out")


def test_results_explain_themselves(evaluated, trained):
    found = json.loads((evaluated / "results.json").read_text())
    assert found["schema"] == 2
    assert found["command"].startswith("python evaluate.py --audit false")
    assert found["weights"] == hash_of_weights(robusttrain.load(trained.best))
    assert len(found["indices"]) == len(set(found["indices"])) == 12
    assert found["plan"]["attacks"]["wt"]["init_args"]["steps"] == 2
    assert found["versions"]["torch"] == torch.__version__
    assert {"capability", "cores", "threads"} <= found["processor"].keys()

    results = robusttrain.read_results(evaluated)
    assert results.clean.accuracy == found["clean"]["accuracy"]
    assert results.worst_case.low == found["worst_case"]["ci95"][0]
    row = results.attacks["wt"]
    assert (row.robust.accuracy, row.gradients) == (found["attacks"]["wt"]["robust_accuracy"], 2)
    assert (row.precision, row.preset["init_args"]["steps"]) == ("float32", 2)
    assert results.plan.checkpoint == str(trained.best)


def test_the_same_comes_out_again_and_what_differs_is_told(command, evaluated):
    done = command("evaluate.py", "--again", evaluated)
    assert (done.code, done.err.splitlines()[-1]) == (0, "again: the same"), done.err
    path = evaluated / "results.json"
    found = json.loads(path.read_text())
    found["attacks"]["wt"]["robust_accuracy"] = 0.123
    found["weights"] = "another"
    path.write_text(json.dumps(found))
    done = command("evaluate.py", "--again", path)
    assert done.code == 4
    assert "differs: attacks.wt.robust_accuracy: was 0.123, is " in done.err
    assert 'differs: weights: was "another"' in done.err
    assert done.err.splitlines()[-1] == "again: 2 figures or facts differ"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "cannot be read"),
        ("no", "is no JSON"),
        ("[" * 200_000, "is no JSON"),
        ("{}", "holds no results: name a results.json"),
        ("[]", "holds no results"),
        ("null", "holds no results"),
        ('{"clean": {}}', "of version 0.1, which kept no plan"),
        ('{"schema": 9}', "of schema 9; this version reads schema 2"),
        ('{"schema": 2}', "is damaged: 'plan' is missing: evaluate again"),
    ],
)
def test_what_cannot_be_repeated_is_told(command, tmp_path, content, told):
    path = tmp_path / "results.json"
    if content is not None:
        path.write_text(content)
    done = command("evaluate.py", "--again", path)
    assert done.code == 2
    assert told in done.err


def test_damaged_verdicts_are_no_reason_not_to_repeat(command, evaluated):
    """What else would replace them?"""
    (evaluated / "verdicts.safetensors").write_bytes(b"cut")
    done = command("evaluate.py", "--again", evaluated)
    assert (done.code, done.err.splitlines()[-1]) == (0, "again: the same"), done.err


def test_nothing_is_changed_on_the_way(command, evaluated):
    done = command("evaluate.py", "--again", evaluated, "--seed", 1)
    assert done.code == 2
    assert "repeats an evaluation as it was: leave out --seed" in done.err


def test_where_files_lie_may_be_said_anew(evaluated):
    path = evaluated / "results.json"
    content = json.loads(path.read_text())
    before = {
        "class_path": "robusttrain.data.ImageFolder",
        "init_args": {"root": "gone", "seed": 3},
    }
    content["plan"]["data"] = before
    path.write_text(json.dumps(content))
    _, plan = read_again(["--again", str(path), "--data.root", "010", "--checkpoint=new.ckpt"])
    assert plan.data["init_args"] == {"root": "010", "seed": 3}
    assert plan.checkpoint == "new.ckpt"
    with pytest.raises(UserError, match="took no weights: leave out --weights"):
        read_again(["--again", str(path), "--weights", "w.pth"])


def test_other_places_are_no_difference():
    before = {"data": "ImageTable a.csv", "target": "a.ckpt", "data_hash": "1", "seed": 0}
    assert [*changes(before, {**before, "data": "ImageTable b.csv", "target": "b.ckpt"})] == []
    assert len([*changes(before, {**before, "data_hash": "2"})]) == 1


def test_a_file_from_elsewhere_imports_nothing(command, evaluated):
    """Whatever it trusts itself: another package's classes need --trust, and nothing is run."""
    path = evaluated / "results.json"
    found = json.loads(path.read_text())
    evil = {"class_path": "evil.Data", "init_args": {}}
    for where in ("data", "attack", "inside"):
        plan = json.loads(json.dumps(found["plan"])) | {"trust": ["evil", "subprocess"]}
        if where == "data":
            plan["data"] = evil
        elif where == "attack":
            plan["attacks"]["wt"]["class_path"] = "subprocess.Popen"
        else:
            plan["data"]["init_args"]["root"] = evil
        path.write_text(json.dumps(found | {"plan": plan}))
        done = command("evaluate.py", "--again", path)
        assert done.code == 2
        assert "comes from a package that is not trusted" in done.err
        done = command("evaluate.py", "--again", path, "--trust", "evil", "--trust", "subprocess")
        assert done.code == 2
        assert "not trusted" not in done.err


@pytest.mark.parametrize("broken", [{"model": 5}, {"attacks": {"wt": []}}, {"precision": "int8"}])
def test_a_broken_plan_is_one_line(command, evaluated, broken):
    path = evaluated / "results.json"
    found = json.loads(path.read_text())
    path.write_text(json.dumps(found | {"plan": found["plan"] | broken}))
    done = command("evaluate.py", "--again", path)
    assert done.code == 2
    assert done.err.count("\n") == 1, done.err


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_of_several_processes_alone_judges(evaluated, monkeypatch, rank):
    """The first one audits after the others are done, and dies where one of them ends with an
    error.
    """
    before = robusttrain.read_results(evaluated)
    two = {"devices": 2, "strategy": "ddp", "accelerator": "cpu"}
    plan = dataclasses.replace(before.plan, audit=True, strict=True, trainer=two)
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    another = {**before.json, "seed": 1, "verdict": "weak: sample"}
    monkeypatch.setattr(rank_zero_only, "rank", rank, raising=False)
    monkeypatch.setattr(evaluate, "evaluate", lambda *arguments: another)
    monkeypatch.setattr(evaluate, "read_plan", lambda arguments: plan)
    for judged, code in (
        (lambda: evaluate.repeat(before, plan), evaluate.OTHERWISE),
        (lambda: evaluate.run([]), evaluate.UNSOUND),
    ):
        with pytest.raises(SystemExit) if rank == 0 else nullcontext() as ended:
            judged()
        assert ended is None or ended.value.code == code
