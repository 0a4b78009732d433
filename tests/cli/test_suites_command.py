"""Suites with conditions, and attacks made of attacks, through evaluate.py."""

import json

import pytest

pytestmark = pytest.mark.filterwarnings("ignore")

SMALL = [
    *("--attack.autoattack.attacks.0.steps", 3, "--attack.autoattack.attacks.1.steps", 2),
    *("--attack.autoattack.attacks.2.steps", 2, "--attack.autoattack.attacks.3.queries", 30),
]


@pytest.fixture
def evaluate(command, trained, tmp_path):
    """Evaluates the trained checkpoint, or its f_b alone with ``bare``, on some images."""

    def run(*arguments, bare=False):
        f_b = next(trained.folder.rglob("f_b/*.safetensors"))
        target = (
            ["--model", "vgg_small", "--model.width", 16, "--weights", f_b, "--defense", "none"]
            if bare
            else []
        )
        target = target or ["--checkpoint", trained.best, "--draws", 2]
        output = [
            "--output",
            tmp_path / "out",
            "--trainer.accelerator",
            "cpu",
            "--checkpoints",
            tmp_path,
        ]
        done = command("evaluate.py", *target, *arguments, *output)
        if done.code == 0:
            done.found = json.loads((tmp_path / "out" / "results.json").read_text())
        return done

    return run


@pytest.fixture
def mixed(tmp_path):
    path = tmp_path / "mixed.yaml"
    path.write_text(
        "attacks:\n"
        "  - {attack: pgd, when: {differentiable: true}}\n"
        "  - {attack: bpda-i, when: {differentiable: false}}\n"
        "  - {attack: wt, when: {defended: true}}\n"
        "images: 6\n"
    )
    return path


def test_what_is_left_out_is_said_and_recorded(evaluate, mixed, tmp_path):
    steps = ["--attack.steps", 1]
    defended = evaluate("--suite", mixed, *steps)
    assert defended.code == 0, defended.err
    assert "left out: pgd, because the target's defense has no useful gradient" in defended.err
    assert list(defended.found["attacks"]) == ["bpda-i", "wt"]
    assert defended.found["left_out"] == {"pgd": "the target's defense has no useful gradient"}
    assert defended.found["images"] == 6

    bare = evaluate("--suite", mixed, *steps, "--images", 4, bare=True)
    assert list(bare.found["attacks"]) == ["pgd"]
    assert set(bare.found["left_out"]) == {"bpda-i", "wt"}
    assert bare.found["images"] == 4

    asked = evaluate("--suite", mixed, "--attack", "pgd", *steps)
    assert list(asked.found["attacks"]) == ["pgd", "bpda-i", "wt"]
    assert asked.found["left_out"] == {}
    assert "left out" not in asked.err

    (tmp_path / "config.yaml").write_text(f"suite: {mixed}\n")
    in_file = evaluate("--config", tmp_path / "config.yaml", *steps)
    assert in_file.found["left_out"] == defended.found["left_out"]
    assert in_file.found["images"] == 6


def test_a_suite_of_which_nothing_applies_is_one_line(evaluate, tmp_path):
    (tmp_path / "none.yaml").write_text("attacks: [{attack: wt, when: {defended: true}}]\n")
    done = evaluate("--suite", tmp_path / "none.yaml", "--images", 4, bare=True)
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert "no attack applies, because the target has no defense" in done.err


def test_the_quick_suite(evaluate):
    done = evaluate("--suite", "quick", "--images", 8, "--attack.steps", 2)
    assert done.code == 0, done.err
    assert list(done.found["attacks"]) == ["wt", "bpda-i-quick", "bpda-i-momentum"]
    assert (done.found["survivors"], done.found["images"]) == (True, 8)
    assert set(done.found["left_out"]) == {"pgd-quick", "apgd-ce", "eot"}


def test_autoattack_is_one_attack(evaluate):
    """As weak as its budget here, but all four run; with another source, all around g."""
    done = evaluate("--attack", "autoattack", *SMALL, "--images", 12, "--epsilon", 0.03, bare=True)
    assert done.code == 0, done.err
    row = done.found["attacks"]["autoattack"]
    assert row["robust_accuracy"] < done.found["clean"]["accuracy"]
    assert 4 < row["gradient_evaluations_per_image"] < 4 + 9 * 3 + 9 * 2
    assert row["largest_perturbation"] == pytest.approx(0.03, abs=1e-6)
    assert done.found["left_out"] == {}
    around = [
        "--attack.source.class_path",
        "robusttrain.attacks.IdentityBackward",
        "--attack.votes",
        2,
    ]
    done = evaluate("--attack", "autoattack", *SMALL, *around, "--images", 2)
    assert done.code == 0, done.err


def test_minimal_norm_tells_distances(evaluate):
    small = [
        "--attack.attack.steps",
        3,
        "--attack.steps",
        3,
        "--images",
        6,
        "--save_verdicts",
        "true",
    ]
    done = evaluate("--attack", "minimal-norm", *small, bare=True)
    assert done.code == 0, done.err
    assert 0 < done.found["attacks"]["minimal-norm"]["largest_perturbation"] < 1


def test_an_override_that_no_member_takes_is_one_line(evaluate):
    done = evaluate("--attack", "autoattack", "--attack.steps", 3, bare=True)
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert "--attack autoattack: Option 'steps' is not accepted" in done.err
