"""Mistakes on the command line: one line that names the option and the fix, exit code 2, nothing
started.
"""

import errno
import os
import re
import resource
import threading
import time
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from PIL import Image

from robusttrain.commands.entry import main
from robusttrain.config.training import read_plan
from robusttrain.models import VGGSmall
from robusttrain.storage.files import write_whole


@pytest.fixture
def refused(command, monkeypatch, tmp_path):
    """Runs a command that must be refused; the line."""
    for method in ("fit", "test"):
        monkeypatch.setattr(pl.Trainer, method, lambda *rest, **more: pytest.fail("started"))

    def run(script, *arguments):
        folders = {
            "train.py": ["--checkpoints", "--logs"],
            "evaluate.py": ["--checkpoints", "--output"],
        }[script]
        given = [argument for argument in arguments if argument in folders]
        places = [
            part
            for name in folders
            if name not in given
            for part in (name, tmp_path / name.strip("-"))
        ]
        done = command(script, *places, *arguments)
        assert done.code == 2, done.err
        lines = done.err.splitlines()
        assert len(lines) == 1, done.err
        assert lines[0].startswith(f"{script}: error: ")
        return lines[0]

    return run


TRAIN = [
    # Names.
    (
        ["--training", "free", "--training.objective.threat", "L2"],
        r"--training\.objective\.threat: L2: no class of that name fits here; .*FILE\.py:CLASS$",
    ),
    (["--defense", "advtransfrom"], "--defense advtransfrom: .*did you mean advtransform"),
    (["--training", "trade"], "--training trade: .*did you mean trades"),
    (["--model", "resnet_smal"], "--model resnet_smal: .*did you mean resnet_small"),
    (["--data=cifar_10"], "--data cifar_10: .*did you mean cifar10"),
    (["--defense", "nothing.yaml"], "nothing.yaml: no such file"),
    (["--config", "nothing.yaml"], "nothing.yaml"),
    (["--robust.attacks", "pdg"], "--robust.attacks pdg: .*did you mean pgd"),
    (["--robust.attacks", "[fgsm, pdg]"], "--robust.attacks pdg: .*did you mean pgd"),
    (["--f_b_training", "f-b", "--defense", "advtransform"], "f-b: .*did you mean f_b"),
    (
        ["--training.learning_rte", "0.1"],
        "--training.learning_rte.*did you mean --training.learning_rate",
    ),
    (["--trainer.max_epohcs", "3"], "--trainer.max_epohcs .*did you mean --trainer.max_epochs"),
    (["--sed", "3"], "--sed .*did you mean --seed"),
    (["--monitor", "nonsense"], "--monitor = 'nonsense': .*val/accuracy.*robust/pgd-quick"),
    (["--monitor", "robust/pgd-quick", "--robust.every", "2"], "--monitor"),
    (["--model", "no.such.Network"], "no.such.Network"),
    (["--model", "robusttrain.models.Nothing"], "Nothing"),
    (["--model", "robusttrain.data.Digits"], "Digits"),
    # Types.
    (["--training.learning_rate", "abc"], "--training.learning_rate: .*abc"),
    (["--trainer.max_epochs", "x"], "--trainer.max_epochs: "),
    (["--data.batch_size", "1.5"], "data.batch_size"),
    (["--training.schedule", "lin"], "--training.schedule: .*constant.*one_cycle"),
    (["--trainer.precision", "foo"], "--trainer.precision: .*bf16-mixed"),
    (["--trainer.accelerator", "abacus"], "--trainer.*accelerator.*abacus"),
    (["--trainer.strategy", "luck"], "--trainer.*strategy.*luck"),
    (["--seed", "x"], "--seed: "),
    (["--ema", "much"], "--ema: .*much"),
    (["--model.widths", "[4, x]"], "model.*widths"),
    (["--defense"], "--defense: give the name of a preset"),
    # Ranges.
    (
        ["--defense", "advtransform", "--defense.radius", "-1"],
        r"defense.radius = -1.0: must be at least 0",
    ),
    (["--defense", "advtransform", "--defense.steps", "-1"], "defense.steps = -1"),
    (["--defense", "advtransform", "--training.momentum", "2"], "training.momentum = 2.0"),
    (["--defense", "advtransform", "--trainer.strategy", "luck"], "luck"),
    (["--data.batch_size", "0"], "data.batch_size = 0: must be at least 1"),
    (["--data.validation", "0"], "data.validation = 0"),
    # Training recipes that cannot work, or would never take effect.
    (
        ["--training", "mart", "--training.mixing", "cutmix"],
        "--training.mixing = 'cutmix': MART needs one label an image; set none",
    ),
    (
        [
            "--training",
            "mart",
            "--training.objective.attack.objective",
            "robusttrain.attacks.KLDivergence",
        ],
        (
            "--training.objective.attack.objective = 'KLDivergence': it does not look at"
            " labels.*give CrossEntropy"
        ),
    ),
    (
        ["--training", "adversarial-awp", "--trainer.accumulate_grad_batches", "4"],
        "--trainer.accumulate_grad_batches = 4: .*part of it has another: set it to 1",
    ),
    (
        ["--training", "free", "--trainer.accumulate_grad_batches", "2"],
        "--trainer.accumulate_grad_batches = 2: .*between two replays.*: set it to 1",
    ),
    (
        ["--swa.start", "30"],
        "--swa.start = 30: the run has 30 epochs, counted from 0: give less than 30",
    ),
    (["--ema", "1"], "--ema = 1.0: must be at least 0 and below 1"),
    (
        ["--swa.start", "3", "--trainer.val_check_interval", "0.5"],
        "--trainer.val_check_interval = 0.5: .*leave it out",
    ),
    (["--training.warmup", "1"], "--training.warmup = 1.0: must be at least 0 and below 1"),
    (
        ["--trainer.max_epochs", "-1"],
        "--trainer.max_epochs = -1: the schedule one_cycle needs an end",
    ),
    (
        ["--trainer.max_epochs", "null", "--trainer.max_time", "00:00:01:00"],
        "--trainer.max_epochs = None: the schedule one_cycle needs an end",
    ),
    (
        ["--trainer.precision", "bf16-true"],
        "--trainer.precision = 'bf16-true': images stay in float32: take bf16-mixed",
    ),
    (
        ["--trainer.accumulate_grad_batches", "0"],
        "--trainer.accumulate_grad_batches = 0: must be at least 1",
    ),
    (
        ["--trainer.val_check_interval", "1000"],
        "--trainer.val_check_interval = 1000: an epoch has 10 batches",
    ),
    (
        ["--trainer.limit_train_batches", "0.0001"],
        "--trainer.limit_train_batches = 0.0001: leaves none of 10 batches",
    ),
    (
        ["--early_stopping", "2", "--trainer.limit_val_batches", "0"],
        "--trainer.limit_val_batches = 0: without validation nothing tells when to stop early",
    ),
    (
        ["--training.schedule", "piecewise", "--training.milestones", "[10, 30]"],
        "--training.milestones = .10, 30.: the rate would not drop so often; the run has 30 epochs",
    ),
    (
        [
            "--training.schedule",
            "piecewise",
            "--training.milestones",
            "[2]",
            "--training.warmup_epochs",
            "2",
        ],
        "--training.milestones = .2.: must come after epoch 0 and the warm-up",
    ),
    (
        ["--training", "trades-awp", "--trainer.max_steps", "2", "--trainer.max_epochs", "50"],
        "--training.objective.warmup = 10: no epoch would have AWP; the run has 1 epochs",
    ),
    (
        ["--training", "ensemble-adversarial", "--training.objective.models", "[nope.ckpt]"],
        "training.objective.models: .*nope.ckpt",
    ),
    (
        ["--training", "adversarial", "--training.objective.attack", "pgd-quik"],
        "attack pgd-quik: .*did you mean pgd-quick",
    ),
    (
        ["--training", "trades", "--training.objective.attack", "pgd-restarts"],
        "--training.objective.attack.objective = 'CrossEntropy': TRADES maximises KLDivergence",
    ),
    (["--swa.start", "3", "--ema", "0.9"], "--swa.start = 3: excludes --ema"),
    (["--swa.start", "3", "--swa.batches", "0"], "--swa.batches = 0: must be at least 1"),
    (
        ["--training", "trades-awp", "--trainer.max_epochs", "10"],
        "--training.objective.warmup = 10: no epoch would have AWP; the run has 10 epochs",
    ),
    (
        ["--training.schedule", "cosine", "--training.warmup_epochs", "30"],
        "--training.warmup_epochs = 30.0: the rate would only rise; the run has 30 epochs",
    ),
    (
        ["--training.warmup_epochs", "1"],
        "--training.warmup_epochs = 1.0: one_cycle rises by itself",
    ),
    (["--training", "consistency"], "training.objective = Consistency: .*draws nothing.*--defense"),
    (["--training", "adversarial-through-g"], "IdentityBackward: the target has no defense"),
    (["--guard.drop", "0"], "--guard.drop = 0.0: must be greater than 0"),
    (
        ["--checkpoint", "digits-g"],
        "--checkpoint digits-g: a training begins with new weights; --ck",
    ),
    (
        ["--model", "digits-gg"],
        "--model digits-gg: no such network; digits-g is a trained model, fr",
    ),
    (["--trainer.gradient_clip_algorithm", "value"], "clip_algorithm = 'value': clips nothing"),
    (["--guard.drop", "20"], "--guard.drop = 20.0: is a share of the images, .* points give 0.2"),
    (["--guard.fall", "5"], "--guard.fall = 5.0: is a share of the images, .* points give 0.05"),
    (
        ["--extra.root", "nowhere"],
        "--extra.root nowhere: images without labels train nothing here .*: sort them into",
    ),
    (
        ["--extra.root", "docs"],
        "--extra.root docs: images without labels train nothing here .*train/<class>/",
    ),
    (["--training.momentum", "2"], "training.momentum = 2.0: must lie between 0 and 1"),
    (["--training.learning_rate", "0"], "training.learning_rate = 0.0: must be greater than 0"),
    (["--training.learning_rate", "nan"], "training.learning_rate.* nan"),
    (["--training.schedule", "piecewise"], "training.milestones = None"),
    (["--training", "trades", "--training.objective.beta", "-1"], "training.objective.beta = -1.0"),
    (
        ["--training", "adversarial", "--training.objective.attack.threat.epsilon", "-1"],
        "threat.epsilon = -1.0",
    ),
    (["--ema", "2"], "--ema = 2.0"),
    (["--seed", "-1"], "--seed = -1"),
    (["--seed", "5000000000"], "--seed = 5000000000: must lie below"),
    (["--early_stopping", "-1"], "--early_stopping = -1"),
    (["--robust.images", "0"], "--robust.images = 0"),
    (["--robust.every", "-1"], "--robust.every = -1"),
    (["--robust.draws", "0"], "--robust.draws = 0"),
    (["--robust.epsilon", "-1"], "--robust.epsilon = -1.0"),
    (["--pictures.every", "0"], "--pictures.every = 0"),
    (["--pictures.images", "-1"], "--pictures.images = -1"),
    # What does not fit together.
    (
        ["--model", "vgg_small", "--data.image_size", "28"],
        "image_size = 28: must be a multiple of 16",
    ),
    (["--model.num_classes", "7"], "model.num_classes = 7: the data set has 10"),
    (
        ["--defense", "randomization", "--model", "vgg_small"],
        r"cannot take images of \(1, 36, 36\), which its defense RandomResizePad makes",
    ),
    (["--robust.attacks", "[fgsm, tests/conf/far.yaml]"], "different threats.*epsilon"),
    (
        ["--robust.attacks", "wt", "--robust.every", "0"],
        "attack wt: source ClassifierOnly: the target has no defense",
    ),
    (["--robust.attacks", "wt"], "attack wt: source ClassifierOnly: the target has no defense"),
    # Files.
    (["--ckpt_path", "last"], "--ckpt_path last: no last.ckpt of this run"),
    (["--ckpt_path", "nowhere.ckpt"], "nowhere.ckpt: there is no such file"),
    (
        ["--checkpoints", "pyproject.toml/below"],
        "--checkpoints pyproject.toml/below: cannot be written to",
    ),
    (["--logs", "pyproject.toml/below"], "--logs pyproject.toml/below: cannot be written to"),
    (["--data", "imagefolder", "--data.root", "nowhere"], "nowhere"),
    (
        ["--trainer.max_epochs=5", "--robust.every=2", "--trainer.check_val_every_n_epoch=3"],
        "--robust.every = 2: none of 5 epochs is attacked, .* only every 3 .*: give 1",
    ),
    (["--trainer.max_steps", "0"], "--trainer.max_steps = 0: no step would be taken: leave it out"),
    # Without effect.
    (
        ["--schedule", "cosine", "--schedule.warmup", "0.5"],
        "--training.warmup = 0.5: the schedule cosine does not rise .*: give --schedule.warmup_e",
    ),
    (["--training.mixing_alpha", "3"], "--training.mixing_alpha = 3.0: nothing is mixed: give"),
    (["--extra.share", "0.2"], "--extra.share = 0.2: there are no further images: give --extra"),
    (["--swa.batches=5"], "--swa.batches = 5: no mean of the weights is taken: give --swa.start"),
    (
        ["--robust.every", "0", "--robust.attacks", "pgd", "--pictures.images", "0"],
        "--robust.attacks = 'pgd': --robust.every 0 attacks no validation image: give --robust.ev",
    ),
    (["--robust.every=0", "--guard.drop=0.1"], "--guard.drop = 0.1: --robust.every 0 attacks no"),
    (["--trainer.gradient_clip_val", "-1"], "--trainer.gradient_clip_val = -1: must be at least 0"),
    # Names of folders that are none, or another one's.
    (["--name", "."], "--name = '.': must name a folder"),
    (["--name", ""], "--name = '': is empty, as of a variable that is not set"),
    (["--name", "../mine"], "--name = '../mine': would lie outside of --checkpoints and --logs"),
    (["--name", "surrogates"], "--name = 'surrogates': surrogates is the folder of models that"),
    (["--f_b_training", "nosuch"], "--f_b_training nosuch: no such preset"),
    # Nothing, where something is needed.
    (
        ["--training.objective", "null"],
        "--training.objective = None: without .*: give --training s",
    ),
    (["--training", "fast", "--training.objective=null"], "--training.objective = None: without"),
    (["--trainer.max_epochs", "null"], "--trainer.max_epochs = None: .* 1,000 epochs: give their"),
    (
        ["--training", "adversarial", "--training.objective.attack", "null"],
        "--training.objective.attack = None: must be an Attack",
    ),
    (
        ["--training", "adversarial", "--training.objective.attack.steps", "null"],
        "--training.objective.attack.steps = None: must be a whole number",
    ),
    (
        ["--training", "trades", "--training.objective.beta", "null"],
        "--training.objective.beta = None: must be a number",
    ),
    (["--data.batch_size", "null"], "--data.batch_size = None: must be a whole number"),
]


