"""The same folder again with what changes no verdict of the evaluation itself, but its costs or
what stands beside it: nothing of before is taken for it.
"""

import json

import pytest

pytestmark = pytest.mark.filterwarnings("ignore")
COMMON = ("--images", 8, "--draws", 2, "--epsilon", 0.1, "--audit", "false")


@pytest.fixture
def evaluated(command, tmp_path):
    """The results of an evaluation."""

    def run(output, *arguments):
        line = [*COMMON, "--precision", "float32", "--output", tmp_path / output, *arguments]
        done = command("evaluate.py", *line)
        assert done.code == 0, done.err
        return json.loads((tmp_path / output / "results.json").read_text())

    return run


def timeless(node):
    """Figures without seconds."""
    if isinstance(node, dict):
        return {key: timeless(item) for key, item in node.items() if key != "seconds"}
    return node


def test_another_order_of_attacks(evaluated):
    """Beside an evaluation each attack is handed what those before it left."""
    first, second = ("--attack", "bpda-i"), ("--attack", "bpda-i-momentum")
    more = ("--attack.steps", 2, "--curve", "0.05,0.1")
    more = (*more, "--bare_classifier", "true", "--known_draw", "true")
    g = ("--checkpoint", "digits-g")
    evaluated("same", *g, *first, *second, *more)
    after = evaluated("same", *g, *second, *first, *more)
    fresh = evaluated("fresh", *g, *second, *first, *more)
    assert [*fresh["attacks"]] == ["bpda-i-momentum", "bpda-i"]
    rows = fresh["bare_classifier"]["attacks"]
    assert rows["bpda-i-momentum"]["images"] > rows["bpda-i"]["images"]
    for key in ("bare_classifier", "randomness", "curves", "attacks", "worst_case"):
        assert timeless(after[key]) == timeless(fresh[key]), key


def test_costs_are_those_of_images_that_stay(evaluated):
    pgd = ("--checkpoint", "digits-standard", "--attack", "pgd")
    left = evaluated("same", *pgd)["attacks"]["pgd"]["gradient_evaluations_per_image"]
    stayed = evaluated("same", *pgd, "--leave_early", "false")["attacks"]["pgd"]
    assert left < stayed["gradient_evaluations_per_image"] == 20
