"""``evaluate.py --estimate``: what an evaluation would cost, said without running it."""

import re

import pytest

from robusttrain.running import evaluating

pytestmark = pytest.mark.filterwarnings("ignore")
ASK = ("--audit", "true", "--estimate")


@pytest.fixture
def asked(command, tmp_path):
    """Runs evaluate.py on a packaged model, with a folder of its own for all that it may write."""

    def run(*arguments):
        places = ("--output", tmp_path / "o", "--checkpoints", tmp_path / "c")
        model = ("--checkpoint", "digits-adversarial", "--trainer.accelerator", "cpu")
        return command("evaluate.py", *model, *places, *arguments)

    return run


def test_says_what_each_attack_would_cost_and_writes_nothing(asked, tmp_path):
    done = asked("--attack", "pgd", "--attack", "square", "--images", 20, *ASK)
    assert done.code == 0, done.err
    assert re.search(r"^pgd: 20 gradient evaluations per image, 20 images: 400", done.err, re.M)
    assert re.search(r"^square: .* 5000 queries per image, 20 images", done.err, re.M)
    assert re.search(r"^audit: at most [\d,]+ evaluations on \d+ images", done.err, re.M)
    assert re.search(r"^in all: at most about \d+( s|:\d\d:\d\d) here$", done.err, re.M)
    assert "nothing was attacked, trained or written" in done.err
    assert list(tmp_path.iterdir()) == []


def test_what_would_be_trained_first_is_named_and_not_estimated(asked, tmp_path):
    done = asked("--attack", "transfer-standard", "--attack", "pgd", "--images", 8, *ASK)
    assert done.code == 0, done.err
    assert re.search(r"^surrogates: training .* first, \d+ epochs in all", done.err, re.M)
    assert re.search(r"^[\w-]+: not estimated, since .* would be trained first$", done.err, re.M)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("long", "told"), [(0, True), (60, False)])
def test_a_slow_model_is_told_of_before_the_estimate_asks_it(asked, monkeypatch, long, told):
    monkeypatch.setattr(evaluating, "LONG", long)
    done = asked("--attack", "fgsm", "--images", 4, "--estimate")
    assert done.code == 0, done.err
    said = re.search(
        r"^the model took \d+ s to answer one image and two: it is asked", done.err, re.M
    )
    assert (said is not None) is told


def test_what_does_not_fit_is_refused_as_ever(asked, tmp_path):
    done = asked("--attack", "bpda-eot", "--estimate")
    assert done.code == 2
    assert done.err.startswith("evaluate.py: error: ")
    assert list(tmp_path.iterdir()) == []


def test_a_configuration_cannot_ask(asked, tmp_path):
    """Else an evaluation would begin for who thinks that it does not."""
    (tmp_path / "asks.yaml").write_text("estimate: true\n")
    done = asked("--config", tmp_path / "asks.yaml")
    assert (done.code, done.out) == (2, "")
    assert "--config: estimate is asked for on the command line, --estimate" in done.err