@pytest.mark.parametrize(
    ("arguments", "said"),
    TRAIN,
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_train(refused, arguments, said):
    started = time.monotonic()
    line = refused("train.py", *arguments)
    assert re.search(said, line), line
    assert time.monotonic() - started < 10, "found only after an f_b was trained?"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--robust.attacks", "apgd-t"],
            "--robust.attacks apgd-t: objective TargetedDLR needs at least 4 classes, the model has"
            " 2; TargetedMargin needs two: take --robust.attacks apgd-t-margin",
        ),
        (
            ["--training", "adversarial", "--training.objective.attack", "apgd-dlr"],
            "--training.objective.attack: objective DLR needs at least 3 classes, the model has 2",
        ),
    ],
)
def test_attacks_for_more_classes_are_refused_before_an_epoch(refused, tmp_path, arguments, said):
    for name in ("cat", "dog"):
        folder = tmp_path / "pets" / "train" / name
        folder.mkdir(parents=True)
        for number in range(4):
            Image.new("L", (8, 8), 40 * number).save(folder / f"{number}.png")
    data = ["--data", tmp_path / "pets", "--data.validation", "0.5", "--model", "mlp"]
    assert said in refused("train.py", *data, *arguments)


NETWORK = ["--model", "vgg_small"]
EVALUATE = [
    (
        [*NETWORK, "--trainer.limit_test_batches", "1"],
        "--trainer.limit_test_batches = 1: its audit would be of .*: take --images",
    ),
    (
        [*NETWORK, "--trainer.limit_test_batches", "0.0"],
        "--trainer.limit_test_batches = 0.0: .*--images",
    ),
    ([*NETWORK, "--trainer.fast_dev_run", "true"], "--trainer.fast_dev_run = True: .*--images"),
    ([], "no checkpoint under .*train.py"),
    (["--checkpoint", "nowhere.ckpt"], "--checkpoint = 'nowhere.ckpt': there is no such file"),
    (["--checkpoint", "x.ckpt", *NETWORK], "--checkpoint and --model exclude each other"),
    (["--weights", "w.pt"], "--weights: .*--model NAME"),
    (["--defense", "none"], "--defense: "),
    (NETWORK, "--weights FILE"),
    (["--model", "vgg_smal"], "--model vgg_smal: .*did you mean vgg_small"),
    ([*NETWORK, "--attack", "pdg"], "--attack pdg: .*did you mean pgd"),
    ([*NETWORK, "--attack", "mine.py"], "--attack mine.py: name the .* --attack mine.py:NAME"),
    ([*NETWORK, "--suite", "bdpa"], "--suite bdpa: .*did you mean bpda"),
    ([*NETWORK, "--attacks", "pgd"], "--attacks .*did you mean --attack"),
    ([*NETWORK, "--attack"], "--attack: a value is missing"),
    ([*NETWORK, "--attack.stepz", "3"], "stepz.*did you mean.* steps"),
    ([*NETWORK, "--attack.steps", "x"], "--attack.pgd.steps: .*x"),
    ([*NETWORK, "--attack.steps", "[1"], r"--attack.steps \[1"),
    ([*NETWORK, "--attack.steps", "-1"], "--attack.pgd.steps = -1: must be at least 0"),
    ([*NETWORK, "--attack.fgsm.steps", "3"], "fgsm"),
    ([*NETWORK, "--epsilon", "-1"], "--epsilon = -1.0: must be at least 0"),
    ([*NETWORK, "--epsilon", "inf"], "--epsilon"),
    (
        [*NETWORK, "--epsilon", "0.1", "--attack.threat.epsilon", "8/255"],
        "--attack.threat.epsilon 8/255: another radius than --epsilon 0.1, which",
    ),
    (
        [*NETWORK, "--epsilon", "0.1", "--attack.threat.init_args.epsilon", "8/255"],
        "--attack.threat.init_args.epsilon 8/255: another radius than --epsilon 0.1, which",
    ),
    (
        [
            *(*NETWORK, "--epsilon", "0.1", "--attack.threat"),
            "{class_path: robusttrain.attacks.L2, init_args: {epsilon: 0.7}}",
        ],
        "another radius than --epsilon 0.1, which",
    ),
    (["--checkpoint", ""], "--checkpoint = '': is empty, as of a variable"),
    ([*NETWORK, "--epsilon", "abc"], "--epsilon: abc: must be a number, such as 0.5 or 8/255"),
    ([*NETWORK, "--epsilon", "8/0"], "--epsilon: 8/0: must be a number"),
    ([*NETWORK, "--attack.steps", "8/255"], "steps: .*: must be a whole number"),
    ([*NETWORK, "--data", "./robustrain"], "did you mean the folder robusttrain"),
    ([*NETWORK, "--draws", "0"], "--draws = 0"),
    ([*NETWORK, "--split", "valid"], "--split: .*valid: must be one of test, validation"),
    ([*NETWORK, "--curve_effort", "0,1/2"], "--curve_effort = 0.0: must be greater than 0"),
    ([*NETWORK, "--images", "0"], "images = 0: must be at least 1"),
    ([*NETWORK, "--data.batch_size", "0"], "data.batch_size = 0"),
    (
        [*NETWORK, "--precision", "half"],
        "--precision: .*half: must be one of auto, float32, bfloat16",
    ),
    ([*NETWORK, "--save_images", "maybe"], "--save_images: .*maybe"),
    (
        [*NETWORK, "--output", "pyproject.toml/below"],
        "--output pyproject.toml/below: cannot be written to",
    ),
    (
        [
            *NETWORK,
            "--attack",
            "mdifgsm",
            "--attack.source.class_path",
            "robusttrain.attacks.Checkpoint",
        ],
        "path",
    ),
    ([*NETWORK, "--attack.rule.class_path", "robusttrain.attacks.Linf"], "rule.*Linf"),
    (
        [*NETWORK, "--data.image_size", "28", "--weights", "README.md"],
        "image_size = 28: must be a multiple of 16",
    ),
    ([*NETWORK, "--attack", "pgd", "--attack.steps", "null"], "pgd.steps = None: must be a whole"),
    (
        [*NETWORK, "--attack", "pgd", "--attack", "pgd.steps", "3"],
        "pgd.steps: no such preset; to change steps of pgd: --attack pgd --attack.pgd.steps VALUE",
    ),
    (["--attack", "bpda-i.steps", "3"], "--attack bpda-i --attack.bpda-i.steps VALUE"),
    (
        ["--model", "resnet_small", "--defense", "noise.sigma", "0.1"],
        "to change sigma of noise: --defense noise --defense.sigma VALUE",
    ),
    (["--suite", "worst-case.images", "3"], "--suite worst-case --images VALUE"),
    ([*NETWORK, "--attack", "pgd", "square"], "arguments: square; an option takes one value, and"),
    (
        [*NETWORK, "--attack", "pgd,fgsm"],
        "--attack pgd,fgsm: takes one name, and is given again for each: --attack pgd --attack fg",
    ),
    (["--suite", "quick, worst-case"], "again for each: --suite quick --suite worst-case"),
    ([*NETWORK, "--attack", "pgd,"], "--attack pgd,: takes one name"),
    (
        [*NETWORK, "--attack", "pgd", "--attack.objective", "null"],
        "--attack.pgd.objective = None: must be an Objective",
    ),
    (
        [*NETWORK, "--attack", "pgd", "--attack.threat", "null"],
        "--attack.pgd.threat = None: must be a Threat",
    ),
    ([*NETWORK, "--weights", "nowhere.pt"], "--weights = 'nowhere.pt': there is no such file"),
    (
        [*NETWORK, "--defense", "advtransform", "--defense.weights", "nowhere.pt"],
        "--defense.weights = 'nowhere.pt': there is no such file",
    ),
    ([*NETWORK, "--weights.which", "raw"], "--weights.which: chooses in a file: .*--weights FILE"),
    ([*NETWORK, "--weights", "w.pt", "--defense", "advtransform"], "--defense.weights FILE"),
]


