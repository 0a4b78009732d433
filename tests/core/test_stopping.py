"""One line says which process of a run is gone, and how to go on."""

import errno
import signal
import subprocess
import sys

import pytest

from robusttrain.commands import entry
from robusttrain.config.trainer import trainer_from
from robusttrain.core.errors import UserError
from robusttrain.core.stopping import Watched, saying_how_to_go_on
from robusttrain.running import evaluating

PEER = "gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:40356"


def ended(code=None, by=None):
    """A process that has exited, or was ended by a signal."""
    waits = "import time; time.sleep(60)" if code is None else f"raise SystemExit({code})"
    process = subprocess.Popen([sys.executable, "-c", waits], stderr=subprocess.DEVNULL)
    if by is not None:
        process.send_signal(by)
    process.wait()
    return process


def test_a_process_that_a_signal_ended_is_told_once():
    lines = []
    process = ended(by=signal.SIGKILL)
    watched = Watched(process, "process 2 of 2", lines.append)
    with saying_how_to_go_on(lines.append, lambda: "the same command goes on"):
        assert watched.poll() == watched.poll() == watched.returncode == -signal.SIGKILL
    assert lines == [
        f"stopped: process 2 of 2 (PID {process.pid}) was ended by SIGKILL, which the system sends"
        " where memory is short, and the others end with it: the same command goes on"
    ]


@pytest.mark.parametrize("how", [{"code": 0}, {"code": 2}, {"by": signal.SIGTERM}])
def test_a_process_that_says_itself_why_it_ended_is_not_told(how):
    lines = []
    watched = Watched(ended(**how), "process 2 of 2", lines.append)
    assert watched.poll() is not None
    assert lines == []


def test_who_waits_for_a_process_that_is_gone_says_so_in_one_line():
    with (
        pytest.raises(UserError, match="cannot go on alone: the same command goes on$"),
        saying_how_to_go_on(pytest.fail, lambda: "the same command goes on"),
    ):
        raise RuntimeError(PEER)
    with pytest.raises(RuntimeError, match="^other$"), saying_how_to_go_on(pytest.fail, str):
        raise RuntimeError("other")


def trains(options, say):
    """The Trainer of a training, as far as it matters here."""
    return trainer_from({**options, "max_epochs": 1}, say, logger=False, enable_checkpointing=False)


@pytest.mark.parametrize("trainer", [trains, evaluating.tester], ids=["train", "evaluate"])
def test_lightning_looks_after_watched_processes(trainer):
    """Its observer asks `poll`, and kills the rest of the run as soon as that says an error."""
    lines, process = [], ended(by=signal.SIGKILL)
    options = {"accelerator": "cpu", "devices": 2, "strategy": "ddp"}
    launcher = trainer(options, lines.append).strategy.launcher
    assert launcher.procs == []
    own = type(launcher)._call_children_scripts
    type(launcher)._call_children_scripts = lambda self: setattr(self, "procs", [process])
    try:
        again = trainer(options, lines.append).strategy.launcher
        again._call_children_scripts()
    finally:
        type(launcher)._call_children_scripts = own
    assert [each.poll() for each in again.procs] == [-signal.SIGKILL]
    assert "process 2 of 2" in lines[0]


@pytest.mark.parametrize(
    "said",
    [
        "DataLoader worker (pid(s) 71) exited unexpectedly",
        "DataLoader worker (pid 71) is killed by signal: Killed. ",
    ],
)
def test_a_process_that_loads_batches_and_is_gone_is_one_line(said):
    """The words of torch 2; the system kills such a process where memory is short."""
    with (
        pytest.raises(UserError, match=r"^--data.workers: .*PID 71\) was ended.*: go on$"),
        saying_how_to_go_on(pytest.fail, lambda: "go on"),
    ):
        raise RuntimeError(said)


@pytest.mark.parametrize(
    ("number", "why"),
    [(errno.ENOSPC, "is full"), (errno.EROFS, "read-only"), (errno.EIO, "input/output")],
)
def test_a_disk_that_takes_no_more_is_one_line_and_says_how_to_go_on(number, why, capsys):
    lines = []

    def command(arguments):
        with saying_how_to_go_on(lines.append, lambda: "the same command goes on"):
            raise OSError(number, "words of the system", "out/results.json")

    with pytest.raises(SystemExit) as left:
        entry.main(command, [], "evaluate.py")
    assert left.value.code == 2
    assert lines == ["stopped: the same command goes on"]
    said = capsys.readouterr().err
    assert said.startswith("evaluate.py: error: out/results.json: the disk ")
    assert why in said
