"""The command line's reports, curves and comparisons on a defended, random target."""

import json

import pytest

from robusttrain.commands import entry

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def typed(capsys):
    """What ``robusttrain COMMAND`` does: exit code and what it says."""

    def run(name, *arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            entry.run(name, [str(each) for each in arguments], f"robusttrain {name}")
        said = capsys.readouterr()
        return ended.value.code, said.out + said.err

    return run


def test_a_curve_costs_nothing_twice_and_is_compared(command, typed, trained, tmp_path):
    common = ["--checkpoint", trained.best, "--attack", "bpda-i-quick", "--attack.steps", 3]
    common += ["--images", 12, "--draws", 2, "--trainer.accelerator", "cpu"]
    curve = ["--curve", "0,0.1", "--curve_effort", "[1/3]"]
    plain = command("evaluate.py", *common, "--output", tmp_path / "a")
    assert plain.code == 0, plain.err
    done = command("evaluate.py", *common, *curve, "--output", tmp_path / "a")
    assert done.code == 0, done.err
    assert "curve over epsilon: 1 further points, at most 36 evaluations" in done.err
    assert "finished batches of attacks" in done.err  # the attacks themselves ran before
    found = json.loads((tmp_path / "a" / "results.json").read_text())
    points = found["curves"]["epsilon"]
    assert [point["epsilon"] for point in points] == [0, 0.031, 0.1]
    assert points[0]["robust_accuracy"] == found["clean"]["accuracy"]
    assert points[1]["robust_accuracy"] == found["worst_case"]["robust_accuracy"]
    assert [point["effort"] for point in found["curves"]["effort"]] == [1 / 3, 1]
    assert "Accuracy over the size of the change" in (tmp_path / "a" / "report.html").read_text()

    (tmp_path / "a" / "report.html").unlink()
    code, said = typed("report", tmp_path / "a")
    assert code == 0
    assert "Of 12 images the model classifies" in said
    assert "average over 2 draws" in (tmp_path / "a" / "report.html").read_text()
    assert "not to be trusted" not in said

    changed = json.loads(json.dumps(found))
    changed["attacks"]["bpda-i-quick"]["robust_accuracy"] += 0.25
    (tmp_path / "a" / "results.json").write_text(json.dumps(changed))
    code, said = typed("report", tmp_path / "a")
    assert code == 0
    assert "the figures are not to be trusted" in said
    (tmp_path / "a" / "results.json").write_text(json.dumps(found))

    moved = ["--defense.radius", 0.0, "--output", tmp_path / "b"]
    assert command("evaluate.py", *common, *moved).code == 0
    code, said = typed("compare", tmp_path / "a", tmp_path / "b")
    assert code == 0, said
    assert "B minus A" in said
    assert "as a model is random" in (tmp_path / "b" / "comparison.html").read_text()
    code, said = typed("compare", tmp_path / "a", tmp_path / "b", "--output", tmp_path)
    assert code == 2
    assert "is a folder: name an HTML file in it" in said
    found = json.loads((tmp_path / "b" / "results.json").read_text())
    whole = {key: value for key, value in found.items() if key != "target"}
    (tmp_path / "b" / "results.json").write_text(json.dumps(whole))
    code, said = typed("compare", tmp_path / "a", tmp_path / "b")
    assert code == 2
    assert "results.json: is damaged: 'target'" in said
    assert "B minus A" not in said
    other = ["--epsilon", 0.1, "--output", tmp_path / "c"]
    assert command("evaluate.py", *common, *other).code == 0
    code, said = typed("compare", tmp_path / "a", tmp_path / "b", tmp_path / "b" / ".." / "a")
    assert code == 2
    assert "is named twice: an evaluation agrees with itself" in said
    code, said = typed("compare", tmp_path / "a", tmp_path / "c")
    assert code == 2
    assert "threat: there changes of at most 0.031 (7.91/255) per pixel, here" in said


def test_bad_radii_are_one_line(command, trained):
    done = command("evaluate.py", "--checkpoint", trained.best, "--curve", "0,large")
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert "--curve = '0,large': must be numbers: 0,2/255,4/255,8/255" in done.err