@pytest.mark.parametrize(
    ("arguments", "said"),
    EVALUATE,
    ids=lambda value: " ".join(value) or "alone" if isinstance(value, list) else "",
)
def test_evaluate(refused, arguments, said):
    line = refused("evaluate.py", *arguments)
    assert re.search(said, line), line


@pytest.mark.parametrize(
    ("script", "content", "fix"),
    [
        ("train.py", "trainer: null", "trainer = None: must be a mapping of options to values"),
        ("train.py", "trainer: 5", "trainer = 5: must be a mapping"),
        ("train.py", "training: null", "training = None: must be a preset's name, or a mapping"),
        ("train.py", "training: [trades]", r"training = \['trades'\]: must be a preset's name"),
        ("train.py", "data: null", "data = None: must be a preset's name"),
        ("train.py", "checkpoints: null", "checkpoints = None: must be text"),
        ("train.py", "swa: null", "swa = None: must be a mapping"),
        ("train.py", "ema: null", "ema = None: must be a number"),
        ("evaluate.py", "attack: 5", "attack = 5: must be a preset's name, or a list of them"),
        ("evaluate.py", "trainer: null", "trainer = None: must be a mapping"),
        ("evaluate.py", "attacks: null", "attacks = None: must be a mapping of names to attacks"),
        ("evaluate.py", "seed: null", "seed = None: must be a number"),
    ],
)
def test_a_value_of_a_wrong_type_in_a_file(refused, tmp_path, script, content, fix):
    (tmp_path / "mine.yaml").write_text(content)
    line = refused(script, "--config", tmp_path / "mine.yaml")
    assert re.search(f"error: --config {tmp_path}/mine.yaml: {fix}", line), line


