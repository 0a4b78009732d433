"""``--compile`` of both commands: chosen once, written down, repeated, and never in the way."""

import json
import signal

import pytest
import torch

from robusttrain.config.checkpoints import read_recipe
from robusttrain.models import compiling
from robusttrain.storage.journal import Journal

pytestmark = pytest.mark.filterwarnings("ignore")
FEW = ("--images", 24, "--draws", 2, "--trainer.accelerator", "cpu")
NETWORK = ("--model", "mlp", "--model.width", 8)


@pytest.fixture(autouse=True)
def backend(monkeypatch):
    """What compiles, for seconds: torch's backend without code generation."""
    torch._dynamo.reset()
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    yield lambda other: monkeypatch.setattr(compiling, "BACKEND", other)
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def checkpoint(run_here, tmp_path_factory):
    """A random target of two networks so small that tracing them takes no seconds; what larger
    ones are compiled to is checked in tests/models/test_compiling.py.
    """
    folder = tmp_path_factory.mktemp("small")
    done = run_here(
        *("train.py", "--model", "mlp", "--model.width", 32, "--defense", "advtransform"),
        *("--defense.model", "mlp", "--defense.steps", 2, "--defense.radius", 0.1),
        *("--f_b_training", "tests/conf/f_b.yaml", "--trainer.max_epochs", 3),
        *("--trainer.accelerator", "cpu", "--robust.every", 0, "--pictures.images", 0),
        *("--checkpoints", folder / "c", "--logs", folder / "l"),
    )
    assert done.code == 0, done.err
    (last,) = (folder / "c").rglob("last.ckpt")
    return last


@pytest.fixture
def evaluate(command, checkpoint, tmp_path):
    def run(*arguments, output="o"):
        done = command(
            *("evaluate.py", "--checkpoint", checkpoint, "--attack", "bpda-i-quick", *FEW),
            *("--output", tmp_path / output, *arguments),
        )
        path = tmp_path / output / "results.json"
        done.found = json.loads(path.read_text()) if done.code == 0 else None
        done.said = [line for line in done.err.splitlines() if line.startswith("compile: ")]
        return done

    return run


def broken(graph, example):
    raise RuntimeError("no compiler here")


def test_verdicts_do_not_depend_on_it(evaluate, command, tmp_path, backend):
    plain = evaluate(output="plain").found
    done = evaluate("--compile", "on")
    assert done.found["compile"]["asked"] == "on"
    assert done.found["compile"]["mode"] == "default"
    assert len(done.said) == 1
    assert done.said[0].startswith("compile: gradients are compiled: as asked; compiled they take ")
    for name in ("clean", "worst_case"):
        assert done.found[name] == plain[name]
    assert plain["compile"] == {"asked": "off", "mode": "off", "because": "nobody asked for it"}

    again = command("evaluate.py", "--again", tmp_path / "o")
    assert (again.code, again.err.splitlines()[-1]) == (0, "again: the same"), again.err
    repeated = json.loads((tmp_path / "o" / "again" / "results.json").read_text())
    assert repeated["compile"]["mode"] == "default"

    backend(broken)
    torch._dynamo.reset()
    again = command("evaluate.py", "--again", tmp_path / "o")
    assert again.code == 0, again.err
    assert "compile: this run began so, but here compiling fails (" in again.err
    assert "no compiler here), so it goes on without" in again.err


def test_without_a_compiler_it_goes_on_without(evaluate, backend):
    backend(broken)
    done = evaluate("--compile", "on")
    assert done.found["compile"]["mode"] == "off"
    (line,) = done.said
    assert "compile: gradients are not compiled: compiling fails (" in line
    assert "no compiler here" in line
    assert "Traceback" not in done.err


def test_auto_leaves_short_work_alone(evaluate, backend):
    backend(broken)
    (line,) = evaluate("--compile", "auto").said
    assert "and compiling would take longer than it saves" in line


def test_a_run_goes_on_as_it_began(evaluate, monkeypatch):
    put, stops = Journal.put, [True]

    def stopping(self, *entry):
        if stops:
            signal.raise_signal(signal.SIGINT)
        put(self, *entry)

    monkeypatch.setattr(Journal, "put", stopping)
    assert evaluate("--compile", "on").code == 130
    stops.clear()
    refused = evaluate("--compile", "off")
    assert refused.code == 2
    assert "compile: there default, now off" in refused.err
    done = evaluate("--compile", "auto")  # whatever would be chosen by now
    assert done.found["compile"]["mode"] == "default"
    assert done.said == ["compile: gradients are compiled: this run began so"]


@pytest.fixture
def train(command, tmp_path):
    def run(*arguments):
        return command(
            *("train.py", *NETWORK, "--data.batch_size", 64, "--trainer.accelerator", "cpu"),
            *("--checkpoints", tmp_path / "c", "--logs", tmp_path / "l", "--logger", "csv"),
            *("--trainer.limit_train_batches", 2, "--trainer.limit_val_batches", 1),
            *("--trainer.enable_progress_bar", "false", "--pictures.images", 0),
            *("--robust.every", 0, "--training.schedule", "constant", *arguments),
        )

    return run


def test_training(train, tmp_path):
    done = train("--compile", "on", "--trainer.max_epochs", 1)
    assert done.code == 0, done.err
    assert "compile: gradients are compiled: as asked; " in done.err
    (last,) = (tmp_path / "c").rglob("last.ckpt")
    assert read_recipe(last)["run"]["compile"] == "default"
    names = torch.load(last, weights_only=True)["state_dict"]
    assert names
    assert not [name for name in names if "_orig_mod" in name]

    more = ("--ckpt_path", "last", "--trainer.max_epochs", 2)
    done = train("--compile", "auto", *more)
    assert done.code == 0, done.err
    assert "compile: gradients are compiled: this run began so" in done.err
    done = train(*more)
    assert done.code == 2
    assert "that run had run.compile = 'default', this one 'off'" in done.err


def test_training_without_a_compiler(train, backend, tmp_path):
    backend(broken)
    done = train("--compile", "on", "--trainer.max_epochs", 1)
    assert done.code == 0, done.err
    assert "compile: gradients are not compiled: compiling fails (" in done.err
    (last,) = (tmp_path / "c").rglob("last.ckpt")
    assert "compile" not in read_recipe(last)["run"]


@pytest.mark.parametrize("script", ["train.py", "evaluate.py"])
def test_another_value_is_refused(command, script):
    done = command(script, *NETWORK, "--compile", "fast")
    assert done.code == 2
    assert "--compile: " in done.err
    assert "must be one of auto, off, on" in done.err
