"""evaluate.py on a trained checkpoint: the form of what it writes, and every option changes what it
promises.
"""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from robusttrain import Rng, load
from robusttrain.config.checkpoints import read_recipe
from robusttrain.core.processor import processor
from robusttrain.data import Digits
from robusttrain.evaluation import Engine, Records, choosing, verdicts
from robusttrain.evaluation.precision import Speeds
from robusttrain.evaluation.report import changes
from robusttrain.evaluation.results import table
from robusttrain.models import VGGSmall
from robusttrain.models.defended import DefendedClassifier

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def evaluate(command, trained, tmp_path):
    """Evaluates the trained checkpoint on 40 images; results.json, and the folder of all that was
    written.
    """
    numbers = iter(range(100))

    def run(*arguments, images=40, draws=2, attack="bpda-i-quick", checkpoint=None):
        output = tmp_path / str(next(numbers))
        common = [] if "--model" in arguments else ["--checkpoint", checkpoint or trained.best]
        for name, value in (("--images", images), ("--draws", draws), ("--attack", attack)):
            common += [] if value is None or name in arguments else [name, value]
        done = command(
            "evaluate.py", *common, *arguments, "--output", output, "--trainer.accelerator", "cpu"
        )
        assert done.code == 0, done.err
        done.found, done.output = json.loads((output / "results.json").read_text()), output
        return done

    return run


@pytest.fixture(scope="module")
def usual(run_here, trained, tmp_path_factory):
    """What `evaluate` finds and writes without arguments; no test changes it."""
    output = tmp_path_factory.mktemp("usual") / "o"
    done = run_here(
        *("evaluate.py", "--checkpoint", trained.best, "--images", 40, "--draws", 2),
        *("--attack", "bpda-i-quick", "--output", output, "--trainer.accelerator", "cpu"),
    )
    assert done.code == 0, done.err
    done.found, done.output = json.loads((output / "results.json").read_text()), output
    return done


def test_the_newest_checkpoint_as_a_process(run_script, trained, usual, tmp_path):
    """Also: the same command twice gives the same results."""
    common = [
        "--images",
        40,
        "--draws",
        2,
        "--attack",
        "bpda-i-quick",
        "--trainer.accelerator",
        "cpu",
    ]
    done = run_script(
        "evaluate.py",
        "--checkpoints",
        trained.folder / "checkpoints",
        *common,
        "--output",
        tmp_path / "o",
    )
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "o" / "results.json").read_text())
    assert found["target"] == str(trained.best)
    assert found["training_seed"] == read_recipe(trained.best)["run"]["seed"] == 0
    assert found["data"] == "Digits"
    assert found["threat"] == {"norm": "linf", "epsilon": 0.031}
    assert (found["seed"], found["images"], found["draws"], found["audit"]) == (0, 40, 2, [])
    assert set(found["clean"]) == {"accuracy", "ci95"}
    assert set(found["worst_case"]) == {"robust_accuracy", "ci95"}
    row = found["attacks"]["bpda-i-quick"]
    assert row["gradient_evaluations_per_image"] == 10
    assert row["largest_perturbation"] == pytest.approx(0.031, abs=1e-6)
    assert row["knows"] == "classifier, defense"
    assert 0.1 < row["robust_accuracy"] < found["clean"]["accuracy"] < 1
    assert (
        "bpda-i-quick: 10 gradient evaluations per image, 40 images: 400 gradient evaluations"
        in done.err
    )
    assert "worst case" in done.err + done.out
    assert list(changes(usual.found, found)) == []


def test_pgd_on_all_images_is_the_default(evaluate):
    found = evaluate("--attack.steps", 1, images=None, attack=None, draws=1).found
    assert (list(found["attacks"]), found["images"]) == (["pgd"], 297)


def test_epsilon(evaluate):
    rows = []
    for epsilon in (0, 0.031, 0.5):
        found = evaluate("--epsilon", epsilon).found
        assert found["threat"]["epsilon"] == epsilon
        rows.append(found["attacks"]["bpda-i-quick"])
        assert rows[-1]["largest_perturbation"] == pytest.approx(epsilon, abs=1e-6)
    assert rows[0]["robust_accuracy"] == found["clean"]["accuracy"]
    assert rows[0]["robust_accuracy"] > rows[1]["robust_accuracy"] > rows[2]["robust_accuracy"]
    assert rows[2]["robust_accuracy"] < 0.15