@pytest.mark.parametrize(
    "content",
    ["attack: [pgd-quick]\nimages: 5\nattack: [fgsm]", "data: {seed: 1,\n\n  seed: 2}"],
)
def test_a_key_that_stands_twice(refused, tmp_path, content):
    (tmp_path / "mine.yaml").write_text(content)
    line = refused("evaluate.py", "--config", tmp_path / "mine.yaml")
    key = content.partition(":")[0] if content.startswith("attack") else "seed"
    assert f"mine.yaml: {key} stands twice (lines 1 and 3)" in line


def test_an_option_without_effect_in_a_file(refused, tmp_path):
    (tmp_path / "mine.yaml").write_text("training: {schedule: cosine, warmup: 0.5}\n")
    assert "--training.warmup = 0.5" in refused("train.py", "--config", tmp_path / "mine.yaml")


def test_what_a_preset_says_may_have_no_effect(tmp_path):
    """fast has a warmup for its own schedule; what --print_config writes is no choice either."""
    plan = read_plan(["--training", "fast", "--schedule", "cosine", "--model", "mlp"])
    assert plan.training["warmup"] == 0.5
    said = {"training": plan.training, "swa": {"start": None, "batches": 20}}
    assert read_plan(["--model", "mlp"], [said]).training["schedule"] == "cosine"


