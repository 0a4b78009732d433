"""Runs studies at scale smoke in this process; all of them share one folder of trained models."""

import importlib
import json
import sys
from types import SimpleNamespace

import pytest
from PIL import Image

from robusttrain.commands.entry import main


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """Where the studies of all tests find each other's models."""
    return tmp_path_factory.mktemp("studies")


@pytest.fixture
def run_study(monkeypatch, capsys, shared):
    """What ``python -m studies.NAME --output FOLDER ...`` does: (code, out, err)."""

    def run(name, folder, *arguments):
        places = [
            "--output",
            folder,
            "--checkpoints",
            shared / "checkpoints",
            "--logs",
            shared / "logs",
        ]
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", [f"studies/{name}.py", *map(str, (*places, *arguments))])
        with pytest.raises(SystemExit) as ended:
            main(importlib.import_module(f"studies.{name}").run)
        found = capsys.readouterr()
        return SimpleNamespace(code=ended.value.code, out=found.out, err=found.err)

    return run


@pytest.fixture
def told():
    """The content of a study's report."""
    return lambda folder: json.loads((folder / "study.json").read_text())


@pytest.fixture
def folder(tmp_path):
    """An image folder, and a file that stands for f_b's weights."""
    for split in ("train", "test"):
        for label in ("a", "b"):
            (tmp_path / split / label).mkdir(parents=True)
            Image.new("RGB", (32, 32)).save(tmp_path / split / label / "0.png")
    (tmp_path / "f_b.pth").write_text("weights")
    return tmp_path
