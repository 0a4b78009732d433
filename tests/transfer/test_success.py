"""What transfers: every figure against one that was counted by hand."""

import pytest
import torch
from torchmetrics.functional.classification import multiclass_accuracy

from robusttrain.core.errors import UserError
from robusttrain.transfer import (
    Denominator,
    answers,
    challenge_score,
    every_model_right,
    matching_matrix,
    right,
    same_mistake,
    success_matrix,
    target_right,
    within_top,
)

# Four images of classes 0, 1, 2, 3; answers of one draw, two likeliest classes each.
LABELS = torch.tensor([0, 1, 2, 3])


def said(*rows):
    return torch.tensor(rows)[:, None]


RIGHT = said([0, 9], [1, 9], [2, 9], [3, 9])
HALF = said([0, 9], [1, 9], [9, 2], [9, 8])  # right on two, second choice on the third
ALL = Denominator("all", {"m": torch.ones(4, dtype=torch.bool)})


def test_a_class_is_within_the_top_or_not():
    assert within_top(HALF, LABELS).tolist() == [1, 1, 0, 0]
    assert within_top(HALF, LABELS, top=2).tolist() == [1, 1, 1, 0]


def test_a_random_target_counts_with_its_mean_over_draws():
    draws = torch.cat([RIGHT, HALF, HALF, HALF], dim=1)
    assert within_top(draws, LABELS).tolist() == [1, 1, 0.25, 0.25]


def test_more_classes_than_were_kept_and_other_images_are_one_line():
    with pytest.raises(UserError, match="top 3: only the 2 likeliest"):
        within_top(HALF, LABELS, top=3)
    with pytest.raises(UserError, match="answers on 4 images, but classes of 3"):
        within_top(HALF, LABELS[:3])


def test_answers_agree_with_torchmetrics_in_batches_of_any_size(images, streams, curved):
    model, x, labels = curved(classes=7, seed=3), images(30), torch.arange(30) % 7
    classes = answers(model, x, streams(30), batch=7)
    assert torch.equal(classes, answers(model, x, streams(30), batch=30))
    assert classes.shape == (30, 1, 5)
    with torch.no_grad():
        logits = model(x)
    for top in (1, 5):
        expected = multiclass_accuracy(
            logits, labels, num_classes=7, average="micro", top_k=top
        ).item()
        assert within_top(classes, labels, top).mean().item() == pytest.approx(expected)
    assert 0 < within_top(classes, labels).mean() < within_top(classes, labels, 5).mean() < 1
    assert answers(model, x[:0], streams(0)).shape == (0, 1, 5)


def test_draws_of_a_random_target_are_those_of_its_streams(images, streams, random_linear):
    model, x = random_linear(scale=1.0), images(6)
    classes = answers(model, x, streams(6), draws=8, top=1, batch=4)
    for draw in (0, 7):
        assert torch.equal(classes[:, draw, 0], model(x, streams(6).fold(draw)).argmax(1))
    assert (classes != classes[:, :1]).any(), "no answer depends on the draw: nothing was tested"


def test_images_that_count():
    clean = {"good": RIGHT, "half": HALF}
    common = every_model_right(clean, LABELS)
    assert (
        common.among["good"].tolist() == common.among["half"].tolist() == [True, True, False, False]
    )
    own = target_right(clean, LABELS)
    assert own.among["good"].tolist() == [True] * 4
    assert own.among["half"].tolist() == [True, True, False, False]
    assert common.words != own.words


def test_right_in_most_draws():
    draws = torch.cat([RIGHT, HALF, HALF], dim=1)
    assert right(draws, LABELS).tolist() == [True, True, False, False]
    assert right(torch.cat([draws, RIGHT, RIGHT], dim=1), LABELS).all()


def test_no_image_that_all_models_have_right_is_one_line():
    with pytest.raises(UserError, match="no image of 4 is classified correctly by all of a, b"):
        every_model_right({"a": RIGHT, "b": said(*[[9, 8]] * 4)}, LABELS)


