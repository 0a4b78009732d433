"""A run that is killed and resumed ends with the same weights, bit for bit, as the run left
alone.
"""

import errno
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from robusttrain.running.resuming import TRAINING
from robusttrain.storage.locks import alone
from robusttrain.training import RobustTraining
from robusttrain.training.whole_files import WholeFiles

pytestmark = pytest.mark.filterwarnings("ignore")


def places(folder):
    return ["--checkpoints", folder / "checkpoints", "--logs", folder / "logs"]


def last(folder):
    (path,) = (folder / "checkpoints").glob("*/version_0/last.ckpt")
    return torch.load(path, weights_only=True)


def assert_same(one, other, where=""):
    """Equal to the last bit, whatever is nested in what."""
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for number, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{where}[{number}]")
    else:
        assert one == other, where


PARTS = ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step")


def test_killed_and_resumed(start_forked, command, tmp_path):
    options = [
        "--config",
        "tests/conf/trades.yaml",
        "--trainer.max_epochs",
        5,
        "--trainer.limit_train_batches",
        6,
    ]
    process = start_forked("train.py", *options, *places(tmp_path / "killed")).process
    try:
        folder = tmp_path / "killed" / "checkpoints"
        deadline = time.monotonic() + 600
        while not list(folder.glob("*/version_0/last.ckpt")):
            assert process.is_alive(), "the run ended before it kept anything"
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    assert last(tmp_path / "killed")["epoch"] < 4, "the run had ended before it was killed"

    for name, more in (("killed", ["--ckpt_path", "last"]), ("alone", [])):
        done = command("train.py", *options, *places(tmp_path / name), *more)
        assert done.code == 0, done.err
    killed, alone = last(tmp_path / "killed"), last(tmp_path / "alone")
    for part in (*PARTS, "current_model_state", "averaging_state"):
        assert_same(killed[part], alone[part], part)
    assert not (folder / "digits-cifarresnet" / "version_1").exists(), (
        "a resumed run goes on in its own folder"
    )


