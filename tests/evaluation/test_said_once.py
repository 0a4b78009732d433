"""What an evaluation warns of, it warns of once, wherever Python's own filters stand."""

import warnings
from contextlib import ExitStack

import pytest
import torch

import robusttrain
from robusttrain.core.advice import warn_once, without_advice
from robusttrain.core.errors import UserError


def evaluated(model, folder, count=12):
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(count, 1, 4, 4, generator=generator), torch.arange(count) % 3
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = robusttrain.evaluate(
            model, images, labels, attacks="fgsm", output=folder, audit=False, progress=False
        )
    return result, [str(each.message) for each in caught]


def logits(images):
    return images.flatten(1)[:, :3] * torch.tensor([1.0, 2.0, -1.0])


def test_an_auxiliary_head_is_said_once_in_each_evaluation(tmp_path):
    def model(images):
        return logits(images), 2 * logits(images)

    for folder in ("one", "two"):
        _, said = evaluated(model, tmp_path / folder)
        assert len([line for line in said if "is taken for the logits" in line]) == 1, said


def test_tensors_of_different_widths_are_refused(tmp_path):
    def model(images):
        return torch.cat([logits(images)] * 4, 1), logits(images)

    with pytest.raises(UserError, match=r"any of \(B, 12\), \(B, 3\) may be its logits"):
        evaluated(model, tmp_path)


def test_answers_that_name_no_class_are_said_once_and_count_as_wrong(tmp_path):
    """Where the model abstains, on the darker half, no class is right."""

    def model(images):
        answers = logits(images)
        return answers.where(images.mean((1, 2, 3))[:, None] > 0.5, torch.nan)

    result, said = evaluated(model, tmp_path)
    assert len([line for line in said if "names no class and counts as wrong" in line]) == 1, said
    images = torch.rand(12, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    right = (logits(images).argmax(1) == torch.arange(12) % 3) & (images.mean((1, 2, 3)) > 0.5)
    assert result.json["clean"]["accuracy"] == round(right.double().mean().item(), 6)
    assert result.json["clean"]["accuracy"] < 0.5, "the order of classes was not in doubt"


def test_a_class_beyond_the_labels_counts_as_wrong(tmp_path):
    """A class for "reject", after those of the labels, is never right; attacks may aim at it."""

    def model(images):
        light = images.mean((1, 2, 3))[:, None]
        return torch.cat([logits(images), torch.where(light > 0.5, -9.0, 9.0)], 1)

    result, said = evaluated(model, tmp_path)
    images = torch.rand(12, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    right = (logits(images).argmax(1) == torch.arange(12) % 3) & (images.mean((1, 2, 3)) > 0.5)
    assert result.json["clean"]["accuracy"] == round(right.double().mean().item(), 6)
    assert not [line for line in said if "names no class" in line]


@pytest.mark.parametrize("runs", [0, 1, 2])
def test_outside_of_a_run_each_warning_is_said(runs):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with ExitStack() as stack:
            for _ in range(runs):  # one may be inside of another
                stack.enter_context(without_advice())
            for line in ("one", "one", "other"):
                warn_once(line)
    assert [str(each.message) for each in caught] == ["one", "one", "other"][bool(runs) :]
    assert caught[0].filename == __file__