def test_options_of_attacks(evaluate):
    two = ["--attack", "bpda-i-quick", "--attack", "bpda-eot"]
    settings = ["--attack.bpda-eot.gradient.init_args.draws", 3]

    def costs(*arguments):
        attacks = evaluate(*two, *settings, *arguments, images=4).found["attacks"]
        return [row["gradient_evaluations_per_image"] for row in attacks.values()]

    assert costs() == [10, 20 * 3]
    assert costs("--attack.steps", 2) == [2, 2 * 3]
    assert costs("--attack.bpda-eot.steps", 2) == [10, 2 * 3]
    assert costs("--attack.steps=2", "--attack.bpda-i-quick.steps=1") == [1, 2 * 3]
    assert costs(
        "--attack.steps", 2, "--attack.threat.class_path", "robusttrain.attacks.L2", "--epsilon", 1
    ) == [2, 6]


def test_another_norm(evaluate):
    arguments = [
        "--attack.threat.class_path",
        "robusttrain.attacks.L2",
        "--attack.threat.epsilon",
        0.5,
    ]
    own = evaluate(*arguments).found
    found = evaluate(*arguments, "--attack.rule.class_path", "robusttrain.attacks.Normalized").found
    for name, row in found["attacks"].items():  # the rule of before gives way to the norm's own
        assert own["attacks"][name]["robust_accuracy"] == row["robust_accuracy"]
    assert found["threat"] == {"norm": "l2", "epsilon": 0.5}
    assert found["attacks"]["bpda-i-quick"]["largest_perturbation"] == pytest.approx(0.5, abs=1e-3)


def test_suites_and_attacks_together(evaluate, tmp_path):
    (tmp_path / "mine.yaml").write_text("attacks: [wt, bpda-i]\n")
    arguments = ["--attack", "bpda-i", "--suite", tmp_path / "mine.yaml", "--attack.steps", 1]
    found = evaluate(*arguments, images=6, attack=None).found
    assert list(found["attacks"]) == ["bpda-i", "wt"]
    assert {row["knows"] for row in found["attacks"].values()} == {
        "classifier, defense",
        "classifier",
    }
    # Without randomness an image's worst attack is the worst for its score too.
    found = evaluate(*arguments, "--defense.radius", 0, attack=None).found
    worst = found["worst_case"]["robust_accuracy"]
    assert worst <= min(row["robust_accuracy"] for row in found["attacks"].values())
    assert list(
        evaluate("--suite", "bpda", "--attack.steps", 0, images=2, attack=None).found["attacks"]
    ) == [
        "bpda-i",
        "bpda-eot",
        "wt",
    ]


def test_draws_images_and_seed_are_those_of_the_verdicts(evaluate):
    def kept(*arguments, **options):
        return Records.read(
            evaluate("--save_verdicts", "true", "--attack.steps", 1, *arguments, **options).output
            / "verdicts.safetensors"
        )

    first = kept()
    assert first.of("clean").score.shape == first.of("bpda-i-quick").select.shape == (40, 2)
    assert kept(draws=5).of("clean").score.shape == (40, 5)
    fewer, other = kept(images=10), kept("--seed", 1)
    assert set(fewer.index.tolist()) < set(first.index.tolist())
    assert set(other.index.tolist()) != set(first.index.tolist())
    common = torch.isin(first.index, fewer.index)
    for name, rows in fewer.rows.items():
        for fact, values in rows.columns().items():
            if fact != "distance" and values is not None:
                expected = first.of(name)[common].columns()[fact]
                assert torch.equal(values, expected), (name, fact)
    data = Digits()
    data.setup("test")
    assert torch.equal(data._test.labels[first.index], first.label)


def test_options_of_the_defense(evaluate, usual):
    """All of them change what is right without an attack, so the attack takes no step."""
    idle = ("--attack.steps", 0)
    bare = evaluate("--defense.radius", 0.0, *idle).found
    assert (usual.found["random"], bare["random"], bare["draws"]) == (True, False, 1)
    far = evaluate("--defense.radius", 0.6, *idle).found
    assert far["clean"]["accuracy"] < usual.found["clean"]["accuracy"]
    # Of 40 images as many may be right by chance: the share over all draws tells more.
    idle = (*idle, "--draws", 20, "--save_verdicts", "true")
    still, moved = evaluate("--defense.steps", 0, *idle), evaluate(*idle)
    scores = [
        Records.read(done.output / "verdicts.safetensors").of("clean").score
        for done in (still, moved)
    ]
    assert not torch.equal(*scores)


@pytest.mark.parametrize("size", [7, 64])
def test_batch_size(evaluate, monkeypatch, size):
    sizes = []
    run = Engine.run
    monkeypatch.setattr(
        Engine, "run", lambda self, *batch: sizes.append(len(batch[0])) or run(self, *batch)
    )
    evaluate("--data.batch_size", size, "--attack.steps", 0)
    assert sum(sizes) == 40
    assert max(sizes) == min(size, 40)


