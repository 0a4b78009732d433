"""A stated time chooses the length of a run and its inner steps, by what was measured."""

import copy
import math

import pytest
import torch
from PIL import Image

from robusttrain.config.checkpoints import recipe_of
from robusttrain.config.training import read_plan
from robusttrain.core.errors import UserError
from robusttrain.running import budget
from robusttrain.running.budget import Pace, _as_begun, _with_steps, within
from robusttrain.running.training import Job, trained_first
from robusttrain.training.cost import Look

WORDS = ["--training", "budget", "--data", "digits", "--data.image_size", "8", "--model", "mlp"]
FULL = ["--trainer.precision", "32-true"]


class Measured(list):
    """The numbers of inner steps that were looked at.

    Each pass of the network takes 0.2 s in float32 and ``half`` of it in bfloat16, an epoch has 100
    batches, validation takes 2 s.
    """

    half = 1.0

    def __call__(self, job, data):
        inner = job.training().objective.cost().inner
        self.append(inner)
        share = self.half if job.plan.trainer["precision"] == "bf16-mixed" else 1
        return Pace(0.2 * share * (1 + inner), 100, 2.0, inner)


@pytest.fixture
def measured(monkeypatch):
    measured = Measured()
    monkeypatch.setattr(budget, "measured", measured)
    return measured


def planned(minutes, *more):
    lines = []
    plan = read_plan([*WORDS, "--training.minutes", str(minutes), *more])
    return within(plan, Job, lines.append), lines


def test_a_short_run_takes_single_steps(measured):
    plan, lines = planned(20, *FULL)
    # 25.7 epochs of 40 s and a validation of 2 s: 26 that are shorter
    assert plan.trainer["max_epochs"] == 26
    assert plan.trainer["limit_train_batches"] == int((1080 / 26 - 2) / 0.4) == 98
    assert plan.training["objective"]["class_path"].endswith("NFGSM")
    assert plan.ema == pytest.approx(1 - 1 / (0.05 * 26 * 98))
    assert measured == [1]
    (line,) = lines
    assert line.startswith("--training.minutes 20: 26 epochs, 1 gradient evaluations of the inner")
    assert line.endswith("; --ema 0.9922, since 0.995 would remember the first weights")


@pytest.mark.parametrize(("half", "precision"), [(0.5, "bf16-mixed"), (0.95, "32-true")])
def test_the_faster_precision_is_taken_where_none_is_given(measured, half, precision):
    measured.half = half
    plan, lines = planned(12)
    assert plan.trainer["precision"] == precision
    assert f"--trainer.precision {precision}: a step in bfloat16 takes {half:.2f}" in lines[0]
    assert plan.trainer["max_epochs"] == math.ceil(648 / (22 if half == 0.5 else 42))


def test_a_longer_one_takes_finer_steps_while_enough_epochs_are_left(measured):
    plan, _ = planned(60, *FULL)
    assert measured == [1, 2, 3, 5]
    assert plan.trainer["max_epochs"] == math.ceil(0.9 * 60 * 60 / 82) == 40
    objective = Job(plan).training().objective
    assert (objective.attack.steps, objective.attack.alpha) == (3, pytest.approx(0.625 * 0.031))
    assert objective.batch_norm == "train"
    assert objective.attack.threat.epsilon == 0.031


def test_the_step_inside_a_wrapper_is_meant(measured):
    wrapped = ["--training.objective", "AWP", "--training.objective.objective", "NFGSM"]
    plan, _ = planned(60, *FULL, *wrapped, "--training.mixing", "none")
    inner = plan.training["objective"]["init_args"]["objective"]
    assert inner["init_args"]["attack"]["init_args"]["steps"] == 3


def test_a_recipe_with_steps_of_its_own_keeps_them(measured):
    plan, _ = planned(
        600, *FULL, "--training.objective", "Adversarial", "--training.mixing", "none"
    )
    assert measured == [10]
    assert plan.training["objective"]["init_args"]["attack"]["init_args"]["steps"] == 10


def test_less_than_an_epoch(measured):
    plan, lines = planned(0.5, *FULL)
    assert (plan.trainer["max_epochs"], plan.trainer["limit_train_batches"]) == (1, 62)
    assert "so each has 62 of 100 batches" in lines[0]
    assert plan.ema == pytest.approx(1 - 1 / (0.05 * 62)), "what it began with is forgotten"
    with pytest.raises(UserError, match=r"--training.minutes 0\.01: not one batch fits"):
        planned(0.01, *FULL)


