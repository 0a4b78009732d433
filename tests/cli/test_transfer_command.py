"""evaluate.py --models: crafted once on each source, tested on every target, and kept."""

import json

import pytest
import torch
import torch.nn.functional as F

import robusttrain
from robusttrain.config.checkpoints import recipe_of
from robusttrain.config.transfer import data_of, models_of
from robusttrain.core.errors import UserError
from robusttrain.data import Digits
from robusttrain.models import CifarResNet
from robusttrain.models.defended import DefendedClassifier
from robusttrain.storage.files import hash_of_weights
from robusttrain.training import RobustTraining

pytestmark = pytest.mark.filterwarnings("ignore")
MATRICES = ["success_top1", "success_top5"]


@pytest.fixture(scope="session")
def classifiers(tmp_path_factory):
    """Three small networks that know digits, as checkpoints of train.py: names to files."""
    data = Digits()
    data.setup("fit")
    batch = data.unaugmented("train", 1000)
    files = {}
    for seed, name in enumerate(("one", "two", "three")):
        torch.manual_seed(seed)
        options = {"num_classes": 10, "in_channels": 1, "widths": [8, 16, 16], "blocks": 1}
        network = CifarResNet(**options)
        optimizer = torch.optim.Adam(network.parameters(), 0.01)
        for step in range(40):
            part = slice(step * 64 % 900, step * 64 % 900 + 64)
            optimizer.zero_grad()
            F.cross_entropy(network(batch.images[part]), batch.labels[part]).backward()
            optimizer.step()
        training = RobustTraining(DefendedClassifier(None, network), 10)
        state = {f"model.{key}": values for key, values in training.model.state_dict().items()}
        node = {"class_path": "robusttrain.models.CifarResNet", "init_args": options}
        kept = recipe_of(node, None, {"class_path": "robusttrain.data.Digits", "init_args": {}})
        files[name] = tmp_path_factory.mktemp(name) / name / "version_0" / "best.ckpt"
        files[name].parent.mkdir(parents=True)
        torch.save({"state_dict": state, "robusttrain": kept}, files[name])
    return files


@pytest.fixture
def transfer(command, classifiers, tmp_path):
    """Runs evaluate.py --models on 60 images of digits."""

    def run(*arguments, models=("one", "two"), images=60, output="o"):
        files = [classifiers.get(name, name) for name in models]
        common = ["--data", "digits", "--images", images, "--crafted", tmp_path / "crafted"]
        done = command(
            "evaluate.py", "--models", *files, *common, "--output", tmp_path / output, *arguments
        )
        path = tmp_path / output / "results.json"
        done.found = json.loads(path.read_text()) if done.code == 0 else None
        done.folder = tmp_path / output
        return done

    return run


def test_matrices_of_sources_and_targets(transfer):
    done = transfer("--attack", "fgsm", "--attack", "ifgsm", "--epsilon", "0.1")
    assert done.code == 0, done.err
    found = done.found
    assert set(found["clean_accuracy"]) == set(found["models"])
    assert all(found["images"] / 60 <= share <= 1 for share in found["clean_accuracy"].values())
    assert (found["candidates"], found["threat"]) == (60, {"norm": "linf", "epsilon": 0.1})
    assert 20 < found["images"] <= 60
    each = ", ".join(f"{name} ({100 * s:.1f} %)" for name, s in found["clean_accuracy"].items())
    assert f"{found['images']} of 60 images are classified correctly by all of {each}" in done.err
    for row in found["attacks"].values():
        assert set(MATRICES) <= set(row)
        cells = row["success_top1"]["cells"]
        assert list(cells) == list(cells["one"]) == ["one", "two"]
        assert row["success_top1"]["denominator"] == "that every model had right before"
        assert cells["one"]["two"]["images"] == found["images"]
        # White-box attacks succeed more often than transfers.
        assert cells["one"]["one"]["value"] > cells["one"]["two"]["value"] > 0
        assert cells["two"]["two"]["value"] > cells["two"]["one"]["value"]
    assert found["attacks"]["ifgsm"]["gradient_evaluations_per_image"] == 18
    pictures = {path.name for path in done.folder.glob("*.png")}
    assert pictures == {"images.png", *(f"{name}-success_top1.png" for name in ("fgsm", "ifgsm"))}


