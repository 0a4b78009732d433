"""make demo: its commands work, its picture shows the first images, its sentences follow its
figures.
"""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread

from examples import demo
from robusttrain.config.build import build_defended
from robusttrain.config.checkpoints import recipe_of
from robusttrain.evaluation.scoring import wilson

ROOT = Path(__file__).parents[2]


def results(attacks, clean, worst=None, **other):
    """A results.json of 100 images, as far as the demo reads it."""

    def row(name, share):
        return {name: share, "ci95": wilson(share, 100)}

    return {
        **{"weights": "2359411a", "threat": {"norm": "linf", "epsilon": 0.062}},
        **{"images": 100, "seed": 0, "survivors": False},
        "clean": row("accuracy", clean),
        "attacks": {name: row("robust_accuracy", share) for name, share in attacks.items()},
        "worst_case": row("robust_accuracy", min(attacks.values()) if worst is None else worst),
        **other,
    }


def told(pgd, wt, bpda, eot):
    alone = results({"pgd": pgd}, 0.97)
    return demo.sentences(alone, results({"wt": wt, "bpda-i": bpda, "bpda-eot": eot}, 0.942))


def test_the_usual_order():
    assert told(0.07, 0.535, 0.278, 0.256) == [
        "Without g, f_a is right on 97.0 % of the images, on 7.0 % once PGD has changed them.",
        (
            "With g, it is right on 94.2 %, on 53.5 % after an attack that knows f_a alone (wt): "
            "more than without g, so g looks like a protection."
        ),
        (
            "Attacks that go around g leave 27.8 % (bpda-i) and 25.6 % (bpda-eot), fewer than wt;"
            " the worst case of each image leaves 25.6 %: against these attacks, g is worth 18.6"
            " points, not 46.5."
        ),
    ]


@pytest.mark.parametrize(
    ("figures", "second", "third"),
    [
        # All are within each other's intervals: nothing is claimed.
        (
            (0.50, 0.52, 0.51, 0.49),
            "about as many as without g",
            "about as many as wt; .* worth nothing that",
        ),
        # g helps, and going around it finds no more than the transfer.
        (
            (0.07, 0.53, 0.55, 0.50),
            "looks like a protection",
            r"about as many as wt; .* g is worth 43.0 points\.",
        ),
        # BPDA is the weaker attack.
        (
            (0.07, 0.53, 0.90, 0.80),
            "looks like",
            r"more than wt, so they are not at .* is worth 46.0 points\.",
        ),
        # g looks like a protection and is none, or does harm.
        (
            (0.30, 0.60, 0.31, 0.28),
            "looks like a protection",
            r"fewer than wt; .* worth nothing that .* show\.",
        ),
        (
            (0.50, 0.80, 0.20, 0.10),
            "looks like a protection",
            "fewer than wt; .* g makes f_a weaker",
        ),
        (
            (0.80, 0.50, 0.20, 0.10),
            "fewer than without g, so g makes f_a weaker",
            "g makes f_a weaker",
        ),
        # Everything is broken, or nothing.
        (
            (0.00, 0.00, 0.00, 0.00),
            "about as many as without g",
            "about as many as wt; .* worth nothing",
        ),
        (
            (1.00, 1.00, 1.00, 1.00),
            "about as many as without g",
            "about as many as wt; .* worth nothing",
        ),
    ],
)
def test_sentences_follow_the_figures(figures, second, third):
    found = told(*figures)
    assert re.search(second, found[1])
    assert re.search(third, found[2])


def test_a_worst_case_above_the_strongest_attack_is_explained():
    alone, attacks = results({"pgd": 0.07}, 0.97), {"wt": 0.54, "bpda-i": 0.28, "bpda-eot": 0.26}
    for worst, explained in ((0.27, True), (0.26, False), (0.24, False)):
        third = demo.sentences(alone, results(attacks, 0.94, worst))[2]
        assert (
            f"leaves {100 * worst:.1f}"
            f" %{', as it is chosen on other draws' if explained else ': against'}" in third
        )


def test_evaluations_that_do_not_belong_together_are_refused(tmp_path):
    alone, defended = (
        results({"pgd": 0.1}, 0.9),
        results({"wt": 0.1, "bpda-i": 0.1, "bpda-eot": 0.1}, 0.9),
    )
    with pytest.raises(demo.UserError, match="images is 100 without g, 50 with it"):
        demo.sentences(alone, {**defended, "images": 50})
    for found, why in (
        (alone, "has no attack wt"),
        ({**defended, "survivors": True}, "different images"),
    ):
        (tmp_path / "results.json").write_text(json.dumps(found))
        with pytest.raises(demo.UserError, match=why):
            demo.read(tmp_path, "wt")
    with pytest.raises(SystemExit, match=r"^demo.py: error: .*results.json: there is no such file"):
        demo.main([str(tmp_path)])


@pytest.fixture
def checkpoint(tmp_path):
    """What train.py would leave, of small networks that nobody has trained."""
    digits = {"in_channels": 1, "num_classes": 10}
    network = {
        "class_path": "robusttrain.models.CifarResNet",
        "init_args": {"widths": [4], "blocks": 1, **digits},
    }
    g = {
        "class_path": "robusttrain.defenses.AdversarialTransform",
        "init_args": {"model": network, "steps": 2},
    }
    data = {"class_path": "robusttrain.data.Digits", "init_args": {"image_size": 8}}
    torch.manual_seed(0)
    state = {
        f"model.{name}": value for name, value in build_defended(network, g).state_dict().items()
    }
    path = tmp_path / "last.ckpt"
    torch.save({"robusttrain": recipe_of(network, g, data), "state_dict": state}, path)
    return path


def test_the_commands_of_make_demo(checkpoint, tmp_path, command, capsys):
    """As the Makefile has them, on few images and with short attacks."""
    if shutil.which("make") is None:
        pytest.skip("needs make")
    dry = subprocess.run(
        ["make", "--dry-run", "demo"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    lines = [
        shlex.split(line)[1:]
        for line in dry.stdout.splitlines()
        if re.search(r"python \S+\.py", line)
    ]
    assert [line[0] for line in lines] == [
        "train.py",
        "evaluate.py",
        "evaluate.py",
        "examples/demo.py",
    ]
    assert command(*lines[0], "--print_config").code == 0
    few = [
        "--checkpoint",
        checkpoint,
        "--images",
        5,
        "--draws",
        2,
        "--attack.steps",
        2,
        "--data.batch_size",
        3,
    ]
    for line in lines[1:3]:
        (at,) = (number for number, word in enumerate(line) if word == "--output")
        line[at + 1] = str(tmp_path / line[at + 1])
        done = command(*line, *few)
        assert done.code == 0, done.err
    demo.main([str(tmp_path / lines[3][1])])
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 4
    assert out[0] == f"picture: {tmp_path / 'results/demo/demo.png'}"
    assert [line.partition(",")[0] for line in out[1:3]] == ["Without g", "With g"]
    height, width, _ = imread(tmp_path / "results/demo/demo.png").shape
    assert width > 1.5 * height > 1000  # four rows of nine panels
