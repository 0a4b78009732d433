"""Fingerprints: equal for equal settings, different for every setting that differs."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import robusttrain
from robusttrain.config.build import build
from robusttrain.running import jobs
from robusttrain.running.jobs import Call, Job, needed
from robusttrain.storage.weights import read_tensors
from studies.black_box import crafted_on
from studies.ingredients import INGREDIENTS, at_equal_cost
from studies.ingredients import SETTINGS as SIZES
from studies.scales import SCALES, training_plan
from studies.study import Study

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def scale(tmp_path):
    """Smoke, with models of its own."""
    return SCALES["smoke"].but(folder=tmp_path / "checkpoints")


def key(work, label="a"):
    return Job(label, work, Path()).name.rpartition("-")[2]


def test_every_setting_counts(scale, tmp_path):
    ours = scale.ours()
    small = SCALES["small"].but(data={"data": "cifar10"}, folder=tmp_path)
    models = [
        ours,
        scale.ours(radius=0.1),
        scale.ours(steps=3),
        scale.ours(random_start=False),
        scale.ours(f_b=scale.f_b(0).weights),
        scale.ours(f_b=scale.f_b(1).weights),
        scale.f_a("standard"),
        scale.f_a("standard", 1),
        scale.f_a("adversarial"),
        scale.f_a("trades"),
        small.ours(),
        SCALES["paper"].but(folder=tmp_path).ours(),
    ]
    keys = [key(model.work) for model in models]
    keys += [key(scale.attacked(model, "pgd")) for model in models]
    keys += [
        key(scale.attacked(ours, "wt")),
        key(scale.attacked(ours, "pgd", images=17)),
        key(scale.attacked(ours, "pgd", {"step_size": 0.003})),
        key(scale.attacked(ours, "pgd", epsilon=0.1)),
        key(scale.attacked(ours, "pgd", crafted_on(scale.f_a("standard")))),
        key(scale.attacked(ours, "pgd", crafted_on(scale.f_a("standard", 1)))),
        key(Call(print, {"count": 1})),
        key(Call(print, {"count": 2})),
        key(Call(repr, {"count": 1})),
    ]
    assert len(set(keys)) == len(keys)
    assert ours is scale.ours()
    assert ours is scale.ours(radius=0.2)


def test_places_and_labels_do_not_count(scale, tmp_path):
    plan = scale.attacked(scale.ours(), "pgd")
    assert key(plan) == key(replace(plan, output="elsewhere"), "another")
    moved = scale.but(folder=tmp_path / "moved")
    assert key(plan) == key(moved.attacked(moved.ours(), "pgd"))
    assert key(Call(print, {}, {"folder": None})) == key(Call(print, {}, {"folder": "here"}))


def test_files_count_by_content(scale, tmp_path):
    first, second = tmp_path / "first.pth", tmp_path / "second.pth"
    first.write_text("same")
    second.write_text("same")
    assert key(scale.ours(f_b=str(first)).work) == key(scale.ours(f_b=str(second)).work)
    second.write_text("another")
    assert key(scale.ours(f_b=str(first)).work) != key(scale.ours(f_b=str(second)).work)


@pytest.mark.parametrize("train", ["train", "Train"])
def test_folders_of_images_count_by_what_is_in_them(tmp_path, folder, train):
    """The same pictures elsewhere are the same points; others in their place are not."""
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    shutil.copytree(folder / "train", here / train)
    shutil.copytree(folder / "test", here / "test")
    shutil.copytree(here, elsewhere)

    def keys(root):
        node = {"class_path": "robusttrain.data.ImageFolder", "init_args": {"root": str(root)}}
        settings = {"data": {"data": "imagefolder", "data.root": str(root)}}
        return key(Call(print, {"data": node})), key(Call(print, settings))

    before = keys(here)
    assert before == keys(elsewhere)
    picture = next((elsewhere / train).rglob("*.png"))
    shutil.copy(picture, picture.with_name("another.png"))
    assert not {*keys(elsewhere)} & {*before}
    # What is to be downloaded goes by its path.
    (tmp_path / "one").mkdir()
    assert keys(tmp_path / "one") != keys(tmp_path / "two")
    assert keys(tmp_path / "two") == keys(tmp_path / "one" / ".." / "two")


def test_a_changed_preset_is_another_setting(scale, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # presets of the working directory come first
    (tmp_path / "configs" / "attack").mkdir(parents=True)
    preset = tmp_path / "configs" / "attack" / "mine.yaml"
    keys = []
    for step_size in (0.1, 0.2):
        preset.write_text(
            "class_path: robusttrain.attacks.ProjectedGradient\n"
            f"init_args: {{step_size: {step_size}}}\n"
        )
        keys.append(key(scale.attacked(scale.f_a("standard"), "mine")))
    assert keys[0] != keys[1]


def test_what_a_point_rests_on_comes_first(scale):
    scale.f_a("standard", 5)  # needed by nobody
    ours = scale.ours()
    f_b = scale.f_b()
    point = Job("a", scale.attacked(ours, "wt"), scale.folder)
    assert needed([point], [*scale.models.values()]) == [f_b, ours]


def test_files_of_the_user_are_in_force(tmp_path):
    f_b = tmp_path / "f_b.pth"
    f_b.write_text("weights")
    options = {"scale": "small", "root": tmp_path, "f_b": f_b, "output": tmp_path}
    line = [f"--{name}={value}" for name, value in {**options, "checkpoints": tmp_path}.items()]
    scale = Study("radius", "A title.", line).scale
    assert scale.data["data.root"] == str(tmp_path)
    digits = scale.but(data={"data": "digits"})
    ours = digits.ours()
    assert ours.work.defense["init_args"]["weights"] == str(f_b)
    assert needed([ours], [*digits.models.values()]) == []


def test_an_interrupted_training_is_resumed(scale, tmp_path, monkeypatch):
    model = scale.f_a("standard", 7)
    real, begun = jobs.training.train, []

    def interrupted(plan, telling):
        begun.append(plan)
        real(plan, telling)
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs.training, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.carry_out(tmp_path / "logs")
    assert not model.done
    assert begun[0].ckpt_path is None

    monkeypatch.setattr(jobs.training, "train", lambda *each: begun.append(each[0]) or real(*each))
    model.carry_out(tmp_path / "logs")
    assert begun[1] == replace(begun[0], ckpt_path="last")
    assert model.done
    network = robusttrain.load(model.checkpoint).classifier
    for name, values in read_tensors(model.weights).items():
        assert torch.equal(values, network.state_dict()[name])

    model.carry_out(tmp_path / "logs")  # stopped before it could say that it was done
    assert len(begun) == 2, "it was trained again"


def test_an_untrained_f_b_is_what_its_training_starts_from(scale, tmp_path):
    untrained = scale.f_b(0)
    untrained.carry_out(tmp_path)
    weights = read_tensors(untrained.weights)
    assert weights["features.0.weight"].shape[:2] == (scale.f_b_width, 1)
    assert torch.equal(weights["features.1.running_mean"], torch.zeros(scale.f_b_width))


def test_networks_fit_the_data():
    plan = training_plan("--data=digits", "--model=vgg_small", "--training=standard")
    assert plan.model["init_args"]["in_channels"] == 1


@pytest.mark.parametrize("name", INGREDIENTS)
def test_each_ingredient_has_as_many_passes(name, scale):
    """As its objective counts them; queries, which take no backward pass, are none."""
    sizes = replace(SIZES["digits"], passes=8)
    plan = at_equal_cost(scale, sizes, name).work
    objective = plan.training["objective"]
    cost = build(objective, "training.objective").cost()
    share = plan.trainer.get("limit_train_batches") or 1.0
    network = 4.25 / 2 if "resnet_small" in name else 1
    epochs, waits = plan.trainer["max_epochs"], objective.get("init_args", {}).get("warmup", 0)
    late = (cost.inner + cost.training) * network * (epochs - waits)
    passes = share * (2 * waits + late)
    assert waits == (2 if "late" in name else 0)
    assert passes == pytest.approx(8, rel=1e-3)
