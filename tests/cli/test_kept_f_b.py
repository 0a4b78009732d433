"""An f_b that was trained is taken again for the same task, and for no other."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from robusttrain.core.errors import UserError
from robusttrain.data import Digits, ImageFolder
from robusttrain.running import f_b, made_from
from robusttrain.storage.weights import save_tensors

MODEL = {
    "class_path": "robusttrain.models.VGGSmall",
    "init_args": {"in_channels": 1, "image_size": 16},
}


def transform(**arguments):
    return {
        "class_path": "robusttrain.defenses.AdversarialTransform",
        "init_args": {"model": MODEL, **arguments},
    }


@pytest.fixture
def provide(monkeypatch, tmp_path):
    """Fills in weights; how many f_b were trained until now."""
    trained = []

    def train(model, data, config, trainer, seed, path, say):
        trained.append(path)
        said = {made_from.MADE_FROM: json.dumps(made_from.made_from(data, model, config))}
        save_tensors({}, path, said)

    monkeypatch.setattr(f_b, "_train", train)

    def run(defense, data, preset="f_b", seed=0, trainer=None, **options):
        f_b.provide_f_b(defense, data, preset, tmp_path / "f_b", trainer or {}, seed, **options)
        return len(trained)

    return run


def folder_of_images(root):
    for split in ("train", "test"):
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True)
            Image.new("RGB", (16, 16)).save(root / split / name / "0.png")
    return ImageFolder(str(root))


def test_the_same_task_takes_the_same_f_b(provide):
    first, second = transform(radius=0.1), transform(radius=0.3, steps=2)
    assert provide(first, Digits()) == 1
    assert provide(second, Digits()) == 1
    again = transform(radius=0.1)
    before = provide(again, Digits())
    assert provide(transform(), Digits()) == before
    assert first["init_args"]["weights"] == again["init_args"]["weights"]


def test_two_runs_that_need_the_same_train_it_once(provide, monkeypatch, tmp_path):
    """The second one comes while the first trains, waits, and takes what is there then."""
    train, said = f_b._train, []
    begun, waiting = threading.Event(), threading.Event()

    def slowly(*arguments):
        begun.set()
        assert waiting.wait(60)
        train(*arguments)

    def second():
        assert begun.wait(60)

        def say(line):
            said.append(line)
            waiting.set()

        return provide(transform(), Digits(), say=say)

    monkeypatch.setattr(f_b, "_train", slowly)
    with ThreadPoolExecutor() as pool:
        other = pool.submit(second)
        assert provide(transform(), Digits()) == 1
        assert other.result() == 1
    assert "another process makes this f_b" in said[0]
    assert "taking the one trained before" in said[1]


@pytest.mark.parametrize(
    "other",
    [
        lambda provide: provide(transform(), Digits(), seed=1),
        lambda provide: provide(transform(), Digits(), preset="f_b-paper"),
        lambda provide: provide(transform(), Digits(seed=1)),
        lambda provide: provide(transform(), Digits(validation=0.2)),
        lambda provide: provide(transform(), Digits(image_size=32)),
        lambda provide: provide(transform(), Digits(batch_size=64)),
        lambda provide: provide(transform(), Digits(), trainer={"precision": "bf16-mixed"}),
    ],
)
def test_another_task_trains_another_f_b(provide, other):
    assert provide(transform(), Digits()) == 1
    assert other(provide) == 2


def test_a_precision_by_another_name_is_the_same(provide):
    for precision in (None, "32", "32-true"):
        assert provide(transform(), Digits(), trainer={"precision": precision}) == 1


def test_an_f_b_has_the_replays_of_its_own_training():
    """`--f_b_training free` is no eighth of free adversarial training."""
    for preset, replays in (("free", 8), ("f_b", 1)):
        training = f_b.training_of(MODEL, 10, f_b._training(preset), 0)
        data = Digits()
        data.replays = 3  # the main recipe's
        assert f_b.data_for(training, data).replays == replays
        assert data.replays == 3


def test_other_images_train_another_f_b(provide, tmp_path):
    assert provide(transform(), folder_of_images(tmp_path / "one")) == 1
    assert provide(transform(), folder_of_images(tmp_path / "two")) == 2
    assert provide(transform(), ImageFolder(str(tmp_path / "two"))) == 2


def test_other_pictures_under_the_same_names_train_another_f_b(provide, tmp_path):
    """And those of before find theirs again."""
    picture, said, weights = tmp_path / "train" / "a" / "0.png", [], []

    def ask(expected, **options):
        defense = transform()
        data = ImageFolder(str(tmp_path))
        assert provide(defense, data, say=said.append, **options) == expected
        weights.append(defense["init_args"].get("weights"))

    folder_of_images(tmp_path)
    before = picture.read_bytes()
    ask(1)
    Image.new("RGB", (16, 16), "red").save(picture)
    with pytest.raises(UserError, match="--defense.weights FILE"):
        ask(1, train=False)
    assert "is not taken (the training images have changed since: " in said[-1]
    ask(2)
    ask(2)
    (tmp_path / "train" / "a" / "0.png").rename(tmp_path / "train" / "b" / "1.png")
    Image.new("RGB", (16, 16)).save(picture)
    ask(3)
    assert "(the training images have changed since: their number, or their labels)" in said[-2]
    (tmp_path / "train" / "b" / "1.png").unlink()
    picture.write_bytes(before)
    ask(3)
    assert weights[0] == weights[-1]
    assert len({*weights}) == 3


def test_an_f_b_that_does_not_say_of_which_images_it_is_is_taken(provide, tmp_path):
    """One of an earlier version; and one whose training images are not on this machine."""
    data, defense = folder_of_images(tmp_path), transform()
    assert provide(defense, data) == 1
    (tmp_path / "train").rename(tmp_path / "away")
    assert provide(transform(), ImageFolder(str(tmp_path)), train=False) == 1
    (tmp_path / "away").rename(tmp_path / "train")
    save_tensors({}, Path(defense["init_args"]["weights"]))
    Image.new("RGB", (16, 16), "red").save(tmp_path / "train" / "a" / "0.png")
    assert provide(transform(), ImageFolder(str(tmp_path))) == 1


def test_other_code_trains_another_f_b(provide, monkeypatch):
    assert provide(transform(), Digits()) == 1
    monkeypatch.setattr(made_from, "own_code", lambda *nodes: "edited")
    said = []
    assert provide(transform(), Digits(), say=said.append) == 2
    assert "is not taken (its code has changed since)" in said[0]


def test_another_file_under_the_same_name_trains_another_f_b(provide, tmp_path):
    """Its network may begin with weights of somebody's."""
    file, said = tmp_path / "start.pth", []
    file.write_text("one")

    def ask():
        defense = transform()
        arguments = {**MODEL["init_args"], "weights": str(file)}
        defense["init_args"]["model"] = {**MODEL, "init_args": arguments}
        return provide(defense, Digits(), say=said.append)

    assert ask() == ask() == 1
    file.write_text("two")
    assert ask() == 2
    assert any("(a file that its options name has changed)" in line for line in said)


def test_every_transformation_of_a_chain_is_provided_for_and_given_weights_are_left_alone(provide):
    mine = transform(weights="mine.safetensors")
    chain = {
        "class_path": "robusttrain.defenses.Chain",
        "init_args": {"defenses": [transform(), mine, transform()]},
    }
    assert provide(chain, Digits()) == 1
    first, second, third = (
        defense["init_args"]["weights"] for defense in chain["init_args"]["defenses"]
    )
    assert second == "mine.safetensors"
    assert first == third != second


def test_an_evaluation_trains_none(provide):
    with pytest.raises(UserError, match="--defense.weights FILE"):
        provide(transform(), Digits(), train=False)
    provide(transform(), Digits())
    defense = transform()
    assert provide(defense, Digits(), train=False) == 1
    assert defense["init_args"]["weights"]
