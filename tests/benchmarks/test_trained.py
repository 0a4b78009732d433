"""`benchmarks.trained`: what it types, and what it keeps."""

import json
import sys
from argparse import Namespace

import pytest

from benchmarks import trained
from robusttrain.core.errors import UserError

GIVEN = {
    "root": None,
    "f_b": None,
    "model": "resnet_small",
    "attack": "fgsm",
    "images": 8,
    "seconds": 60.0,
    "device": "cpu",
    "more": [],
}


@pytest.mark.parametrize("recipe", trained.RECIPES)
def test_train_takes_its_command_line(command, recipe, tmp_path):
    given = Namespace(**GIVEN, recipe=recipe, output=str(tmp_path / "t.json"))
    line, _ = trained.commands(given)
    found = command("train.py", *line[1:], "--print_config")
    assert found.code == 0, found.err
    assert "minutes: 0.5" in found.out


def test_the_checkpoint_stays_where_time_ends_before_the_attack_does(tmp_path, monkeypatch, capsys):
    output = tmp_path / "t.json"

    def run(line, until):
        if line[0] == "evaluate":
            raise UserError("evaluate: did not come to its end in the time that there was")
        assert "--checkpoints" in line

    monkeypatch.setattr(trained, "run", run)
    monkeypatch.setattr(sys, "argv", ["trained", "adversarial", "--output", str(output)])
    with pytest.raises(UserError, match="did not come to its end"):
        trained.main()
    told = json.loads(output.read_text())
    assert told["left_out"] == {"attacks": "did not come to their end"}
    assert "seconds_of_training" in told
    (tmp_path / "t").mkdir()
    with pytest.raises(SystemExit) as ended:
        trained.main()
    assert ended.value.code == 2
    assert "holds another run" in capsys.readouterr().err


@pytest.mark.long
def test_it_trains_and_attacks(tmp_path, monkeypatch):
    output = tmp_path / "t.json"
    options = ["--model", "resnet_small", "--attack", "fgsm", "--images", "8", "--seconds", "120"]
    options += ["--more", "model.widths=[4,8]", "robust.images=8", "training.minutes=0.2"]
    monkeypatch.setattr(sys, "argv", ["trained", "adversarial", *options, "--output", str(output)])
    trained.main()
    told = json.loads(output.read_text())
    assert told["images"] == 8
    assert set(told["attacks"]) == {"fgsm"}
    assert (tmp_path / "t" / "t" / "version_0" / "best.ckpt").is_file()
