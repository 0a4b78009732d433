"""Processes that shared a run part before they end."""

import atexit

from torch import distributed

from robusttrain.config.trainer import leave_group, trainer_from


def test_whoever_has_a_trainer_leaves_its_group_at_the_end(monkeypatch, tmp_path):
    at_the_end = []
    monkeypatch.setattr(atexit, "register", at_the_end.append)
    trainer_from({"accelerator": "cpu", "enable_progress_bar": False}, logger=False)
    assert at_the_end == [leave_group]
    leave_group()  # there is none
    where = f"file://{tmp_path / 'group'}"
    distributed.init_process_group("gloo", init_method=where, rank=0, world_size=1)
    try:
        leave_group()
        assert not distributed.is_initialized()
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()
