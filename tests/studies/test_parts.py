"""Fingerprints: equal for equal settings, different for every setting that differs."""

import json

import pytest
import torch

import robusttrain
from robusttrain.commands import train
from robusttrain.storage.weights import read_tensors
from studies.models import Models
from studies.parts import Point, Training, fingerprint, trainings
from studies.sizes import PAPER, SCALES, SMALL, SMOKE, placed

pytestmark = pytest.mark.filterwarnings("ignore")


def test_every_setting_counts():
    ours = SMOKE.ours()
    models = [
        ours,
        SMOKE.ours(radius=0.1),
        SMOKE.ours(steps=3),
        SMOKE.ours(start=False),
        SMOKE.ours(f_b=SMOKE.standard_f_b(0)),
        SMOKE.ours(f_b=SMOKE.standard_f_b(1)),
        SMOKE.standard(),
        SMOKE.standard(seed=1),
        SMOKE.adversarial(),
        SMOKE.trades(),
        SMALL.ours(),
        PAPER.ours(),
    ]
    keys = [model.key for model in models]
    keys += [Point("a", SMOKE.attacked(model, "--attack", "pgd")).key for model in models]
    keys += [
        Point("a", SMOKE.attacked(ours, "--attack", "wt")).key,
        Point("a", SMOKE.attacked(ours, "--attack", "pgd", images=17)).key,
        Point("a", SMOKE.attacked(ours, "--attack", "pgd", "--attack.steps", "3")).key,
        Point("a", ("--attack", "pgd"), print).key,
        Point("a", ("--attack", "pgd"), repr).key,
    ]
    assert len(set(keys)) == len(keys)
    assert ours == SMOKE.ours()
    assert ours.key == SMOKE.ours(radius=0.2).key


def test_epochs_count_and_labels_do_not():
    one = Training("one", ("--model", "vgg_small"), 1, 100)
    assert one.key == Training("other", ("--model", "vgg_small"), 1, 200, passes=3).key
    assert one.key != Training("one", ("--model", "vgg_small"), 2, 100).key


def test_files_count_by_content(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text("same")
    second.write_text("same")
    assert fingerprint(("--f", first)) == fingerprint(("--f", second))
    second.write_text("another")
    assert fingerprint(("--f", first)) != fingerprint(("--f", second))


def test_a_changed_preset_is_another_setting(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # presets of the working directory come first
    (tmp_path / "configs" / "attack").mkdir(parents=True)
    preset = tmp_path / "configs" / "attack" / "mine.yaml"
    preset.write_text("class_path: robusttrain.attacks.ProjectedGradient\ninit_args: {steps: 1}\n")
    before = fingerprint(("--attack", "mine"))
    preset.write_text("class_path: robusttrain.attacks.ProjectedGradient\ninit_args: {steps: 2}\n")
    changed = fingerprint(("--attack", "mine"))
    assert changed != before
    # What it is like counts, and how it is written does not.
    (tmp_path / "configs" / "attack" / "first.yaml").write_text(preset.read_text())
    preset.write_text("like: first\n")
    assert fingerprint(("--attack", "mine")) == changed
    (tmp_path / "configs" / "attack" / "first.yaml").write_text("like: pgd\n")
    assert fingerprint(("--attack", "mine")) not in (before, changed)


def test_what_a_point_rests_on_comes_first():
    f_b = SMOKE.adversarial_f_b()
    ours = SMOKE.ours()
    assert list(trainings(SMOKE.attacked(ours, "--attack", "wt"))) == [f_b, ours]


def test_missing_presets_are_named():
    point = Point("a", SMOKE.attacked(SMOKE.ours(), "--attack", "wt", "--attack", "not-there"))
    assert point.attacks == ["wt", "not-there"]
    assert point.missing == ["not-there"]


def test_files_of_the_user_are_in_force(tmp_path):
    (tmp_path / "f_b.pth").write_text("weights")
    scale = placed(SCALES["small"], str(tmp_path), str(tmp_path / "f_b.pth"))
    assert scale.adversarial_f_b() == tmp_path / "f_b.pth"
    assert list(trainings(scale.ours().arguments)) == []
    assert tmp_path in scale.ours().arguments
    assert tmp_path in scale.attacked(scale.ours(), "--attack", "wt")


def test_an_interrupted_training_is_resumed(tmp_path, monkeypatch):
    training = SMOKE.standard(seed=7)
    models = Models(tmp_path / "checkpoints", tmp_path / "logs")
    real, lines = train.run, []

    def interrupted(arguments):
        lines.append(arguments)
        real(arguments)
        raise SystemExit(1)  # what Lightning makes of Ctrl-C

    monkeypatch.setattr(train, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        models.train(training)
    assert not models.found(training)
    assert "--ckpt_path" not in lines[0]

    monkeypatch.setattr(train, "run", lambda arguments: (lines.append(arguments), real(arguments)))
    models.train(training)
    assert lines[1] == [*lines[0], "--ckpt_path", "last"]
    assert models.found(training)
    kept = json.loads((tmp_path / "checkpoints" / training.name / "training.json").read_text())
    assert kept["command"].startswith("python train.py --data digits")
    network = robusttrain.load(models.checkpoint(training)).classifier
    for name, values in read_tensors(models.weights(training)).items():
        assert torch.equal(values, network.state_dict()[name])

    models.train(training)
    assert len(lines) == 2, "it was trained again"


def test_an_untrained_f_b_is_what_its_training_starts_from(tmp_path):
    models = Models(tmp_path / "checkpoints", tmp_path / "logs")
    untrained = SMOKE.standard_f_b(0)
    models.train(untrained)
    weights = read_tensors(models.weights(untrained))
    assert weights["features.0.weight"].shape[:2] == (SMOKE.f_b_width, 1)
    assert torch.equal(weights["features.1.running_mean"], torch.zeros(SMOKE.f_b_width))
    assert models.command(("--defense.weights", untrained)) == [
        "--defense.weights",
        str(models.weights(untrained)),
    ]
