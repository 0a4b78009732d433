"""A checkpoint is never lost to the one that comes after it."""

import resource

import pytest
import torch

from robusttrain.config.trainer import trainer_from

SMALL = {"accelerator": "cpu", "max_epochs": 1, "enable_progress_bar": False}


@pytest.fixture
def keeping():
    return trainer_from(SMALL, logger=False).strategy.checkpoint_io


@pytest.fixture
def full_disk():
    """No file may grow beyond some bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_was_there_stays_until_the_new_one_is_whole(keeping, tmp_path, request):
    last = tmp_path / "run" / "last.ckpt"
    keeping.save_checkpoint({"epoch": 1}, last)
    keeping.save_checkpoint({"epoch": 2}, last)
    before = last.read_bytes()
    request.getfixturevalue("full_disk")
    with pytest.raises(OSError, match="File too large"):
        keeping.save_checkpoint({"weights": torch.zeros(1000)}, last)
    assert last.read_bytes() == before
    assert keeping.load_checkpoint(last, weights_only=True) == {"epoch": 2}
    assert list(last.parent.iterdir()) == [last], "no part of the new one"


def test_what_a_kill_left_of_a_checkpoint_goes_with_the_next(keeping, tmp_path):
    last, best = tmp_path / "last.ckpt", tmp_path / "best.ckpt"
    (tmp_path / ".last.ckpt.0123").write_bytes(b"a part")
    keeping.save_checkpoint({"epoch": 1}, best)
    keeping.save_checkpoint({"epoch": 1}, str(last))
    assert {*tmp_path.iterdir()} == {last, best}


def test_a_plugin_of_the_users_own_stays():
    from pytorch_lightning.plugins.io import TorchCheckpointIO

    class Own(TorchCheckpointIO):
        pass

    trainer = trainer_from({**SMALL, "plugins": [Own()]}, logger=False)
    assert type(trainer.strategy.checkpoint_io) is Own