def test_results_say_what_they_rest_on(transfer, classifiers):
    """Which images, weights and settings, and the command that gives them again."""
    done = transfer("--attack", "ifgsm", "--epsilon", "0.1", "--attack.steps", 3, images=24)
    found = done.found
    assert len(found["indices"]) == len({*found["indices"]}) == found["images"]
    assert found["command"].startswith("python evaluate.py --models ")
    attack = found["plan"]["attacks"]["ifgsm"]["init_args"]
    assert (attack["steps"], attack["threat"]["init_args"]["epsilon"]) == (3, 0.1)
    assert (found["plan"]["fuse"], found["plan"]["images"]) == ("logits", 24)
    expected = {name: hash_of_weights(robusttrain.load(file)) for name, file in classifiers.items()}
    assert {name: expected[name] for name in found["weights"]} == found["weights"]
    assert found["weights"].keys() == found["models"].keys()
    assert found["versions"]["torch"] == torch.__version__
    assert "torch" in found["processor"]
    others = transfer("--attack", "fgsm", "--seed", 1, images=24, output="other").found
    assert others["data_hash"] != found["data_hash"]


def test_no_results_are_overwritten_in_silence(transfer, command, tmp_path):
    """Neither those of an evaluation, nor in an evaluation's place, nor another measurement's."""
    first = transfer("--attack", "ifgsm", "--epsilon", "0.1", "--attack.steps", 2, images=12)
    assert "takes the place" not in first.err
    again = transfer("--attack", "ifgsm", "--epsilon", "0.1", "--attack.steps", 2, images=12)
    assert "takes the place" not in again.err
    other = transfer("--attack", "fgsm", "--epsilon", "0.1", images=12)
    assert "o: takes the place of a measurement that differs in attacks.ifgsm" in " ".join(
        other.err.split()
    )
    pictures = {path.name for path in other.folder.glob("*.png")}
    assert pictures == {"images.png", "fgsm-success_top1.png"}

    line = [
        "--checkpoint",
        "digits-standard",
        "--attack",
        "fgsm",
        "--images",
        8,
        "--audit",
        "false",
    ]
    refused = command("evaluate.py", *line, "--output", other.folder)
    assert refused.code == 2
    assert f"--output {other.folder}: holds a measurement of transfer" in refused.err
    with pytest.raises(UserError, match=r"results.json: holds a measurement of transfer"):
        robusttrain.read_results(other.folder)

    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "results.json").write_text('{"schema": 2, "attacks": {}}')
    refused = transfer("--attack", "fgsm", images=12, output="e")
    assert refused.code == 2
    assert f"--output {tmp_path / 'e'}: holds an evaluation" in refused.err


def test_images_are_crafted_once_and_found_again(transfer, tmp_path):
    asked = ("--attack", "ifgsm", "--epsilon", "0.1", "--attack.steps", 3)
    first = transfer(*asked, images=24).found
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "crafted").rglob("*.safetensors")}
    again = transfer(*asked, images=24).found
    assert kept
    assert {
        path: path.stat().st_mtime_ns for path in (tmp_path / "crafted").rglob("*.safetensors")
    } == kept
    assert set(again["attacks"]["ifgsm"]["seconds"].values()) == {0.0}
    matrices = [
        [row["success_top1"] for row in found["attacks"].values()] for found in (first, again)
    ]
    assert matrices[0] == matrices[1]
    # Another epsilon, another seed and another precision are other images.
    for number, changed in enumerate(
        (["--epsilon", "0.05"], ["--seed", "1"], ["--precision", "bfloat16"])
    ):
        assert transfer(*asked, *changed, images=24).code == 0
        assert len(list((tmp_path / "crafted").iterdir())) == 2 * (number + 2)


def test_held_out_ensembles_are_rows_of_their_own(transfer):
    done = transfer(
        "--attack",
        "ifgsm",
        "--epsilon",
        "0.1",
        "--held_out",
        "true",
        models=("one", "two", "three"),
    )
    assert done.code == 0, done.err
    cells = done.found["attacks"]["ifgsm"]["success_top1"]["cells"]
    assert list(cells) == ["one", "two", "three", "all but one", "all but two", "all but three"]
    singles = [cells[source]["three"]["value"] for source in ("one", "two")]
    assert cells["all but three"]["three"]["value"] >= min(singles)
    other = transfer(
        *("--attack", "ifgsm", "--epsilon", "0.1", "--held_out", "true", "--fuse", "losses"),
        models=("one", "two", "three"),
    )
    assert other.found["attacks"]["ifgsm"]["success_top1"]["cells"]["one"] == cells["one"]


def test_targeted_attacks_have_a_matching_rate(transfer):
    found = transfer("--attack", "ifgsm-targeted", "--epsilon", "0.2").found
    row = found["attacks"]["ifgsm-targeted"]
    matching, success = row["matching_top1"]["cells"], row["success_top1"]["cells"]
    assert 0.2 < matching["one"]["one"]["value"] <= success["one"]["one"]["value"]
    assert matching["one"]["two"]["value"] < matching["one"]["one"]["value"]
    assert row["matching_top5"]["cells"]["one"]["two"]["value"] >= matching["one"]["two"]["value"]