@pytest.mark.parametrize(("key", "value"), [("step", "0.5"), ("noise", "1.0")])
def test_a_single_step_that_somebody_shaped_is_kept(measured, key, value):
    plan, lines = planned(60, *FULL, f"--training.objective.{key}", value)
    node = plan.training["objective"]
    assert node["class_path"].endswith("NFGSM")
    assert node["init_args"][key] == float(value)
    assert measured == [1]
    assert (
        f"one is kept, since --training.objective.{key} {float(value):g} would be lost" in lines[0]
    )


@pytest.mark.parametrize(
    ("line", "file", "said"),
    [
        ([], {"max_epochs": 3}, "--trainer.max_epochs 3"),
        (["--trainer.max_steps", "5"], {}, "--trainer.max_steps 5"),
        ([], {"max_steps": 5}, "--trainer.max_steps 5"),
        (["--trainer.max_time", "00:00:01:00"], {}, "--trainer.max_time 00:00:01:00"),
    ],
)
def test_a_stated_time_and_another_length_exclude_each_other(line, file, said):
    with pytest.raises(UserError, match=f"^{said}: --training.minutes 20 chooses the number"):
        read_plan(["--model", "mlp", *line], [{"training": "budget", "trainer": file}])


def test_defaults_in_a_file_are_no_length_beside_a_stated_time():
    """As --print_config writes them; and a preset's own number of epochs gives way."""
    said = {"training": "budget", "trainer": {"max_epochs": 30, "max_steps": -1, "max_time": None}}
    assert read_plan(["--model", "mlp"], [said]).training["minutes"] == 20
    read_plan(["--model", "mlp", "--training", "fast", "--training.minutes", "1"])


def test_two_short_epochs_are_no_better_than_one(measured):
    """Of 1.03 epochs: the second validation would cost more than it leaves."""
    plan, _ = planned(0.8, *FULL)
    assert plan.trainer["max_epochs"] == 1
    assert plan.trainer["limit_train_batches"] is None
    plan, _ = planned(1.3, *FULL)
    assert (plan.trainer["max_epochs"], plan.trainer["limit_train_batches"]) == (2, 82)


def test_without_minutes_nothing_is_measured(measured):
    plan = read_plan([*WORDS, "--training", "n-fgsm"])
    assert within(plan, Job, print) is plan
    assert measured == []


def test_what_is_trained_before_the_minutes_is_named(tmp_path):
    def lacking(*options):
        return trained_first(Job(read_plan([*WORDS, *options])), tmp_path)

    assert lacking() == []
    assert lacking("--defense", "advtransform") == ["f_b"]
    assert lacking("--defense", "denoiser") == ["denoiser"]
    small = ["--defense", "advtransform", "--defense.model", "mlp"]
    weights = tmp_path / "f_b.safetensors"
    weights.touch()
    assert lacking(*small, "--defense.weights", str(weights)) == []


@pytest.mark.filterwarnings("ignore")
def test_a_real_run_and_one_that_goes_on(command, tmp_path):
    """What was chosen stands in the checkpoint, and is not chosen anew."""
    places = ["--checkpoints", tmp_path / "c", "--logs", tmp_path / "logs", "--name", "run"]
    small = ["--model.width", "8", "--robust.images", "8", "--pictures.images", "0"]
    options = [*WORDS, *small, "--training.minutes", "0.05", *places]
    begun = command("train.py", *options)
    assert begun.code == 0, begun.err
    assert "--training.minutes 0.05: " in begun.err
    path = tmp_path / "c" / "run" / "version_0" / "last.ckpt"
    plan = torch.load(path, weights_only=True)["robusttrain"]["plan"]
    assert f"{plan['trainer']['max_epochs']} epochs" in begun.err
    on = command("train.py", *options, "--ckpt_path", "last")
    assert on.code == 0, on.err
    assert "--training.minutes 0.05: " not in on.err
    other = command("train.py", *options, "--training.minutes", "3", "--ckpt_path", "last")
    assert other.code == 2
    assert "planned with training.minutes = 0.05, this one with 3: give the same" in other.err


def test_averages_remember_steps_of_the_optimizer(measured):
    """Four batches are one step, and so are the two that the end of an epoch leaves."""
    plan, _ = planned(20, *FULL, "--trainer.accumulate_grad_batches", "4")
    assert plan.ema == pytest.approx(1 - 1 / (0.05 * 26 * 25))