def test_precision(evaluate, monkeypatch):
    brief = (
        "--attack",
        "pgd-quick",
        "--attack",
        "square",
        "--attack.square.queries",
        10,
        "--images",
        8,
    )
    found = evaluate("--precision", "bfloat16", *brief).found
    apart = {"pgd-quick": "bfloat16", "square": "float32"}  # Square differentiates nothing
    assert found["precision"] == {"asked": "bfloat16", "attacks": apart}
    assert found["processor"] == processor()
    for speeds, expected in ((Speeds(2.0, 1.0), "bfloat16"), (Speeds(1.0, 19.0), "float32")):
        monkeypatch.setattr(choosing, "measure_speeds_of", lambda *_, speeds=speeds: speeds)
        done = evaluate("--precision", "auto", *brief, "--fresh", "true")
        assert done.found["precision"] == {
            "asked": "auto",
            "attacks": {"pgd-quick": expected, "square": "float32"},
        }
        (line,) = (line for line in done.err.splitlines() if line.startswith("precision: "))
        assert line.endswith("verdicts are float32 passes")
        assert f"takes {speeds.bfloat16 / speeds.float32:g} times as long" in line


def test_images_that_are_kept_are_those_that_were_scored(evaluate, usual, trained):
    done = evaluate(
        "--save_images", "true", "--save_verdicts", "true", "--attack", "wt", "--attack.steps", 5
    )
    kept = load_file(done.output / "wt.safetensors")
    judged = Records.read(done.output / "verdicts.safetensors").of("wt")
    data = Digits()
    data.setup("test")
    clean = data._test.images[kept["index"]].float() / 255
    change = (kept["images"] - clean).abs().amax((1, 2, 3))
    assert (change <= 0.031 + 1e-6).all()
    assert (change > 0.005).all()
    assert (kept["images"].min(), kept["images"].max()) >= (0, 0)
    assert kept["images"].max() <= 1
    torch.testing.assert_close(change, judged.distance)
    again = verdicts(
        load(trained.best),
        kept["images"],
        kept["label"],
        Rng.for_images(0, kept["index"]).fold("score"),
        2,
    )
    assert torch.equal(again, judged.score)
    without = sorted(path.name for path in usual.output.iterdir() if not path.name.startswith("."))
    assert without == [
        *("examples.safetensors", "journal", "report.html", "results.json"),
        "verdicts.safetensors",
    ]


@pytest.mark.parametrize("source", ["source.class_path", "bpda-i-quick.source.class_path"])
def test_transfer_from_another_checkpoint(evaluate, usual, trained, source):
    arguments = [
        f"--attack.{source}",
        "robusttrain.attacks.Checkpoint",
        "--attack.source.path",
        trained.last,
    ]
    found = evaluate(*arguments).found
    transfer = found["attacks"]["bpda-i-quick"]
    assert transfer["knows"] == "another model, labels"
    assert transfer["gradient_evaluations_per_image"] == 10
    other = usual.found["attacks"]["bpda-i-quick"]
    assert transfer["robust_accuracy"] != other["robust_accuracy"]


def test_of_several_weights_in_a_file_one_is_chosen_and_said(evaluate, tmp_path):
    """For f_a and for f_b alike: --weights.which, --defense.weights.which."""
    states = []
    for seed in range(2):
        torch.manual_seed(seed)
        states.append(VGGSmall(10, 1, 16, width=8).state_dict())
    path = tmp_path / "w [best].pt"
    torch.save({"model": states[0], "model_ema": states[1]}, path)
    torch.save(states[1], tmp_path / "ema.pt")
    model = ["--model", "vgg_small", "--model.width", 8, "--data", "digits", "--draws", 1]
    f_b = ["--defense", "advtransform", "--defense.model.width", 8, "--defense.steps", 1]
    f_b += ["--defense.weights"]
    done = evaluate(*model, "--weights", path, *f_b, path, attack="fgsm")
    line = f"{path}: took averaged weights, model_ema.*; model would fit too"
    assert f"--weights {line} (--weights.which NAME" in done.err
    assert f"--defense.weights {line}" in done.err
    other = ["--weights.which", "raw", *f_b, path, "--defense.weights.which", "model_ema"]
    raw = evaluate(*model, "--weights", path, *other, attack="fgsm")
    plain = evaluate(*model, "--weights", tmp_path / "ema.pt", *f_b, path, attack="fgsm")
    assert raw.found["plan"]["weights_which"] == "raw"
    assert done.found["weights"] == plain.found["weights"] != raw.found["weights"]