@pytest.mark.parametrize("content", ["a: [1", "- 1", "\x00"])
@pytest.mark.parametrize("option", ["--config", "--defense", "--training"])
def test_yaml_that_cannot_be_read(refused, tmp_path, option, content):
    (tmp_path / "broken.yaml").write_text(content)
    assert "broken.yaml" in refused("train.py", option, tmp_path / "broken.yaml")


def folder_of_images(root, classes, side):
    for split in ("train", "test"):
        for number in range(classes):
            folder = root / split / f"class{number}"
            folder.mkdir(parents=True)
            for image in range(4):
                Image.new("L", (side, side), 20 * image).convert("RGB").save(
                    folder / f"{image}.png"
                )
    return ["--data", "imagefolder", "--data.root", root]


@pytest.mark.parametrize(("key", "empty"), [("attack", "[]"), ("attacks", "{}"), ("suite", "[]")])
def test_a_file_that_names_no_attack_does_not_run_the_default(refused, tmp_path, key, empty):
    (tmp_path / "empty.yaml").write_text(f"checkpoint: digits-standard\n{key}: {empty}\n")
    line = refused("evaluate.py", "--config", tmp_path / "empty.yaml")
    assert f"--config: {key} is empty: name one" in line


def test_an_attack_below_a_key_too_many_names_the_key(refused, tmp_path):
    inside = "{class_path: robusttrain.attacks.ProjectedGradient, init_args: {steps: 3}}"
    (tmp_path / "mine.yaml").write_text(f"attack: {inside}\n")
    line = refused("evaluate.py", *NETWORK, "--attack", tmp_path / "mine.yaml")
    assert "what is under its key 'attack' has one: leave the key out" in line


