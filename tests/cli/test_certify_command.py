"""Training behind noise, and certificates beside attacks, on the command line and from Python."""

import json
import re
from xml.etree import ElementTree

import pytest
import torch

import robusttrain
from robusttrain.attacks import L2
from robusttrain.commands import evaluate as command_of_evaluate
from robusttrain.defenses import GaussianNoise
from robusttrain.evaluation.certificates import finding

pytestmark = pytest.mark.filterwarnings("ignore")
CPU = ("--trainer.accelerator", "cpu")


@pytest.fixture(scope="module")
def noisy(run_here, tmp_path_factory):
    """A checkpoint that was trained with noise augmentation."""
    folder = tmp_path_factory.mktemp("noisy")
    done = run_here(
        *("train.py", "--data", "digits", "--data.image_size", 8, "--model", "mlp"),
        *("--defense", "noise", "--defense.sigma", 0.2, "--trainer.max_epochs", 6, *CPU),
        *("--robust.every", 0, "--pictures.images", 0),
        *("--checkpoints", folder / "c", "--logs", folder / "l"),
    )
    assert done.code == 0, done.err
    (last,) = (folder / "c").rglob("last.ckpt")
    return last


@pytest.fixture
def bare(noisy, tmp_path):
    """The same network without its defense."""
    torch.save(robusttrain.load(noisy).classifier.state_dict(), tmp_path / "w.pth")
    network = ["--model", "mlp", "--weights", tmp_path / "w.pth"]
    return [*network, "--data", "digits", "--data.image_size", 8]


@pytest.fixture
def attacked(command, noisy, tmp_path):
    def run(*arguments, images=12, code=0, output="o"):
        done = command(
            *("evaluate.py", "--checkpoint", noisy, "--attack", "eot-l2", "--attack.steps", 3),
            *(
                "--attack.relative_step_size",
                0.5,
                "--attack.gradient.draws",
                3,
                "--images",
                images,
                "--draws",
                2,
                *CPU,
            ),
            *("--certify", "true", "--output", tmp_path / output, *arguments),
        )
        assert done.code == code, done.err
        return done, tmp_path / output

    return run


def test_certified_accuracy_stands_beside_what_attacks_leave(attacked):
    done, folder = attacked("--certify_draws", 120, "--epsilon", 0.2, "--curve", "0,0.1,1.0")
    found = json.loads((folder / "results.json").read_text())["certificates"]
    assert (found["sigma"], found["draws"], found["choosing"]) == (0.2, 120, 100)
    assert len(found["radius"]) == 12
    assert found["violations"] == []
    assert found["judged"] > 0
    points = {point["radius"]: point for point in found["points"]}
    assert {0.0, 0.05, 0.1, 0.2, 1.0} <= set(points)
    for point in points.values():
        assert point["certified"]["accuracy"] <= point["attacked"]["accuracy"]
    assert points[0.0]["certified"]["accuracy"] > 0.5
    assert points[1.0]["certified"]["accuracy"] == 0  # farther than 120 draws reach
    assert points[1.0]["attacked"]["accuracy"] < points[0.0]["attacked"]["accuracy"]
    assert "certificates: 220 forward passes per image" in done.err
    assert "certificates: accuracy within a Euclidean radius" in done.err
    page = (folder / "report.html").read_text()
    assert "Certified accuracy" in page
    for drawing in (drawings := re.findall(r"<svg.*?</svg>", page, re.DOTALL)):
        ElementTree.fromstring(drawing)
    (both,) = [drawing for drawing in drawings if 'class="line second"' in drawing]
    assert both.count("<circle") == 2 * len(points)

    again = command_results(attacked, "--certify_draws", 60, "--certify_alpha", 0.05)
    assert again["draws"] == 60
    chosen = command_results(attacked, "--certify_draws", 60, "--certify_choosing", 7)
    assert chosen["choosing"] == 7
    assert chosen["largest_radius"] < found["largest_radius"] < again["largest_radius"]


def command_results(attacked, *arguments):
    _, folder = attacked(*arguments, "--epsilon", 0.2)
    return json.loads((folder / "results.json").read_text())["certificates"]


