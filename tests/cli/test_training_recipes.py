"""Recipes through train.py: what they leave, what they say of themselves, and what an estimate says before."""

import re

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from robusttrain import load
from robusttrain.checkpoints import as_before, read_recipe

pytestmark = pytest.mark.filterwarnings("ignore")
SMALL = ["--model.widths", "[4, 8]", "--model.blocks", 1, "--data.batch_size", 64, "--trainer.accelerator", "cpu"]
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
        *("pace/images_per_second", "pace/inner_share", "pace/memory_gib", "weights/norm", "inner/train_accuracy"),
        *("inner/accuracy", "inner/strength", "overfitting/fall", "overfitting/catastrophic", "overfitting/robust"),
        *("val/accuracy", "robust/pgd-quick", "robust/worst_case"),
    ):
        assert len(found.Scalars(tag)) == 3, tag
    assert 0 < found.Scalars("pace/inner_share")[-1].value < 1
    layout = found.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0].decode("utf-8", "replace")
    for chart in ("robust overfitting", "overfitting, 1 where it is flagged", "inner attack"):
        assert chart in layout


def test_gradient_clipping_reaches_the_step(train):
    """With gradients clipped to almost nothing, weights stay where they were."""
    still = ["--trainer.gradient_clip_val", "1e-12", "--training.weight_decay", 0, "--swa.start", "null"]
    runs = [train("--config", "tests/conf/fast_swa.yaml", *still, "--trainer.max_epochs", n).folder for n in (2, 3)]
    first, second = (load(folder / "last.ckpt").classifier.classifier.weight for folder in runs)
    torch.testing.assert_close(first, second, atol=1e-8, rtol=0)
    moved = train("--config", "tests/conf/fast_swa.yaml", "--swa.start", "null").folder
    assert (load(moved / "last.ckpt").classifier.classifier.weight - second).abs().max() > 1e-4


def test_free_training_with_extra_images(train, tmp_path):
    for name in ("0", "7"):
        (tmp_path / "more" / "train" / name).mkdir(parents=True)
        for number in range(3):
            Image.new("L", (16, 16), 60 * number).save(tmp_path / "more" / "train" / name / f"{number}.png")
    extra = ["--extra.root", tmp_path / "more", "--extra.share", 0.25]
    done = train("--training", "free", *SMALL, *SHORT, *extra, "--trainer.max_epochs", 1, "--estimate")
    # 1,347 images of its own, 48 in a batch; 8 replays of 28 batches of 64.
    assert "Free: 14,336 images an epoch, each 1 for the weights: 14,336 gradient evaluations" in done.err
    brief = ["--trainer.max_epochs", 1, "--trainer.limit_train_batches", 16, "--training.objective.replays", 4]
    done = train("--training", "free", *SMALL, *SHORT, *extra, *brief)
    recipe = read_recipe(done.folder / "last.ckpt")
    assert recipe["run"]["extra"] == {"images": 6, "share": 0.25}
    kept = torch.load(done.folder / "last.ckpt", weights_only=True)["objective"]["delta"]
    assert kept.shape == (64, 1, 16, 16)
    assert kept.abs().max() == pytest.approx(0.031)


def test_an_estimate_starts_nothing(train, tmp_path):
    brief = ["--trainer.max_epochs", 12, "--trainer.limit_train_batches", 2, "--robust.every", 5, "--defense.steps", 0]
    done = train("--training", "trades-awp", "--defense", "advtransform", *SMALL[:-3], 8, *SHORT, *brief, "--estimate")
    # 16 images an epoch: 10 steps inside, two passes of TRADES, twice as many once AWP has begun.
    steps = "10 gradient evaluations of the inner attack"
    assert f"epochs 0 to 9, TRADES: 16 images an epoch, each {steps}, 2 for the weights and 1 forward pass" in done.err
    assert f"alone: {16 * 10 * 12:,} gradient evaluations" in done.err
    assert f"epochs 10 to 11, AWP: 16 images an epoch, each {steps}, 4 for the weights" in done.err
    assert f"training: {16 * (10 * 12 + 2 * 14):,} gradient evaluations, about " in done.err
    # After epochs 5, 10 and the last.
    assert re.search(r"robust accuracy: 3 times on 8 images: [\d,]+ gradient evaluations, about ", done.err)
    assert "training one first" not in done.err
    assert not list((tmp_path / "checkpoints").rglob("*.*"))
    assert not list((tmp_path / "logs").rglob("events*"))


def test_a_run_from_before_these_options_goes_on(train):
    """What an old recipe does not name is what its absence meant."""
    brief = [*SMALL, *SHORT, "--robust.every", 0, "--trainer.limit_train_batches", 2, "--training.schedule", "constant"]
    done = train(*brief, "--trainer.max_epochs", 1, "--training", "adversarial", "--training.objective.attack.steps", 1)
    path = done.folder / "last.ckpt"
    content = torch.load(path, weights_only=True)
    content["robusttrain"] = as_before(content["robusttrain"])
    assert "mixing" not in content["robusttrain"]["training"]
    assert "batch_norm" not in content["robusttrain"]["training"]["objective"]["init_args"]
    torch.save(content, path)
    brief += ["--training", "adversarial", "--training.objective.attack.steps", 1, "--ckpt_path", path]
    train(*brief, "--trainer.max_epochs", 2)
    done = train(*brief, "--trainer.max_epochs", 2, "--training.mixing", "mixup", code=2)
    assert "that run had training.mixing = None, this one 'mixup'" in done.err
