"""The suite that tries everything, end to end, with the models that the attacker trains for it."""

import json
from itertools import pairwise

import pytest
import torch

from robusttrain import READER, load
from robusttrain.attacks import Checkpoint, Ensemble, OwnSurrogate, Reparameterization
from robusttrain.config import presets
from robusttrain.config.attacks import scenarios
from robusttrain.config.suites import suite
from robusttrain.data import Digits
from robusttrain.evaluation import Engine, Scenario, results
from robusttrain.models import FullyConvolutional
from robusttrain.storage.weights import save_tensors

pytestmark = pytest.mark.filterwarnings("ignore")
NAMES = suite("devils-advocate")
#: The f_b of the trained checkpoint.
NETWORK = ["--model", "vgg_small", "--model.width", 16]


@pytest.fixture(scope="module")
def digits():
    data = Digits(image_size=16)
    data.setup("test")
    return data.unaugmented("test", 24)


@pytest.fixture
def at_hand(trained, tmp_path):
    """A path for each model of the attacker's: the target itself, which transfers best; and h(x) =
    x.
    """
    h = FullyConvolutional(radius=0.2, channels=1, width=4, depth=0)
    torch.nn.init.zeros_(h.last[2].weight)
    torch.nn.init.zeros_(h.last[2].bias)
    h.save(tmp_path / "h.safetensors")
    whole = Checkpoint(str(trained.best), defended=True).opened(READER)
    return {
        "reparameterization": Reparameterization(str(tmp_path / "h.safetensors")).opened(READER),
        "transfer-standard": whole,
        "transfer-adversarial": Checkpoint(str(trained.best)).opened(READER),
        "transfer-ensemble": Ensemble([whole, Checkpoint(str(trained.best)).opened(READER)]),
        "small-n-transfer": lambda inner: OwnSurrogate(str(trained.best), inner).opened(READER),
        "own-surrogate": lambda inner: OwnSurrogate(str(trained.best), inner).opened(READER),
    }


@pytest.mark.parametrize("name", NAMES)
def test_every_attack_breaks_a_model_on_which_it_must_succeed(name, trained, digits, at_hand):
    """A weak attack because of a bug would leave this model as it is: a wide ball, and a g that
    barely moves images.
    """
    target = load(trained.best)
    attack = target.defense.attack
    object.__setattr__(attack, "steps", 2)
    object.__setattr__(attack, "step_size", 0.005)
    overrides = [("steps", "10"), ("step_size", "0.06"), ("draws", "20")][
        : 3 if "mean-start" in name else 2
    ]
    overrides += [("gradient.directions", "20")] * (name == "finite-differences")
    overrides += [("gradient.draws", "4")] * (scenarios([name])[name].attack.cost().gradients > 50)
    scenario = scenarios([name], overrides, epsilon=0.3)[name]
    if name in at_hand:
        source = at_hand[name]
        source = (
            source(scenario.source.inner)
            if callable(source) and not hasattr(source, "knows")
            else source
        )
        scenario = Scenario(scenario.attack, source)
    engine = Engine(target, {name: scenario}, draws=3)
    records, seconds = engine.run(digits.images, digits.labels, digits.indices)
    found = results(records, engine, seconds)
    assert found["clean"]["accuracy"] > 0.5
    assert found["attacks"][name]["robust_accuracy"] < 0.35 * found["clean"]["accuracy"], found


@pytest.fixture
def small_surrogates(monkeypatch):
    """The attacker's recipes with smaller networks and few batches."""
    real = presets.read

    def read(kind, *arguments):
        node = real(kind, *arguments)
        if kind == "surrogate" and "h" in node:
            node["h"] |= {"width": 8, "depth": 2}
        elif kind == "surrogate":
            node["model"]["init_args"] = {"widths": [8, 8], "blocks": 1}
            if "defense" in node:
                node["defense"]["init_args"]["model"]["init_args"] = {"width": 16}
        if kind == "surrogate":
            node["trainer"]["limit_train_batches"] = 3
        return node

    monkeypatch.setattr(presets, "read", read)


