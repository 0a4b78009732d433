"""Suites with conditions, and attacks made of attacks, through evaluate.py."""

import json

import pytest
import torch

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
    assert list(done.found["attacks"]) == ["wt", "wt-apgd", "bpda-i-quick", "bpda-i-momentum"]
    assert (done.found["survivors"], done.found["images"]) == (True, 8)
    assert set(done.found["left_out"]) == {"pgd-quick", "apgd-ce", "eot"}


def test_autoattack_is_one_attack(evaluate):
    """As weak as its budget here, but all four run; with another source, all around g."""
    done = evaluate("--attack", "autoattack", *SMALL, "--images", 40, "--epsilon", 0.06, bare=True)
    assert done.code == 0, done.err
    row = done.found["attacks"]["autoattack"]
    assert row["robust_accuracy"] < done.found["clean"]["accuracy"]
    assert 4 < row["gradient_evaluations_per_image"] < 4 + 9 * 3 + 9 * 2
    assert row["largest_perturbation"] == pytest.approx(0.06, abs=1e-6)
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


def test_a_model_that_says_nothing_of_its_draws_is_attacked_as_a_random_one(
    command, tmp_path, monkeypatch
):
    """It is asked before attacks are chosen: those for random targets apply, and its score is a
    mean over draws.
    """
    (tmp_path / "unsaid.py").write_text(
        "import torch\n"
        "class Unsaid(torch.nn.Module):\n"
        "    def __init__(self, num_classes=10):\n"
        "        super().__init__()\n"
        "        self.last = torch.nn.Linear(256, num_classes)\n"
        "    def forward(self, x):\n"
        "        return self.last(torch.nn.functional.dropout(x, 0.3, True).flatten(1))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    last = torch.nn.Linear(256, 10)
    weights = {f"last.{name}": value for name, value in last.state_dict().items()}
    torch.save(weights, tmp_path / "unsaid.pth")
    suite = tmp_path / "draws.yaml"
    suite.write_text(
        "attacks:\n"
        "  - {attack: pgd-quick, when: {random: false}}\n"
        "  - {attack: eot, when: {random: true}}\n"
        "images: 8\n"
    )
    done = command(
        *("evaluate.py", "--model", "unsaid.Unsaid", "--trust", "unsaid", "--data", "digits"),
        *("--weights", tmp_path / "unsaid.pth"),
        *("--suite", suite, "--attack.eot.steps", 1, "--attack.eot.gradient.draws", 2),
        *("--draws", 2, "--epsilon", 0.05, "--output", tmp_path / "out"),
    )
    assert done.code == 0, done.err
    assert "left out: pgd-quick, because the target is random" in done.err
    assert list(json.loads((tmp_path / "out" / "results.json").read_text())["attacks"]) == ["eot"]


@pytest.fixture
def both(tmp_path):
    path = tmp_path / "both.yaml"
    path.write_text(
        "survivors: true\nbare_classifier: true\nknown_draw: true\n"
        "attacks:\n"
        "  - {attack: pgd, when: {differentiable: true}}\n"
        "  - {attack: bpda-i, when: {differentiable: false}}\n"
        "  - {attack: wt, when: {defended: true}}\n"
        "images: 6\n"
    )
    return path


def test_a_suite_weighs_a_defense_against_its_own_classifier(evaluate, both, tmp_path):
    done = evaluate("--suite", both, "--attack.steps", 2, "--audit", "false")
    assert done.code == 0, done.err
    base = done.found["bare_classifier"]
    # What goes around the defense is PGD without it; the suite's own pgd fits the classifier alone.
    assert [*base["attacks"]] == ["bpda-i", "pgd"]
    assert base["left_out"] == {"wt": "without the defense it is bpda-i"}
    assert "difference" in base["added"]["worst_case"]
    assert base["beyond"]["attacks"] == ["pgd"]
    assert "Without the defense pgd can be run as well" in done.err
    assert done.err.index("The defense adds") < done.err.index("none (clean)")
    assert [*done.found["randomness"]] == ["unknown", "tries", "known"]
    assert "besides, the attacker knows the draw that scores" in done.err
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.index("The defense adds") < page.index("the model classifies")
    assert "What the attacker knows of the randomness" in page
    assert page.count("Without the defense pgd can be run as well") == 2
    names = {file.name for file in (tmp_path / "out").glob("*verdicts.safetensors")}
    assert {"bare_classifier-verdicts.safetensors", "known_draw-verdicts.safetensors"} < names


def test_what_broke_the_classifier_alone_is_tried_behind_a_defense(command, tmp_path):
    """The anti-adversary makes what it is given more certain: BPDA follows no gradient there."""
    target = ["--checkpoint", "digits-adversarial", "--defense", "anti-adversary"]
    how = ["--epsilon", 0.15, "--images", 12, "--audit", "false", "--attack.step_size", 0.02]
    out = ["--output", tmp_path / "out", "--trainer.accelerator", "cpu"]
    asked = ["--attack", "bpda-i", "--attack.steps", 10, "--bare_classifier", "true"]
    done = command("evaluate.py", *target, *asked, *how, *out)
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    base, left = found["bare_classifier"], found["worst_case"]["robust_accuracy"]
    handed = base["transferred"]["worst_case"]["robust_accuracy"]
    assert base["worst_case"]["robust_accuracy"] <= handed < left - 0.3
    assert "warning: the attacks on the defended model missed what transfer finds" in done.err
    assert "add --attack wt-apgd --attack wt-apgd-t" in done.err
    page = (tmp_path / "out" / "report.html").read_text()
    assert "The attacks on the defended model missed what transfer finds" in page
    assert "with what broke the classifier alone, handed over" in page
    # In the suites such transfer comes first.
    suite = [*target, "--suite", "test-time-quick", "--attack.square-quick.queries", 5]
    few = [*how[:6], "--attack.steps", 10, "--output", tmp_path / "suite"]
    done = command("evaluate.py", *suite, *few, "--trainer.accelerator", "cpu")
    assert done.code == 0, done.err
    whole = json.loads((tmp_path / "suite" / "results.json").read_text())
    assert [*whole["attacks"]][:2] == ["wt", "wt-apgd"]
    assert whole["worst_case"]["robust_accuracy"] <= handed + 1 / 12


def test_where_nothing_stands_before_the_classifier_nothing_is_compared(evaluate, both):
    done = evaluate("--suite", both, "--attack.steps", 2, "--audit", "false", bare=True)
    assert done.code == 0, done.err
    assert "bare_classifier" not in done.found
    assert done.found["randomness"] is None
    assert "the target has no defense, so it is its own base model" in done.err
    assert "there is no draw to know" in done.err


def test_an_option_for_all_attacks_is_for_those_that_have_it(evaluate, tmp_path):
    """Square has no steps; a word that no attack knows is refused."""
    suite = tmp_path / "two.yaml"
    suite.write_text("attacks: [pgd, square]\n")
    few = ["--attack.square.queries", 10, "--images", 4]
    done = evaluate("--suite", suite, "--attack.steps", 2, *few, bare=True)
    assert done.code == 0, done.err
    assert "--attack.steps: not of square, which stay as they are" in done.err
    assert done.found["attacks"]["pgd"]["gradient_evaluations_per_image"] <= 2
    wrong = evaluate("--suite", suite, "--attack.stepz", 2, *few, bare=True)
    assert wrong.code == 2
    assert "--attack pgd: Option 'stepz' is not accepted; did you mean steps?" in wrong.err
