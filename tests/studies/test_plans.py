"""Fingerprints: equal for equal settings, different for every setting that differs."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import robusttrain
from robusttrain.storage.weights import read_tensors
from studies import plans
from studies.black_box import crafted_on
from studies.plans import Call, Job
from studies.scales import SCALES, placed, training_plan

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def scale(tmp_path):
    """Smoke, with models of its own."""
    return replace(SCALES["smoke"], folder=tmp_path / "checkpoints", models={})


def key(work, label="a"):
    return Job(label, work, Path()).name.rpartition("-")[2]


def test_every_setting_counts(scale, tmp_path):
    ours = scale.ours()
    small = replace(SCALES["small"], data={"data": "cifar10"}, models={})
    models = [
        ours,
        scale.ours(radius=0.1),
        scale.ours(steps=3),
        scale.ours(start=False),
        scale.ours(f_b=scale.standard_f_b(0).weights),
        scale.ours(f_b=scale.standard_f_b(1).weights),
        scale.standard(),
        scale.standard(seed=1),
        scale.adversarial(),
        scale.trades(),
        small.ours(),
        replace(SCALES["paper"], models={}).ours(),
    ]
    keys = [key(model.work) for model in models]
    keys += [key(scale.attacked(model, "pgd")) for model in models]
    keys += [
        key(scale.attacked(ours, "wt")),
        key(scale.attacked(ours, "pgd", images=17)),
        key(scale.attacked(ours, "pgd", {"step_size": 0.003})),
        key(scale.attacked(ours, "pgd", epsilon=0.1)),
        key(scale.attacked(ours, "pgd", crafted_on(scale.standard()))),
        key(scale.attacked(ours, "pgd", crafted_on(scale.standard(1)))),
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
    moved = replace(scale, folder=tmp_path / "moved", models={})
    assert key(plan) == key(moved.attacked(moved.ours(), "pgd"))
    assert key(Call(print, {}, {"folder": None})) == key(Call(print, {}, {"folder": "here"}))


def test_files_count_by_content(scale, tmp_path):
    first, second = tmp_path / "first.pth", tmp_path / "second.pth"
    first.write_text("same")
    second.write_text("same")
    assert key(scale.ours(f_b=str(first)).work) == key(scale.ours(f_b=str(second)).work)
    second.write_text("another")
    assert key(scale.ours(f_b=str(first)).work) != key(scale.ours(f_b=str(second)).work)


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
        keys.append(key(scale.attacked(scale.standard(), "mine")))
    assert keys[0] != keys[1]


def test_what_a_point_rests_on_comes_first(scale):
    scale.standard(seed=5)  # needed by nobody
    ours = scale.ours()
    f_b = next(model for model in scale.models.values() if model.weights == scale.adversarial_f_b())
    point = Job("a", scale.attacked(ours, "wt"), scale.folder)
    assert scale.needed([point]) == [f_b, ours]


def test_files_of_the_user_are_in_force(tmp_path):
    f_b = tmp_path / "f_b.pth"
    f_b.write_text("weights")
    scale = placed(SCALES["small"], str(tmp_path), str(f_b))
    assert scale.data["data.root"] == str(tmp_path)
    assert scale.adversarial_f_b() == str(f_b)
    digits = replace(scale, data={"data": "digits"}, models={})
    ours = digits.ours()
    assert ours.work.defense["init_args"]["weights"] == str(f_b)
    assert digits.needed([ours]) == []


def test_an_interrupted_training_is_resumed(scale, tmp_path, monkeypatch):
    model = scale.standard(seed=7)
    real, begun = plans.train, []

    def interrupted(plan):
        begun.append(plan)
        real(plan)
        raise KeyboardInterrupt

    monkeypatch.setattr(plans, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.carry_out(tmp_path / "logs")
    assert not model.done
    assert begun[0].ckpt_path is None

    monkeypatch.setattr(plans, "train", lambda plan: begun.append(plan) or real(plan))
    model.carry_out(tmp_path / "logs")
    assert begun[1] == replace(begun[0], ckpt_path="last")
    assert model.done
    network = robusttrain.load(model.checkpoint).classifier
    for name, values in read_tensors(model.weights).items():
        assert torch.equal(values, network.state_dict()[name])

    model.carry_out(tmp_path / "logs")  # stopped before it could say that it was done
    assert len(begun) == 2, "it was trained again"


def test_an_untrained_f_b_is_what_its_training_starts_from(scale, tmp_path):
    untrained = scale.standard_f_b(0)
    untrained.carry_out(tmp_path)
    weights = read_tensors(untrained.weights)
    assert weights["features.0.weight"].shape[:2] == (scale.f_b_width, 1)
    assert torch.equal(weights["features.1.running_mean"], torch.zeros(scale.f_b_width))


def test_networks_fit_the_data():
    plan = training_plan({"data": "digits", "model": "vgg_small", "training": "standard"})
    assert plan.model["init_args"]["in_channels"] == 1
