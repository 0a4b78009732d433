"""Processes that run the same command on one folder take batches from each other."""

import json
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from benchmarks.forked import imported_once
from benchmarks.kill_and_resume import timeless
from robusttrain.commands import evaluate
from robusttrain.evaluation import choosing
from robusttrain.evaluation.auditing import finish_audit
from robusttrain.evaluation.precision import Speeds
from robusttrain.storage.journal import Journal

pytestmark = pytest.mark.filterwarnings("ignore")
BATCHES = 12


def _measured(asked):
    """A second measurement would find another speed."""

    def measured(*_):
        with asked:
            asked.value += 1
            return Speeds(1.0, 0.5 if asked.value == 1 else 2.0)

    return measured


def _evaluate(arguments, barrier, told, asked):
    torch.set_num_threads(1)
    if asked is not None:
        choosing.measure_speeds_of = _measured(asked)
    put, done = Journal.put, []

    def counted(self, stage, images, labels, indices, entry):
        done.append((stage, int(indices[0])))
        put(self, stage, images, labels, indices, entry)

    Journal.put = counted
    barrier.wait()
    evaluate.run(arguments)
    told.put(done)


@pytest.fixture
def evaluated(trained, tmp_path):
    def run(name, processes, precision="float32", asked=None):
        arguments = [
            "--checkpoint",
            str(trained.best),
            "--images",
            str(2 * BATCHES),
            "--draws",
            "2",
        ]
        arguments += [
            "--data.batch_size",
            "2",
            "--attack",
            "bpda-i-quick",
            "--trainer.accelerator",
            "cpu",
            "--audit",
            "false",
        ]
        arguments += ["--output", str(tmp_path / name), "--precision", precision]
        context = imported_once()
        barrier, told = context.Barrier(processes), context.SimpleQueue()
        started = [
            context.Process(target=_evaluate, args=(arguments, barrier, told, asked))
            for _ in range(processes)
        ]
        for process in started:
            process.start()
        for process in started:
            process.join()
            assert process.exitcode == 0
        done = [told.get() for _ in started]
        return timeless(tmp_path / name / "results.json"), done

    return run


def test_two_find_what_one_finds_and_do_each_batch_once(evaluated):
    alone, (everything,) = evaluated("alone", 1)
    together, parts = evaluated("together", 2)
    assert json.dumps(together) == json.dumps(alone)
    assert all(parts), "one of them did nothing"
    assert Counter(parts[0] + parts[1]) == Counter(everything)
    assert len(everything) == 2 * BATCHES  # clean and attacked


def test_processes_that_start_together_choose_one_precision(evaluated):
    """The second would measure another speed; it takes what the first one found."""
    asked = imported_once().Value("i", 0)
    found, parts = evaluated("together", 2, "auto", asked)
    assert set(found["precision"]["attacks"].values()) == {"bfloat16"}
    assert asked.value == 1
    assert all(parts)


def test_what_another_process_has_audited_is_not_audited_again(tmp_path):
    found = {"verdict": "sound", "audit": []}
    kept = {"asked": None, "run": "this", "found": found}
    (tmp_path / "audit.json").write_text(json.dumps(kept))
    # Neither is asked anything: what would be computed fails.
    audit, evaluation = SimpleNamespace(images=None), SimpleNamespace()
    this = SimpleNamespace(folder=tmp_path, run="this")
    assert finish_audit(audit, evaluation, None, this, print) == found
    other = SimpleNamespace(folder=tmp_path, run="other")
    # Another number of images is another audit, and so is another run.
    for images, journal in ((8, this), (None, other)):
        with pytest.raises(AttributeError):
            finish_audit(SimpleNamespace(images=images), evaluation, None, journal, print)