def test_the_smoothing_preset_is_certified_as_its_noise_is(command, attacked, bare, tmp_path):
    """And where images are attacked as a vote, streams of certificates are the same."""
    common = ("--certify_draws", 40, "--epsilon", 0.2)
    _, folder = attacked(*common)
    single = json.loads((folder / "results.json").read_text())
    done = command(
        *("evaluate.py", *bare, "--defense", "smoothing", "--defense.defense.sigma", 0.2),
        *("--defense.draws", 5, "--attack", "pgd-l2", "--attack.steps", 2, "--images", 12),
        *("--draws", 2, *CPU, "--certify", "true", *common, "--output", tmp_path / "v"),
    )
    assert done.code == 0, done.err
    voted = json.loads((tmp_path / "v" / "results.json").read_text())
    assert voted["certificates"]["radius"] == single["certificates"]["radius"]
    assert voted["certificates"]["points"][0]["certified"]["accuracy"] > 0.5


def test_what_cannot_be_certified_is_one_line(command, attacked, bare, tmp_path):
    def refused(*arguments):
        done = command("evaluate.py", *arguments, *CPU, "--output", tmp_path / "o")
        assert done.code == 2
        return done.err.strip().splitlines()[-1]

    plain = [*bare, "--attack", "pgd-l2", "--images", 4]
    certify = ["--certify", "true"]
    assert "--certify true: the target has no defense" in refused(*plain, *certify)
    assert "is behind MedianSmoothing, and a certificate needs Gaussian noise" in refused(
        *plain, *certify, "--defense", "median"
    )
    assert not (tmp_path / "o" / "journal").exists()
    for option, value, why in (
        ("draws", 10, "give at least 11"),
        ("alpha", 1.0, "must lie between 0 and 1"),
        ("choosing", 0, "must be at least 1"),
    ):
        done, _ = attacked(f"--certify_{option}", value, code=2)
        assert f"--certify_{option} = {value}" in done.err
        assert why in done.err


class Misdeclared(GaussianNoise):
    """Says that its noise is ten times as strong as it is."""

    @property
    def certified_sigma(self):
        return 10 * self.sigma


def test_python_certifies_and_a_broken_certificate_is_said_everywhere(patterns, tmp_path):
    model, images, labels = patterns
    found = {}
    for defense in (GaussianNoise(0.1), Misdeclared(0.1)):
        folder = tmp_path / type(defense).__name__
        found[type(defense)] = robusttrain.evaluate(
            *(model, images[:24], labels[:24]),
            attacks="pgd-l2",
            threat=L2(1.0),
            defense=defense,
            draws=2,
            audit=False,
            precision="float32",
            certify=True,
            certify_draws=100,
            output=folder,
            progress=False,
        )
    true, wrong = found.values()
    assert finding(true.json) is None
    broken = finding(wrong.json)
    assert broken.startswith("The certificates are void: of 24 images")
    page = (tmp_path / "Misdeclared" / "report.html").read_text()
    assert page.count("The certificates are void") == 2
    assert "certificates are void" not in (tmp_path / "GaussianNoise" / "report.html").read_text()


def test_a_broken_certificate_is_not_sound_and_what_attacks_missed_is_not(monkeypatch, capsys):
    """With --strict the command's exit code says so."""
    plan = type("Plan", (), {"strict": True, "beside": False, "output": "results", "trainer": {}})()
    void = {"violations": [{"index": 1, "radius": 0.5, "distance": 0.2, "attack": "pgd"}]}
    found = {"certificates": {**void, "alpha": 0.001, "judged": 3, "sigma": 1}, "images": 4}
    monkeypatch.setattr(command_of_evaluate, "read_plan", lambda arguments: plan)
    left = {"robust_accuracy": 0.5, "ci95": [0.2, 0.8]}
    adds = {"difference": 0.0, "ci95": [-0.2, 0.2]}
    missed = {
        **{"verdict": "sound", "images": 8, "worst_case": {**left, "robust_accuracy": 1.0}},
        **{"attacks": {}, "threat": {"norm": "linf", "epsilon": 0.1}},
        "bare_classifier": {"transferred": {"worst_case": left, "added": adds, "images": 4}},
    }
    for content, code in ((found, 3), (missed, 3), ({"verdict": "sound"}, None)):
        monkeypatch.setattr(command_of_evaluate, "evaluate", lambda plan, c=content: c)
        if code is None:
            command_of_evaluate.run([])
            continue
        with pytest.raises(SystemExit) as ended:
            command_of_evaluate.run([])
        assert ended.value.code == code