def test_what_costs_more_later_is_measured_as_it_will_be(monkeypatch):
    """The epochs before AWP's weights move are cheaper; of five epochs one is attacked."""
    epochs = []

    def a_step(training, batch, trainer, epoch):
        epochs.append(training.objective.at(epoch))
        return 0.1, 0

    monkeypatch.setattr(budget, "a_step", a_step)
    monkeypatch.setattr(budget, "_plain_validation", lambda *rest: 1.0)
    looks = []

    def looking(callback, training, data, count, device):
        looks.append(count)
        return Look(1, 8, 80, 10.0)

    monkeypatch.setattr(budget, "looking", looking)
    awp = ["--training.objective", "AWP", "--training.objective.objective", "NFGSM"]
    awp += ["--training.objective.warmup", "10", "--training.mixing", "none"]
    plan = read_plan([*WORDS, *awp, "--robust.every", "5", "--model", "mlp"])
    job = Job(plan)
    job.data.prepare_data()
    job.data.setup("fit")
    pace = budget.measured(job, job.data)
    assert epochs == [job.training().objective]
    assert type(epochs[0]).__name__ == "AWP"
    assert {*looks} == {5}
    assert pace.validation == 1.0 + len(looks) * 10.0 / 5


@pytest.mark.parametrize(
    ("option", "value", "times"),
    [
        ("val_check_interval", "0.25", 5),  # after each two of ten batches
        ("check_val_every_n_epoch", "2", 0.5),
        ("limit_val_batches", "0", 0),
    ],
)
def test_each_validation_of_an_epoch_is_counted(monkeypatch, option, value, times):
    monkeypatch.setattr(budget, "a_step", lambda *rest: (0.1, 0))
    monkeypatch.setattr(budget, "_plain_validation", lambda *rest: 1.0)
    monkeypatch.setattr(budget, "looking", lambda *rest: Look(1, 8, 80, 10.0))
    job = Job(read_plan([*WORDS, f"--trainer.{option}", value]))
    job.data.prepare_data()
    job.data.setup("fit")
    looks = len(budget.watchers(job.plan, False, job.training().objective.inner()))
    assert budget.measured(job, job.data).validation == times * (1 + 10 * looks)


def test_further_images_make_more_batches(monkeypatch, tmp_path):
    """Half of a batch is theirs, so an epoch, one pass over the data set's own, has twice as
    many.
    """
    (tmp_path / "train" / "3").mkdir(parents=True)
    Image.new("L", (8, 8)).save(tmp_path / "train" / "3" / "one.png")
    counts = []

    def measured(job, data):
        counts.append(len(data.train_dataloader()))
        return Pace(0.1, counts[-1], 1.0, 1)

    monkeypatch.setattr(budget, "measured", measured)
    planned(1, *FULL, "--extra.root", str(tmp_path))
    planned(1, *FULL)
    assert counts[0] == 2 * counts[-1] + 1 == 21


def test_no_class_is_taken_from_the_run_that_goes_on(tmp_path):
    """A checkpoint from elsewhere may name any class, with any arguments."""
    file = tmp_path / "last.ckpt"
    options = ["--training", "budget", "--training.minutes", "1", "--ckpt_path", str(file)]
    plan = read_plan(options)

    def begun(objective):
        trainer = {"max_epochs": 7, "limit_train_batches": 3, "precision": "bf16-mixed"}
        old = {**plan.to_json(), "trainer": trainer, "ema": 0.5}
        old["training"] = {**plan.training, "objective": objective}
        node = {"class_path": "robusttrain.models.MLP", "init_args": {}}
        data = {"class_path": "robusttrain.data.Digits", "init_args": {}}
        torch.save({"robusttrain": recipe_of(node, None, data) | {"plan": old}}, file)
        return _as_begun(plan, "any")

    finer = _with_steps(plan.training, 5)["objective"]
    assert begun(finer).training["objective"] == finer != plan.training["objective"]
    assert begun(finer).trainer["max_epochs"] == 7
    evil = copy.deepcopy(plan.training["objective"])
    evil["init_args"]["label_smoothing"] = {
        "class_path": "pathlib.Path",
        "init_args": {"args": "/"},
    }
    for objective in (evil, {"class_path": "subprocess.Popen"}, None):
        assert begun(objective).training["objective"] == plan.training["objective"]
