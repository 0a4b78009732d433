"""The audit through the real command line."""

import json

import pytest
from safetensors.torch import save_file

from robusttrain.config.evaluation import read_plan
from robusttrain.core.telling import Telling
from robusttrain.models import MLP
from robusttrain.running import evaluating

from .networks import fit, seeded

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A fully connected network on the digits of 8 x 8 pixels."""
    network = fit(seeded(lambda: MLP(num_classes=10, in_channels=1, image_size=8)), 8)
    path = tmp_path_factory.mktemp("mlp") / "weights.safetensors"
    save_file(network.state_dict(), path)
    return path


@pytest.fixture
def evaluate(command, weights, tmp_path):
    """Runs evaluate.py on that network; its results.json is in ``found``."""
    numbers = iter(range(100))

    def run(*arguments, images=64):
        output = tmp_path / str(next(numbers))
        model = ["--model", "mlp", "--weights", weights, "--defense", "none", "--data", "digits"]
        places = [
            "--data.image_size",
            8,
            "--images",
            images,
            "--output",
            output,
            "--trainer.accelerator",
            "cpu",
        ]
        done = command(
            "evaluate.py", *model, *places, "--attack", "pgd", "--epsilon", 0.1, *arguments
        )
        path = output / "results.json"
        done.found = json.loads(path.read_text()) if path.exists() else None
        return done

    return run


def test_a_sound_evaluation(evaluate):
    done = evaluate("--attack.steps", 40, "--strict", "true")
    assert done.code == 0, done.err
    assert done.found["verdict"] == "sound"
    assert {found["severity"] for found in done.found["audit"]} <= {"note", "not run"}
    assert "twice the steps" in {found["check"] for found in done.found["audit"]}
    assert done.found["audit_images"] == 32
    assert "audit: at most " in done.err
    assert "audit on 32 images: sound" in done.err


def test_a_weak_evaluation_is_told_and_strict_ends_with_3(evaluate):
    weak = ["--attack.steps", 2]
    told = evaluate(*weak, "--audit", "true")
    assert told.code == 0, told.err
    assert told.found["verdict"].partition(":")[0] in ("weak", "masked")
    assert "twice the steps" in told.found["verdict"]
    found = next(found for found in told.found["audit"] if found["check"] == "twice the steps")
    assert (found["severity"], found["attack"]) == ("weak", "pgd")
    assert found["remedy"]
    assert told.found["verdict"].split(":")[0] in told.err
    strict = evaluate(*weak, "--strict", "true")
    assert strict.code == 3
    assert strict.found["audit"] == told.found["audit"]  # one seed, one audit


def test_figures_are_handed_out_before_they_are_audited(weights, tmp_path):
    words = "--model mlp --defense none --data digits --data.image_size 8 --images 8 --attack pgd"
    small = "--attack.steps 2 --epsilon 0.1 --audit true --audit_images 8 --trainer.accelerator cpu"
    places = ["--weights", str(weights), "--output", str(tmp_path)]
    heard = []
    figures = {}
    listener = Telling(heard.append, figures=lambda content: figures.update(content))
    content = evaluating.evaluate(read_plan([*f"{words} {small}".split(), *places]), listener)
    assert "verdict" in content
    assert "verdict" not in figures
    assert figures["attacks"]["pgd"] == content["attacks"]["pgd"]
    assert heard[-1] == f"{tmp_path / 'results.json'} holds these figures; their audit goes on"


def test_without_the_audit(evaluate):
    done = evaluate("--attack.steps", 2, "--audit", "false", images=16)
    assert done.code == 0, done.err
    assert done.found["audit"] == []
    assert "verdict" not in done.found
    assert "audit:" not in done.err
    assert "audit on" not in done.err
    refused = evaluate("--audit", "false", "--strict", "true")
    assert refused.code == 2
    assert "--strict true needs the audit: leave out --audit false" in refused.err


def test_a_random_defense_behind_another_size_is_audited_too(evaluate):
    """Resizing makes images larger, so sources, noise and features have other shapes; and the model
    is random.
    """
    arguments = ["--defense", "randomization", "--defense.low", 6, "--defense.canvas", 8]
    done = evaluate(*arguments, "--attack.steps", 3, "--draws", 3, "--audit", "true")
    assert done.code == 0, done.err
    assert done.found["random"]
    named = {found["check"]: found for found in done.found["audit"]}
    assert {"twice the steps", "twice the draws", "fixed randomness"} <= named.keys()
    assert not [found for found in done.found["audit"] if "Error" in found["measured"]]
