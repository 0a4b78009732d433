"""Verdicts of a second attacker lie in the folder as long as they are of its results."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from small_evaluations import Noisy, classifier, run_small

from robusttrain.defenses import GaussianNoise, Vote
from robusttrain.evaluation.beside import added, sentence
from robusttrain.reporting.report import write_report
from robusttrain.reporting.runs import _added, read_run

SECOND = "known_draw-verdicts.safetensors"


def test_verdicts_of_an_earlier_run_go(tmp_path):
    model = Noisy(classifier())
    run_small(tmp_path, attacks=("pgd-quick",), model=model, known_draw=True)
    assert (tmp_path / SECOND).is_file()
    content = json.loads((tmp_path / "results.json").read_text())
    # What this attacker knows stands beside the figure.
    row = content["known_draw"]["attacks"]["pgd-quick"]
    assert row["knows"] == "classifier, the draw that scores"
    assert content["attacks"]["pgd-quick"]["knows"] == "classifier"
    run_small(tmp_path, attacks=("pgd-quick",), model=model, fresh=True)
    assert not (tmp_path / SECOND).exists()
    assert (tmp_path / "verdicts.safetensors").is_file()


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """An evaluation behind noise, beside one of the classifier alone and one with the draw."""
    folder, both = tmp_path_factory.mktemp("noisy"), {"known_draw": True, "bare_classifier": True}
    attacks = ("pgd-quick", "fgsm")
    return run_small(folder, attacks, defense=GaussianNoise(0.1), epsilon=0.1, **both)


@pytest.fixture(scope="module")
def curved(tmp_path_factory):
    """A vote over noise, certified, with both curves."""
    folder = tmp_path_factory.mktemp("curved")
    return run_small(
        *(folder, ("pgd-l2",), [("pgd-l2.steps", "2")]),
        **{"defense": Vote(GaussianNoise(0.1), 3, "majority"), "epsilon": 0.3, "images": 20},
        **{"curve": [0.0, 0.1], "curve_effort": [0.5], "certify": True, "certify_draws": 40},
    )


@pytest.mark.parametrize(
    ("keys", "gone"),
    [
        (("curves", "epsilon", 1, "robust_accuracy"), "the curve over epsilon"),
        (("curves", "epsilon", 0, "ci95", 1), "the curve over epsilon"),
        (("curves", "epsilon", 1, "epsilon"), "the curve over epsilon"),
        (("curves", "epsilon", 0, "epsilon"), "the curve over epsilon"),
        (("curves", "epsilon", 1, "gradient_evaluations"), "the curve over epsilon"),
        (("curves", "effort", 1, "queries"), "the curve over effort"),
        (("curves", "effort", 0, "robust_accuracy"), "the curve over effort"),
        (("certificates", "points", 1, "certified", "accuracy"), "certificates"),
        (("certificates", "points", 1, "attacked", "accuracy"), "certificates"),
        (("certificates", "points", 1, "radius"), "certificates"),
        (("certificates", "radius", 0), "certificates"),
    ],
)
def test_curves_and_certificates_are_those_of_their_verdicts(curved, tmp_path, keys, gone):
    whole = read_run(curved)
    assert whole.missing == ()
    assert {*whole.json["curves"]} == {"epsilon", "effort"}
    assert whole.json["certificates"]["points"][1]["certified"]["accuracy"] > 0.5
    run = changed(curved, tmp_path / "copy", *keys, by=0.2)
    assert [line.partition(" in ")[0] for line in run.missing] == [gone]
    left = {*run.json["curves"], *(["certificates"] if run.json["certificates"] else [])}
    assert {"epsilon", "effort", "certificates"} - left == {gone.rpartition(" ")[2]}
    write_report(tmp_path / "copy")
    page = (tmp_path / "copy" / "report.html").read_text()
    assert f"{gone} in results.json is not what the verdicts give" in page
    assert ("Certified accuracy" in page) == (gone != "certificates")
    assert ("Accuracy over the size of the change" in page) == (gone != "the curve over epsilon")


def test_certificates_and_curves_that_are_gone_or_damaged(curved, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(curved, copy)
    for name in ("certificates", "curve_epsilon-verdicts"):
        (copy / f"{name}.safetensors").write_bytes(b"no tensors")
    run = read_run(copy)  # as where nothing was kept
    assert len(run.missing) == 2
    assert run.json["curves"] == read_run(curved).json["curves"]
    shutil.copy(curved / "verdicts.safetensors", copy / "certificates.safetensors")
    assert any("holds no certificates" in line for line in read_run(copy).missing)


def changed(folder, copy, *keys, by=0.01):
    """A copy of the folder in which a figure of results.json is another."""
    shutil.copytree(folder, copy)
    content = json.loads((copy / "results.json").read_text())
    place = content
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = place[keys[-1]] + by
    (copy / "results.json").write_text(json.dumps(content))
    return read_run(copy)


@pytest.mark.parametrize(
    ("keys", "gone"),
    [
        (("bare_classifier", "clean", "accuracy"), ["bare_classifier"]),
        (("bare_classifier", "worst_case", "robust_accuracy"), ["bare_classifier"]),
        (("bare_classifier", "added", "worst_case", "difference"), ["bare_classifier"]),
        (("bare_classifier", "added", "clean", "ci95", 0), ["bare_classifier"]),
        (("bare_classifier", "attacks", "fgsm", "robust_accuracy"), ["bare_classifier"]),
        (("bare_classifier", "attacks", "fgsm", "ci95", 0), ["bare_classifier"]),
        (
            ("bare_classifier", "attacks", "pgd-quick", "gradient_evaluations_per_image"),
            ["bare_classifier"],
        ),
        (
            ("bare_classifier", "transferred", "worst_case", "robust_accuracy"),
            ["bare_classifier"],
        ),
        (("bare_classifier", "transferred", "images"), ["bare_classifier"]),
        (("bare_classifier", "transferred", "added", "difference"), ["bare_classifier"]),
        (("known_draw", "worst_case", "ci95", 1), ["known_draw"]),
        (("known_draw", "attacks", "pgd-quick", "success_rate"), ["known_draw"]),
        (("randomness", "tries", "worst_case", "robust_accuracy"), ["randomness"]),
        (("randomness", "known", "clean", "accuracy"), ["randomness"]),
    ],
)
def test_figures_beside_are_those_of_their_verdicts(noisy, tmp_path, keys, gone):
    whole = read_run(noisy)
    assert whole.missing == ()
    assert whole.json["bare_classifier"]["added"]["worst_case"]["difference"] != 0
    run = changed(noisy, tmp_path / "copy", *keys)
    assert [line.partition(" ")[0] for line in run.missing] == gone
    assert all(run.json[name] is None for name in gone)
    assert run.json["worst_case"] == whole.json["worst_case"]
    if gone == ["known_draw"]:
        assert "known" not in run.json["randomness"]
    write_report(tmp_path / "copy")
    page = (tmp_path / "copy" / "report.html").read_text()
    assert f"{gone[0]} in results.json is not what the verdicts give" in page
    assert ("Against its own base model" in page) == (gone != ["bare_classifier"])


def test_verdicts_beside_of_another_evaluation_are_told(noisy, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(noisy, copy)
    shutil.copy(noisy / "verdicts.safetensors", copy / "bare_classifier-verdicts.safetensors")
    assert [line.partition(" ")[0] for line in read_run(copy).missing] == ["bare_classifier"]
    (copy / "bare_classifier-verdicts.safetensors").write_bytes(b"no tensors")
    (line,) = read_run(copy).missing
    assert "bare_classifier-verdicts.safetensors" in line


class Fell:
    """Records of eight images, of which the first ones are wrong."""

    attacks = ()

    def __init__(self, wrong):
        self.worst = torch.tensor([0.0] * wrong + [1.0] * (8 - wrong))

    def __len__(self):
        return 8

    def of(self, name):
        return SimpleNamespace(right=self.worst)

    def under(self, names):
        return self


def test_intervals_of_earlier_versions_are_taken():
    """Where four of eight images fell they left 0 out, though p is 0.125."""
    bare, defended = Fell(0), Fell(4)
    ends = []
    for agreeing in (True, False):
        stated = added(bare, defended, False, agreeing)
        ends.append(stated["clean"]["ci95"][1])
        content = {"random": False, "bare_classifier": {"random": False, "added": stated}}
        assert not _added(bare, content, defended)
        stated["clean"]["ci95"][1] -= 0.01
        assert _added(bare, content, defended), "what was changed is told"
    assert ends[0] == 0 > ends[1]
    # The sentence of the report has that interval, and no "-0.0".
    words = {"robust_accuracy": 0.5, "ci95": [0.2, 0.8]}
    row = added(bare, defended, False)
    said = sentence({"bare_classifier": {"worst_case": words, "added": row}, "worst_case": words})
    assert "adds -50.0 points (-76.1 to 0.0)" in said
