"""evaluate.py with a model that brings its weights, on ImageNet's layout; and what is refused."""

import json
import re

import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

pytestmark = pytest.mark.filterwarnings("ignore")


PALACE, TENCH = "n03877845", "n01440764"


@pytest.fixture
def root(tmp_path):
    """A photograph of a palace in the right class of ImageNet's 1,000, and another class without
    images.
    """
    for wnid in (PALACE, TENCH):
        (tmp_path / "imagenet" / "val" / wnid).mkdir(parents=True)
    Image.fromarray(load_sample_image("china.jpg")).save(
        tmp_path / "imagenet" / "val" / PALACE / "a.png"
    )
    return tmp_path / "imagenet"


def test_trained_weights_need_no_option(command, root, tmp_path):
    arguments = [
        "--model",
        "efficientnet_lite0",
        "--data",
        "imagenet",
        "--data.root",
        root,
        "--attack",
        "fgsm",
    ]
    arguments += ["--epsilon", 0.0588, "--output", tmp_path, "--trainer.accelerator", "cpu"]
    done = command("evaluate.py", *arguments)
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["target"] == "EfficientNetLite tf_efficientnet_lite0"
    assert found["data"] == f"ImageNet {root}"
    assert (found["images"], found["clean"]["accuracy"]) == (1, 1.0)
    assert found["attacks"]["fgsm"]["largest_perturbation"] == pytest.approx(0.0588, abs=1e-6)
    said = "its weights are evaluated on pictures resized to 256 (bicubic) and cropped to 224"
    assert said in " ".join(done.err.split())
    assert any(said in line for line in found["data_notes"])
    done = command("evaluate.py", *arguments, "--data.resize", 256, "--fresh", "true")
    assert done.code == 0, done.err
    assert "its weights are" not in done.err
    found = json.loads((tmp_path / "results.json").read_text())
    assert not any(said in line for line in found["data_notes"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "efficientnet_lite0"], "--model.in_channels = 1: .*--data in colour"),
        (
            ["--model", "efficientnet_lite0", "--model.variant", "4"],
            "--model.variant = 4: must be 0, 1",
        ),
        (["--model", "efficientnet_lite0", "--model.pretrained", "false"], "--weights FILE"),
        (
            ["--model", "efficientnet_lite0", "--data", "imagenet", "--data.root", "."],
            "val/<wnid>/",
        ),
    ],
)
def test_what_cannot_work_is_one_line(command, tmp_path, arguments, said):
    done = command("evaluate.py", *arguments, "--checkpoints", tmp_path, "--output", tmp_path)
    assert done.code == 2
    (line,) = done.err.splitlines()
    assert re.search(said, line), line


def test_other_classes_leave_the_head_untrained(command, root, tmp_path):
    data = ["--data", "imagefolder", "--data.root", root, "--data.image_size", 32]
    done = command("evaluate.py", "--model", "efficientnet_lite0", *data, "--output", tmp_path)
    assert done.code == 2
    assert "its weights are for 1000 classes, and the data set has 2" in done.err