def test_sources_and_targets_can_be_chosen(transfer):
    done = transfer(
        "--attack",
        "fgsm",
        "--sources",
        "one",
        "--targets",
        "two",
        "three",
        models=("one", "two", "three"),
    )
    assert done.code == 0, done.err
    cells = done.found["attacks"]["fgsm"]["success_top1"]["cells"]
    assert {row: list(columns) for row, columns in cells.items()} == {"one": ["two", "three"]}


def test_a_yaml_of_a_model_of_ones_own(transfer, classifiers, tmp_path):
    state = torch.load(classifiers["one"], weights_only=True)["state_dict"]
    torch.save(
        {name.removeprefix("model.classifier."): values for name, values in state.items()},
        tmp_path / "w.pt",
    )
    (tmp_path / "mine.yaml").write_text(
        "model:\n  class_path: robusttrain.models.CifarResNet\n"
        "  init_args: {in_channels: 1, widths: [8, 16, 16], blocks: 1}\nweights: w.pt\n"
    )
    done = transfer("--attack", "fgsm", "--epsilon", "0.1", models=(tmp_path / "mine.yaml", "one"))
    assert done.code == 0, done.err
    cells = done.found["attacks"]["fgsm"]["success_top1"]["cells"]
    # The same network under two names.
    assert (
        cells["mine"]["one"]["value"]
        == cells["one"]["one"]["value"]
        == cells["mine"]["mine"]["value"]
    )


def test_what_a_random_target_has_wrong_without_any_attack_is_told(transfer, classifiers, tmp_path):
    """An attack that did nothing was credited with it, and nobody said so."""
    state = torch.load(classifiers["one"], weights_only=True)["state_dict"]
    weights = {name.removeprefix("model.classifier."): values for name, values in state.items()}
    torch.save(weights, tmp_path / "w.pt")
    (tmp_path / "noisy.yaml").write_text(
        "model:\n  class_path: robusttrain.models.CifarResNet\n"
        "  init_args: {in_channels: 1, widths: [8, 16, 16], blocks: 1}\nweights: w.pt\n"
        "defense:\n  class_path: robusttrain.defenses.GaussianNoise\n  init_args: {sigma: 0.12}\n"
    )
    models = (tmp_path / "noisy.yaml", "two")
    done = transfer("--attack", "fgsm", "--epsilon", 0, models=models)
    assert done.code == 0, done.err
    cells = done.found["attacks"]["fgsm"]["success_top1"]["cells"]
    assert cells["two"]["two"]["value"] == 0
    idle = done.found["unattacked"]
    assert idle == {"noisy": cells["two"]["noisy"]} == {"noisy": cells["noisy"]["noisy"]}
    assert 0.02 < idle["noisy"]["value"] < 0.5
    share = f"{100 * idle['noisy']['value']:.1f} %"
    told = " ".join(done.err.split())
    assert f"noisy: is random, and without any attack misclassifies {share}" in told
    assert transfer("--attack", "fgsm", output="plain").found["unattacked"] == {}


@pytest.mark.parametrize(
    ("arguments", "models", "told"),
    [
        ([], ("one",), "name two models or more"),
        ([], ("one", "one"), "there is another model called one"),
        ([], ("one", "nobody"), "--models nobody: no such preset"),
        ([], ("one", "resnet18"), "--models resnet18: give its weights"),
        (
            ["--sources", "four"],
            ("one", "two"),
            "--sources four: is not among the models (one, two)",
        ),
        (["--held_out", "true"], ("one", "two"), "--held_out true: needs three models"),
        (["--fuse", "votes"], ("one", "two"), "--fuse votes: must be one of logits"),
        (["--precision", "int8"], ("one", "two"), "--precision int8: must be one of float32"),
        (["--attack", "transfer-standard"], ("one", "two"), "brings a source model of its own"),
        (
            ["--attack", "bpda-i"],
            ("one", "two"),
            "attack bpda-i on one: source IdentityBackward: the target has no",
        ),
        (["--attack", "fgsm", "--attack", "fgm"], ("one", "two"), "different threats"),
    ],
)
def test_bad_input_is_one_line(transfer, arguments, models, told):
    done = transfer(*arguments, models=models)
    assert done.code == 2
    (line,) = [line for line in done.err.splitlines() if "error:" in line]
    assert told in line


