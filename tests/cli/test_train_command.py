"""train.py from end to end: what a run leaves, and that its options have the effect they
promise.
"""

import re
import shutil
from types import SimpleNamespace

import pytest
import torch
import yaml
from pytorch_lightning.callbacks import EarlyStopping
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from robusttrain import load
from robusttrain.attacks import L2, Linf, Normalized, ProjectedGradient, Sign, Target
from robusttrain.config.checkpoints import read_recipe
from robusttrain.config.training import read_plan
from robusttrain.config.watching import idle_undo, keepers, monitored, watchers
from robusttrain.evaluation import Scenario
from robusttrain.running.training import first_weights_left, of_last_epoch
from robusttrain.training.callbacks import RobustAccuracy, Validated
from robusttrain.training.callbacks.dashboard import final

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def train(command, tmp_path):
    """Trains by a YAML of tests/conf; the run and its folder of checkpoints."""

    def run(conf, *arguments, code=0):
        places = ["--checkpoints", tmp_path / "checkpoints", "--logs", tmp_path / "logs"]
        done = command("train.py", "--config", f"tests/conf/{conf}.yaml", *places, *arguments)
        assert done.code == code, done.err
        kept = re.search(r"into (\S+)$", done.err, re.MULTILINE)
        done.folder = tmp_path.joinpath(kept[1]) if kept else None
        return done

    return run


def test_a_run_leaves_checkpoints_that_load(trained):
    assert "training digits-adversarialtransform-cifarresnet" in trained.err
    assert "done: " in trained.err
    for path in (trained.best, trained.last):
        content = torch.load(path, weights_only=True)
        model = load(path)
        state = {
            name.removeprefix("model."): value for name, value in content["state_dict"].items()
        }
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        assert model(torch.rand(2, 1, 16, 16)).shape == (2, 10)
    assert torch.load(trained.last, weights_only=True)["epoch"] == 2
    assert trained.best.parent.name == "version_0"


def test_a_recipe_holds_every_option_that_shaped_the_run(trained):
    recipe = read_recipe(trained.last)
    assert (
        recipe["model"]["init_args"] | {"widths": [8, 16, 16], "num_classes": 10, "in_channels": 1}
        == recipe["model"]["init_args"]
    )
    assert recipe["defense"]["init_args"]["radius"] == 0.1
    assert recipe["defense"]["init_args"]["weights"] is None, "a checkpoint needs no other file"
    assert recipe["data"]["init_args"]["batch_size"] == 64
    assert recipe["training"]["objective"]["init_args"]["label_smoothing"] == 0.1


def test_an_f_b_is_trained_once_and_kept(trained, train, tmp_path):
    (kept,) = (trained.folder / "checkpoints" / "f_b").glob("*.safetensors")
    assert (
        f"f_b: none at hand; training one first (tests/conf/f_b.yaml), to be kept as {kept}"
        in trained.err
    )
    f_b = load_file(kept)
    state = torch.load(trained.last, weights_only=True)["state_dict"]
    assert all(
        torch.equal(state[f"model.defense.f_b.{name}"], value) for name, value in f_b.items()
    )

    brief = [
        "--trainer.limit_train_batches",
        1,
        "--trainer.max_epochs",
        1,
        "--robust.every",
        0,
        "--pictures.images",
        0,
    ]
    # Beside a copy of it: others look for the newest checkpoint in the folder of the first run.
    copy = shutil.copytree(kept.parent, tmp_path / "checkpoints" / "f_b") / kept.name
    again = train("advtransform", *brief)
    assert f"f_b: taking the one trained before, {copy}" in again.err
    assert "training one first" not in again.err
    assert [path.name for path in copy.parent.glob("*.safetensors")] == [kept.name]
    state = torch.load(again.folder / "last.ckpt", weights_only=True)["state_dict"]
    assert all(
        torch.equal(state[f"model.defense.f_b.{name}"], value) for name, value in f_b.items()
    )


def test_the_log_of_a_run(trained):
    (folder,) = (trained.folder / "logs").glob("*/version_0")
    found = EventAccumulator(str(folder)).Reload()
    for name in (
        "train/loss",
        "train/accuracy",
        "val/loss",
        "val/accuracy",
        "robust/bpda-i-quick",
        "robust/worst_case",
    ):
        assert len(found.Scalars(name)) == 3, name
    assert {line.name for line in folder.iterdir() if line.is_dir()} == {
        *("clean", "robust", "training", "scale-0", "scale-1"),
    }
    # The first epoch and the last, at the steps of the other figures.
    steps = [event.step for event in found.Scalars("val/accuracy")]
    for number in (1, 2):
        shown = found.Images(f"attack/bpda-i-quick/{number}")
        assert [event.step for event in shown] == [steps[0], steps[2]]
    rates = [
        event.value
        for name in found.Tags()["scalars"]
        if name.startswith("lr-")
        for event in found.Scalars(name)
    ]
    assert max(rates) <= 0.1


