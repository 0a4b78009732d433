"""Parts that are no presets' and no importable classes': collections, functions, folders."""

import logging

import pytest

from robusttrain.config.evaluation import read_plan
from robusttrain.config.origins import checked_node, from_elsewhere, trained_node
from robusttrain.config.training import read_plan as read_training
from robusttrain.core.errors import UserError

TORCHVISION = "robusttrain.models.TorchvisionClassifier"


def model_of(*line):
    return read_plan(["--data", "digits", *line]).model


@pytest.mark.parametrize(
    ("value", "class_path"),
    [
        ("timm:resnet18", "robusttrain.models.TimmClassifier"),
        ("torchvision:resnet18", TORCHVISION),
        ("torchvision.models.resnet18", TORCHVISION),
        ("torchvision.models.resnet.resnet18", TORCHVISION),
        ("timm.models.resnet.resnet18", "robusttrain.models.TimmClassifier"),
        ("robustbench:resnet18", "robusttrain.models.RobustBenchClassifier"),
    ],
)
def test_networks_of_collections_by_name(value, class_path):
    node = model_of("--model", value)
    assert (node["class_path"], node["init_args"]["name"]) == (class_path, "resnet18")


def test_their_arguments_can_be_given():
    node = model_of("--model", "torchvision.models.resnet18", "--model.weights", "DEFAULT")
    assert node["init_args"]["weights"] == "DEFAULT"


def test_a_function_of_a_collection_in_a_file_is_the_same_network(caplog):
    caplog.set_level(logging.INFO, "robusttrain")
    said = {"class_path": "torchvision.models.resnet18", "init_args": {"num_classes": 10}}
    node = read_plan(said=[{"model": said, "data": "digits"}]).model
    assert node["class_path"] == TORCHVISION
    assert (node["init_args"]["name"], node["init_args"]["num_classes"]) == ("resnet18", 10)
    assert "is taken as torchvision:resnet18, with its own normalisation" in caplog.text


def test_inside_of_other_parts_too():
    plan = read_training(["--defense", "advtransform", "--defense.model", "torchvision:resnet18"])
    assert plan.defense["init_args"]["model"]["class_path"] == TORCHVISION


def test_models_of_several_take_trained_weights():
    assert trained_node("torchvision:resnet18")["init_args"]["weights"] == "DEFAULT"
    assert trained_node("timm:resnet18")["init_args"]["pretrained"] is True
    assert trained_node("resnet18") is None


def test_what_is_of_a_package_and_no_network_of_its_stays_a_class():
    assert not from_elsewhere("model", "torchvision.models.list_models")
    assert not from_elsewhere("model", "torch.nn.Linear")
    assert not from_elsewhere("defense", "timm:resnet18")


def test_a_folder_is_a_data_set(tmp_path, monkeypatch):
    (tmp_path / "myfolder").mkdir()
    monkeypatch.chdir(tmp_path)
    for value in ("myfolder", "./myfolder", str(tmp_path / "myfolder")):
        node = read_training(["--data", value, "--data.batch_size", "8"]).data
        assert node["class_path"] == "robusttrain.data.ImageFolder"
        assert (node["init_args"]["root"], node["init_args"]["batch_size"]) == (value, 8)
    with pytest.raises(UserError, match="--data nofolder: no such preset"):
        read_training(["--data", "nofolder"])


def test_a_second_name_of_one_part_is_refused(tmp_path, monkeypatch):
    """One was left aside in silence; with --data twice, a line even said that it counts."""
    for folder in ("mine", "other"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path)
    other = ("--data.root", "other")
    leave = "names another one; leave one of the two out"
    for line in (
        ("--data", "mine", *other),
        (*other, "--data=mine"),
        ("--data", "mine", "--data.init_args.root=other"),
        ("--data", "imagefolder", *other, "--data", "mine"),
        ("--data", "labels.csv", *other),
    ):
        with pytest.raises(UserError, match=leave) as error:
            read_training(line)
        assert "other: --data " in str(error.value)
    with pytest.raises(UserError, match=rf"^--model\.name resnet34: --model timm:resnet18 {leave}"):
        model_of("--model", "timm:resnet18", "--model.name", "resnet34")
    node = read_training(["--data", "mine", "--data.root", "./mine"]).data
    assert node["init_args"]["root"] == "./mine"
    node = read_training(["--data", "mine", "--data", "imagefolder", *other]).data
    assert node["init_args"]["root"] == "other"


def test_a_preset_goes_before_a_folder_of_its_name_and_says_so(tmp_path, monkeypatch, caplog):
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO, "robusttrain")
    assert read_training(["--data", "digits"]).data["class_path"] == "robusttrain.data.Digits"
    assert "--data digits: the preset; the folder of that name would be --data ./digits" in (
        caplog.text
    )
    node = read_training(["--data", "./digits"]).data
    assert node["class_path"] == "robusttrain.data.ImageFolder"


@pytest.mark.parametrize("option", ["--model", "--defense.model"])
def test_a_wrong_class_says_the_option_and_the_nearest_name(option):
    line = [] if option == "--model" else ["--defense", "advtransform"]
    with pytest.raises(UserError, match=rf"^{option}\b.*did you mean robusttrain\.models\.MLP\?"):
        read_training([*line, option, "robusttrain.models.MLPP"])


def test_a_file_without_a_class_asks_for_it():
    with pytest.raises(UserError, match=r"mine\.py: name the class in it: mine\.py:NAME"):
        checked_node({"class_path": "mine.py"})
    for option in ("--model", "--defense", "--data", "--training"):
        for file in ("mine.py", "./mine.py", "folder/mine.py"):
            with pytest.raises(UserError, match=f"{option}.* name the class in it: {file}:NAME"):
                read_training([option, file])


def test_a_file_that_cannot_be_imported_names_the_option_once(tmp_path):
    (tmp_path / "mine.py").write_text("raise ValueError('no')")
    said = f"--training.objective: {tmp_path}/mine.py cannot be imported: ValueError: no"
    with pytest.raises(UserError) as error:
        read_training(["--training.objective", f"{tmp_path}/mine.py:Own"])
    assert str(error.value) == said


def test_a_class_that_lacks_methods_is_told_which(tmp_path):
    (tmp_path / "halfdata.py").write_text(
        "from robusttrain.data import ImageData\n\n\nclass Half(ImageData):\n    name = 'half'\n"
    )
    with pytest.raises(UserError, match=r"Half' cannot be built: it has to define _read, facts"):
        checked_node({"class_path": f"{tmp_path / 'halfdata.py'}:Half"})
