"""Claims: one owner at a time, none that is dead."""

import json
import multiprocessing
import os
import time

import pytest

from robusttrain.storage import claims as module
from robusttrain.storage.claims import Claims


def test_only_one_has_it_and_afterwards_another(tmp_path):
    first, second = Claims(tmp_path), Claims(tmp_path)
    with (
        first.taken("batch") as mine,
        second.taken("batch") as also,
        second.taken("other") as another,
    ):
        assert (mine, also, another) == (True, False, True)
    with second.taken("batch") as mine:
        assert mine
    assert list(tmp_path.iterdir()) == []


def test_an_error_gives_it_back(tmp_path):
    with pytest.raises(ZeroDivisionError), Claims(tmp_path).taken("batch"):
        raise ZeroDivisionError
    with Claims(tmp_path).taken("batch") as mine:
        assert mine


def _take_and_die(folder):
    with Claims(folder).taken("batch"):
        os._exit(1)


def test_what_a_killed_process_held_is_free_at_once(tmp_path):
    child = multiprocessing.get_context("fork").Process(target=_take_and_die, args=(tmp_path,))
    child.start()
    child.join()
    assert (tmp_path / "batch").exists()
    with Claims(tmp_path).taken("batch") as mine:
        assert mine


def test_a_number_that_another_process_has_now_does_not_keep_it(tmp_path):
    # This very process's number, with the start of one that had it before.
    (tmp_path / "batch").write_text(
        json.dumps({"place": module._place(), "pid": os.getpid(), "start": "1"})
    )
    with Claims(tmp_path).taken("batch") as mine:
        assert mine


@pytest.mark.parametrize(
    "content", [json.dumps({"place": "elsewhere", "pid": 1, "start": "1"}), "", "{"]
)
def test_another_machines_claim_is_free_once_it_was_long_not_touched(tmp_path, content):
    (tmp_path / "batch").write_text(content)
    with Claims(tmp_path, life=60).taken("batch") as mine:
        assert not mine
    long_ago = time.time() - 61
    os.utime(tmp_path / "batch", (long_ago, long_ago))
    with Claims(tmp_path, life=60).taken("batch") as mine:
        assert mine


def test_its_owner_touches_it(tmp_path):
    with Claims(tmp_path, life=0.06).taken("batch"):
        os.utime(tmp_path / "batch", (0, 0))
        deadline = time.monotonic() + 20
        while (tmp_path / "batch").stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (tmp_path / "batch").stat().st_mtime > 0