def test_trades_with_averaged_weights(train):
    done = train("trades")
    content = torch.load(done.folder / "last.ckpt", weights_only=True)
    averaged, own = content["state_dict"], content["current_model_state"]
    weight = "model.classifier.classifier.weight"
    assert not torch.equal(averaged[weight], own[weight])
    assert torch.equal(
        load(done.folder / "last.ckpt").classifier.classifier.weight, averaged[weight]
    )
    assert (
        read_recipe(done.folder / "last.ckpt")["training"]["objective"]["class_path"]
        == "robusttrain.training.TRADES"
    )
    # best is chosen by --monitor.
    keeper = next(
        state
        for name, state in content["callbacks"].items()
        if "robust/worst_case" in name and "Check" in name
    )
    assert keeper["best_model_path"].endswith("best.ckpt")


def test_adversarial_training_through_a_random_defense(train):
    done = train("adversarial_through_g")
    assert re.search(r"done: .*are right, and .* under the worst attack", done.err)
    (folder,) = (done.folder.parents[2] / "logs").glob("*/version_0")
    found = EventAccumulator(str(folder)).Reload()
    assert len(found.Scalars("robust/wt")) == 1  # every second of two epochs
    assert len(found.Scalars("val/accuracy")) == 2


def test_randomization_layers_are_attacked_through_their_gradient(train):
    layers = ["--defense", "randomization", "--defense.low", 14, "--defense.canvas", 16]
    assert re.search(r"done: .* under the worst attack", train("trades", *layers).err)
    refused = train("trades", *layers, "--robust.attacks", "bpda-i-quick", code=2).err
    assert re.search(r"error: source IdentityBackward: .* --attack eot", refused.strip())


def test_a_loss_that_is_not_finite(train):
    done = train("trades", "--training.learning_rate", "1e30", "--ema", 0, code=2)
    line = done.err.splitlines()[-1]
    assert re.match(r"train.py: error: training: .*(became|NaN|nan).* epoch 0", line), line
    assert "Traceback" not in done.err
    assert list(done.folder.iterdir()) == []


def test_runs_do_not_overwrite_each_other_and_one_seed_gives_one_result(train):
    brief = [
        "--trainer.max_epochs",
        1,
        "--trainer.limit_train_batches",
        1,
        "--monitor",
        "val/loss",
        "--robust.every",
        0,
    ]
    runs = [train("trades", *brief, "--seed", seed).folder for seed in (0, 0, 1)]
    assert [folder.name for folder in runs] == ["version_0", "version_1", "version_2"]
    first, second, other = (load(folder / "last.ckpt").state_dict() for folder in runs)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["classifier.stem.0.weight"], other["classifier.stem.0.weight"])


def configured(*arguments):
    return read_plan(list(map(str, arguments)))


def kept(tmp_path, *arguments):
    plan = configured(*arguments)
    return keepers(plan, monitored(plan, None), tmp_path)


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--robust.every", 3], lambda p, r: r.every == 3),
        (["--robust.images", 17], lambda p, r: r.images == 17),
        (["--robust.draws", 7], lambda p, r: r.draws == 7),
        (["--seed", 5], lambda p, r: (r.seed, p.seed) == (5, 5)),
        (["--robust.attacks", "[fgsm, pgd]"], lambda p, r: list(r.scenarios) == ["fgsm", "pgd"]),
        (
            ["--robust.attacks", "fgsm"],
            lambda p, r: (list(r.scenarios), p.name) == (["fgsm"], "fgsm"),
        ),
        (
            ["--robust.epsilon", 0.2],
            lambda p, r: r.scenarios["pgd-quick"].attack.threat.epsilon == 0.2,
        ),
        (["--pictures.images", 9], lambda p, r: p.images == 9),
        (["--pictures.every", 8], lambda p, r: p.every == 8),
    ],
)
def test_options_reach_the_callbacks(arguments, found):
    pictures, robust, _ = watchers(configured(*arguments), around=False)
    assert isinstance(robust, RobustAccuracy)
    assert found(pictures, robust)