def test_a_model_that_was_not_trained_here(evaluate, tmp_path):
    torch.manual_seed(0)
    network = VGGSmall(num_classes=10, in_channels=1, image_size=16, width=8).eval()
    torch.save({"state_dict": network.state_dict()}, tmp_path / "w.pt")
    model = [
        "--model",
        "vgg_small",
        "--weights",
        tmp_path / "w.pt",
        "--model.width",
        8,
        "--defense",
        "none",
        "--data",
        "digits",
    ]
    done = evaluate(*model, "--save_verdicts", "true", attack="fgsm")
    assert done.found["target"] == f"VGGSmall {tmp_path / 'w.pt'}"
    assert done.found["random"] is False
    kept = Records.read(done.output / "verdicts.safetensors").of("clean")
    data = Digits()
    data.setup("test")
    expected = network(data._test.images[kept.index].float() / 255).argmax(1) == kept.label
    assert torch.equal(kept.score[:, 0], expected)

    behind = evaluate(
        *model[:6],
        "--defense",
        "randomization",
        "--defense.low",
        14,
        "--defense.canvas",
        16,
        attack="wt",
    )
    assert behind.found["random"] is True


def test_a_network_of_the_users_own_needs_trust(evaluate, command, tmp_path, monkeypatch):
    (tmp_path / "my_network.py").write_text(
        "from torch import nn\nclass Net(nn.Sequential):\n    def __init__(self, num_classes=10):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(256, num_classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    model = {"class_path": "my_network.Net", "init_args": {"num_classes": 10}}
    recipe = {
        "format": 1,
        "model": model,
        "defense": None,
        "data": {"class_path": "robusttrain.data.Digits"},
    }
    state = DefendedClassifier(None, nn.Sequential(nn.Flatten(), nn.Linear(256, 10))).state_dict()
    state = {f"model.{name}": value for name, value in state.items()}
    torch.save({"robusttrain": recipe, "state_dict": state}, tmp_path / "mine.ckpt")
    refused = command(
        "evaluate.py", "--checkpoint", tmp_path / "mine.ckpt", "--output", tmp_path / "o"
    )
    assert refused.code == 2
    assert "--trust my_network" in refused.err
    found = evaluate(
        "--trust", "my_network", checkpoint=tmp_path / "mine.ckpt", attack="fgsm"
    ).found
    assert found["images"] == 40


def test_everything_in_one_file(command, tmp_path):
    """A model, its weights, data, attacks and threat, named in a YAML of one's own."""
    torch.manual_seed(0)
    torch.save(VGGSmall(in_channels=1, image_size=16).state_dict(), tmp_path / "mine.pth")
    (tmp_path / "mine.yaml").write_text(
        "model: {class_path: robusttrain.models.VGGSmall}\n"
        f"weights: {tmp_path / 'mine.pth'}\n"
        "defense: null\n"
        "data: {class_path: robusttrain.data.Digits}\n"
        "attack: [fgsm, ifgsm]\n"
        "epsilon: 0.07\n"
        "images: 16\n"
    )
    done = command(
        "evaluate.py",
        "--config",
        tmp_path / "mine.yaml",
        "--output",
        tmp_path,
        "--attack.ifgsm.steps",
        3,
    )
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["threat"]["epsilon"] == 0.07
    assert found["images"] == 16
    assert {
        name: row["gradient_evaluations_per_image"] for name, row in found["attacks"].items()
    } in (
        {"fgsm": 1, "ifgsm": 3},
        {"fgsm": 0, "ifgsm": 0},  # where the untrained network is right about none of the images
    )


UNKNOWN = "whether the model was trained on these images is not known"


def test_validation_images_are_those_that_training_held_out(evaluate, trained):
    """Nothing is said of a checkpoint that held them out; of other ones it is not known."""
    done = evaluate("--split", "validation", "--attack.steps", 1, images=None)
    data = Digits(**read_recipe(trained.best)["data"]["init_args"])
    data.setup("fit")
    held_out = torch.cat([batch.indices for batch in data.val_dataloader()]).sort().values
    assert done.found["indices"] == held_out.tolist()
    assert done.found["data"] == "Digits (validation split)"
    assert f"on {len(held_out)} validation images" in str(table(done.found).title)
    assert not any(UNKNOWN in line for line in done.found["data_notes"])
    other = evaluate("--split", "validation", "--data.seed", 1, images=8)
    assert any(UNKNOWN in line for line in other.found["data_notes"])
    assert UNKNOWN in other.err


def test_another_split_is_another_run(evaluate):
    """Else the journal would go on with verdicts of other images."""
    first = evaluate("--images", 8)
    second = evaluate("--split", "validation", "--output", first.output, "--images", 8)
    assert {*second.found["indices"]} != {*first.found["indices"]}
