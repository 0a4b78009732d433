"""Whether another order of the classes explains a low accuracy: confusions with known answers."""

from pathlib import Path

import pytest
import torch

import robusttrain
from robusttrain.attacks import Linf
from robusttrain.evaluation.class_doubts import doubts_of, lines_about, one_answer
from robusttrain.evaluation.class_order import OtherOrder, best_assignment, confusion

NAMES = [str(number) for number in range(12)]
LABELS = torch.arange(12).repeat_interleave(10)


def test_confusion_counts_rows_by_class_and_columns_by_answer():
    answers, labels = torch.tensor([1, 1, 0, -1]), torch.tensor([0, 0, 0, 1])
    assert confusion(answers, labels, 2).tolist() == [[1, 2], [0, 0]]


def test_the_best_assignment_is_one_to_one():
    # Row by row, the largest column would be 0 for both.
    assert best_assignment(torch.tensor([[5, 4], [6, 0]])).tolist() == [1, 0]


def test_classes_without_images_stay_where_they_are():
    matrix = torch.zeros(5, 5, dtype=torch.int64)
    matrix[1, 2] = matrix[2, 1] = 3
    assert best_assignment(matrix).tolist() == [0, 2, 1, 3, 4]


def test_folders_sorted_as_text_are_recognised():
    """A model trained by torchvision's order answers with the place of the name among the texts."""
    as_text = torch.tensor([sorted(NAMES).index(name) for name in NAMES])
    answers = as_text[LABELS]
    answers[::20] = 0  # and is wrong now and then
    other = OtherOrder.of(answers, LABELS, NAMES)
    assert other.accuracy == pytest.approx((answers == LABELS).double().mean().item())
    assert other.accuracy < 0.3
    assert (
        other.best
        == other.held_out
        == pytest.approx((as_text[LABELS] == answers).double().mean().item())
    )
    assert other.best > 0.9
    assert other.order == sorted(NAMES)
    assert other.explains
    assert other.as_text


def test_another_order_that_is_not_the_texts():
    turned = (LABELS + 5) % 12
    other = OtherOrder.of(turned, LABELS, NAMES)
    assert other.explains
    assert not other.as_text
    assert [other.order.index(name) for name in NAMES] == [(n + 5) % 12 for n in range(12)]


@pytest.mark.parametrize(("count", "classes"), [(120, 12), (60, 1000), (24, 12)])
def test_luck_explains_nothing(count, classes):
    """The best assignment of random answers looks good where images are few; it does not hold for
    others.
    """
    for seed in range(20):
        rng = torch.Generator().manual_seed(seed)
        labels = torch.randint(classes, (count,), generator=rng)
        answers = torch.randint(classes, (count,), generator=rng)
        other = OtherOrder.of(answers, labels, [str(number) for number in range(classes)])
        assert not other.explains
    assert other.best > 2 * other.held_out


@pytest.mark.parametrize("sizes", [(80, 20), (60, 10, 10, 10, 10)])
def test_one_answer_to_everything_is_explained_by_no_order(sizes):
    """In some order it is that of the largest class."""
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    other = OtherOrder.of(torch.full_like(labels, 1), labels, NAMES[: len(sizes)])
    assert other.best == other.held_out == max(sizes) / 100
    assert not other.explains


def test_no_answer_is_right_under_no_order():
    other = OtherOrder.of(torch.full((120,), -1), LABELS, NAMES)
    assert (other.accuracy, other.best, other.held_out, other.explains) == (0, 0, 0, False)


@pytest.mark.parametrize(("each", "explains"), [(2, False), (10, True)])
def test_few_images_that_another_order_answers_rightly_decide_nothing(each, explains):
    """The same answers are "no other order explains it" of neither; of more images they do."""
    labels = torch.arange(3).repeat_interleave(each)
    other = OtherOrder.of((labels + 1) % 3, labels, NAMES[:3])
    assert (other.best, other.held_out) == (1, 1)
    assert (other.explains, other.undecided) == (explains, not explains)
    clean = {"accuracy": 0.0, "ci95": [0.0, 0.4]}
    said = " ".join(lines_about(clean, other, 3, Path("my results")))
    assert ("--data.classes 'my results/classes.json' takes it" in said) is explains
    assert "no other order" not in said
    assert ("another order of the classes may explain it: with 2, 0, 1" in said) is not explains
    said = " ".join(lines_about(clean, other, 3, Path("gone"), given=True))
    assert "--data.classes" not in said
    assert ("Renumber the labels, or the model's answers" in said) is explains


def test_an_order_that_explains_much_by_chance_is_not_said_to_explain_nothing():
    """With one class in most images the best order has that many right."""
    labels = torch.arange(2).repeat_interleave(torch.tensor([80, 20]))
    other = OtherOrder.of(torch.ones_like(labels), labels, NAMES[:2])
    said = " ".join(lines_about({"accuracy": 0.2, "ci95": [0.1, 0.3]}, other, 2, Path()))
    assert "no better than chance" in said
    assert "no other order" not in said


@pytest.mark.parametrize("count", [8, 24, 120])
def test_random_answers_of_many_images_leave_nothing_undecided(count):
    """With two classes, half of the images are right by chance."""
    labels = torch.arange(count) % 2
    other = OtherOrder.of(torch.arange(count) // 2 % 2, labels, NAMES[:2])
    assert not other.explains
    assert not other.undecided


def test_a_model_that_always_gives_one_answer_is_told_where_most_images_are_of_one_class(
    images, capsys
):
    """Nine of ten images are of one class: 90 % under any attack is no robustness."""
    labels = (torch.arange(40) % 10 == 0).long()

    class Constant(torch.nn.Module):
        def forward(self, given):
            return torch.tensor([2.0, -1.0]) + 0 * given.flatten(1).sum(1, keepdim=True)

    threat = Linf(0.1)
    found = robusttrain.evaluate(
        Constant(), images(40), labels, attacks="fgsm", threat=threat, audit=False
    )
    assert "always answers '0' is right on 90.0 % of these images" in capsys.readouterr().err
    assert found.json["one_answer"] == {"class": "0", "accuracy": 0.9}
    assert "is right on 90.0 % of these images, attacked or not" in " ".join(doubts_of(found.json))


def test_a_model_that_is_right_more_often_than_any_one_answer_is_not_told():
    labels = torch.arange(2).repeat_interleave(torch.tensor([80, 20]))
    assert one_answer({"accuracy": 0.81}, labels, NAMES[:2]) is None
    assert one_answer({"accuracy": 0.8}, labels, NAMES[:2]) == {"class": "0", "accuracy": 0.8}
    # Of the classes of which each has its share, a weak model may be right as seldom.
    assert one_answer({"accuracy": 0.3}, torch.arange(10) // 3, NAMES[:4]) is None


def test_two_classes_are_guessed_as_often_as_not():
    """More than half right is no more than chance of few images."""
    clean = {"accuracy": 0.55, "ci95": [0.45, 0.65]}
    content = {"clean": clean, "classes": ["a", "b"]}
    assert "55.0 %, which chance explains with so few images" in doubts_of(content)[0]
    assert not doubts_of({**content, "clean": {"accuracy": 0.65, "ci95": [0.55, 0.73]}})