def test_success_counts_only_images_that_were_right_before():
    clean = {"half": HALF, "never": said(*[[9, 8]] * 4)}
    fooled = {"source": {"half": said([5, 0], [1, 5], [5, 6], [5, 6]), "never": RIGHT}}
    matrix = success_matrix(fooled, LABELS, target_right(clean, LABELS))
    cell = matrix.cells["source"]["half"]
    assert (cell.value, cell.images) == (0.5, 2)  # all four answers would say 3/4
    assert matrix.cells["source"]["never"].text() == "n/a"
    top = success_matrix(fooled, LABELS, target_right(clean, LABELS), top=2)
    assert top.cells["source"]["half"].value == 0.0
    assert "top-2" in top.title
    assert "had right before" in matrix.caption


def test_an_attack_that_changes_nothing_has_no_success_and_a_perfect_one_all():
    of = every_model_right({"m": RIGHT}, LABELS)
    found = success_matrix(
        {"none": {"m": RIGHT}, "perfect": {"m": said(*[[9, 8]] * 4)}}, LABELS, of
    )
    assert found.values().tolist() == [[0.0], [1.0]]


def test_matching_rate():
    goals = torch.tensor([9, 9, 9, 9])
    for top, rate in ((1, 0.5), (2, 1.0)):
        assert (
            matching_matrix({"s": {"m": HALF}}, LABELS, goals, ALL, top).cells["s"]["m"].value
            == rate
        )


def test_a_goal_that_is_the_true_class_is_one_line():
    with pytest.raises(UserError, match="image 2: target label 2 is its true class"):
        matching_matrix({"s": {"m": HALF}}, LABELS, torch.tensor([9, 9, 2, 9]), ALL)


def test_an_answer_that_is_not_finite_is_wrong_and_matches_nothing():
    broken = said(*[[-1, -1]] * 4)
    assert success_matrix({"s": {"m": broken}}, LABELS, ALL).cells["s"]["m"].value == 1.0
    assert (
        matching_matrix({"s": {"m": broken}}, LABELS, LABELS + 1, ALL).cells["s"]["m"].value == 0.0
    )
    assert same_mistake({"a": broken, "b": broken}, LABELS).cells["a"]["b"].value == 0.0


def test_the_same_mistake():
    first = said([5], [6], [7], [3])  # wrong on the first three
    second = said([5], [1], [8], [0])  # wrong on the first, third and fourth
    matrix = same_mistake({"a": first, "b": second}, LABELS)
    cell = matrix.cells["a"]["b"]
    assert (cell.value, cell.images) == (0.5, 2)  # both wrong on images 0 and 2, alike on 0
    assert matrix.cells["b"]["a"] == cell
    assert (matrix.cells["a"]["a"].value, matrix.cells["a"]["a"].images) == (1.0, 3)
    only = same_mistake({"a": first, "b": second}, LABELS, torch.tensor([True, False, False, True]))
    assert (only.cells["a"]["b"].value, only.cells["a"]["b"].images) == (1.0, 1)
    assert same_mistake({"a": RIGHT, "b": first}, LABELS).cells["a"]["b"].text() == "n/a"


def test_the_same_mistake_of_random_models_counts_each_image_once():
    steady = said([5], [6], [2], [3])
    shaky = torch.tensor([[5, 0, 8, 5], [1, 1, 1, 6], [2, 2, 2, 2], [3, 3, 3, 3]])[..., None]
    cell = same_mistake({"a": steady, "b": shaky}, LABELS).cells["a"]["b"]
    assert cell.images == 2
    # Alike in two of three draws, and in one of one
    assert cell.value == pytest.approx((2 / 3 + 1) / 2)
    with pytest.raises(UserError, match="equal numbers of draws"):
        same_mistake({"a": shaky, "b": shaky[:, :3]}, LABELS)


def test_the_challenge_score():
    score = challenge_score({"fgsm": HALF, "pgd": said(*[[9, 8]] * 4), "none": RIGHT}, LABELS)
    assert score.value == pytest.approx((2 + 0 + 4) / 12)
    assert score.images == 4
    with pytest.raises(UserError, match="at least one attack"):
        challenge_score({}, LABELS)
    with pytest.raises(UserError, match="3 images"):
        challenge_score({"fgsm": HALF, "pgd": HALF[:3]}, LABELS)