@pytest.mark.parametrize(
    ("conf", "more"),
    [
        ("dropout", []),
        ("dropout", ["--optimizer", "adamw", "--schedule", "poly", "--schedule.power", 2]),
        pytest.param(
            "dropout", ["--optimizer", "lion", "--schedule", "cosine"], marks=pytest.mark.long
        ),
        ("adversarial_through_g", []),
    ],
)
def test_terminated_in_the_middle_of_an_epoch_and_resumed(
    command, monkeypatch, tmp_path, conf, more
):
    """By SIGTERM, as Slurm, systemd and docker send it."""
    options = ["--config", f"tests/conf/{conf}.yaml", "--trainer.max_epochs", 3, *more]
    whole = command("train.py", *options, *places(tmp_path / "alone"))
    assert whole.code == 0, whole.err

    step = RobustTraining.training_step

    def cut(module, batch, batch_idx):
        if (module.current_epoch, batch_idx) == (1, 1):
            signal.raise_signal(signal.SIGTERM)
        return step(module, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(RobustTraining, "training_step", cut)
        cut_off = command("train.py", *options, *places(tmp_path / "cut"))
    assert cut_off.code == 143
    (kept,) = (tmp_path / "cut" / "checkpoints").glob("*/version_0/last.ckpt")
    said = (
        f"terminated: the last finished epoch is kept as {kept}; --ckpt_path last goes on from"
        " there"
    )
    assert cut_off.err.splitlines()[-1] == said
    assert last(tmp_path / "cut")["epoch"] == 0
    resumed = command("train.py", *options, *places(tmp_path / "cut"), "--ckpt_path", "last")
    assert resumed.code == 0, resumed.err
    for part in PARTS:
        assert_same(last(tmp_path / "cut")[part], last(tmp_path / "alone")[part], part)


@pytest.mark.parametrize("taken", ["logs", "checkpoints"])
def test_a_folder_that_is_taken_away_says_how_to_go_on(command, monkeypatch, tmp_path, taken):
    """TensorBoard would stop with pages of traceback, and what was kept would not be said."""
    options = ["--config", "tests/conf/trades.yaml", "--training.schedule", "constant"]
    options += ["--trainer.max_epochs", 3, "--trainer.limit_train_batches", 2, *places(tmp_path)]
    step, folder = RobustTraining.training_step, tmp_path / taken

    def take(module, batch, batch_idx):
        if (module.current_epoch, batch_idx) == (1, 0):
            shutil.rmtree(folder)
            folder.touch()
        return step(module, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(RobustTraining, "training_step", take)
        stopped = command("train.py", *options)
    assert stopped.code == 2, stopped.err
    assert "Traceback" not in stopped.err
    error = stopped.err.splitlines()[-1]
    assert error.startswith(f"train.py: error: {folder}/")
    if taken == "checkpoints":
        assert error.endswith("nothing is kept; the same command starts again")
        return
    kept = next((tmp_path / "checkpoints").rglob("last.ckpt"))
    told = f"the last finished epoch is kept as {kept}; --ckpt_path last goes on from there"
    assert error.endswith(f": cannot be written (not a directory): {told}")
    folder.unlink()
    done = command("train.py", *options, "--ckpt_path", "last")
    assert done.code == 0, done.err


@pytest.mark.parametrize("name", ["best.ckpt", "last.ckpt"])
def test_a_full_disk_says_how_to_go_on(command, monkeypatch, tmp_path, name):
    """The best epoch is written first: of the first epoch it may be all that is kept."""
    options = ["--config", "tests/conf/trades.yaml", "--training.schedule", "constant"]
    options += ["--trainer.max_epochs", 3, "--trainer.limit_train_batches", 2, *places(tmp_path)]
    save, full = WholeFiles.save_checkpoint, []

    def fill(self, checkpoint, path, storage_options=None):
        if full:
            raise OSError(errno.ENOSPC, "no space")
        save(self, checkpoint, path, storage_options)
        full.extend([1] if Path(path).name == name else [])

    with monkeypatch.context() as patch:
        patch.setattr(WholeFiles, "save_checkpoint", fill)
        stopped = command("train.py", *options)
    assert stopped.code == 2
    *_, said, error = stopped.err.splitlines()
    assert error == "train.py: error: the disk is full; what was finished is kept"
    kept = next((tmp_path / "checkpoints").rglob(name))
    named = "last" if name == "last.ckpt" else kept
    told = f"the last finished epoch is kept as {kept}; --ckpt_path {named} goes on from there"
    assert said == f"stopped: {told}"
    done = command("train.py", *options, "--ckpt_path", named)
    assert done.code == 0, done.err
    assert last(tmp_path)["epoch"] == 2


SMALL = ["--data", "digits", "--data.image_size", 8, "--model", "mlp", "--training", "fast"]
SMALL += ["--robust.images", 8, "--pictures.images", 0, "--logger", "csv", "--name", "mine"]
SMALL += ["--trainer.accelerator", "cpu", "--trainer.limit_train_batches", 4]


def test_nobody_else_goes_on_in_the_folder_of_a_run_that_is_at_work(command, monkeypatch, tmp_path):
    """Each removed what the other was writing, or mixed its figures with its own."""
    step, free = RobustTraining.training_step, []

    def look(module, batch, batch_idx):
        folder = tmp_path / "checkpoints" / "mine" / "version_0"
        with alone(folder / TRAINING, "it", pytest.fail, wait=False) as mine:
            free.append(mine)
        return step(module, batch, batch_idx)

    options = [*SMALL, "--schedule", "constant", *places(tmp_path)]
    with monkeypatch.context() as patch:
        patch.setattr(RobustTraining, "training_step", look)
        for epochs, more in ((1, []), (2, ["--ckpt_path", "last"])):
            done = command("train.py", *options, "--trainer.max_epochs", epochs, *more)
            assert done.code == 0, done.err
    assert free == [False] * 8
    with alone(
        tmp_path / "checkpoints/mine/version_0" / TRAINING, "it", pytest.fail, False
    ) as mine:
        assert mine


def test_a_best_epoch_that_is_not_over_is_no_finished_one(command, monkeypatch, tmp_path):
    """It trains on with the images that the epoch began with, which was promised to end as a run
    that was left alone.
    """
    step, seen = RobustTraining.training_step, []

    def cut(module, batch, batch_idx):
        seen.append(batch.indices.tolist())
        if len(seen) == 4:
            signal.raise_signal(signal.SIGTERM)
        return step(module, batch, batch_idx)

    options = [*SMALL, *places(tmp_path), "--trainer.max_epochs", 1]
    options += ["--trainer.val_check_interval", 0.5]
    with monkeypatch.context() as patch:
        patch.setattr(RobustTraining, "training_step", cut)
        stopped = command("train.py", *options)
        assert stopped.code == 143
        best = tmp_path / "checkpoints/mine/version_0/best.ckpt"
        assert stopped.err.splitlines()[-1] == (
            f"terminated: no epoch was finished; {best} is from within one: evaluate it, or give"
            " the same command, which starts again"
        )
        done = command("train.py", *options, "--ckpt_path", best)
    assert done.code == 0, done.err
    said = f"--ckpt_path {best}: was kept within epoch 1, after 2 of its batches: the rest"
    assert said in done.err
    assert seen[4:] == seen[:2]


@pytest.fixture(scope="module")
def finished(run_here, tmp_path_factory):
    """A run of one epoch."""
    folder = tmp_path_factory.mktemp("finished")
    done = run_here(
        "train.py", "--config", "tests/conf/trades.yaml", "--trainer.max_epochs", 1, *places(folder)
    )
    assert done.code == 0, done.err
    return folder


#: Whole, so that nothing is assumed of it.
ADAMW = ["--optimizer", "adamw", "--optimizer.lr", 0.1, "--optimizer.weight_decay", 0.1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--training.learning_rate", 0.2], "training.learning_rate = 0.1, this one 0.2"),
        (ADAMW, "training.optimizer = 'sgd', this one 'adamw'"),
        (["--training.objective.beta", 2], "beta = 1.0, this one 2.0"),
        (["--training.objective.attack.steps", 2], "steps = 1, this one 2"),
        (["--data.batch_size", 32], "batch_size = 64, this one 32"),
        (["--model.widths", "[4, 8, 4]"], "widths"),
        (["--defense", "randomization", "--name", "digits-cifarresnet"], "defense"),
        (["--seed", 1], "seed = 0, this one 1"),
        (["--ema", 0.5], "ema = 0.9, this one 0.5"),
        (["--trainer.max_epochs", 2], "max_epochs = 1, this one 2"),
        (["--trainer.max_steps", 1], "max_steps = -1, this one 1"),
        (["--trainer.limit_train_batches", 1], "limit_train_batches = "),
        (["--monitor", "val/loss"], "monitor = 'robust/worst_case', this one 'val/loss'"),
        (["--guard.undo", "true"], "undo = None, this one True"),
    ],
)
def test_another_run_is_refused_and_what_differs_is_named(command, finished, arguments, said):
    options = ["--config", "tests/conf/trades.yaml", "--ckpt_path", "last"]
    if "--trainer.max_epochs" not in arguments:
        options += ["--trainer.max_epochs", 1]
    done = command("train.py", *options, *arguments, *places(finished))
    assert done.code == 2
    assert len(done.err.splitlines()) == 1, done.err
    assert said in done.err


def test_a_run_of_several_processes_does_not_go_on_in_one(command, finished, tmp_path):
    """The schedule would end in the middle of the run."""
    content, file = last(finished), tmp_path / "last.ckpt"
    assert content["robusttrain"]["processes"] == 1
    content["robusttrain"]["processes"] = 2
    torch.save(content, file)
    options = ["--config", "tests/conf/trades.yaml", "--trainer.max_epochs", 1]
    done = command("train.py", *options, "--ckpt_path", file, *places(tmp_path))
    assert done.code == 2
    assert "that run had 2 processes, this one 1 process: give the same" in done.err
    assert not (tmp_path / "checkpoints").exists()


def test_where_data_lie_may_change_and_a_constant_schedule_may_go_on(command, tmp_path):
    options = [
        "--config",
        "tests/conf/trades.yaml",
        "--training.schedule",
        "constant",
        *places(tmp_path),
    ]
    assert command("train.py", *options, "--trainer.max_epochs", 1).code == 0
    done = command(
        "train.py",
        *options,
        "--trainer.max_epochs",
        2,
        "--ckpt_path",
        "last",
        "--trainer.accelerator",
        "auto",
    )
    assert done.code == 0, done.err
    assert last(tmp_path)["epoch"] == 1


def test_a_checkpoint_that_lies_elsewhere_goes_on_in_a_new_folder(command, tmp_path):
    options = ["--config", "tests/conf/trades.yaml", "--training.schedule", "constant"]
    options += ["--trainer.limit_train_batches", 2, *places(tmp_path)]
    first = command("train.py", *options, "--trainer.max_epochs", 1)
    assert first.code == 0, first.err
    (kept,) = (tmp_path / "checkpoints").glob("*/version_0/last.ckpt")
    copy = tmp_path / "elsewhere" / "some.ckpt"
    copy.parent.mkdir()
    copy.write_bytes(kept.read_bytes())
    more = ["--trainer.max_epochs", 2, "--ckpt_path", copy]
    done = command("train.py", *options, *more)
    assert done.code == 0, done.err
    (later,) = (tmp_path / "checkpoints").glob("*/version_1/last.ckpt")
    assert torch.load(later, weights_only=True)["epoch"] == 1
    assert torch.load(kept, weights_only=True)["epoch"] == 0
    assert [path.name for path in copy.parent.iterdir()] == ["some.ckpt"]


def test_the_best_epoch_stays_where_the_folder_was_moved(command, tmp_path):
    """Lightning forgets its score with the folder's path, and a worse epoch took its place."""
    options = ["--config", "tests/conf/trades.yaml", "--training.schedule", "constant"]
    options += ["--trainer.limit_train_batches", 2]
    before, after = tmp_path / "before", tmp_path / "after"
    first = command("train.py", *options, "--trainer.max_epochs", 1, *places(before))
    assert first.code == 0, first.err
    for file in (before / "checkpoints").glob("*/version_0/*.ckpt"):
        content = torch.load(file, weights_only=True)
        states = [each for each in content["callbacks"].values() if "best_k_models" in each]
        (state,) = [each for each in states if each["monitor"] == "robust/worst_case"]
        state["best_model_score"] = state["kth_value"] = torch.tensor(2.0)  # out of reach
        state["best_k_models"] = dict.fromkeys(state["best_k_models"], torch.tensor(2.0))
        torch.save(content, file)
    before.rename(after)
    more = ["--trainer.max_epochs", 2, "--ckpt_path", "last", *places(after)]
    done = command("train.py", *options, *more)
    assert done.code == 0, done.err
    assert "dirpath" not in done.err
    assert last(after)["epoch"] == 1
    (best,) = (after / "checkpoints").glob("*/version_0/best.ckpt")
    assert torch.load(best, weights_only=True)["epoch"] == 0
    states = last(after)["callbacks"].values()
    paths = [path for each in states for path in each.get("best_k_models", ())]
    assert {str(before) in path for path in paths} == {False}


def test_an_f_b_is_that_of_the_run_that_goes_on(command, tmp_path):
    """Another one would be trained, or announced, and then not be used."""
    options = ["--model", "mlp", "--defense", "advtransform", "--defense.model", "mlp"]
    options += ["--defense.steps", 1, "--trainer.limit_train_batches", 2, "--robust.every", 0]
    options += ["--pictures.images", 0, "--schedule", "constant", "--name", "mine"]
    own = ["--f_b_training", "tests/conf/f_b.yaml"]

    def train(folder, epochs, *more):
        return command(
            *("train.py", *options, *places(folder), "--trainer.max_epochs", epochs, *more)
        )

    there = tmp_path / "there"
    assert train(there, 1, *own).code == 0
    (f_b,) = (there / "checkpoints" / "f_b").glob("*.safetensors")
    done = train(there, 2, "--ckpt_path", "last")
    assert done.code == 2
    assert "that run had f_b_training = 'tests/conf/f_b.yaml', this one 'f_b'" in done.err
    done = train(there, 2, *own, "--ckpt_path", "last", "--seed", 0)
    assert done.code == 0
    assert "f_b:" not in done.err  # neither trained nor looked for
    other = tmp_path / "other.safetensors"
    save_file({name: value + 0.01 for name, value in load_file(f_b).items()}, other)
    done = train(there, 3, *own, "--ckpt_path", "last", "--defense.weights", other)
    assert done.code == 2
    assert f"--defense.weights {other}: the run in" in done.err
    assert "has another f_b" in done.err
    same = train(there, 3, *own, "--ckpt_path", "last", "--defense.weights", f_b)
    assert same.code == 0, same.err