def test_behind_a_defense_the_attack_goes_around_it():
    _, robust, guard = watchers(configured(), around=True)
    assert guard.monitor == "robust/bpda-i-quick"
    assert list(robust.scenarios) == ["bpda-i-quick"]
    assert len(watchers(configured("--robust.every", 0), around=True)) == 1


def test_attacks_of_validation_add_up():
    for options in (
        ["--robust.attacks", "pgd-quick", "--robust.attacks=fgsm"],
        ["--robust.attacks", "[pgd-quick, fgsm]"],
        ["--robust.attacks", "[pgd-quick]", "--robust.attacks", "fgsm"],
    ):
        _, robust, _ = watchers(configured(*options), around=False)
        assert list(robust.scenarios) == ["pgd-quick", "fgsm"]


def test_what_keeps_weights(tmp_path):
    options = ["--monitor", "val/loss", "--early_stopping", 4, "--ema", 0.75]
    _, _, stopping, _, best, last = kept(tmp_path, *options)
    assert (stopping.monitor, stopping.patience, stopping.mode) == ("val/loss", 4, "min")
    assert (best.monitor, best.mode, last.monitor) == ("val/loss", "min", None)
    assert len(kept(tmp_path)) == 4
    assert kept(tmp_path)[2].mode == "max"
    averaging = kept(tmp_path, "--swa.start", 3, "--swa.batches", 7, "--monitor", "val/loss")[2]
    assert (averaging.start, averaging.batches) == (3, 7)


def test_the_best_epoch_of_a_training_that_attacks_is_the_most_robust():
    inner = Scenario(ProjectedGradient(steps=1, step_size=0.02), Target())
    for arguments, attack, chosen in (
        ([], inner, "robust/worst_case"),
        ([], None, "val/accuracy"),
        (["--robust.every", 2], inner, "val/accuracy"),
        (["--monitor", "val/loss"], inner, "val/loss"),
    ):
        plan = configured(*arguments)
        watchers(plan, around=False, inner=attack)  # accepts it
        assert monitored(plan, attack) == chosen


def test_radii_of_training_and_validation_that_differ_are_said():
    def said(radius, *arguments, ball=Linf):
        lines = []
        rule = Normalized() if ball is L2 else Sign()
        attack = ProjectedGradient(steps=1, step_size=1.0, threat=ball(radius), rule=rule)
        inner = Scenario(attack, Target())
        watchers(configured(*arguments), around=False, inner=inner, say=lines.append)
        return lines

    (line,) = said(0.062)
    assert "validation attacks within linf 0.031, training within linf 0.062" in line
    assert "--robust.epsilon" in line
    assert not said(0.031)
    assert not said(0.062, "--robust.epsilon", 0.02), "whoever says it means it"
    assert not said(0.062, "--robust.every", 0)
    # A radius in one norm says nothing in another.
    (line,) = said(0.031, ball=L2)
    assert "training within l2 0.031: --robust.attacks names attacks in that norm" in line
    assert not said(0.5, "--robust.attacks", "pgd-l2", ball=L2)


def test_steps_of_training_that_do_not_reach_the_radius_are_said(command):
    def said(steps):
        line = ["--config", "tests/conf/trades.yaml", "--estimate"]
        line += ["--training.objective.attack.step_size", 0.01]
        done = command("train.py", *line, "--training.objective.attack.steps", steps)
        assert done.code == 0, done.err
        return [each for each in done.err.splitlines() if each.startswith("the inner attack")]

    (line,) = said(2)
    assert line.startswith("the inner attack of training: its steps together reach 0.02 of")
    assert not said(4)


def test_figures_of_an_earlier_epoch_are_not_the_outcome():
    """A run may end between two epochs with attacks."""
    metrics = {"val/accuracy": 0.9, "robust/worst_case": 0.5}
    pictures, robust, guard = watchers(configured("--robust.every", 5), around=False)
    robust.looked = 10
    assert of_last_epoch(metrics, [pictures, robust, guard], 10) == metrics
    assert of_last_epoch(metrics, [pictures, robust, guard], 13) == {"val/accuracy": 0.9}
    assert of_last_epoch(metrics, [pictures], 13) == metrics


