"""What commands leave in a file: sentences, no advice of Lightning's, no bar."""

import re
import shlex

import pytest

from robusttrain.commands.train import outcome
from robusttrain.config.training import read_plan
from robusttrain.running.training import train

#: Words of Lightning's advice, and of Python's own way to show a warning.
ADVICE = re.compile(r"num_workers|many workers|logging interval|not empty|Warning|lightning|Tip:")


@pytest.fixture(scope="module")
def gone_on(run_script, run_forked, tmp_path_factory):
    """A run of two epochs, and the same again with a third: its folder is there by then.

    What importing says is in the first one's output alone.
    """
    folder = tmp_path_factory.mktemp("in files")
    options = [
        *("--config", "tests/conf/trades.yaml", "--name", "one run"),
        *("--checkpoints", folder / "checkpoints", "--logs", folder / "logs"),
        *("--training.schedule", "constant", "--trainer.limit_train_batches", 1),
        *("--trainer.enable_progress_bar", "true", "--early_stopping", 0),
    ]
    first = run_script("train.py", *options, "--trainer.max_epochs", 2)
    second = run_forked("train.py", *options, "--trainer.max_epochs", 3, "--ckpt_path", "last")
    assert (first.code, second.code) == (0, 0), first.err + second.err
    return folder, first, second


def test_no_advice_no_bar(gone_on):
    _, first, second = gone_on
    for done in (first, second):
        assert not ADVICE.search(done.out + done.err), done.err
        assert "\r" not in done.err
        assert "\x1b" not in done.err


def test_the_end_is_a_sentence_and_commands_to_type(gone_on, run_forked, tmp_path):
    folder, first, second = gone_on
    sentence = (
        r"done: after {} epochs, \d+\.\d% of the validation images are right, and \d+\.\d% of"
        r" those that were attacked stay right under the worst attack\."
    )
    for done, epochs in ((first, 2), (second, 3)):
        end, kept, look = done.err.splitlines()[-3:]
        assert re.fullmatch(sentence.format(epochs), end), end
        best = f"'{folder}/checkpoints/one run/version_0'/best.ckpt"
        assert kept.endswith(
            f"best.ckpt and last.ckpt; attack with python evaluate.py --checkpoint {best}"
        )
        assert look == f"curves and pictures: tensorboard --logdir '{folder}/logs'"
    words = shlex.split(kept.partition("attack with python ")[2])
    attacked = run_forked(*words, "--attack", "fgsm", "--images", 4, "--output", tmp_path)
    assert attacked.code == 0, attacked.err
    assert not ADVICE.search(attacked.out + attacked.err), attacked.err


def test_the_sentence_says_what_was_measured_and_no_more():
    assert outcome({}, 1).startswith("done: after 1 epoch the model is trained; no validation")
    assert outcome({"val/accuracy": 0.5}, 2) == (
        "done: after 2 epochs, 50.0% of the validation images are right."
    )


def test_from_python_nothing_is_printed(tmp_path, capfd, recwarn):
    arguments = [
        *("--config=tests/conf/trades.yaml", "--trainer.max_epochs=1"),
        *("--trainer.limit_train_batches=1", f"--checkpoints={tmp_path}", f"--logs={tmp_path}"),
    ]
    trained = train(read_plan(arguments))
    assert trained.epochs == 1
    assert capfd.readouterr() == ("", "")
    assert [str(each.message) for each in recwarn if ADVICE.search(str(each.message))] == []