def test_an_attack_with_a_models_file_is_none_on_these_models(transfer, classifiers):
    """Its rows would be called after models that it never asked."""
    path = ["--attack.source.path", classifiers["three"]]
    done = transfer("--attack", "transfer-standard", *path)
    assert done.code == 2
    assert "brings a source model of its own" in done.err


def test_steps_that_reach_a_part_of_the_ball_are_told(transfer):
    done = transfer("--attack", "mifgsm", "--epsilon", "0.2")
    assert done.code == 0, done.err
    assert "mifgsm: its steps together reach" in done.err


def test_a_configuration_file_may_name_the_suite(transfer, tmp_path):
    (tmp_path / "suite.yaml").write_text("attacks: [fgsm, fgsm-targeted]\n")
    (tmp_path / "c.yaml").write_text(f"suite: {tmp_path / 'suite.yaml'}\n")
    done = transfer("--config", tmp_path / "c.yaml")
    assert done.code == 0, done.err
    assert list(done.found["attacks"]) == ["fgsm", "fgsm-targeted"]


def test_help_of_its_own(command):
    done = command("evaluate.py", "--models", "--help")
    assert done.code == 0
    assert "--held_out" in done.out
    assert "--survivors" not in done.out


def test_models_of_other_classes_are_refused(transfer, tmp_path):
    (tmp_path / "five.yaml").write_text(
        "model:\n  class_path: robusttrain.models.CifarResNet\n  init_args: {num_classes:"
        " 5}\nweights: w.pt\n"
    )
    done = transfer(models=("one", tmp_path / "five.yaml"))
    assert done.code == 2
    assert "num_classes = 5: the data set has 10" in done.err


def test_models_bring_their_data(tmp_path, command):
    """Packaged models do; before, images of ImageNet were looked for."""
    done = command(
        *("evaluate.py", "--models", "digits-standard", "digits-adversarial"),
        *("--attack", "fgsm", "--images", 12, "--output", tmp_path / "o"),
        *("--crafted", tmp_path / "crafted"),
    )
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "o" / "results.json").read_text())["data"] == "Digits"


def test_which_data_models_bring(tmp_path):
    assert data_of(["digits-standard", "mine.yaml", "digits-g"])["class_path"].endswith("Digits")
    assert data_of(["digits-standard", "cifar10-jpeg-adversarial"]) is None
    assert data_of(["mine.yaml", "nowhere.ckpt"]) is None
    file = {"models": ["a", "b"]}
    assert models_of([], [file]) == ["a", "b"]
    assert models_of(["--seed", "1", "--models", "c", "d", "--images", "2"], [file]) == ["c", "d"]


def test_the_data_that_a_checkpoint_names_are_of_trusted_classes(tmp_path, command):
    """Nothing of a file that it names is run."""
    (tmp_path / "theirs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    node = {"class_path": "robusttrain.models.MLP", "init_args": {}}
    data = {"class_path": f"{tmp_path / 'theirs.py'}:Data", "init_args": {}}
    torch.save({"state_dict": {}, "robusttrain": recipe_of(node, None, data)}, tmp_path / "a.ckpt")
    done = command("evaluate.py", "--models", tmp_path / "a.ckpt", "--attack", "fgsm")
    assert done.code == 2
    assert "--trust" in done.err
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("digits-standrd", "did you mean --models digits-standard"),
        ("x", "digits-g, digits-standard"),
    ],
)
def test_a_model_that_is_none_is_told_before_data_are_looked_for(command, name, said):
    done = command("evaluate.py", "--models", name, "digits-g", "--attack", "fgsm")
    assert done.code == 2
    assert f"--models {name}: no such preset" in done.err
    assert said in done.err


def test_checkpoints_that_number_their_classes_otherwise_are_refused(
    transfer, classifiers, tmp_path
):
    names = [str(number) for number in range(10)]
    orders = {"sorted": names, "swapped": [*names[:8], "9", "8"]}
    for name, order in orders.items():
        content = torch.load(classifiers["one"], weights_only=True)
        content["robusttrain"]["classes"] = order
        orders[name] = tmp_path / name / "best.ckpt"
        orders[name].parent.mkdir()
        torch.save(content, orders[name])
    refused = transfer("--attack", "fgsm", models=(orders["sorted"], orders["swapped"]))
    assert refused.code == 2
    assert "swapped/best.ckpt: has '9' where" in refused.err
    assert "has '8' among its classes" in refused.err
    # Digits have fixed numbers.
    refused = transfer("--attack", "fgsm", models=(orders["swapped"], "two"))
    assert refused.code == 2
    assert "class 8 is '8', and in the checkpoint '9'" in refused.err
