"""Trainings that start together have a folder each, and what is refused leaves none."""

import pytest
import torch
from pytorch_lightning.utilities import rank_zero_only

from robusttrain.core.errors import UserError
from robusttrain.running.resuming import Place, claimed, next_version


def place(runs, resume=None):
    version = next_version(runs) if resume is None else resume.parent.name
    return Place(version, runs / version, resume)


def test_runs_that_looked_at_the_same_moment_get_folders_of_their_own(tmp_path):
    looked = [place(tmp_path / "run") for _ in range(3)]
    assert [each.version for each in looked] == ["version_0"] * 3, "the case shows nothing"
    got = []
    for each in looked:
        with claimed(each) as own:
            assert own.folder == tmp_path / "run" / own.version
            assert own.folder.is_dir()
            got.append(own.version)
    assert got == ["version_0", "version_1", "version_2"]


def test_a_run_that_goes_on_keeps_its_folder(tmp_path):
    folder = tmp_path / "run" / "version_0"
    folder.mkdir(parents=True)
    (folder / "last.ckpt").write_bytes(b"kept")
    with claimed(place(tmp_path / "run", folder / "last.ckpt")) as own:
        assert own.folder == folder
    assert [each.name for each in (tmp_path / "run").iterdir()] == ["version_0"]


def test_what_is_refused_or_interrupted_inside_leaves_no_folder(tmp_path):
    for error in (UserError, KeyboardInterrupt):
        with pytest.raises(error), claimed(place(tmp_path / "checkpoints" / "run")):
            raise error("no key")
    assert not [*tmp_path.iterdir()]


def test_other_processes_of_a_run_make_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    with claimed(place(tmp_path / "run")) as own:
        assert own.version == "version_0"
    assert not (tmp_path / "run").exists()


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_two_trainings_that_start_together_keep_two_models(start_script, tmp_path):
    words = ["--data", "digits", "--data.image_size", "8", "--model", "mlp", "--logger", "csv"]
    words += ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1", "--robust.every"]
    words += ["0", "--training", "standard", "--trainer.accelerator", "cpu"]
    words += ["--checkpoints", tmp_path / "kept", "--logs", tmp_path / "logs"]
    started = [start_script("train.py", *words, "--seed", seed) for seed in (1, 2)]
    try:
        assert [each.wait(timeout=300) for each in started] == [0, 0]
    finally:
        for each in started:
            each.kill()
    seeds = {
        torch.load(file, weights_only=True)["robusttrain"]["run"]["seed"]
        for file in (tmp_path / "kept").glob("*/version_*/best.ckpt")
    }
    assert seeds == {1, 2}
    assert len([*(tmp_path / "logs").glob("*/version_*")]) == 2
