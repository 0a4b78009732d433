"""What a run leaves, and what the next one makes of it: default folders never block, refusals leave
nothing.
"""

import errno
import json
import re

import pytest

from robusttrain.storage.journal import Journal

pytestmark = pytest.mark.filterwarnings("ignore")
FEW = ["--images", 8, "--data.batch_size", 4, "--trainer.accelerator", "cpu"]


@pytest.fixture
def evaluate(command, trained, monkeypatch, tmp_path):
    """Evaluates the trained checkpoint, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: command("evaluate.py", "--checkpoint", trained.best, *FEW, *arguments)


@pytest.fixture
def crashed(evaluate, monkeypatch):
    """A run that ended in the middle, in the default folder; how many batches it had finished."""
    put, puts = Journal.put, []

    def dying(self, *arguments):
        if puts:
            raise RuntimeError("power cut")
        put(self, *arguments)
        puts.append(1)

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "put", dying)
        with pytest.raises(RuntimeError, match="power cut"):
            evaluate("--attack", "wt", "--attack.steps", 2)


def test_a_crashed_run_does_not_block_other_settings(evaluate, crashed, tmp_path):
    before = sorted(path for path in tmp_path.rglob("*") if path.suffix == ".safetensors")
    done = evaluate("--attack", "fgm")
    assert done.code == 0, done.err
    folder = re.search(r"holds an unfinished run of other settings.*goes into (\S+)", done.err)[1]
    assert folder.startswith("results/newest-")
    assert json.loads((tmp_path / folder / "results.json").read_text())["attacks"].keys() == {"fgm"}
    assert f"written: {folder}/results.json" in done.err
    assert all(path.is_file() for path in before)
    # The same settings find the same folder.
    assert f"goes into {folder}" in evaluate("--attack", "fgm").err
    # What crashed goes on where it was.
    goes_on = evaluate("--attack", "wt", "--attack.steps", 2)
    assert goes_on.code == 0, goes_on.err
    assert "going on in results/newest/journal: 1 finished batches" in goes_on.err
    assert "written: results/newest/results.json" in goes_on.err
    # And then the default folder is free.
    assert "written: results/newest/results.json" in evaluate("--attack", "fgm").err


def test_another_precision_is_another_setting(evaluate, crashed):
    done = evaluate("--attack", "wt", "--attack.steps", 2, "--precision", "bfloat16")
    assert done.code == 0, done.err
    assert "written: results/newest-" in done.err


def test_a_folder_that_the_user_chose_still_refuses(evaluate, crashed, tmp_path):
    done = evaluate("--attack", "fgm", "--output", "results/newest")
    assert done.code == 2
    assert "--output results/newest: an unfinished run lies there that differs in" in done.err
    config = tmp_path / "mine.yaml"
    config.write_text("output: results/newest\naudit: false\nprecision: float32\n")
    assert evaluate("--attack", "fgm", "--config", config).code == 2


@pytest.mark.parametrize(
    "line",
    [
        ["--attack", "ensemble-pattern"],
        ["--attack", "single-pattern"],
        ["--attack", "pgd", "--attack.threat.epsilon", "-1"],
        ["--attack", "pgd", "--attack", "cw"],
    ],
    ids=lambda line: line[1],
)
def test_a_refused_evaluation_leaves_no_folders(evaluate, line, tmp_path):
    done = evaluate(*line)
    assert done.code == 2, done.err
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    "line",
    [
        ["--model", "mlp", "--defense", "randomization"],
        ["--training", "adversarial", "--monitor", "nonsense"],
        ["--data.batch_size", "100000"],
    ],
    ids=lambda line: line[1],
)
def test_a_refused_training_leaves_no_folders(command, line, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    done = command("train.py", *line, "--trainer.accelerator", "cpu")
    assert done.code == 2, done.err
    assert not [*tmp_path.iterdir()]


def test_a_folder_that_cannot_be_written_to_is_still_found_at_once(evaluate, tmp_path):
    (tmp_path / "file").write_text("")
    done = evaluate("--attack", "fgm", "--output", "file/below")
    assert done.code == 2
    assert "--output file/below: cannot be written to" in done.err


@pytest.mark.parametrize(
    "what",
    [["--checkpoint", "digits-standard"], ["--models", "digits-standard", "digits-adversarial"]],
    ids=["evaluation", "transfer"],
)
def test_a_folder_that_may_not_be_written_to_any_more_is_one_line(
    command, monkeypatch, tmp_path, what
):
    """As where its owner takes the permission away while attacks run for hours."""
    monkeypatch.chdir(tmp_path)
    put, puts = Journal.put, []

    def taken(self, stage, *arguments):
        if puts:
            raise OSError(errno.EACCES, "Permission denied", str(self.folder / stage / "entry"))
        put(self, stage, *arguments)
        puts.append(self.folder)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "put", taken)
        stopped = command("evaluate.py", *what, "--attack", "fgm", "--images", 8)
    assert stopped.code == 2, stopped.err
    (folder,) = puts
    error = stopped.err.splitlines()[-1]
    assert error.startswith("evaluate.py: error: ")
    assert error.endswith(
        "/entry: cannot be written (permission denied): what was finished is kept; the same command"
        " goes on from there"
    )
    assert len([*folder.glob("*/*.safetensors")]) == 1


def test_a_radius_that_is_no_bound_is_warned_of(evaluate):
    done = evaluate("--attack", "fgm", "--epsilon", 8)
    assert done.code == 0, done.err
    assert "warning: --epsilon 8 is no bound" in done.err
    assert "write 8/255" in done.err
    assert "is no bound" not in evaluate("--attack", "fgm", "--epsilon", "8/255").err
