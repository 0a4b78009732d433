"""What tells two targets apart whose weights and code are the same: what they answer."""

import json
import random

import pytest
import torch
from torch import nn

import robusttrain
from robusttrain.defenses import GaussianNoise
from robusttrain.evaluation.answers import answers_of, as_noted
from robusttrain.models.defended import DefendedClassifier

CONSTANTS = {"shift": 0.0}


class Shifted(nn.Module):
    """Reads what neither its weights nor its text hold."""

    def forward(self, images):
        rows = images.flatten(1) - CONSTANTS["shift"]
        return torch.stack([rows.mean(1), rows.amax(1), rows[:, 0]], 1)


@pytest.fixture
def shift():
    yield lambda by: CONSTANTS.update(shift=by)
    CONSTANTS.update(shift=0.0)


def images(count=5):
    torch.manual_seed(0)
    return torch.rand(count, 1, 4, 4)


def noted(folder, answers):
    folder.mkdir(exist_ok=True)
    (folder / "fingerprint.json").write_text(json.dumps({"target": {"answers": answers}}))


def test_answers_are_the_same_numbers_for_the_same_target_alone(shift):
    target = DefendedClassifier.of(Shifted())
    first = answers_of(target, images())
    assert len(first) == 4
    assert all(len(row) == 4 for row in first)
    assert answers_of(target, images()) == first
    assert answers_of(target, images(1)) == first  # the data's own images do not matter
    noise = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    logits = Shifted()(noise)[0]
    assert first[0][:3] == pytest.approx(
        [float(each) for each in (logits.min(), logits.max(), logits.mean())], rel=1e-5
    )
    shift(0.3)
    assert answers_of(target, images()) != first


def test_who_draws_by_the_streams_answers_the_same_and_others_are_not_asked():
    class Own(nn.Module):
        def forward(self, images):
            return Shifted()(images + random.SystemRandom().random())

    class Stumbling(nn.Module):
        def forward(self, images):
            raise ValueError("takes no noise")

    drawn = DefendedClassifier(GaussianNoise(0.1), Shifted())
    assert answers_of(drawn, images()) == answers_of(drawn, images())
    assert answers_of(DefendedClassifier.of(Own()), images()) is None
    assert answers_of(DefendedClassifier.of(Stumbling()), images()) is None


def test_rounding_is_no_other_target(tmp_path):
    target = DefendedClassifier.of(Shifted())
    answers = answers_of(target, images())
    assert as_noted(answers, target, tmp_path) == answers  # nothing lies there
    near = [[value + 1e-6 for value in row] for row in answers]
    far = [[value + 1e-2 for value in row] for row in answers]
    for there, taken in (
        (near, near),  # as it stands in the fingerprint, to the last digit
        (near[:3], answers),
        (far, answers),
        (None, answers),
        ([], answers),
        ([["a"] * 4], answers),
        ([[1, 2]], answers),
    ):
        noted(tmp_path, there)
        assert as_noted(answers, target, tmp_path) == taken
    half = DefendedClassifier.of(Shifted().to(torch.bfloat16))
    half.classifier.weight = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    noted(tmp_path, far)
    assert as_noted(answers, half, tmp_path) == far  # its own rounding is as large


@pytest.mark.parametrize("by", [0.25, -0.4])
def test_figures_of_another_constant_are_not_taken_for_this_ones(tmp_path, shift, by):
    """A finished run in the folder answers for the model that it asked, and no other."""
    labels = Shifted()(images(8)).argmax(1)

    class Threshold(Shifted):
        def forward(self, images):
            logits = super().forward(images)
            return torch.cat([logits, logits.mean(1, keepdim=True) * 0 + 0.9], 1)

    def clean(output):
        options = {"attacks": "fgsm", "audit": False, "progress": False, "draws": 1}
        return robusttrain.evaluate(Threshold(), images(8), labels, output=output, **options).clean

    first = clean(tmp_path / "run").accuracy
    assert clean(tmp_path / "run").accuracy == first
    shift(by)
    fresh = clean(None).accuracy
    assert clean(tmp_path / "run").accuracy == fresh
    assert fresh != first
