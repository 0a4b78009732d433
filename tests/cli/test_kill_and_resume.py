"""SIGKILL at any moment: the run that is started again ends as one that was never killed."""

import pytest

from benchmarks.kill_and_resume import kill_and_resume

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.long
def test_twenty_kills(trained, tmp_path):
    command = [
        "--checkpoint",
        str(trained.best),
        "--images",
        "24",
        "--draws",
        "2",
        "--data.batch_size",
        "4",
    ]
    command += [
        "--attack",
        "bpda-i-quick",
        "--attack",
        "wt",
        "--survivors",
        "true",
        "--trainer.accelerator",
        "cpu",
        "--audit",
        "false",
    ]
    found = kill_and_resume(command, tmp_path / "runs", kills=20)
    assert found["same"]
    assert found["entries"] == 18
    # It was stopped on the way, and not only before or after its work.
    assert found["kills"] >= 5
    assert found["found"] > 0