@pytest.mark.usefixtures("small_surrogates")
def test_the_suite_trains_what_the_attacker_needs_once_and_hands_images_on(
    command, trained, tmp_path
):
    def run():
        common = [
            "--checkpoint",
            trained.best,
            "--checkpoints",
            tmp_path,
            "--suite",
            "devils-advocate",
            "--images",
            12,
        ]
        common += [
            "--draws",
            2,
            "--surrogate_epochs",
            1,
            "--attack.steps",
            1,
            "--attack.wt-mean-start.draws",
            3,
        ]
        small = [
            "--attack.finite-differences.gradient.directions",
            3,
            "--epsilon",
            0.2,
            "--trainer.accelerator",
            "cpu",
        ]
        done = command("evaluate.py", *common, *small, "--output", tmp_path / "out")
        assert done.code == 0, done.err
        return done, json.loads((tmp_path / "out" / "results.json").read_text())

    done, found = run()
    assert (
        "surrogates: training standard, adversarial, reparameterization, small-n, own-defense first"
        in done.err
    )
    assert list(found["attacks"]) == NAMES
    assert found["survivors"] is True
    rows = list(found["attacks"].values())
    for before, after in pairwise(rows):
        assert after["images"] <= before["images"]
        # Other draws score than choose
        assert after["worst_case_so_far"] <= before["worst_case_so_far"] + 0.25
    assert rows[-1]["worst_case_so_far"] == found["worst_case"]["robust_accuracy"]
    errors = json.loads(
        next((tmp_path / "surrogates").glob("*-reparameterization-*.json")).read_text()
    )
    assert errors["test_floor"] < errors["test_error"]
    assert set(errors) > {
        "train_error",
        "train_floor",
        "train_identity",
        "test_error",
        "test_floor",
        "test_identity",
    }

    again, same = run()
    assert "training" not in again.err
    assert again.err.count("taking the one trained before") == 5
    for row, other in zip(rows, same["attacks"].values(), strict=True):
        assert {**row, "seconds": 0} == {**other, "seconds": 0}


@pytest.mark.parametrize(
    ("attack", "told"),
    [
        ("bpda-softsign", "source UnrolledTransform: the target has no defense"),
        ("fewer-steps", "source FewerSteps: the target has no defense"),
        ("fixed-randomness", "source FixedRandomness: the target draws nothing"),
        ("wt-mean-start", "source ClassifierOnly: the target has no defense"),
        ("small-n-transfer", "imitates the target's g, but the target has no defense"),
        ("reparameterization", "imitates the target's g, but the target has no defense"),
    ],
)
def test_what_does_not_fit_an_undefended_target_is_told_before_anything_is_trained(
    command, trained, tmp_path, attack, told
):
    f_b = next(trained.folder.rglob("f_b/*.safetensors"))
    target = [*NETWORK, "--weights", f_b, "--defense", "none", "--checkpoints", tmp_path]
    for what in (
        ["--attack", attack, "--attack", "transfer-standard"],
        ["--suite", "devils-advocate"],
    ):
        done = command("evaluate.py", *target, *what, "--images", 4, "--output", tmp_path / "out")
        assert done.code == 2
        assert done.err.count("\n") == 1, done.err
        assert (told if "--attack" in what else "the target has no defense") in done.err
    assert not (tmp_path / "surrogates").exists()


def test_a_defense_without_steps_is_no_iterative_transform(command, trained, tmp_path):
    f_b = next(trained.folder.rglob("f_b/*.safetensors"))
    target = [*NETWORK, "--weights", f_b, "--defense", "randomization", "--checkpoints", tmp_path]
    target += ["--defense.low", 14, "--defense.canvas", 16]
    for attack in ("bpda-tanh", "fewer-steps"):
        done = command(
            "evaluate.py", *target, "--attack", attack, "--images", 4, "--output", tmp_path / "out"
        )
        assert done.code == 2
        assert "RandomResizePad is no iterative transformation" in done.err


