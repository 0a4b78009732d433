"""Recipes through train.py: what they leave, what they say of themselves, and what an estimate says
before.
"""

import re

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from robusttrain import load
from robusttrain.config.checkpoints import as_before, read_recipe
from robusttrain.evaluation.precision import Speeds
from robusttrain.training import module

pytestmark = pytest.mark.filterwarnings("ignore")
SMALL = [
    "--model.widths",
    "[4, 8]",
    "--model.blocks",
    1,
    "--data.batch_size",
    64,
    "--trainer.accelerator",
    "cpu",
]
SMALL_G = ["--defense", "advtransform", "--defense.model.width", 8]
SHORT = ["--trainer.enable_progress_bar", "false", "--robust.images", 8, "--pictures.images", 0]


@pytest.fixture
def train(command, tmp_path):
    def run(*arguments, code=0):
        places = ["--checkpoints", tmp_path / "checkpoints", "--logs", tmp_path / "logs"]
        done = command("train.py", *places, *arguments)
        assert done.code == code, done.err
        kept = re.search(r"into (\S+)$", done.err, re.MULTILINE)
        done.folder = tmp_path.joinpath(kept[1]) if kept else None
        return done

    return run


def test_fast_training_with_averaged_weights(train):
    done = train("--config", "tests/conf/fast_swa.yaml")
    content = torch.load(done.folder / "last.ckpt", weights_only=True)
    averaged, own = content["state_dict"], content["current_model_state"]
    name = "model.classifier.classifier.weight"
    assert not torch.equal(averaged[name], own[name])
    assert torch.equal(load(done.folder / "last.ckpt").classifier.classifier.weight, averaged[name])
    assert read_recipe(done.folder / "last.ckpt")["run"]["swa"] == {"start": 1, "batches": 2}
    # The best epoch is chosen by robust accuracy, unasked.
    assert any("robust/worst_case" in key for key in content["callbacks"] if "Checkpoint" in key)

    (folder,) = (done.folder.parents[2] / "logs").glob("*/version_0")
    found = EventAccumulator(str(folder)).Reload()
    for tag in (
        *(
            "pace/images_per_second",
            "pace/inner_share",
            "pace/memory_gib",
            "weights/norm",
            "inner/train_accuracy",
        ),
        *(
            "inner/accuracy",
            "inner/strength",
            "overfitting/fall",
            "overfitting/catastrophic",
            "overfitting/robust",
        ),
        *("val/accuracy", "robust/pgd-quick", "robust/worst_case"),
    ):
        assert len(found.Scalars(tag)) == 3, tag
    assert 0 < found.Scalars("pace/inner_share")[-1].value < 1
    layout = (
        found.Tensors("custom_scalars__config__")[0]
        .tensor_proto.string_val[0]
        .decode("utf-8", "replace")
    )
    for chart in ("fall of robust accuracy", "catastrophic overfitting, 1 where", "strength of"):
        assert chart in layout


def test_gradient_clipping_reaches_the_step(train):
    """With gradients clipped to almost nothing, weights stay where they were."""
    still = [
        "--trainer.gradient_clip_val",
        "1e-12",
        "--training.weight_decay",
        0,
        "--swa.start",
        "null",
    ]
    runs = [
        train("--config", "tests/conf/fast_swa.yaml", *still, "--trainer.max_epochs", n).folder
        for n in (1, 2)
    ]
    first, second = (load(folder / "last.ckpt").classifier.classifier.weight for folder in runs)
    torch.testing.assert_close(first, second, atol=1e-8, rtol=0)
    free = ["--swa.start", "null", "--trainer.max_epochs", 1]
    moved = train("--config", "tests/conf/fast_swa.yaml", *free).folder
    assert (load(moved / "last.ckpt").classifier.classifier.weight - second).abs().max() > 1e-4


