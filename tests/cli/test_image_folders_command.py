"""A folder of pictures that none of us made, through the commands: what is said, and recorded."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from robusttrain.config.checkpoints import read_recipe
from robusttrain.evaluation import Records
from robusttrain.models import MLP
from robusttrain.storage.weights import save_tensors

pytestmark = pytest.mark.filterwarnings("ignore")

CLASSES = 12


def save(path, label, number):
    """Class k: brighter in the k-th of 16 pixels, on noise."""
    pixels = np.random.default_rng([label, number]).integers(0, 60, (4, 4), dtype=np.uint8)
    pixels.flat[label] += 190
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def root(tmp_path):
    """Folders 0 to 11 of five images each, in train/ and test/."""
    for split in ("train", "test"):
        for label in range(CLASSES):
            for number in range(5):
                save(tmp_path / "data" / split / str(label) / f"{number}.png", label, number)
    return tmp_path / "data"


@pytest.fixture
def evaluate(command, root, tmp_path):
    """Evaluates a network that answers with the pixel that is brightest: right where folder k is
    class k.
    """
    network = MLP(num_classes=CLASSES, in_channels=1, image_size=4, depth=0)
    state = {name: torch.zeros_like(values) for name, values in network.state_dict().items()}
    (weight,) = (name for name in state if name.endswith("weight"))
    state[weight] = torch.eye(CLASSES, 16)
    save_tensors(state, tmp_path / "w.safetensors")

    def run(*arguments, attack=("--attack", "fgsm")):
        model = ["--model", "mlp", "--model.depth", 0, "--weights", tmp_path / "w.safetensors"]
        data = ["--data", "imagefolder", "--data.root", root, "--data.channels", 1]
        rest = ["--audit", "false", "--precision", "float32", "--output", tmp_path / "o"]
        done = command("evaluate.py", *model, *data, *attack, *rest, "--fresh", "true", *arguments)
        if done.code == 0:
            done.found = json.loads((tmp_path / "o" / "results.json").read_text())
        return done

    return run


def test_numbers_are_numbers_and_the_mapping_is_said_and_recorded(evaluate):
    done = evaluate()
    assert done.found["clean"]["accuracy"] == 1
    assert done.found["classes"] == [str(label) for label in range(CLASSES)]
    assert done.err.count("12 classes, numbered as numbers by their folders") == 1
    assert "another order" not in done.err.replace("gives another order", "")


def test_another_order_is_recognised_and_its_file_mends_it(evaluate, tmp_path):
    text = sorted(str(label) for label in range(CLASSES))
    (tmp_path / "text.txt").write_text("\n".join(text))
    done = evaluate("--data.classes", tmp_path / "text.txt")
    assert done.found["clean"]["accuracy"] < 0.3
    assert done.found["classes"] == text
    assert "another order of the classes explains it: with 0, 1, 2, 3," in done.err
    assert "it would be 100.0 %" in done.err
    assert done.found["other_class_order"]["accuracy"] == 1
    mended = evaluate("--data.classes", tmp_path / "o" / "classes.json")
    assert mended.found["clean"]["accuracy"] == 1
    assert "other_class_order" not in mended.found


def test_a_suites_own_number_of_images_and_one_that_was_asked_for(evaluate):
    suite = ("--suite", "quick", "--attack.steps", 1)
    done = evaluate(attack=suite)
    assert done.found["images"] == 60
    assert "200 images were to be attacked, and the test split has 60: all of them are" in done.err
    assert done.found["data_notes"] == [
        "200 images were to be attacked, and the test split has 60: all of them are"
    ]
    refused = evaluate("--images", 61, attack=suite)
    assert refused.code == 2
    assert "--images = 61: the test split has 60 images" in refused.err


def test_what_was_assumed_of_pictures_is_said_and_recorded(evaluate, root):
    path = root / "test" / "0" / "0.png"
    Image.fromarray(np.asarray(Image.open(path)).astype(np.uint16) * 257).save(path)
    done = evaluate()
    assert done.found["clean"]["accuracy"] == 1
    (note,) = done.found["data_notes"]
    assert note.startswith("1 of 60 images have 16 bits a pixel")
    assert note in done.err


def test_other_images_are_another_run(evaluate, root):
    """Of the same settings, in the same folder, which a finished run leaves free."""
    few = ["--images", 8, "--fresh", "false"]
    assert evaluate(*few).found["clean"]["accuracy"] == 1
    assert "going on" in evaluate(*few).err
    for path in (root / "test").rglob("*.png"):
        save(path, int(path.parent.name), 100)
    done = evaluate(*few)
    assert done.code == 0, done.err
    assert "going on" not in done.err


def test_a_checkpoint_keeps_its_classes(command, root, tmp_path):
    """Another folder with some of them, in which they would have other numbers."""
    where = ["--checkpoints", tmp_path / "c", "--logs", tmp_path / "l"]
    data = ["--data", "imagefolder", "--data.channels", 1]
    training = [
        "--training",
        "standard",
        "--training.schedule",
        "constant",
        "--trainer.max_epochs",
        1,
        "--robust.every",
        0,
    ]
    done = command(
        "train.py",
        *data,
        "--data.root",
        root,
        "--model",
        "mlp",
        "--model.depth",
        0,
        *training,
        *where,
    )
    assert done.code == 0, done.err
    (checkpoint,) = (tmp_path / "c").rglob("last.ckpt")
    assert read_recipe(checkpoint)["classes"] == [str(label) for label in range(CLASSES)]
    for label in (3, 11):
        save(tmp_path / "other" / str(label) / "a.png", label, 0)
    done = command(
        *("evaluate.py", "--checkpoint", checkpoint, *data, "--data.root", tmp_path / "other"),
        *("--attack", "fgsm", "--audit", "false", "--output", tmp_path / "o"),
        *("--precision", "float32", "--save_verdicts", "true"),
    )
    assert done.code == 0, done.err
    assert "numbered as in the checkpoint" in done.err
    assert Records.read(tmp_path / "o" / "verdicts.safetensors").label.tolist() == [3, 11]
    # Its weights alone were trained in that order as well, whatever their file is called.
    weights = checkpoint.rename(tmp_path / "w.pth")
    done = command(
        *("evaluate.py", "--model", "mlp", "--model.depth", 0, "--weights", weights, *data),
        *("--data.root", tmp_path / "other", "--attack", "fgsm", "--audit", "false"),
        *("--output", tmp_path / "o2", "--precision", "float32"),
    )
    assert done.code == 0, done.err
    assert "numbered as in the checkpoint" in done.err
    assert Records.read(tmp_path / "o2" / "verdicts.safetensors").label.tolist() == [3, 11]
    shutil.copy(weights, checkpoint)
    for name in ("a", "b"):
        node = "model: {class_path: robusttrain.models.MLP, init_args: {depth: 0}}"
        (tmp_path / f"{name}.yaml").write_text(f"{node}\nweights: {weights}\n")
    done = command(
        *("evaluate.py", "--models", tmp_path / "a.yaml", tmp_path / "b.yaml", *data),
        *("--data.root", tmp_path / "other", "--attack", "fgsm", "--output", tmp_path / "o3"),
    )
    assert "numbered as in the checkpoint" in done.err
    same = ["--data.root", root, "--model", "mlp", "--model.depth", 0, *training]
    again = command(
        *("train.py", *data, *same, "--trainer.max_epochs", 2, "--ckpt_path", "last", *where)
    )
    assert again.code == 0, again.err


@pytest.mark.parametrize("script", ["train.py", "evaluate.py"])
def test_a_single_class_is_refused_by_its_data(script, command, tmp_path):
    for split in ("train", "test"):
        save(tmp_path / "one" / split / "cat" / "0.png", 0, 0)
    data = ["--data", tmp_path / "one", "--data.channels", 1, "--data.image_size", 4]
    weights = ["--weights", "digits-standard", "--attack", "fgsm"] if script[0] == "e" else []
    done = command(script, *data, "--model", "mlp", *weights)
    assert done.code == 2
    assert "the data set has 1 class: " in done.err


@pytest.fixture
def train(command, root, tmp_path):
    """Trains for some epochs, later ones from where the earlier ones ended."""
    model = ["--model", "mlp", "--model.depth", 0, "--trainer.accelerator", "cpu"]
    data = ["--data", "imagefolder", "--data.root", root, "--data.channels", 1]
    less = ["--robust.every", 0, "--pictures.images", 0, "--schedule", "constant"]
    places = ["--checkpoints", tmp_path / "c", "--logs", tmp_path / "l", "--name", "r"]
    given = ["train.py", *model, *data, "--data.batch_size", 16, *less, *places]

    def run(epochs, *more):
        more = [*more, *(["--ckpt_path", "last"] if epochs > 1 else [])]
        return command(*given, "--trainer.max_epochs", epochs, *more)

    assert run(1).code == 0
    return run


def one_more(root):
    save(root / "train" / "3" / "more.png", 3, 9)


def elsewhere(root):
    (root / "train" / "3" / "0.png").rename(root / "train" / "2" / "other.png")


@pytest.mark.parametrize("change", [one_more, elsewhere])
def test_training_does_not_go_on_with_images_that_came_or_moved(train, root, change):
    """What is held out is chosen by number: images of before would be validation images now."""
    change(root)
    done = train(2)
    assert done.code == 2
    assert "the training images have changed since (their number, or their labels)" in done.err


def test_training_does_not_go_on_with_other_classes(train, root):
    """Numbers of classes would have another meaning, with as many of them as before."""
    for split in ("train", "test"):
        (root / split / "3").rename(root / split / "12")
    done = train(2)
    assert done.code == 2
    assert "that run had class 3 = '3', this one '4'" in done.err


def test_other_content_of_training_images_is_said(train, root):
    save(root / "train" / "3" / "0.png", 5, 77)
    done = train(2)
    assert done.code == 0, done.err
    assert "the training images have changed since (their content): images that the run" in done.err
    assert "have changed" not in train(3).err


def test_training_images_that_moved_with_their_folder_are_the_same(train, root, tmp_path):
    root.rename(tmp_path / "moved")
    for memory in (4.0, 0.0):  # the second reads files, and knows nothing of the first's
        done = train(3, "--data.root", tmp_path / "moved", "--data.memory_limit_gib", memory)
        assert done.code == 0, done.err
        assert "have changed" not in done.err


def test_validation_images_of_a_folder_that_changed_are_told(train, command, root, tmp_path):
    """Some of them were trained on, and the figure would be called one of held-out images."""
    best = next((tmp_path / "c").rglob("best.ckpt"))
    attack = ["--attack", "fgsm", "--audit", "false", "--split", "validation", "--precision"]
    given = ["evaluate.py", "--checkpoint", best, *attack, "float32", "--fresh", "true"]
    line = "--split validation: the training images have changed since the training (their number"
    for told in (False, True):
        done = command(*given, "--output", tmp_path / "o")
        assert done.code == 0, done.err
        assert (line in done.err) is told
        one_more(root)