def test_a_validation_before_the_last_epoch_is_not_the_outcome(command, tmp_path):
    tiny = ["--data", "digits", "--data.image_size", "8", "--model", "mlp", "--model.width", "8"]
    rest = ["--pictures.images", "0", "--robust.every", "0", "--trainer.limit_train_batches", "2"]
    rest += ["--checkpoints", tmp_path / "c", "--logs", tmp_path / "logs", "--logger", "csv"]
    seldom = ["--trainer.max_epochs", "3", "--trainer.check_val_every_n_epoch", "2"]
    ended = ["--trainer.max_epochs", "5", "--trainer.max_steps", "3"]
    once = ["--trainer.max_epochs", "1"]
    inside = [*once, "--trainer.limit_train_batches", "3", "--trainer.val_check_interval", "2"]
    few = [*once, "--trainer.limit_val_batches", "1"]
    of_few = "% of those validation images that --trainer.limit_val_batches 1 left are right"
    for more, said in (
        (inside, "done: after 1 epoch the model is trained; no validation measured .* is\\."),
        (few, f"done: after 1 epoch, .*{of_few}"),
        (seldom, "done: after 3 epochs the model is trained; no validation .* since epoch 2"),
        (ended, "done: after 2 epochs the model is trained; no validation .* since epoch 1"),
        (once, "done: after 1 epoch, .*% of the validation images"),
    ):
        done = command("train.py", *tiny, *rest, *more)
        assert done.code == 0, done.err
        assert re.search(said, done.err), done.err


def test_the_final_table_leaves_out_figures_of_an_earlier_epoch():
    validated, metrics = Validated(), {"val/accuracy": 0.9, "train/loss": 0.5}
    validated.epoch = 2
    trainer = SimpleNamespace(callbacks=[validated], callback_metrics=metrics, current_epoch=3)
    assert "train/loss" in final(trainer)
    assert "val/accuracy" not in final(trainer)
    trainer.current_epoch = 2
    assert "val/accuracy" in final(trainer)


def test_a_mean_of_mostly_the_first_weights_is_said():
    assert "74% are those after the first step" in first_weights_left(0.999, 300)
    assert first_weights_left(0.999, 3000) is None
    assert first_weights_left(0.0, 1) is None


def test_an_undo_that_can_undo_nothing_is_said():
    def said(arguments, inner, strengthens=True):
        plan = configured(*arguments)
        watching = watchers(plan, around=False, inner=inner)
        return idle_undo(plan, watching, strengthens)

    inner = Scenario(ProjectedGradient(steps=1, step_size=0.02), Target())
    other = Scenario(ProjectedGradient(1, 0.2, threat=L2(0.5), rule=Normalized()), Target())
    undo = ["--guard.undo", "true"]
    assert said([], inner) is None
    assert said(undo, inner) is None
    assert "--robust.every 0" in said([*undo, "--robust.every", 0], inner)
    assert "no steps that could be doubled" in said(undo, inner, strengthens=False)
    assert "another norm" in said(undo, other)


def test_the_guard_checks_under_the_threat_of_training():
    def guard(threat, *arguments):
        inner = Scenario(ProjectedGradient(steps=1, step_size=0.02).within(threat), Target())
        return watchers(configured(*arguments), around=False, inner=inner)[2]

    same = guard(Linf(0.031))
    assert list(same.attacks.scenarios) == ["inner"]
    other = guard(
        Linf(0.1),
        "--guard.drop",
        0.3,
        "--guard.fall",
        0.1,
        "--robust.images",
        5,
        "--robust.draws",
        2,
    )
    assert list(other.attacks.scenarios) == ["inner", "check"]
    assert other.attacks.scenarios["check"].attack.threat == Linf(0.1)
    assert (other.drop, other.fall, other.attacks.images, other.attacks.draws) == (0.3, 0.1, 5, 2)
    assert guard(L2(0.5)).attacks is None, "no common measure"


@pytest.mark.parametrize("script", ["train.py", "evaluate.py"])
def test_help_and_list(command, tmp_path, script):
    # Also where no checkpoint is at hand.
    shown = command(script, "--help", "--checkpoints", tmp_path)
    assert (shown.code, shown.err) == (0, "")
    assert "--defense" in shown.out
    listed = command(script, "--list")
    assert (listed.code, listed.err) == (0, "")
    for preset in (
        "advtransform",
        "bpda-eot-paper",
        "resnet_small",
        "digits",
        "trades",
        "fast-gradient",
    ):
        assert preset in listed.out


