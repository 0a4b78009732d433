"""Every preset in configs/data builds the data module that it names."""

from pathlib import Path

import pytest
from jsonargparse import ArgumentParser

import robusttrain.data
from robusttrain.data import ImageData

PRESETS = sorted((Path(__file__).parents[2] / "configs" / "data").glob("*.yaml"))


def parser():
    """A parser with data as a subclass, as the command line has it."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_subclass_arguments(ImageData, "data")
    return parser


@pytest.mark.filterwarnings("ignore")  # jsonargparse renamed its method
@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_preset_builds(preset):
    arguments = ["--config", str(preset), "--data.batch_size", "7"]
    data = parser().instantiate_classes(parser().parse_args(arguments)).data
    assert data.name == preset.stem
    assert data.batch_size == 7
    assert preset.read_text().startswith("# ")


def test_every_data_set_has_a_preset():
    exported = (getattr(robusttrain.data, name) for name in robusttrain.data.__all__)
    data_sets = {
        item.name for item in exported if issubclass(item, ImageData) and item is not ImageData
    }
    assert data_sets == {preset.stem for preset in PRESETS}