def test_free_training_with_extra_images(train, tmp_path):
    for name in ("0", "7"):
        (tmp_path / "more" / "train" / name).mkdir(parents=True)
        for number in range(3):
            Image.new("L", (16, 16), 60 * number).save(
                tmp_path / "more" / "train" / name / f"{number}.png"
            )
    extra = ["--extra.root", tmp_path / "more", "--extra.share", 0.25]
    done = train(
        "--training", "free", *SMALL, *SHORT, *extra, "--trainer.max_epochs", 1, "--estimate"
    )
    # 1,347 images of its own, 48 in a batch; 8 replays of 28 batches of 64.
    assert (
        "Free: 14,336 images an epoch, each 1 for the weights: 14,336 gradient evaluations"
        in done.err
    )
    brief = [
        "--trainer.max_epochs",
        1,
        "--trainer.limit_train_batches",
        16,
        "--training.objective.replays",
        4,
    ]
    done = train("--training", "free", *SMALL, *SHORT, *extra, *brief)
    recipe = read_recipe(done.folder / "last.ckpt")
    assert recipe["run"]["extra"] == {"images": 6, "share": 0.25}
    kept = torch.load(done.folder / "last.ckpt", weights_only=True)["objective"]["delta"]
    assert kept.shape == (64, 1, 16, 16)
    assert kept.abs().max() == pytest.approx(0.031)


def test_an_estimate_starts_nothing(train, tmp_path):
    brief = [
        "--trainer.max_epochs",
        12,
        "--trainer.limit_train_batches",
        2,
        "--robust.every",
        5,
        "--defense.steps",
        0,
    ]
    done = train(
        "--training",
        "trades-awp",
        *SMALL_G,
        *SMALL[:-3],
        8,
        *SHORT,
        *brief,
        "--estimate",
    )
    # 16 images an epoch: 10 steps inside, two passes of TRADES, twice as many once AWP has begun.
    steps = "10 gradient evaluations of the inner attack"
    assert (
        f"epochs 0 to 9, TRADES: 16 images an epoch, each {steps}, 2 for the weights and 1 forward"
        " pass" in done.err
    )
    assert f"alone: {16 * 10 * 12:,} gradient evaluations" in done.err
    assert f"epochs 10 to 11, AWP: 16 images an epoch, each {steps}, 4 for the weights" in done.err
    assert f"training: {16 * (10 * 12 + 2 * 14):,} gradient evaluations, about " in done.err
    # After epochs 5, 10 and the last.
    assert re.search(
        r"robust accuracy: 3 times on 8 images: [\d,]+ gradient evaluations, about ", done.err
    )
    assert "training one first" not in done.err
    assert not list((tmp_path / "checkpoints").rglob("*.*"))
    assert not list((tmp_path / "logs").rglob("events*"))


def test_an_estimate_counts_g_and_the_f_b_that_would_be_trained_first(train):
    inner = ["--training.objective.attack", "bpda-i", "--training.objective.attack.steps", 2]
    g = [
        "--training",
        "adversarial",
        *SMALL_G,
        "--defense.steps",
        3,
        "--f_b_training",
        "tests/conf/f_b.yaml",
    ]
    brief = [
        "--trainer.max_epochs",
        4,
        "--trainer.limit_train_batches",
        2,
        "--trainer.max_steps",
        5,
        "--swa.start",
        0,
    ]
    done = train(*g, *inner, *SMALL, *SHORT, *brief, "--estimate")
    before, after = done.err.split("the run itself:")
    assert "f_b: none at hand; first one would be trained (tests/conf/f_b.yaml)" in before
    assert "training: " in before
    # The preset brings its source: all three passes go through g, three gradient evaluations of f_b
    # each.
    each = "2 gradient evaluations of the inner attack and 1 for the weights, and 9 of f_b inside g"
    assert (
        f"epochs 0 to 2, Adversarial: 128 images an epoch, each {each}: {5 * 64 * 12:,} gradient"
        " evaluations" in after
    )
    # The last step ends the third epoch before its validation.
    assert "robust accuracy: 2 times on 8 images" in after
    assert (
        "statistics of the averaged weights: 2 times on 128 training images: at most about "
        in after
    )
    assert (
        f"inner attack on validation images: 2 times on 8 images: {2 * 8 * 2} gradient evaluations"
        in after
    )