def test_a_printed_configuration_can_be_fed_back(command, tmp_path):
    arguments = [
        "--defense",
        "advtransform",
        "--defense.radius",
        0.05,
        "--training",
        "trades",
        "--trainer.max_epochs",
        3,
    ]
    printed = command("train.py", *arguments, "--print_config")
    assert (printed.code, printed.err) == (0, "")
    config = yaml.safe_load(printed.out)
    assert config["defense"]["init_args"]["radius"] == 0.05
    assert config["trainer"]["max_epochs"] == 3
    (tmp_path / "all.yaml").write_text(printed.out)
    again = command("train.py", "--config", tmp_path / "all.yaml", "--print_config")
    assert again.code == 0, again.err
    assert yaml.safe_load(again.out) == config


def test_a_preset_that_is_chosen_leaves_nothing_of_the_default():
    config = configured("--training", "adversarial")
    assert config.training["objective"]["class_path"] == "robusttrain.training.Adversarial"
    # As in the preset, not as in the default "standard"
    assert config.training["nesterov"] is False
    assert configured("--training.learning_rate", 0.3).training["nesterov"] is True
    assert configured("--model", "vgg_small").model["class_path"] == "robusttrain.models.VGGSmall"


@pytest.mark.parametrize("file_first", [True, False])
def test_a_preset_on_the_command_line_beats_a_configuration_file(tmp_path, file_first):
    (tmp_path / "all.yaml").write_text(
        "defense: null\nmodel: {class_path: robusttrain.models.CifarResNet, init_args: {widths: [4,"
        " 8]}}\ntraining: {objective: {class_path: robusttrain.training.Standard, init_args:"
        " {label_smoothing: 0.5}}}\ntrainer: {max_epochs: 7}\n"
    )
    file = ["--config", tmp_path / "all.yaml"]
    chosen = ["--defense", "randomization", "--model", "vgg_small", "--training", "adversarial"]
    config = configured(*(file + chosen if file_first else chosen + file))
    assert config.defense["class_path"] == "robusttrain.defenses.RandomResizePad"
    assert config.model["class_path"] == "robusttrain.models.VGGSmall"
    assert config.training["objective"]["class_path"] == "robusttrain.training.Adversarial"
    assert config.training["objective"]["init_args"]["label_smoothing"] == 0
    assert config.trainer["max_epochs"] == 7
    assert configured(*file, "--model.widths", "[4]").model["init_args"]["widths"] == [4]


def test_a_run_that_stops_early_says_so_and_goes_on_no_further(command, tmp_path):
    tiny = ["--data", "digits", "--data.image_size", "8", "--model", "mlp", "--model.width", "8"]
    still = ["--training", "standard", "--schedule", "constant", "--optimizer.lr", "1e-12"]
    short = ["--early_stopping", "1", "--trainer.max_epochs", "5", "--robust.every", "0"]
    rest = ["--pictures.images", "0", "--checkpoints", tmp_path / "c", "--logs", tmp_path / "logs"]
    done = command("train.py", *tiny, *still, *short, *rest)
    assert done.code == 0, done.err
    said = "--early_stopping 1: stopped after epoch 2, as so many validations brought no better"
    assert said in done.err
    (last,) = (tmp_path / "c").glob("*/version_0/last.ckpt")
    before = last.read_bytes()
    again = command("train.py", *tiny, *still, *short, *rest, "--ckpt_path", "last")
    assert again.code == 0, again.err
    assert said in again.err
    assert "nothing was left to train: the run had its 2 epochs before" in again.err
    assert last.read_bytes() == before, "a run that was killed at its end would go on otherwise"
    again = command("train.py", *tiny, *still, *short[2:], *rest, "--ckpt_path", "last")
    assert again.code == 0, again.err
    assert "--early_stopping" not in again.err
    for _ in range(2):
        again = command("train.py", *tiny, *still, *short[2:], *rest, "--ckpt_path", "last")
    assert "nothing was left to train: the run had its 5 epochs before" in again.err


def test_patience_is_that_of_the_run_that_goes_on(tmp_path):
    """And the epoch at which the earlier part stopped is no news of this one."""
    before, now = (
        each
        for patience in ("1", "3")
        for each in keepers(configured("--early_stopping", patience), "val/loss", tmp_path)
        if isinstance(each, EarlyStopping)
    )
    before.wait_count, before.stopped_epoch = 1, 2
    now.load_state_dict(before.state_dict())
    assert (now.patience, now.stopped_epoch, now.wait_count) == (3, 0, 1)
    lightning = EarlyStopping("val/loss", mode="min")
    assert now.state_key == lightning.state_key, "older checkpoints hold the count under it"