@pytest.mark.parametrize(("classes", "side"), [(3, 16), (10, 32)])
def test_weights_for_other_data_are_refused(refused, tmp_path, classes, side):
    torch.save(VGGSmall(10, 3, 16).state_dict(), tmp_path / "w.pt")
    data = folder_of_images(tmp_path / "images", classes, side)
    line = refused("evaluate.py", *NETWORK, "--weights", tmp_path / "w.pt", *data)
    assert "does not fit VGGSmall" in line
    assert "classifier" in line


def test_data_of_another_kind_than_the_checkpoints_are_refused(refused, trained, tmp_path):
    data = folder_of_images(tmp_path / "images", 3, 16)
    assert "10 classes" in refused("evaluate.py", "--checkpoint", trained.best, *data)


def test_more_images_than_there_are(refused, trained):
    assert "images = 298: the test split has 297" in refused(
        "evaluate.py", "--checkpoint", trained.best, "--images", 298
    )


def test_differing_threats_are_refused(refused, trained, tmp_path):
    line = refused(
        "evaluate.py",
        "--checkpoint",
        trained.best,
        "--attack",
        "fgsm",
        "--attack",
        "pgd",
        "--attack.fgsm.threat.epsilon",
        0.1,
    )
    assert "--epsilon E" in line