def test_an_f_b_owes_nothing_to_the_recipe_of_f_a(train, tmp_path, monkeypatch):
    """Whatever replays or extra images the run has: the f_b that is kept is the same."""
    (tmp_path / "more" / "train" / "7").mkdir(parents=True)
    for number in range(3):
        Image.new("L", (16, 16), 60 * number).save(
            tmp_path / "more" / "train" / "7" / f"{number}.png"
        )
    extra = ["--extra.root", tmp_path / "more", "--extra.share", 0.25]
    g = [*SMALL_G, "--defense.steps", 1, "--f_b_training", "tests/conf/f_b.yaml"]
    brief = [
        "--trainer.max_epochs",
        1,
        "--trainer.limit_train_batches",
        2,
        "--trainer.limit_val_batches",
        1,
    ]
    kept = []
    for more in ([], ["--training", "free", "--training.objective.replays", 3, *extra]):
        train(*g, *SMALL, *SHORT, *brief, "--robust.every", 0, *more)
        (path,) = (tmp_path / "checkpoints" / "f_b").glob("*.safetensors")
        kept.append(load_file(path))
        path.unlink()
    assert all(torch.equal(value, kept[1][name]) for name, value in kept[0].items())


def test_the_inner_attack_by_its_preset_in_a_file(train, tmp_path):
    (tmp_path / "run.yaml").write_text(
        "training:\n  objective:\n    class_path: robusttrain.training.Adversarial\n"
        "    init_args: {attack: pgd-quick, label_smoothing: 0.1}\n"
    )
    brief = ["--trainer.max_epochs", 1, "--trainer.limit_train_batches", 1, "--robust.every", 2]
    done = train("--config", tmp_path / "run.yaml", *SMALL, *SHORT, *brief)
    attack = read_recipe(done.folder / "last.ckpt")["training"]["objective"]["init_args"]["attack"]
    assert attack["init_args"]["relative_step_size"] == 0.25
    assert attack["init_args"]["step_size"] is None
    assert (
        "best.ckpt: the epoch that is best by val/accuracy, since --robust.every 2 leaves epochs"
        in done.err
    )


def test_the_precision_of_inner_attacks_is_chosen_once(train, monkeypatch):
    """Measured at the start, told, and written into the checkpoint: a resumed run does not choose
    again.
    """
    brief = [
        *SMALL,
        *SHORT,
        "--training",
        "adversarial",
        "--training.objective.attack.steps",
        1,
        "--robust.every",
        0,
    ]
    brief += ["--trainer.limit_train_batches", 1, "--training.schedule", "constant"]
    brief += ["--training.inner_precision", "auto"]
    monkeypatch.setattr(module, "measure_speeds_of", lambda *_: Speeds(2.0, 1.0))
    done = train(*brief, "--trainer.max_epochs", 1)
    assert (
        "precision: inner attacks differentiate in bfloat16, since a gradient in bfloat16 takes 0.5"
        " times" in done.err
    )
    assert read_recipe(done.folder / "last.ckpt")["training"]["inner_precision"] == "bfloat16"
    monkeypatch.setattr(module, "measure_speeds_of", lambda *_: Speeds(1.0, 2.0))
    done = train(*brief, "--trainer.max_epochs", 2, "--ckpt_path", "last")
    assert read_recipe(done.folder / "last.ckpt")["training"]["inner_precision"] == "bfloat16"
    done = train(*brief[:-1], "float32", "--trainer.max_epochs", 2, "--ckpt_path", "last", code=2)
    assert "training.inner_precision = 'bfloat16', this one 'float32'" in done.err


def test_a_run_from_before_these_options_goes_on(train):
    """What an old recipe does not name is what its absence meant."""
    brief = [
        *SMALL,
        *SHORT,
        "--robust.every",
        0,
        "--trainer.limit_train_batches",
        2,
        "--training.schedule",
        "constant",
    ]
    done = train(
        *brief,
        "--trainer.max_epochs",
        1,
        "--training",
        "adversarial",
        "--training.objective.attack.steps",
        1,
    )
    path = done.folder / "last.ckpt"
    content = torch.load(path, weights_only=True)
    content["robusttrain"] = as_before(content["robusttrain"])
    assert "mixing" not in content["robusttrain"]["training"]
    assert "batch_norm" not in content["robusttrain"]["training"]["objective"]["init_args"]
    torch.save(content, path)
    brief += [
        "--training",
        "adversarial",
        "--training.objective.attack.steps",
        1,
        "--ckpt_path",
        path,
    ]
    train(*brief, "--trainer.max_epochs", 2)
    done = train(*brief, "--trainer.max_epochs", 2, "--training.mixing", "mixup", code=2)
    assert "that run had training.mixing = 'none', this one 'mixup'" in done.err
