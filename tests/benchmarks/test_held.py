"""What comes back on a random model is judged by draws that no attack has seen."""

import json

import torch

from benchmarks import held
from benchmarks.strength_models import Subject
from robusttrain.attacks import L2, RandomNoise
from robusttrain.models.defended import DefendedClassifier


def test_the_share_that_holds_and_the_distance(convnet, images):
    """Noise of length 0: images that the model gets wrong hold, the others do not."""
    model, x = DefendedClassifier(None, convnet()), images(8)
    right = model(x).argmax(1)
    y = torch.where(torch.arange(8) < 6, (right + 1) % 3, right)
    subject = Subject(model, x, y, {})
    found = held.measure(subject, RandomNoise(22, threat=L2(0.0)))
    assert found == {"holds": 0.75, "median_distance": 0.0, "median_of_what_holds": 0.0}
    found = held.measure(Subject(model, x, right, {}), RandomNoise(22, threat=L2(0.0)))
    assert found == {"holds": 0.0, "median_distance": 0.0, "median_of_what_holds": None}


def test_the_command(tmp_path, capsys):
    file = tmp_path / "held.json"
    held.main(["--images", "4", "--steps", "3", "--only", "DDN", "--output", str(file)])
    report = json.loads(file.read_text())
    assert report["images"] == 4
    assert [*report["attacks"]] == ["DDN, 3 steps"]
    assert "DDN, 3 steps" in capsys.readouterr().out
