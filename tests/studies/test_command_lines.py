"""What studies ask of train.py and evaluate.py at the scales that no test can run is understood
there, at least.
"""

import importlib
from functools import cache
from pathlib import Path

import pytest
from PIL import Image

from robusttrain.config import evaluation, reparameterization, transfer
from robusttrain.config import training as command_line
from robusttrain.config.attacks import attack_nodes, checked, split_attacks
from robusttrain.config.command_line import read
from studies.models import Models
from studies.parts import trainings
from studies.study import Study

FILES = (Path(__file__).parents[2] / "studies").glob("*.py")
STUDIES = sorted(path.stem for path in FILES if "\ndef run(arguments" in path.read_text())


#: Building a parser takes longer than using it.
PARSERS = {
    module: cache(module.parser)
    for module in (evaluation, reparameterization, command_line, transfer)
}


class PlannedError(Exception):
    pass


@pytest.fixture
def folder(tmp_path):
    """An image folder, and a file that stands for f_b's weights."""
    for split in ("train", "test"):
        for label in ("a", "b"):
            (tmp_path / split / label).mkdir(parents=True)
            Image.new("RGB", (32, 32)).save(tmp_path / split / label / "0.png")
    (tmp_path / "f_b.pth").write_text("weights")
    return tmp_path


@pytest.mark.parametrize("name", STUDIES)
def test_small_and_paper(name, folder, monkeypatch):
    planned = []

    def seen(self, points):
        planned.extend(points)
        raise PlannedError

    monkeypatch.setattr(Study, "run", seen)
    monkeypatch.setattr(Models, "checkpoint", lambda self, training: folder / "model.ckpt")
    models = Models(folder, folder)
    places = ["--root", str(folder), "--checkpoints", str(folder), "--output", str(folder)]
    for scale in (["--scale", "small", "--f_b", str(folder / "f_b.pth")], ["--scale", "paper"]):
        with pytest.raises(PlannedError):
            importlib.import_module(f"studies.{name}").run([*scale, *places])
    assert len({(point.label, point.key) for point in planned}) == len(planned)
    for training in dict.fromkeys(
        training for point in planned for training in trainings(point.arguments)
    ):
        arguments = [
            *models.command(training.arguments),
            "--trainer.max_epochs",
            str(training.epochs),
        ]
        if training.is_h:
            read(PARSERS[reparameterization](), arguments, ("data", "training"), {"data": "digits"})
        else:
            read(PARSERS[command_line](), arguments, command_line.KINDS, command_line.DEFAULTS)
    understood = []  # many points of a study differ by their model alone
    for point in planned:
        if point.measure is None and not point.missing:
            names, overrides, rest = split_attacks(models.command(point.arguments))
            if (names, overrides, rest) in understood:
                continue
            understood.append((names, overrides, rest))
            nodes = attack_nodes(names, overrides, 0.031)
            assert nodes.keys() == set(names)
            for name, node in nodes.items():
                checked(node, name)
            if transfer.chosen(rest):
                read(PARSERS[transfer](), rest, ("data",), {"data": "cifar10"})
            else:
                read(PARSERS[evaluation](), rest, evaluation.KINDS, {"data": "cifar10"})