def test_hostile_and_broken_checkpoints(refused, trained, tmp_path, monkeypatch):
    path = tmp_path / "a.ckpt"
    whole = trained.best.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "truncated" in refused("evaluate.py", "--checkpoint", path)
    path.write_bytes(b"")
    assert "is empty" in refused("evaluate.py", "--checkpoint", path)

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    content = torch.load(trained.best, weights_only=True)
    torch.save({**content, "evil": Evil()}, path)
    assert "needs code to load" in refused("evaluate.py", "--checkpoint", path)
    assert "needs code to load" in refused("train.py", "--ckpt_path", path)
    (tmp_path / "evil_module.py").write_text(
        f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\nclass Net: pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for part in ("model", "data", "defense"):
        recipe = {
            **content["robusttrain"],
            part: {"class_path": "evil_module.Net", "init_args": {}},
        }
        torch.save({**content, "robusttrain": recipe}, path)
        assert "--trust evil_module" in refused("evaluate.py", "--checkpoint", path)
    inner = {"class_path": "evil_module.Net"}
    for source in (
        {"class_path": "robusttrain.defenses.Chain", "init_args": {"defenses": [inner]}},
    ):
        torch.save({**content, "robusttrain": {**content["robusttrain"], "defense": source}}, path)
        assert "not trusted" in refused("evaluate.py", "--checkpoint", path)
    assert not (tmp_path / "ran").exists(), (
        "code of the checkpoint was run, or a module that it names was imported"
    )


@pytest.mark.parametrize(
    ("script", "run"),
    [
        pytest.param("train.py", "run_script", marks=pytest.mark.long),
        pytest.param("evaluate.py", "run_script", marks=pytest.mark.long),
        ("evaluate.py", "run_forked"),
    ],
)
def test_as_processes_of_their_own(request, tmp_path, script, run):
    wrong = {"train.py": ["--training.momentum", "2"], "evaluate.py": ["--model", "vgg_smal"]}[
        script
    ]
    done = request.getfixturevalue(run)(script, *wrong, "--checkpoints", tmp_path)
    assert done.code == 2
    assert done.out == ""
    assert len(done.err.splitlines()) == 1
    assert done.err.startswith(f"{script}: error: ")


GREEDY = [
    "--training",
    "adversarial-through-g-eot",
    "--defense",
    "advtransform",
    "--robust.every",
    "0",
]


def test_an_inner_attack_that_memory_does_not_hold(refused, monkeypatch):
    """With memory for a batch of 128, and a half more."""
    from robusttrain.training import refusals

    monkeypatch.setattr(refusals, "bytes_per_image", lambda source, images: 2**20)
    monkeypatch.setattr(refusals, "free_bytes", lambda device: 192 * 2**20)
    line = refused("train.py", *GREEDY, "--training.objective.attack.gradient.chunk", "4")
    said = (
        "--training.objective.attack.gradient.chunk = 4: 4 draws of 128 images at once: needs about"
        " 0.5 GiB, 0.2 GiB"
    )
    assert said in line
    assert line.endswith("give at most 1")
    line = refused("train.py", "--training", "trades", "--data.batch_size", "256")
    assert re.search(
        r"--data.batch_size = 256: needs about 0.5 GiB, 0.2 GiB are free: give at most 96$", line
    ), line


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the disk quota is used up"),
        (errno.EFBIG, "a file may not grow so large here"),
        (errno.EROFS, "the disk is read-only"),
        (errno.EIO, "the disk failed"),
        (errno.ESTALE, "the network folder is gone"),
    ],
)
def test_a_disk_that_takes_no_more_is_one_line(number, said, capsys):
    def command(arguments):
        raise OSError(number, "in the middle")

    with pytest.raises(SystemExit) as ended:
        main(command, [])
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert f"{said}" in err
    assert "what was finished is kept" in err
    assert err.count("\n") == 1


