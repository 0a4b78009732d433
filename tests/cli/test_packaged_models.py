"""Packaged models on the command line: attacked before anything is trained, listed, named, and
measured to be what their cards say.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from robusttrain.commands import entry
from robusttrain.config.checkpoints import newest
from robusttrain.config.evaluation import read_plan
from robusttrain.core.errors import UserError
from robusttrain.storage import packaged
from studies import packaged_models

ROOT = Path(__file__).parents[2]
#: One image of 200 may lie so near the boundary that another processor's rounding decides it.
TOLERANCE = 0.005
QUICK = ("--attack", "pgd", "--attack.steps", 1)
#: Models whose images come along.
EMBEDDED = [
    name
    for name in packaged.names()
    if packaged.card(name).recipe["data"]["class_path"] == "robusttrain.data.Digits"
]


def test_the_first_minute(command, tmp_path, monkeypatch, capsys):
    """The same as a process of its own: tests/cli/test_wheel.py."""
    few = ("--images", 4, "--attack.steps", 2, "--attack.gradient.draws", 2, "--draws", 2)
    quick = (*few, "--audit", "false", "--precision", "float32")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        entry.run("evaluate", ["--attack", "bpda-eot", *map(str, quick)], "robusttrain evaluate")
    said = capsys.readouterr().err
    assert ended.value.code == 0, said
    (line,) = [line for line in said.splitlines() if "nothing trained" in line]
    assert "taking digits-g, a model that comes with the package" in line
    results = json.loads((tmp_path / "results" / "newest" / "results.json").read_text())
    card = packaged.card("digits-g")
    assert results["target"] == card.label
    assert card.content["sha256"].startswith(results["target"].split()[-1].rstrip(")"))
    assert results["weights"] == card.content["figures"]["weights"]
    assert results["plan"]["checkpoint"] == "digits-g"

    again = command("evaluate.py", "--again", tmp_path / "results" / "newest")
    assert again.code == 0, again.err
    assert "again: the same" in again.err


def test_what_was_trained_comes_first(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ("--model", "mlp", "--model.width", 8, "--robust.every", 0, "--pictures.images", 0)
    done = command("train.py", *small, "--trainer.max_epochs", 1)
    assert done.code == 0, done.err
    done = command("evaluate.py", *QUICK, "--images", 4, "--output", tmp_path)
    assert done.code == 0, done.err
    assert "nothing trained" not in done.err
    assert "best.ckpt" in json.loads((tmp_path / "results.json").read_text())["target"]


@pytest.mark.parametrize(
    "arguments", [("--data", "cifar10"), ("--checkpoints", "elsewhere"), ("--config", "mine.yaml")]
)
def test_other_data_and_folders_are_not_answered_with_digits(tmp_path, arguments, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("data: cifar10\n")
    with pytest.raises(UserError, match="no checkpoint under .* or give --checkpoint FILE"):
        read_plan(arguments)
    assert read_plan(["--data", "digits"]).checkpoint == packaged.DEFAULT


def test_the_first_look_is_small_unless_sizes_are_given(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO", "robusttrain")
    plan = read_plan(["--attack", "bpda-eot"])
    assert (plan.images, plan.audit_images) == (30, 8)
    assert "for a first look with --images 30 --audit_images 8;" in caplog.text
    plan = read_plan(["--images", "100", "--audit_images", "16"])
    assert (plan.images, plan.audit_images) == (100, 16)
    assert read_plan(["--suite", "quick"]).images == 200
    assert read_plan(["--audit", "false"]).audit_images is None
    # Whoever names the model gets all of its images.
    assert read_plan(["--checkpoint", "digits-g"]).images is None


@pytest.mark.parametrize(
    "name", [pytest.param(e, marks=[pytest.mark.long] * e.endswith("-g")) for e in EMBEDDED]
)
def test_clean_accuracy_is_that_of_the_card(command, tmp_path, name):
    figures = packaged.card(name).content["figures"]
    size = ("--images", figures["images"], "--draws", figures["draws"], "--seed", figures["seed"])
    place = ("--output", tmp_path / "out")
    done = command("evaluate.py", "--checkpoint", name, *QUICK, *size, *place)
    assert done.code == 0, done.err
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    expected = figures["clean"]["accuracy"]
    assert results["clean"]["accuracy"] == pytest.approx(expected, abs=TOLERANCE)


def test_a_model_of_images_that_are_elsewhere(command, tmp_path, monkeypatch):
    """One line says what to give; with pictures in folders of its classes it is evaluated."""
    name = "cifar10-jpeg-adversarial"
    monkeypatch.chdir(tmp_path)
    refused = command("evaluate.py", "--checkpoint", name, *QUICK)
    assert refused.code == 2
    assert "--data.root" in refused.err
    assert refused.err.count("\n") == 1
    for number, label in enumerate(packaged.card(name).content["recipe"]["classes"]):
        folder = tmp_path / "mine" / "test" / label
        folder.mkdir(parents=True)
        Image.new("RGB", (32, 32), (25 * number, 60, 255 - 25 * number)).save(folder / "0.png")
    small = ("--data.root", tmp_path / "mine", "--audit", "false", "--output", tmp_path / "out")
    done = command("evaluate.py", "--checkpoint", name, *QUICK, *small)
    assert done.code == 0, done.err
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["target"] == packaged.card(name).label
    assert results["images"] == 10


def test_as_a_module_and_as_a_process():
    done = subprocess.run(
        [sys.executable, "-m", "robusttrain", "list", "models"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "digits-g" in done.stdout


def test_listed_in_less_than_a_second_of_processor_time():
    script = (
        "import sys, time, atexit;"
        "atexit.register(lambda: print(time.process_time(), 'torch' in sys.modules));"
        "from robusttrain.commands.entry import console; console()"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    taken = []
    for _ in range(2):  # the first one may have to compile modules
        done = subprocess.run(
            [sys.executable, "-c", script, "list", "models"],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        *table, last = done.stdout.splitlines()
        seconds, torch_loaded = last.split()
        assert torch_loaded == "False"
        taken.append(float(seconds))
    assert min(taken) < 1
    for name in packaged.names():
        (row,) = [line for line in table if f" {name} " in line]
        assert "% clean" in row
        assert "worst case" in row
        assert "--checkpoint" in row


def test_a_model_to_transfer_from(command, tmp_path):
    place = ("--output", tmp_path / "out", "--crafted", tmp_path / "crafted")
    models = ("--models", "digits-standard", "digits-adversarial", "--data", "digits")
    done = command("evaluate.py", *models, "--images", 8, "--attack", "fgsm", *place)
    assert done.code == 0, done.err
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    for name, about in results["models"].items():
        assert about["packaged"] == packaged.card(name).label


def test_a_source_of_an_attack_by_name(command, tmp_path):
    source = ("--attack", "transfer-standard", "--attack.source.path", "digits-standard")
    few = ("--attack.steps", 2, "--images", 4, "--draws", 2, "--output", tmp_path)
    done = command("evaluate.py", "--checkpoint", "digits-g", *source, *few)
    assert done.code == 0, done.err
    assert "surrogate" not in done.err  # nothing was trained


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--checkpoint", "digits-gg"), "did you mean digits-g, a model"),
        (("--model", "digits-g"), "did you mean --checkpoint digits-g, which brings its own"),
        (("--model", "mlp", "--weights", "digits-standart"), "did you mean digits-standard"),
        (("--models", "digits-gg", "digits-g"), "did you mean --models digits-g?"),
    ],
)
def test_a_wrong_name_is_one_line(command, arguments, said):
    done = command("evaluate.py", *arguments, "--data", "digits")
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert said in done.err


def test_no_training_goes_on_from_weights_alone(command, tmp_path):
    done = command("train.py", "--ckpt_path", "digits-standard", "--checkpoints", tmp_path)
    assert done.code == 2
    assert "--ckpt_path digits-standard: a model of the package holds weights alone" in done.err


def test_a_model_is_made_by_its_commands(tmp_path, monkeypatch):
    (tmp_path / "packaged").mkdir()
    monkeypatch.setattr(packaged, "FOLDER", tmp_path / "packaged")
    small = ("--model", "mlp", "--model.width", "8", "--robust.every", "0")
    few = ("--trainer.max_epochs", "1", "--pictures.images", "0")
    attacked = ("--attack", "fgsm", "--images", "8", "--audit", "false", "--precision", "float32")
    made = packaged_models.Made("tiny", (*small, *few), attacked)
    card = packaged_models.make("digits-tiny", made, tmp_path / "work")
    content = yaml.safe_load(card.read_text())
    results = json.loads((tmp_path / "work" / "results" / "results.json").read_text())
    assert content["figures"]["clean"] == results["clean"]
    assert content["figures"]["worst_case"] == results["worst_case"]
    assert content["figures"]["weights"] == results["weights"]
    assert str(tmp_path) not in card.read_text()
    assert card.read_text().startswith("# tiny: ")
    assert content["commands"]["evaluate"].startswith(
        "robusttrain evaluate --checkpoint digits-tiny --attack fgsm"
    )
    # What the command left before is taken as it is; what another command left is refused.
    best = newest(next((tmp_path / "work" / "checkpoints").iterdir()))
    again = packaged_models.make("digits-tiny", made, tmp_path / "again", best)
    assert again.read_text() == card.read_text()
    assert not (tmp_path / "again" / "checkpoints").exists()
    other = packaged_models.Made("tiny", (*small, *few, "--seed", "1"), attacked)
    with pytest.raises(UserError, match="another command trained it: its seed is 0"):
        packaged_models.make("digits-tiny", other, tmp_path / "again", best)
    monkeypatch.setattr(packaged_models, "LARGEST", 1000)
    with pytest.raises(UserError, match="take a smaller network"):
        packaged_models.make("digits-tiny", made, tmp_path / "work")
