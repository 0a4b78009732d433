"""Input transformations, votes and searches on the classifier on the command line: trained behind,
and put before weights that were trained without.
"""

import json

import pytest

from robusttrain import load
from robusttrain.defenses import JPEG

pytestmark = pytest.mark.filterwarnings("ignore")
CPU = ("--trainer.accelerator", "cpu")
BRIEF = [
    *("--data", "digits", "--trainer.max_epochs", 1, "--trainer.limit_train_batches", 8, *CPU),
    *("--trainer.limit_val_batches", 1, "--pictures.images", 0, "--robust.images", 8),
]
CHAIN = """
# A median, then JPEG
defense:
  class_path: robusttrain.defenses.Chain
  init_args:
    defenses:
      - {like: median, init_args: {window: 3}}
      - {like: jpeg, init_args: {quality: 50}}
"""


@pytest.fixture(scope="module")
def weights(run_here, tmp_path_factory):
    """A checkpoint of a small network for images of any size, trained without a defense."""
    folder = tmp_path_factory.mktemp("bare")
    places = ["--checkpoints", folder / "c", "--logs", folder / "l"]
    network = ["--model", "resnet_small", "--model.widths", "[8,16]"]
    whole = ["--trainer.max_epochs", 3, "--trainer.limit_train_batches", 1.0, "--robust.every", 0]
    done = run_here("train.py", *network, *BRIEF, *whole, *places)
    assert done.code == 0, done.err
    (last,) = (folder / "c").rglob("last.ckpt")
    return [*network, "--data", "digits", "--weights", last]


def attacked(command, folder, *arguments):
    done = command(
        *("evaluate.py", *arguments, "--images", 6, "--draws", 2, *CPU, "--output", folder)
    )
    assert done.code == 0, done.err
    return json.loads((folder / "results.json").read_text())


def test_a_network_is_trained_behind_jpeg_and_attacked_through_its_twin(command, tmp_path):
    places = ["--checkpoints", tmp_path / "c", "--logs", tmp_path / "l"]
    options = ["--defense", "jpeg", "--defense.quality", 40, "--model", "mlp"]
    inner = ["--training", "adversarial", "--training.objective.attack.steps", 1]
    done = command("train.py", *options, *inner, *BRIEF, *places)
    assert done.code == 0, done.err
    (last,) = (tmp_path / "c").rglob("last.ckpt")
    defense = load(last).defense
    assert isinstance(defense, JPEG)
    assert defense.quality == 40
    attacks = ["--attack", "bpda-twin", "--attack", "bpda-i", "--attack.steps", 2]
    found = attacked(command, tmp_path / "o", "--checkpoint", last, *attacks)
    rows = found["attacks"]
    assert set(rows) == {"bpda-twin", "bpda-i"}
    assert {row["gradient_evaluations_per_image"] for row in rows.values()} == {2}
    assert rows["bpda-twin"]["knows"] == "classifier, defense"


SIZES = ["--defense.defense.low", 16, "--defense.defense.canvas", 18, "--defense.draws", 3]


@pytest.mark.parametrize(
    ("name", "options", "attack"),
    [
        ("jpeg", ["--defense.quality", 30], "bpda-twin"),
        ("bit-depth", ["--defense.bits", 4], "bpda-i-quick"),
        ("median", ["--defense.window", 3], "pgd-quick"),
        ("total-variation", ["--defense.steps", 10], "eot"),
        ("crop-rescale", ["--defense.draws", 3, "--defense.defense.share", 0.8], "eot"),
        ("anti-adversary", ["--defense.clip", True, "--defense.step_size", 0.05], "bpda-softsign"),
        ("hedge", ["--defense.random_start", False, "--defense.steps", 3], "bpda-i-quick"),
        ("vote", [*SIZES, "--defense.rule", "majority"], "eot"),
    ],
)
def test_every_preset_stands_before_weights(name, options, attack, command, weights, tmp_path):
    steps = ["--attack", attack, "--attack.steps", 2]
    steps += ["--attack.gradient.draws", 2] if attack == "eot" else []
    found = attacked(command, tmp_path / "o", *weights, "--defense", name, *options, *steps)
    assert set(found["attacks"]) == {attack}
    assert 0 < found["attacks"][attack]["largest_perturbation"] <= 0.031 + 1e-6
    option, value = options[-2:]
    node = found["plan"]["defense"]
    for part in option.split(".")[1:]:
        node = node["init_args"][part]
    assert node == value


def test_a_network_is_trained_behind_searches_on_itself(command, tmp_path):
    (tmp_path / "two.yaml").write_text(
        CHAIN.replace("like: median", "like: hedge").replace(
            "init_args: {window: 3}", "init_args: {steps: 2}"
        )
    )
    places = ["--checkpoints", tmp_path / "c", "--logs", tmp_path / "l"]
    network = ["--model", "resnet_small", "--model.widths", "[8,16]"]
    few = ["--trainer.limit_train_batches", 2, "--data.batch_size", 32]
    done = command("train.py", *network, *BRIEF, *few, *places, "--defense", tmp_path / "two.yaml")
    assert done.code == 0, done.err
    (last,) = (tmp_path / "c").rglob("last.ckpt")
    defense = load(last).defense
    assert (defense.asks_classifier, defense.searches) == (True, True)
    attacks = ["--attack", "bpda-i", "--attack", "wt", "--attack.steps", 2]
    found = attacked(command, tmp_path / "o", "--checkpoint", last, *attacks)
    assert set(found["attacks"]) == {"bpda-i", "wt"}


def test_two_in_a_chain(command, weights, tmp_path):
    (tmp_path / "two.yaml").write_text(CHAIN)
    found = attacked(
        *(command, tmp_path / "o", *weights, "--defense", tmp_path / "two.yaml"),
        *("--attack", "bpda-twin", "--attack", "bpda-i", "--attack.steps", 2),
    )
    assert set(found["attacks"]) == {"bpda-twin", "bpda-i"}


def test_what_cannot_work_is_one_line(command, weights, tmp_path):
    def refused(*arguments):
        done = command("evaluate.py", *weights, *arguments, *CPU, "--output", tmp_path / "o")
        assert done.code == 2
        return done.err.strip().splitlines()[-1]

    attack = ["--attack", "bpda-twin", "--images", 4]
    assert "--defense.quality = 0: must lie between 1 and 100" in refused(
        "--defense", "jpeg", "--defense.quality", 0, *attack
    )
    assert "MedianSmoothing has no differentiable twin: --attack pgd" in refused(
        "--defense", "median", *attack
    )