def test_a_file_that_may_not_grow_is_named(tmp_path, capsys):
    def command(arguments):
        write_whole(tmp_path / "verdicts.safetensors", bytes(4000))

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.raises(SystemExit) as ended:
            main(command, [])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert f"{tmp_path / 'verdicts.safetensors'}: a file may not grow so large here" in err
    assert err.count("\n") == 1
    assert not [*tmp_path.iterdir()]


def test_what_cannot_be_cleared_away_hides_no_error(tmp_path, monkeypatch):
    """A file system that became read-only keeps the half of a file, too."""

    def read_only(path, missing_ok=False):
        raise OSError(errno.EROFS, "read-only", str(path))

    monkeypatch.setattr(os, "fsync", lambda _: os.write(-1, b""))  # no such file descriptor
    monkeypatch.setattr(Path, "unlink", read_only)
    with pytest.raises(OSError, match=r"verdicts\.safetensors'$") as raised:
        write_whole(tmp_path / "verdicts.safetensors", b"1")
    assert raised.value.errno == errno.EBADF


def test_a_name_in_bytes_is_said_as_a_name(capsys):
    def command(arguments):
        raise OSError(errno.EROFS, "as TensorBoard names it", b"logs/events")

    with pytest.raises(SystemExit):
        main(command, [])
    assert "error: logs/events: the disk is read-only" in capsys.readouterr().err


def test_a_thread_that_the_full_disk_ends_first_says_nothing(capsys):
    """TensorBoard writes in one; any other error of a thread is told of."""

    def command(arguments):
        def write():
            raise OSError(errno.ENOSPC, "in the middle")

        def fail():
            raise ValueError("of its own")

        for work in (write, fail):
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
        write()

    before = threading.excepthook
    try:
        with pytest.raises(SystemExit) as ended:
            main(command, [])
    finally:
        threading.excepthook = before
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert "ValueError: of its own" in err
    assert err.count("in the middle") == 0
    assert err.count("the disk is full") == 1
