"""Claims: one owner at a time, none that is dead."""

import multiprocessing
import os
import socket
import time

import pytest
from filelock import SoftFileLease

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


def test_another_machines_claim_is_free_once_it_was_not_renewed_for_its_life(tmp_path):
    """Its file is that of a lease whose owner's machine has another name."""
    with Claims(tmp_path, life=0.3).taken("batch"):
        there = (tmp_path / "batch").read_text()
    (tmp_path / "batch").write_text(there.replace(socket.gethostname(), "elsewhere"))
    claims = Claims(tmp_path, life=0.3)
    with claims.taken("batch") as mine:
        assert not mine
    deadline = time.monotonic() + 20
    mine = False
    while not mine and time.monotonic() < deadline:
        time.sleep(0.05)
        with claims.taken("batch") as mine:
            pass
    assert mine


def test_its_owner_renews_it(tmp_path):
    """Somebody who watches it for many times its life does not get it."""
    with Claims(tmp_path, life=0.3).taken("batch"):
        watcher = SoftFileLease(tmp_path / "batch", lease_duration=0.3)
        with pytest.raises(TimeoutError):
            watcher.acquire(timeout=1.5)


def test_a_claim_without_an_owner_is_free_after_a_while(tmp_path):
    """Its process was killed between making the file and writing its name into it."""
    claims, claim = Claims(tmp_path), tmp_path / "batch"
    claim.touch()
    with claims.taken("batch") as got:
        assert not got  # it may be about to write
    past = time.time() - 60
    os.utime(claim, (past, past))
    with claims.taken("batch") as got:
        assert got


def test_a_claim_without_an_owner_is_free_where_the_clock_was_set_back(tmp_path):
    """A run would wait until the clock is where it was."""
    claims, claim, later = Claims(tmp_path), tmp_path / "batch", time.time() + 3600
    claim.touch()
    os.utime(claim, (later, later))
    with claims.taken("batch") as got:
        assert got