def test_training_asks_for_a_file_where_evaluation_would_train_one(command, tmp_path):
    done = command(
        *(
            "train.py",
            "--robust.attacks",
            "transfer-standard",
            "--checkpoints",
            tmp_path / "c",
            "--logs",
            tmp_path / "l",
        ),
        *("--trainer.max_epochs", 1),
    )
    assert done.code == 2
    assert "name a file" in done.err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--attack", "small-n-transfer"], "RandomResizePad is no adversarial transformation"),
        (["--attack", "reparameterization"], "RandomResizePad changes the size of images"),
        (
            ["--attack", "pgd", "--attack.transfer-standard.threat.epsilon", 0.05],
            "different threats",
        ),
        (["--surrogate_epochs", 0], "--surrogate_epochs = 0: must be at least 1"),
        (
            ["--attack", "wt-mean-start", "--attack.steps", 1, "--attack.wt-mean-start.draws", 2],
            "MeanStart",
        ),
    ],
)
def test_misfits_are_told_before_surrogates_are_trained(command, trained, tmp_path, options, told):
    save_tensors(load(trained.best).classifier, tmp_path / "f_a.safetensors")
    target = ["--model", "resnet_small", "--model.widths", "[8, 16, 16]", "--model.blocks", 1]
    target += [
        "--weights",
        tmp_path / "f_a.safetensors",
        "--defense",
        "randomization",
        "--checkpoints",
        tmp_path,
    ]
    names = [] if "wt-mean-start" in options else ["--attack", "transfer-standard"]
    done = command(
        "evaluate.py", *target, *names, *options, "--images", 4, "--output", tmp_path / "out"
    )
    assert done.code == 2
    assert told in done.err.splitlines()[-1], done.err
    assert not list(tmp_path.rglob("*.ckpt"))


def test_h_is_trained_by_a_command_of_its_own_and_found_by_the_attack(command, trained, tmp_path):
    places = [
        "--checkpoint",
        trained.best,
        "--checkpoints",
        tmp_path,
        "--trainer.accelerator",
        "cpu",
    ]
    small = ["--h.width", 4, "--h.depth", 1, "--trainer.enable_progress_bar", "false"]
    train = ["train.py", "--training", "reparameterization", *places, *small]
    for limit in (1, 2):  # a shorter trial is another h
        done = command(*train, "--trainer.max_epochs", 1, "--trainer.limit_train_batches", limit)
        assert done.code == 0, done.err
    h, _ = sorted((tmp_path / "surrogates").glob("*.safetensors"))
    assert not list((tmp_path / "surrogates").glob(".*-reparameterization-*/last.ckpt"))
    errors = json.loads(h.with_suffix(".json").read_text())
    assert errors["images"] == {"train": 1000, "test": 297}
    evaluate = [
        "evaluate.py",
        *places,
        "--attack",
        "reparameterization",
        "--images",
        8,
        "--draws",
        1,
    ]
    used = command(
        *evaluate, "--attack.source.path", h, "--attack.steps", 1, "--output", tmp_path / "out"
    )
    assert used.code == 0, used.err
    wrong = command(*train, "--h.weight_decay", -1, "--trainer.max_epochs", 1)
    assert wrong.code == 2
    assert "weight_decay" in wrong.err


def test_a_suite_in_a_file_sets_its_options_too(command, trained, tmp_path):
    (tmp_path / "mine.yaml").write_text("survivors: true\nattacks: [wt]\n")
    (tmp_path / "config.yaml").write_text(f"suite: {tmp_path / 'mine.yaml'}\n")
    common = [
        "--checkpoint",
        trained.best,
        "--images",
        4,
        "--draws",
        1,
        "--output",
        tmp_path,
        "--attack.steps",
        1,
    ]
    for options, expected in (([], True), (["--survivors", "false"], False)):
        done = command("evaluate.py", "--config", tmp_path / "config.yaml", *common, *options)
        assert done.code == 0, done.err
        found = json.loads((tmp_path / "results.json").read_text())
        assert found["survivors"] is expected
        assert ("images" in found["attacks"]["wt"]) is expected  # of how many it was given
